"""Metrics of this process, by Ray's own exporter. Where Ray is not connected, or `DSPROBE_METRICS=0`, nothing happens.

Ray serves them on every node's metrics port, with and without a dashboard. A batch costs a handful of additions,
whatever its size: what is counted is read from arrays that it holds anyway.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dsprobe.decoding.records import by_guardrails
from dsprobe.storage.retrying import retries_so_far
from dsprobe.telemetry import metrics as catalogue
from dsprobe.telemetry.metrics import Metric

if TYPE_CHECKING:
    from dsprobe.actors.executor import Progress
    from dsprobe.experiment.evaluated import EvaluatedBatch

SWITCH = "DSPROBE_METRICS"
"""Environment variable; ``0`` turns metrics off."""

_COUNTING = threading.Lock()
"""Streams of a reducer are on threads of their own."""
_COUNTED = {"retries": 0}
"""What is in the counters of this process already."""


def add(metric: Metric, value: float = 1.0, **tags: str) -> None:
    """Add to a counter, and do nothing for 0."""
    if value > 0 and _on():
        _instrument(metric).inc(value, tags)


def put(metric: Metric, value: float, **tags: str) -> None:
    """Set a gauge."""
    if _on():
        _instrument(metric).set(value, tags)


def observe(metric: Metric, value: float, **tags: str) -> None:
    """Add a value to a histogram."""
    if _on():
        _instrument(metric).observe(value, tags)


def count_batch(batch: EvaluatedBatch, run: str, seconds: float) -> None:
    """Count what a batch holds.

    Args:
        batch: A finished batch.
        run: Run id.
        seconds: Time that it took.
    """
    if not _on():
        return
    rows, model = batch.trajectories, batch.condition.model
    add(catalogue.TRAJECTORIES, rows.num_rows, run=run, model=model)
    add(catalogue.DENOISING_STEPS, float(rows.num_steps_B.sum(dtype=np.int64)), run=run, model=model)
    add(catalogue.FORWARD_PASSES, float(rows.forward_passes_B.sum(dtype=np.int64)), run=run, model=model)
    add(catalogue.TOKENS_COMMITTED, float(np.count_nonzero(rows.commit_step_BL > 0)), run=run, model=model)
    observe(catalogue.BATCH_SECONDS, seconds, run=run, model=model)
    actions = Counter(str(event["action"]) for events in rows.events for event in by_guardrails(events))
    for action, count in actions.items():
        add(catalogue.INTERVENTIONS, count, run=run, guardrail=batch.condition.guardrail, action=action)


def count_storage_retries(run: str) -> None:
    """Count what this process has asked its store again for since the last call."""
    with _COUNTING:
        total = retries_so_far()
        add(catalogue.STORAGE_RETRIES, total - _COUNTED["retries"], run=run)
        _COUNTED["retries"] = total


class Totals:
    """Counters and gauges of a driver, from totals that only grow.

    Args:
        run: Run id.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._seen: dict[tuple[str, str], float] = {}

    def grow(self, metric: Metric, total: float, **tags: str) -> None:
        """Raise a counter to a total."""
        key = metric.name, repr(sorted(tags.items()))
        add(metric, total - self._seen.get(key, 0.0), run=self._run, **tags)
        self._seen[key] = total

    def show(self, metric: Metric, values: Mapping[str, float], tag: str) -> None:
        """Set a gauge for each value of a tag."""
        for name, value in values.items():
            put(metric, value, run=self._run, **{tag: name})

    def progress(self, progress: Progress) -> None:
        """Take over what an execution reports."""
        done = progress.shards_done + progress.shards_skipped
        states = {"total": progress.shards_total, "done": done, "failed": progress.shards_failed}
        self.show(catalogue.SHARDS, states, "state")


def _on() -> bool:
    import ray

    return os.environ.get(SWITCH, "1") != "0" and ray.is_initialized()


@cache
def _instrument(metric: Metric) -> Any:
    """The one instrument of a metric in this process."""
    from ray.util import metrics

    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, metric.help, boundaries=list(metric.bounds), tag_keys=metric.tags)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, metric.help, tag_keys=metric.tags)
