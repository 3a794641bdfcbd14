"""From what a case left behind to its figures; the whole definition of every number that the benchmark prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.scale.case import Recorded
from benchmarks.scale.event_log import ADMITTED, COMMITTED, DROPPED, GENERATED, WRITTEN, Event
from benchmarks.scale.processes import ROLES


@dataclass(frozen=True, slots=True)
class Span:
    """The steady part of a run.

    Args:
        start: Seconds.
        end: Seconds.
    """

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start

    def part(self, event: Event) -> float:
        """Seconds of an event that lie in it."""
        return max(0.0, min(float(event["end"]), self.end) - max(float(event["start"]), self.start))

    def ended(self, events: Iterable[Event]) -> list[Event]:
        """The events that ended in it."""
        return [event for event in events if self.start <= event["end"] <= self.end]


def figures_of(recorded: Recorded) -> dict[str, Any]:
    """All figures of a case.

    Raises:
        ValueError: Nothing was written in its steady part.
    """
    assert recorded.first is not None
    assert recorded.last is not None
    case, events = recorded.case, recorded.events
    span = Span(recorded.first.at, recorded.last.at)
    written, committed = span.ended(events[WRITTEN]), span.ended(events[COMMITTED])
    if not written:
        raise ValueError(f"Case `{case.name}`: nothing was written within {span.seconds:.0f} s; run it longer.")
    busy = sum(span.part(event) for event in events[GENERATED] + events[DROPPED])
    rows = sum(event["rows"] for event in written)
    return {
        "case": case.name,
        "replicas": case.replicas,
        "reducers": len(recorded.windows),
        "window_mib": case.window_mib,
        "seconds": span.seconds,
        "batches": len(written),
        "shards": len(committed),
        "trajectories_per_s": rows / span.seconds,
        "modelled_trajectories_per_s": case.replicas * case.work.rows / case.work.batch_s,
        "efficiency": busy / (case.replicas * span.seconds),
        "waited_for_reducer": sum(map(span.part, events[ADMITTED])) / (case.replicas * span.seconds),
        "lag_s": quantiles([event["end"] - event["emitted"] for event in written]),
        "write_s": quantiles([event["end"] - event["start"] for event in written]),
        "commit_s": quantiles([event["end"] - event["start"] for event in committed]),
        "waiting_mb": waiting(events, span),
        "window_peak_mb": max(window.peak_bytes for window in recorded.windows) / 1e6,
        **_rates(recorded, span, written),
        "cores": (cores := _cores(recorded, span)),
        "cpu_s_per_batch": {role: cores[role] * span.seconds / len(written) for role in ROLES},
        "writer_cpu_s_per_batch": _writer_cpu(recorded, written),
        "memory_mib": _memory(recorded),
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 95 % quantile and largest; empty for no values."""
    if not values:
        return {}
    median, high = np.quantile(values, [0.5, 0.95])
    return {"p50": float(median), "p95": float(high), "max": max(values)}


def waiting(events: dict[str, list[Event]], span: Span) -> dict[str, float]:
    """MB of batches that were finished and not yet written, over the steady part: mean in time and peak."""
    changes = [(event["end"], event["bytes"]) for event in events[GENERATED]]
    changes += [(event["end"], -event["bytes"]) for event in events[WRITTEN]]
    held, last, area, peak = 0, span.start, 0.0, 0
    for at, change in sorted(changes):
        inside = min(max(at, span.start), span.end)
        area, last = area + held * (inside - last), inside
        held += change
        if span.start <= at <= span.end:
            peak = max(peak, held)
    area += held * (span.end - last)
    return {"mean": area / span.seconds / 1e6, "peak": peak / 1e6}


def _rates(recorded: Recorded, span: Span, written: Sequence[Event]) -> dict[str, float]:
    assert recorded.first is not None
    assert recorded.last is not None
    first, last = recorded.first.stores, recorded.last.stores
    return {
        "batch_mb": written[0]["bytes"] / 1e6,
        "written_mb_per_s": sum(event["bytes"] for event in written) / span.seconds / 1e6,
        "object_store_mb_per_s": (last.created - first.created) / span.seconds / 1e6,
        "object_store_peak_mb": max((sample.store_bytes for sample in recorded.samples), default=0) / 1e6,
        "spilled_mb": (last.spilled - first.spilled) / 1e6,
    }


def _cores(recorded: Recorded, span: Span) -> dict[str, float]:
    """Processors that were busy, by role, and those that processes outside this benchmark kept busy."""
    assert recorded.first is not None
    assert recorded.last is not None
    first, last = recorded.first, recorded.last
    own: dict[str, float] = {role: (last.cpu[role] - first.cpu[role]) / span.seconds for role in ROLES}
    return {**own, "others": (last.machine_cpu - first.machine_cpu) / span.seconds - sum(own.values())}


def _writer_cpu(recorded: Recorded, written: Sequence[Event]) -> dict[str, float]:
    """Processor seconds a batch of the thread that writes: in `ShardWriter.add`, and its part of `commit`."""
    adding = float(np.mean([event["cpu"] for event in written]))
    commits = [event["cpu"] for event in recorded.events[COMMITTED]]
    committing = float(np.mean(commits)) / recorded.case.batches_per_shard if commits else math.nan
    return {"add": adding, "commit": committing}


def _memory(recorded: Recorded) -> dict[str, float]:
    """Peaks in MiB: each role's own pages, those of the object stores, and everything at one time."""
    peaks = {f"{role}_own": max((s.memory[role].own for s in recorded.samples), default=0.0) for role in ROLES}
    shared = max((sum(m.shared for m in s.memory.values()) for s in recorded.samples), default=0.0)
    total = max((sum(m.own + m.shared for m in s.memory.values()) for s in recorded.samples), default=0.0)
    return {**peaks, "object_store": shared, "all": total}
