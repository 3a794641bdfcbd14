"""Spans as Chrome trace events, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

Source of the format: "Trace Event Format", Google, JSON object form: complete events (``X``), metadata (``M``) and
flows (``s`` and ``f``). Times are in microseconds since the first span.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from dsprobe.telemetry.spans import Span

Event = dict[str, Any]

_FIRST: Final = ("driver", "replica", "reducer", "judge")
"""Order of the processes from the top, by role."""


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """A trace of a run: processes are drivers, replicas and reducers; an arrow leads from a batch to its writing.

    Args:
        spans: In any order.

    Returns:
        JSON-ready; events sorted by time, outer ones of a thread first, as the format asks.
    """
    origin = min((span.start_ns for span in spans), default=0)
    processes, threads = _numbers(spans)
    events = [_complete(span, origin, processes, threads) for span in spans]
    events += _flows(spans, origin, processes, threads)
    events.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    return {"traceEvents": [*_names(processes, threads), *events], "displayTimeUnit": "ms"}


Processes = dict[tuple[str, int], tuple[int, str]]
"""Host and pid → number in the trace, and what it is."""
Threads = dict[tuple[str, int, int], tuple[int, str]]
"""Host, pid and thread → number in its process, and its name."""


def _numbers(spans: Iterable[Span]) -> tuple[Processes, Threads]:
    """Small numbers: pids of several hosts may be equal, and a process's role decides where it stands."""
    known = {(span.host, span.pid): span.process for span in spans}
    order = sorted(known, key=lambda key: (_rank(known[key]), known[key], key))
    processes = {key: (number, known[key]) for number, key in enumerate(order, 1)}
    lanes = {(span.host, span.pid, span.thread): span.thread_name for span in spans}
    threads: Threads = {}
    counts: Counter[tuple[str, int]] = Counter()
    for key in sorted(lanes):
        counts[key[:2]] += 1
        threads[key] = counts[key[:2]], lanes[key]
    return processes, threads


def _rank(process: str) -> int:
    role = process.partition(" ")[0]
    return _FIRST.index(role) if role in _FIRST else len(_FIRST)


def _names(processes: Processes, threads: Threads) -> Iterator[Event]:
    for (host, pid), (number, what) in processes.items():
        common = {"ph": "M", "pid": number, "tid": 0, "ts": 0}
        yield {**common, "name": "process_name", "args": {"name": f"{what} ({host}, process {pid})"}}
        yield {**common, "name": "process_sort_index", "args": {"sort_index": number}}
    for (host, pid, _), (number, name) in threads.items():
        place = {"ph": "M", "pid": processes[host, pid][0], "tid": number, "ts": 0}
        yield {**place, "name": "thread_name", "args": {"name": name}}


def _place(span: Span, processes: Processes, threads: Threads) -> Event:
    return {"pid": processes[span.host, span.pid][0], "tid": threads[span.host, span.pid, span.thread][0]}


def _complete(span: Span, origin: int, processes: Processes, threads: Threads) -> Event:
    about = {"shard": span.shard, "detail": span.detail, "run": span.run}
    args: Event = {name: value for name, value in about.items() if value}
    if span.batch >= 0:
        args["batch"] = span.batch
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.category,
        "ts": (span.start_ns - origin) / 1000,
        "dur": span.duration_ns / 1000,
        **_place(span, processes, threads),
        "args": args,
    }


def _flows(spans: Iterable[Span], origin: int, processes: Processes, threads: Threads) -> Iterator[Event]:
    """An arrow from each batch to where it was written, unless two hosts' clocks say that it arrived too early."""
    made = {_batch(span): span for span in spans if span.name == span.category == "generate" and span.stream}
    pairs = [(made[_batch(span)], span) for span in spans if _is_written(span) and _batch(span) in made]
    for number, (source, target) in enumerate(pairs, 1):
        begin = source.start_ns + max(source.duration_ns - 1000, 0)  # inside, or it is drawn from the next one
        if target.start_ns < begin:
            continue
        common = {"name": "batch", "cat": "batch", "id": number}
        yield {"ph": "s", "ts": (begin - origin) / 1000, **common, **_place(source, processes, threads)}
        end = {"ph": "f", "bp": "e", "ts": (target.start_ns - origin) / 1000}
        yield {**end, **common, **_place(target, processes, threads)}


def _is_written(span: Span) -> bool:
    return span.name == span.category == "write" and span.batch >= 0 and bool(span.stream)


def _batch(span: Span) -> tuple[str, int]:
    return span.stream, span.batch
