"""Scans on Ray: the state of a scan in one process, whoever dies meanwhile; errors that name the file."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from dsprobe.actors.offline import TASKS_PER_CPU, Workers, parts_of, scan_logs
from dsprobe.errors import DamagedError
from dsprobe.storage.log_files import LogFile, find_logs
from dsprobe.storage.raw_tables import position_log_table, step_log_table
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.scan import ScanSettings
from dsprobe.storage.schemas import open_writer
from dsprobe.storage.testing import synthetic_batch, synthetic_condition

SETTINGS = ScanSettings(threshold=0.5)
FILES = 6


@pytest.fixture(scope="module")
def ray_instance() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of two conditions in files of a few hundred thousand rows."""
    path = tmp_path_factory.mktemp("logs")
    for number in range(FILES):
        condition = synthetic_condition(("direct", "dija")[number % 2])
        batch = synthetic_batch(number, condition=condition, rows=48, steps=24, length=64, shortest=20)
        for kind, table in {"step_log": step_log_table(batch), "position_log": position_log_table(batch)}.items():
            with open_writer(path / f"{kind}-{number:05d}.parquet", table.schema) as writer:
                writer.write_table(pa.concat_tables([table] * 4))
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> ReducerState:
    return scan_logs(find_logs(str(folder), {}), SETTINGS, Workers(executor="local", num_cpus=1)).state


def _same(left: ReducerState, right: ReducerState) -> bool:
    ours, theirs = left.to_tables(), right.to_tables()
    return all(ours[kind].equals(theirs[kind]) for kind in ours)


def test_threads_and_ray_tasks_give_the_state_of_one_process(
    ray_instance: None, folder: Path, expected: ReducerState
) -> None:
    logs, told = find_logs(str(folder), {}), []
    assert _same(scan_logs(logs, SETTINGS, Workers(executor="local", num_cpus=3)).state, expected)
    scanned = scan_logs(logs, SETTINGS, Workers(), lambda done, total: told.append((done, total)))
    assert _same(scanned.state, expected)
    assert scanned.step_rows == 4 * sum(
        int(synthetic_batch(n, rows=48, steps=24, length=64, shortest=20).trajectories.num_steps_B.sum())
        for n in range(FILES)
    )
    parts = len(parts_of(logs.files, 2))
    assert told[-1] == (2 * parts - 1, 2 * parts - 1)


def test_killed_scans_change_nothing(ray_instance: None, folder: Path, expected: ReducerState) -> None:
    killed: list[int] = []
    stop = threading.Event()
    hunter = threading.Thread(target=_kill_scans, args=(killed, stop, 2))
    hunter.start()
    try:
        scanned = scan_logs(find_logs(str(folder), {}), SETTINGS, Workers())
    finally:
        stop.set()
        hunter.join()
    assert killed, "no scan was caught at work"
    assert _same(scanned.state, expected)


def _kill_scans(killed: list[int], stop: threading.Event, count: int) -> None:
    """Kill -9 workers of this process's Ray instance that are inside a scan."""
    while len(killed) < count and not stop.is_set():
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"ray::_scan_task" in (entry / "cmdline").read_bytes() and _is_ours(int(entry.name)):
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed.append(int(entry.name))
                    time.sleep(0.3)
                    break
        time.sleep(0.002)


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@pytest.mark.parametrize("executor", ["ray", "local"])
def test_a_damaged_file_is_named_from_a_task(ray_instance: None, tmp_path: Path, folder: Path, executor: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = tmp_path / "position_log-00003.parquet"
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"position_log-00003\.parquet is damaged"):
        scan_logs(find_logs(str(tmp_path), {}), SETTINGS, Workers(executor=executor))  # type: ignore[arg-type]


def test_parts_cover_the_files_and_are_neither_tiny_nor_huge() -> None:
    files = [LogFile(name=str(i), bytes=10 if i % 2 else 1000) for i in range(40)]
    parts = parts_of(files, 2)
    assert [file for part in parts for file in part] == files
    assert 2 * TASKS_PER_CPU <= len(parts) <= 20
    large = [LogFile(name=str(i), bytes=1 << 30) for i in range(3)]
    assert [len(part) for part in parts_of(large, 1)] == [1, 1, 1]
    assert parts_of([], 2) == []
