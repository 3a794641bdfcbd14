"""`dsprobe` as a process that dies for real and starts fast: forked from one that has imported everything.

Importing takes five seconds, a short run three. What runs in the fork is the command itself, from its arguments to its
exit code. A probe counts the trajectories that it generates, as bytes of a file.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import dsprobe.cli.main
from dsprobe.experiment.shard import ShardRunner

if TYPE_CHECKING:
    from dsprobe.experiment.evaluated import EvaluatedBatch
    from dsprobe.experiment.plan import Shard

for name in (
    "pandas",
    "s3fs",
    "transformers.models.qwen3.modeling_qwen3",
    "dsprobe.actors.local",
    "dsprobe.actors.ray_executor",
    "dsprobe.actors.scoring",
    "dsprobe.experiment.manifest",
    "dsprobe.storage.compaction",
    "dsprobe.storage.shard_writer",
):  # so that forks need not
    importlib.import_module(name)


def command(arguments: list[str], environment: dict[str, str], log: Path, generated: Path) -> None:
    """Be `dsprobe ARGUMENTS`: the target of a forked process.

    Args:
        arguments: Command line.
        environment: Variables to set.
        log: Receives both outputs, appended.
        generated: Grows by a byte for each trajectory.
    """
    os.environ.update(environment)
    sink = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    torch.set_num_threads(1)
    _count(os.open(generated, os.O_CREAT | os.O_APPEND | os.O_WRONLY))
    sys.argv = ["dsprobe", *arguments]
    dsprobe.cli.main.main()


def _count(sink: int) -> None:
    original = ShardRunner.run

    def counted(self: ShardRunner, shard: Shard) -> Iterator[EvaluatedBatch]:
        for batch in original(self, shard):
            os.write(sink, b"." * len(batch.trajectories.keys))
            yield batch

    ShardRunner.run = counted  # type: ignore[method-assign]
