"""Two drivers on one run, as two real processes: both finish, nothing is doubled, and the user is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.command_line import dsprobe

from dsprobe.storage.compaction import digest
from dsprobe.storage.query import read_table
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.verifying import verify

CONFIG = """
name: shared
models: [toy-diffusion]
prompts: [{source: toy, limit: 8}]
attacks: [direct, {name: dija, placement: reply, label: "step {i} :", spans: 2, masks_per_span: 6}]
decodings: [{name: uniform, steps: 16, reply_length: 42}]
judges: [toy_oracle]
recording: {wall_seconds: false}
execution: {executor: local, shard_size: 1, batch_size: 1}
"""

SHARDS = 16

DRIVER = """
import sys
import dsprobe.experiment.shard, dsprobe.models.load, dsprobe.storage.compaction, dsprobe.actors.local
from dsprobe.cli.main import main
print("ready", flush=True)
sys.stdin.readline()
sys.argv = ["dsprobe", "run", "shared.yaml", "--no-report", "--out", *sys.argv[1:]]
main()
"""


def _drive(folder: Path, roots: Sequence[str]) -> list[tuple[int, str]]:
    """Run one driver a root, all at the same moment; exit codes and standard error."""
    (folder / "shared.yaml").write_text(CONFIG)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen([sys.executable, "-c", DRIVER, root], cwd=folder, env=environment, text=True, **pipe)
        for root in roots
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=500) for process in processes]
    return [(process.returncode, err) for process, (_, err) in zip(processes, ended, strict=True)]


def _store(folder: Path, root: str) -> RunStore:
    (run,) = (folder / root / "runs").iterdir()
    return RunStore.at(str(run))


def _tables(store: RunStore) -> dict[str, bytes]:
    """Every table file's bytes by name."""
    return {entry.name: store.objects.read(entry.name) for entry in store.objects.entries("tables")
            if entry.name.endswith(".parquet")}  # fmt: skip


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    """A run by two drivers at once below `shared`, and an undisturbed one below `alone`."""
    folder = tmp_path_factory.mktemp("drivers")
    ended = _drive(folder, ["shared", "shared"])
    code, _, err = dsprobe("run", "shared.yaml", "--no-report", "--out", "alone", cwd=folder)
    ended.append((code, err))
    return folder, ended


def test_both_drivers_finish_and_nothing_is_doubled(driven: tuple[Path, list[tuple[int, str]]]) -> None:
    folder, ended = driven
    assert [code for code, _ in ended] == [0, 0, 0], ended
    shared, alone = _store(folder, "shared"), _store(folder, "alone")
    assert shared.committed().keys() == alone.committed().keys()
    keys = Counter(
        (row["condition"], row["prompt_id"], row["sample"]) for row in read_table(shared, "trajectories").to_pylist()
    )
    assert len(keys) == SHARDS
    assert set(keys.values()) == {1}
    assert digest(shared) == digest(alone)
    assert _tables(shared) == _tables(alone)
    assert not verify(shared).damage
    assert [entry.name for entry in shared.objects.entries("") if entry.name.endswith(".tmp")] == []


def test_the_drivers_share_the_work_and_say_so(driven: tuple[Path, list[tuple[int, str]]]) -> None:
    """Every shard is some driver's, what was generated twice is little, and who met the other tells the user."""
    folder, ended = driven
    both = [err for _, err in ended[:2]]
    counts = [re.search(r"(\d+) shards run, (\d+) done before", err) for err in both]
    done, skipped = ([int(found[place]) for found in counts if found] for place in (1, 2))
    assert sum(done) == SHARDS
    assert [own + others for own, others in zip(done, skipped, strict=True)] == [SHARDS, SHARDS]
    told = [re.search(r"Another driver works on this run; it committed (\d+) shards", err) for err in both]
    if min(done) > 0:  # they did work at the same time: a busy machine may have run one after the other
        assert any(told)
    for found, others in zip(told, skipped, strict=True):
        assert found is None or 0 < int(found[1]) <= others
    assert "Another driver" not in ended[2][1]
    left = {name.split("/")[1] for name in _store(folder, "shared").objects.list("shards")}
    assert len(left) == SHARDS
