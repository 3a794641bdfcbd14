"""The driver is killed, while it generates or while it makes tables; the same command finishes with the same bytes."""

from __future__ import annotations

from pathlib import Path

from tests.actors.fault_world import LIMIT_S, begin, command, finish, undisturbed

from benchmarks.chaos.processes import kill, wait_until
from benchmarks.chaos.world import SHARDS, TRAJECTORIES, committed, run_folder, tables_of


def test_a_killed_driver_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    root, generated = str(tmp_path / "out"), tmp_path / "generated"
    driver = begin(command(tmp_path, root), tmp_path)
    assert wait_until(lambda: committed(root) >= 3, driver, LIMIT_S)
    assert kill(driver.pid)
    assert driver.wait(LIMIT_S) == -9
    kept = committed(root)
    assert 3 <= kept < SHARDS
    begun = generated.stat().st_size
    finish(begin(command(tmp_path, root), tmp_path), tmp_path)
    assert tables_of(root) == undisturbed()
    per_shard = TRAJECTORIES // SHARDS
    assert generated.stat().st_size == begun + TRAJECTORIES - kept * per_shard
    assert begun <= (kept + 1) * per_shard, "a kill costs the shard under way at most"


def test_a_driver_killed_while_it_makes_tables(tmp_path: Path) -> None:
    root, generated = str(tmp_path / "out"), tmp_path / "generated"
    driver = begin(command(tmp_path, root), tmp_path)

    def first_table_file() -> bool:
        return committed(root) == SHARDS and any(Path(run_folder(root)).glob("tables/*/*/*/part-*.parquet"))

    assert wait_until(first_table_file, driver, LIMIT_S)
    assert kill(driver.pid)
    assert driver.wait(LIMIT_S) == -9
    finish(begin(command(tmp_path, root), tmp_path), tmp_path)
    assert tables_of(root) == undisturbed()
    assert generated.stat().st_size == TRAJECTORIES
