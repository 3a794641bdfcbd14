"""The scripted world with one more manner, `hungry`: a shard that takes memory until its process is killed for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.actors import actor_store

GROUP = "HUNGRY_WORLD_GROUP"
"""Names the control group whose memory is limited."""


def install() -> None:
    """The hook that Ray workers run first."""
    actor_store.install()
    module: Any = sys.modules["dsprobe.experiment.shard"]
    module.__getattr__ = _hungry_runner


def _hungry_runner(name: str) -> Any:
    if name != "ShardRunner":
        raise AttributeError(name)
    from tests.actors.actor_world import ScriptedRunner

    class HungryRunner(ScriptedRunner):
        def run(self, shard: Any) -> Iterator[Any]:
            if shard.condition.attack == "hungry":
                (Path(os.environ[GROUP]) / "cgroup.procs").write_text(str(os.getpid()))
                hoard = [bytearray(b"x" * (64 << 20)) for _ in range(64)]
                actor_store.log("ate", len(hoard))
            yield from super().run(shard)

    return HungryRunner
