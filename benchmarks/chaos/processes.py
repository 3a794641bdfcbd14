"""Drivers under test, as real processes, and the others that a fault may hit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from benchmarks.chaos.forked import command

REPLICA, REDUCER, RAYLET = "ray::Replica", "ray::Reducer", "/raylet/raylet"
"""What their command lines hold."""


class Driver(Protocol):
    """A running `dsprobe` command."""

    pid: int

    def wait(self, seconds: float) -> int | None:
        """Its exit code (negative for a signal) once it ends, `None` if it still runs then."""


class Forked:
    """A driver forked from a process that has imported the package."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path, generated: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.chaos.forked"])
        self._process = context.Process(target=command, args=(arguments, environment, log, generated), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, seconds: float) -> int | None:
        """See `Driver`."""
        self._process.join(seconds)
        return self._process.exitcode


class Started:
    """A driver as a user starts it."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dsprobe.cli.main", *arguments],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        self.pid = self._process.pid

    def wait(self, seconds: float) -> int | None:
        """See `Driver`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None


def warm_up() -> None:
    """Start the process that drivers are forked from; it takes some seconds."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.chaos.forked"])
    process = context.Process(target=time.time)
    process.start()
    process.join()


def command_lines() -> Iterator[tuple[int, str]]:
    """Process id and command line of everything that is visible here."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            yield int(file.parent.name), file.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def matching(*parts: str) -> list[int]:
    """Process ids whose command line holds all parts, sorted."""
    return sorted(pid for pid, line in command_lines() if all(part in line for part in parts))


def descendants(root: int) -> set[int]:
    """A process and all that came of it and has not been orphaned."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def kill(pid: int) -> bool:
    """SIGKILL; False if there was nobody left to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], Any], driver: Driver, limit_s: float) -> bool:
    """Poll until something holds; False when the driver ended or the time was up before."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        if driver.wait(0.02) is not None:
            return False
    return False
