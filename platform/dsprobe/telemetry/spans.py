"""What took how long: spans of this process, kept in memory until somebody takes them away.

A span costs two clock readings and a tuple. They are for looking at (`dsprobe.telemetry.trace_events`), never for
results: tables and digests know nothing of them. Where nobody takes them the oldest are dropped.

A thread's spans nest, because both ends are read from one clock that only grows. Times of different hosts are as their
clocks are; nothing here corrects them.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple, TypeVar

from dsprobe.telemetry.logs import facts, log_context

Category = Literal[
    "plan", "load", "generate", "wait", "transfer", "write", "commit", "judge", "compact", "report", "sweep"
]

WAITING: Final = 20_000
"""Spans that a process keeps at a time; a batch leaves about six."""
PER_RUN: Final = 200_000
"""Spans of one run that a process takes in; beyond them a trace is too large to be looked at."""
ROLES: Final = ("replica", "reducer", "judge")
"""Facts that name an actor; a process without any of them is a driver."""

T = TypeVar("T")

_EPOCH_NS: Final = time.time_ns() - time.perf_counter_ns()
_HOST: Final = socket.gethostname()


class Span(NamedTuple):
    """One span. A tuple, because thousands of them travel."""

    name: str
    category: str
    start_ns: int
    """Since 1970, by its host's clock."""
    duration_ns: int
    host: str
    pid: int
    process: str
    """Such as ``driver`` or ``replica dsprobe:0``."""
    thread: int
    thread_name: str
    run: str
    """Run id; empty for what was done before it was known."""
    shard: str
    """Empty outside shards."""
    stream: str
    """Of one attempt at a shard, the same in replica and reducer; empty in one process."""
    batch: int
    """From 0; -1 outside batches."""
    detail: str
    """What it was about: a model, a judge; never text of a prompt or reply."""


class SpanLog:
    """Spans that wait to be taken away; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: deque[Span] = deque(maxlen=WAITING)
        self._seen: Counter[str] = Counter()

    def add(self, spans: Iterable[Span]) -> None:
        """Take spans in; those of a run beyond `PER_RUN` are left out."""
        with self._lock:
            for span in spans:
                self._seen[span.run] += 1
                if self._seen[span.run] <= PER_RUN:
                    self._spans.append(span)

    def take(self, *runs: str) -> list[Span]:
        """Give away the spans of some runs (``""``: of none), or all of them.

        Args:
            runs: Run ids; every run's unless given.
        """
        with self._lock:
            taken = [span for span in self._spans if not runs or span.run in runs]
            kept = [span for span in self._spans if runs and span.run not in runs]
            self._spans = deque(kept, maxlen=WAITING)
        return taken


SPANS: Final = SpanLog()
"""This process's."""


def belonging_to(run: str, spans: Iterable[Span]) -> list[Span]:
    """Spans with those that belong to no run given to one."""
    return [span if span.run else span._replace(run=run) for span in spans]


@contextmanager
def span(category: Category, name: str = "", detail: str = "") -> Iterator[None]:
    """Measure the block, also where it raises; run, shard and batch are those of `log_context` at its end.

    Args:
        category: What kind of work it is.
        name: A few words; the category unless given.
        detail: What it is about.
    """
    began = time.perf_counter_ns()
    try:
        yield
    finally:
        _note(category, name or category, detail, began)


def each(items: Callable[[], Iterator[T]], category: Category, **about: str | int) -> Iterator[T]:
    """Pass an iterator's items on and measure how long each one takes, the making of the iterator with the first.

    Args:
        items: Makes the iterator.
        category: What kind of work an item is.
        about: Facts for `log_context` while an item is made; its number comes as ``batch``.
    """
    made: Iterator[T] | None = None
    for number in itertools.count():
        with log_context(**about, batch=number):
            began = time.perf_counter_ns()
            made = made or items()
            found = list(itertools.islice(made, 1))
            if not found:
                return
            _note(category, category, "", began)
        yield found.pop()  # what is passed on is not kept here


def _note(category: str, name: str, detail: str, began: int) -> None:
    ended, known, thread = time.perf_counter_ns(), facts(), threading.current_thread()
    role = next((role for role in ROLES if role in known), None)
    SPANS.add([
        Span(
            name=name,
            category=category,
            start_ns=_EPOCH_NS + began,
            duration_ns=ended - began,
            host=_HOST,
            pid=os.getpid(),
            process=f"{role} {known[role]}" if role else "driver",
            thread=thread.native_id or 0,
            thread_name=thread.name,
            run=str(known.get("run", "")),
            shard=str(known.get("shard", "")),
            stream=str(known.get("stream", "")),
            batch=int(known.get("batch", -1)),
            detail=detail,
        )
    ])  # fmt: skip
