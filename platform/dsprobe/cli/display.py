"""Progress on the terminal: a live bar with ETA, or plain lines where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsprobe.actors.executor import Progress

PLAIN_INTERVAL_S = 10.0
"""Seconds between lines when the output is not a terminal."""


@contextmanager
def show_progress(*, quiet: bool, what: str = "trajectories") -> Iterator[Callable[[Progress], None]]:
    """Yield a callback that draws an execution's progress on standard error.

    Args:
        quiet: Draw nothing (machine-readable output was asked for).
        what: What is counted.
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _rich_progress(what) as callback:
            yield callback
    else:
        yield _PlainLines(what)


@contextmanager
def show_counts(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws how many of how many are done; see `show_progress`.

    Args:
        what: What is counted; control characters in it are shown, not obeyed.
        quiet: Draw nothing.
    """
    from dsprobe.actors.executor import Progress
    from dsprobe.visible_text import visible

    start = time.monotonic()
    with show_progress(quiet=quiet, what=visible(what)) as show:

        def count(done: int, total: int) -> None:
            if not total:
                return
            counts: dict[str, Any] = {
                f"{unit}_{state}": 0 for unit in ("shards", "trajectories") for state in ("skipped", "failed")
            }
            counts |= {"shards_total": total, "shards_done": done, "shards_elsewhere": 0, "retries": 0}
            counts |= {"trajectories_total": total, "trajectories_done": done}
            show(Progress(**counts, elapsed_s=time.monotonic() - start))

        yield count


@contextmanager
def _rich_progress(what: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, note="")

        def update(progress: Progress) -> None:
            settled = progress.trajectories_done + progress.trajectories_skipped
            bar.update(task, total=progress.trajectories_total, completed=settled, note=_note(progress))

        yield update


class _PlainLines:
    """One line at the start, one every few seconds, one at the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = 0.0
        self._ended = False

    def __call__(self, progress: Progress) -> None:
        settled = progress.shards_done + progress.shards_skipped + progress.shards_failed
        finished = settled == progress.shards_total
        if self._ended or (progress.elapsed_s < self._next and not finished):
            return
        self._ended = finished
        self._next = progress.elapsed_s + PLAIN_INTERVAL_S
        done = progress.trajectories_done + progress.trajectories_skipped
        eta = "" if progress.eta_s is None or finished else f", about {progress.eta_s:.0f} s left"
        print(f"{done}/{progress.trajectories_total} {self._what} {_note(progress)}{eta}", file=sys.stderr, flush=True)


def _note(progress: Progress) -> str:
    parts = [f"{progress.rate:.1f}/s"]
    if progress.trajectories_skipped:
        parts.append(f"{progress.trajectories_skipped} done before")
    if progress.shards_elsewhere:
        parts.append(f"{progress.shards_elsewhere} shards by another driver of this run")
    if progress.retries:
        parts.append(f"{progress.retries} retried")
    if progress.trajectories_failed:
        parts.append(f"{progress.trajectories_failed} failed")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
