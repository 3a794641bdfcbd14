"""The metric catalogue: every metric as data, so that meters, dashboards, alerts and the reference agree.

Names follow Prometheus (unit last, counters end in ``_total``); Ray exports each with the prefix ``ray_`` and adds
tags of its own (``Component``, ``NodeAddress``, ``WorkerId``, …). Own tags have few values: a run, a model, a kind.
Prompts and shards are never tags; they are in the tables and in the logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

PREFIX: Final = "ray_"
"""What Ray puts before every name."""

SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Bounds of histograms of durations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    unit: str
    """What one is: trajectories, seconds, bytes, …"""
    help: str
    """One sentence, without its full stop."""
    tags: tuple[str, ...] = ("run",)
    source: str
    """Process that measures it: replica, reducer or driver."""
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def exported(self) -> str:
        """Name in Prometheus."""
        return PREFIX + self.name


TRAJECTORIES = Metric(
    name="dsprobe_trajectories_total",
    kind="counter",
    unit="trajectories",
    help="Trajectories generated and evaluated, repeated ones included",
    tags=("run", "model"),
    source="replica",
)
DENOISING_STEPS = Metric(
    name="dsprobe_denoising_steps_total",
    kind="counter",
    unit="row steps",
    help="Steps taken, summed over trajectories",
    tags=("run", "model"),
    source="replica",
)
FORWARD_PASSES = Metric(
    name="dsprobe_forward_passes_total",
    kind="counter",
    unit="row passes",
    help="Model forward passes, summed over trajectories, those of guardrails included",
    tags=("run", "model"),
    source="replica",
)
TOKENS_COMMITTED = Metric(
    name="dsprobe_tokens_committed_total",
    kind="counter",
    unit="tokens",
    help="Positions that a step committed and that stayed committed",
    tags=("run", "model"),
    source="replica",
)
INTERVENTIONS = Metric(
    name="dsprobe_interventions_total",
    kind="counter",
    unit="events",
    help="Changes that guardrails made between steps, by what they did",
    tags=("run", "guardrail", "action"),
    source="replica",
)
BATCH_SECONDS = Metric(
    name="dsprobe_batch_seconds",
    kind="histogram",
    unit="seconds",
    help="Time of a batch, from its first step to its last verdict; of a shard's first one, with what had to be loaded",
    tags=("run", "model"),
    source="replica",
    bounds=SECONDS,
)
MODEL_LOAD_SECONDS = Metric(
    name="dsprobe_model_load_seconds",
    kind="histogram",
    unit="seconds",
    help="Time to load a model into a replica, fetching included",
    tags=("model",),
    source="replica",
    bounds=SECONDS,
)
ADMISSION_SECONDS = Metric(
    name="dsprobe_admission_wait_seconds_total",
    kind="counter",
    unit="seconds",
    help="Time that replicas waited for their reducer before they could hand over a batch",
    source="replica",
)
BATCHES_WRITTEN = Metric(
    name="dsprobe_batches_written_total",
    kind="counter",
    unit="batches",
    help="Batches that reducers have written",
    source="reducer",
)
REDUCER_LAG_SECONDS = Metric(
    name="dsprobe_reducer_lag_seconds",
    kind="histogram",
    unit="seconds",
    help="Time from a finished batch to a written one",
    source="reducer",
    bounds=SECONDS,
)
REDUCER_WAITING_BYTES = Metric(
    name="dsprobe_reducer_waiting_bytes",
    kind="gauge",
    unit="bytes",
    help="Finished batches that wait for a reducer",
    source="reducer",
)
BYTES_WRITTEN = Metric(
    name="dsprobe_bytes_written_total",
    kind="counter",
    unit="bytes",
    help="Files of committed shards, by table or log",
    tags=("run", "kind"),
    source="reducer",
)
STORAGE_RETRIES = Metric(
    name="dsprobe_storage_retries_total",
    kind="counter",
    unit="requests",
    help="Requests to the object store that reducers had to make again",
    source="reducer",
)
SHARDS_COMMITTED = Metric(
    name="dsprobe_shards_committed_total",
    kind="counter",
    unit="shards",
    help="Shards that became real",
    source="reducer",
)
SHARDS = Metric(
    name="dsprobe_shards",
    kind="gauge",
    unit="shards",
    help="Shards of the plan by state: total, done (before or now), failed",
    tags=("run", "state"),
    source="driver",
)
QUEUE_DEPTH = Metric(
    name="dsprobe_queue_depth",
    kind="gauge",
    unit="shards",
    help="Shards that wait for a replica",
    source="driver",
)
REPLICAS = Metric(
    name="dsprobe_replicas",
    kind="gauge",
    unit="replicas",
    help="Replicas of the run by state: up, pending (no room yet, or coming up), draining (the node is about to go)",
    tags=("run", "state"),
    source="driver",
)
FAULTS_RETRIED = Metric(
    name="dsprobe_faults_retried_total",
    kind="counter",
    unit="attempts",
    help="Attempts at shards that were lost and queued again, by what failed: replica, storage (reducers included)",
    tags=("run", "reason"),
    source="driver",
)
VERDICTS = Metric(
    name="dsprobe_judge_replies_total",
    kind="counter",
    unit="replies",
    help="Replies that deferred judges were shown, by where the verdict came from: asked, cached, repeated",
    tags=("run", "judge", "source"),
    source="driver",
)
TRIALS = Metric(
    name="dsprobe_trials",
    kind="gauge",
    unit="trials",
    help="Trials of a sweep by state: total, complete, stopped, failed, cached",
    tags=("run", "state"),
    source="driver",
)
FRONT_POINTS = Metric(
    name="dsprobe_front_points",
    kind="gauge",
    unit="settings",
    help="Settings of a sweep that no other one dominates so far, constraints left aside",
    source="driver",
)
SWEEP_PASSES = Metric(
    name="dsprobe_sweep_forward_passes_total",
    kind="counter",
    unit="row passes",
    help="Forward passes of a sweep's trials: used, and saved by forking and by the archive",
    tags=("run", "kind"),
    source="driver",
)

CATALOGUE: Final[tuple[Metric, ...]] = (
    TRAJECTORIES,
    DENOISING_STEPS,
    FORWARD_PASSES,
    TOKENS_COMMITTED,
    INTERVENTIONS,
    BATCH_SECONDS,
    MODEL_LOAD_SECONDS,
    ADMISSION_SECONDS,
    BATCHES_WRITTEN,
    REDUCER_LAG_SECONDS,
    REDUCER_WAITING_BYTES,
    BYTES_WRITTEN,
    STORAGE_RETRIES,
    SHARDS_COMMITTED,
    SHARDS,
    QUEUE_DEPTH,
    REPLICAS,
    FAULTS_RETRIED,
    VERDICTS,
    TRIALS,
    FRONT_POINTS,
    SWEEP_PASSES,
)
"""Every metric, in the order of the reference."""
