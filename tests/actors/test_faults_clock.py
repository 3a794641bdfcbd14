"""A clock that jumps by two days and back: nothing is retried, waited for or removed because of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.actors.fault_world import LIMIT_S, command, undisturbed

from benchmarks.chaos.processes import Started, wait_until
from benchmarks.chaos.world import committed, run_folder, tables_of

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
"""From Debian's libfaketime."""


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """A file that holds how far the clock of a process is off."""
    if not LIBRARY.is_file():
        pytest.skip("libfaketime is not installed")
    path = tmp_path / "clock"
    path.write_text("+0d")
    return path


def skewed(clock: Path) -> dict[str, str]:
    """Environment of a process with that clock; as with a real jump, files' times and the monotonic clock are true."""
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def test_a_jumping_clock_changes_no_table_and_makes_no_fresh_file_old(clock: Path, tmp_path: Path) -> None:
    log, root = tmp_path / "log", str(tmp_path / "out")
    driver = Started(command(tmp_path, root), skewed(clock), log)
    for jump, shards in (("+2d", 2), ("-2d", 6), ("+2d", 10)):
        assert wait_until(lambda shards=shards: committed(root) >= shards, driver, LIMIT_S), log.read_text()
        clock.write_text(jump)
    assert driver.wait(LIMIT_S) == 0, log.read_text()
    assert tables_of(root) == undisturbed()
    assert "retried" not in log.read_text()

    attempt = Path(run_folder(root)) / "shards" / "late" / ("0" * 32) / "steps.parquet"
    attempt.parent.mkdir(parents=True)
    attempt.write_bytes(b"being written")
    gc = Started(["gc", run_folder(root), "--grace", "24h"], skewed(clock), log)
    assert gc.wait(LIMIT_S) == 0, log.read_text()
    assert attempt.exists()
    assert tables_of(root) == undisturbed()


def test_the_clock_of_these_tests_does_jump(clock: Path) -> None:
    """Otherwise the other test could not fail."""
    script = (
        "import sys, time; from pathlib import Path; wall, steady = time.time(), time.monotonic();"
        "Path(sys.argv[1]).write_text('+2d'); print(time.time() - wall, time.monotonic() - steady)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(clock)], env=skewed(clock), capture_output=True, text=True, check=True
    )
    wall, steady = map(float, done.stdout.split())
    assert wall == pytest.approx(2 * 86400, abs=60)
    assert 0 <= steady < 60
