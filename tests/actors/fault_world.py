"""A small real run for faults: its command, and the tables that it has when nothing happens to it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from benchmarks.chaos.processes import Forked
from benchmarks.chaos.world import tables_of, write_config

LIMIT_S = 200.0
"""Patience with a command; alone on a machine it takes three seconds."""


def command(folder: Path, root: str | Path, *more: str) -> list[str]:
    """Arguments of `dsprobe`; the configuration is written into the folder."""
    return ["run", str(write_config(folder)), "--out", str(root), "--executor", "local", "--no-report", *more]


def begin(arguments: list[str], folder: Path, **environment: str) -> Forked:
    """Start a driver; its outputs go to `log` and a byte for each trajectory to `generated`, both in the folder."""
    return Forked(arguments, environment, folder / "log", folder / "generated")


def finish(driver: Forked, folder: Path) -> None:
    """Wait for a driver that must succeed."""
    assert driver.wait(LIMIT_S) == 0, (folder / "log").read_text()


@functools.cache
def undisturbed() -> dict[str, str]:
    """Tables of a run to which nothing happens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(begin(command(folder, folder / "out"), folder), folder)
        return tables_of(str(folder / "out"))
