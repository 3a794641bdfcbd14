"""A full disk: an error that names the place, nothing half-written to be seen, and a resume once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.actors.fault_world import LIMIT_S, begin, command, finish, undisturbed

from benchmarks.chaos.world import SHARDS, committed, run_folder, tables_of
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.verifying import verify


def mounted(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few hundred kilobytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    try:
        mounted(place, "size=400k")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no disk can be mounted here: {error.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(disk: Path, tmp_path: Path) -> None:
    root = str(disk / "out")
    driver = begin(command(tmp_path, root), tmp_path)
    assert driver.wait(LIMIT_S) == 1
    told = (tmp_path / "log").read_text()
    assert "No space left on device" in told
    assert str(disk) in told
    assert "Traceback" not in told
    kept = committed(root)
    assert 0 < kept < SHARDS
    store = RunStore.at(run_folder(root))
    assert not verify(store).damage, "what is committed is whole"
    assert [path for path in disk.rglob("*.tmp") if path.stat().st_size] == []

    mounted(disk, "remount,size=50m")
    finish(begin(command(tmp_path, root), tmp_path), tmp_path)
    assert tables_of(root) == undisturbed()
