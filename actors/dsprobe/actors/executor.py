"""Run the missing shards of a plan, in this process or on a pool of Ray replicas, with one result type.

What is missing is decided here and only here; what counts as done is a commit record in the store. Both executors
write through `dsprobe.actors.writing`, so their tables are the same.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dsprobe.actors.writing import Store, without_text
from dsprobe.errors import IncompleteRunError
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.storage.merged_state import MergedState
from dsprobe.telemetry.logs import log_context

LOGGER = logging.getLogger("dsprobe.actors.executor")

CONDITIONS_SHOWN = 50
"""Conditions whose progress is told one by one; of a larger plan only the whole is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """What an execution's dispatcher sees: counts of shards and replicas."""

    queued: int
    """Shards that wait for a replica."""
    inflight: int
    """Shards that replicas have: under way, or next."""
    replicas_up: int
    """Replicas that take shards."""
    replicas_pending: int
    """Replicas that are coming up, or for which there is no room yet."""
    replicas_draining: int
    """Replicas on nodes that are about to go: they end what they have, and get no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where an execution stands. Counts of shards and trajectories; times in seconds."""

    shards_total: int
    """All shards of the plan."""
    shards_done: int
    """Committed by this execution."""
    shards_skipped: int
    """Not committed by this execution, but before it started or by another driver meanwhile."""
    shards_elsewhere: int
    """Those of them that another driver of the run committed meanwhile."""
    shards_failed: int
    """Given up."""
    retries: int
    """Attempts that were lost and queued again."""
    trajectories_total: int
    trajectories_done: int
    trajectories_skipped: int
    trajectories_failed: int
    elapsed_s: float
    bytes_written: int = 0
    """Of the shards that this execution committed."""
    lag_s: float = 0.0
    """Seconds from a finished batch to a written one, mean of the reducer that committed last; 0 without reducers."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why attempts were repeated or shards given up → how often; without texts."""
    conditions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Condition id → shards committed by anyone, of how many; empty where there are more than `CONDITIONS_SHOWN`."""
    pool: PoolState | None = None
    """Of an execution on Ray."""

    @property
    def rate(self) -> float:
        """Trajectories committed a second by this execution; 0 before the first shard."""
        return self.trajectories_done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the rest is done at the present rate; `None` while no rate is known."""
        settled = self.trajectories_done + self.trajectories_skipped + self.trajectories_failed
        return (self.trajectories_total - settled) / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt at a shard."""

    shard_id: str
    condition: str
    """Condition id."""
    reason: str
    """One line for the user."""
    attempts: int
    """Attempts charged to the shard so far, this one included."""
    traceback: str = ""
    """Where the shard raised; empty when a process was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionReport:
    """What an execution did."""

    done: tuple[str, ...]
    """Shards committed by this execution, in order of completion."""
    skipped: tuple[str, ...]
    """Shards that were committed before, or by another driver meanwhile."""
    elsewhere: tuple[str, ...]
    """Those of them that another driver of the same run committed meanwhile."""
    failed: tuple[Failure, ...]
    """Shards given up, with the last reason."""
    retried: tuple[Failure, ...]
    """Attempts that were repeated, in order."""
    wall_seconds: float
    merged: MergedState = field(default_factory=MergedState)
    """Statistics of shards that this execution committed; tables can be made of them without reading these again."""

    @property
    def complete(self) -> bool:
        """True when every shard of the plan is committed."""
        return not self.failed

    def raise_if_incomplete(self) -> None:
        """Turn failures into an error.

        Raises:
            IncompleteRunError: Some shards failed; the message groups them by reason.
        """
        if self.failed:
            reasons = Counter(failure.reason for failure in self.failed)
            lines = "\n".join(f"  {count} x {reason}" for reason, count in reasons.most_common())
            raise IncompleteRunError(
                f"{len(self.failed)} shard(s) failed; run the same command again to resume.\n{lines}"
            )


def missing_shards(plan: Plan, store: Store) -> list[Shard]:
    """Shards of the plan that have no commit record, in plan order."""
    committed = store.committed_ids()
    return [shard for shard in plan.shards if shard.id not in committed]


def execute(plan: Plan, store: Store, *, progress: Callable[[Progress], None]) -> ExecutionReport:
    """Run what is missing of a plan.

    A shard that raises is reported and the others go on. A shard whose process died, or whose output could not be
    written, is tried again up to ``execution.retries`` times. `KeyboardInterrupt` passes through: work under way is
    dropped, committed shards stay, and the next call runs only the rest.

    Args:
        plan: The resolved experiment; ``plan.config.execution`` picks the executor.
        store: Where shards are committed.
        progress: Called on the calling thread whenever a count changes and about once a second.

    Raises:
        PrerequisiteError: Ray or the resources asked for are not there.
        ConfigError: A running pool of that name has other resources.
    """
    with log_context(run=plan.run_id):
        return _execute(plan, store, progress)


def _execute(plan: Plan, store: Store, progress: Callable[[Progress], None]) -> ExecutionReport:
    ledger = Ledger(plan, missing_shards(plan, store), progress)
    LOGGER.info("%d of %d shards are missing", len(ledger.pending), len(plan.shards))
    if ledger.pending and plan.config.execution.executor == "ray":
        from dsprobe.actors.ray_executor import run_on_ray

        run_on_ray(plan, store, ledger)
    elif ledger.pending:
        from dsprobe.actors.local import run_locally

        run_locally(plan, store, ledger)
    report = ledger.report()
    LOGGER.info(
        "%d shards run, %d failed, %d attempts repeated, %.1f s",
        len(report.done), len(report.failed), len(report.retried), report.wall_seconds,
    )  # fmt: skip
    return report


class Ledger:
    """Book-keeping of one execution: the queue, the outcomes, and the retry bound.

    Args:
        plan: The whole plan.
        missing: Shards to run, in order.
        progress: Receives a `Progress` after every change.
    """

    def __init__(self, plan: Plan, missing: Sequence[Shard], progress: Callable[[Progress], None]) -> None:
        self.pending = deque(missing)
        self.merged = MergedState()
        missing_ids = {shard.id for shard in missing}
        self._plan = plan
        self._skipped = [shard for shard in plan.shards if shard.id not in missing_ids]
        self._elsewhere: list[Shard] = []
        self._done: list[Shard] = []
        self._failed: list[tuple[Shard, Failure]] = []
        self._retried: list[Failure] = []
        self._charges: Counter[str] = Counter()
        self._requeued: set[str] = set()
        self._reasons: Counter[str] = Counter()
        self._bytes, self._lag_s = 0, 0.0
        self._by_condition = Counter(shard.condition.id for shard in plan.shards)
        self._settled = Counter(shard.condition.id for shard in self._skipped)
        self._trajectories = Counter(total=_rows(plan.shards), skipped=_rows(self._skipped))
        self._on_progress = progress
        self._pool: PoolState | None = None
        self._start = time.monotonic()
        self.tick()

    def done(self, shard: Shard, *, bytes_written: int = 0, lag_s: float = 0.0) -> None:
        """Record a committed shard.

        Args:
            shard: The shard.
            bytes_written: Of its files.
            lag_s: See `Progress.lag_s`.
        """
        self._done.append(shard)
        self._settled[shard.condition.id] += 1
        self._bytes, self._lag_s = self._bytes + bytes_written, lag_s
        self._trajectories["done"] += len(shard.rows)
        self.tick()

    def elsewhere(self, shard: Shard) -> None:
        """Record a shard that another driver of the same run committed meanwhile."""
        if self._charges[shard.id] or shard.id in self._requeued:  # or an attempt of this one, whose answer was lost
            self.done(shard)
            return
        self._skipped.append(shard)
        self._elsewhere.append(shard)
        self._settled[shard.condition.id] += 1
        self._trajectories["skipped"] += len(shard.rows)
        self.tick()

    def failed(self, shard: Shard, reason: str, *, retry: bool, traceback: str = "") -> bool:
        """Record a failed attempt, and queue the shard again if it may be and attempts are left.

        Args:
            shard: The shard.
            reason: One line for the user.
            retry: Whether another attempt could end differently (a lost process, a storage error).
            traceback: Where it raised.

        Returns:
            Whether it is queued again.
        """
        self._charges[shard.id] += 1
        failure = Failure(
            shard_id=shard.id,
            condition=shard.condition.id,
            reason=reason,
            attempts=self._charges[shard.id],
            traceback=traceback,
        )
        shown = without_text(reason)
        self._reasons[shown] += 1
        again = retry and failure.attempts <= self._plan.config.execution.retries
        with log_context(run=self._plan.run_id, shard=shard.id):
            LOGGER.warning("%s, attempt %d: %s", "Repeated" if again else "Given up", failure.attempts, shown)
            LOGGER.debug("%s\n%s", reason, traceback)
        if again:
            self._retried.append(failure)
            self.pending.append(shard)
        else:
            self._failed.append((shard, failure))
            self._trajectories["failed"] += len(shard.rows)
        self.tick()
        return again

    def requeue(self, shard: Shard) -> None:
        """Queue a shard again that was lost through no fault of its own."""
        self._requeued.add(shard.id)
        self.pending.append(shard)

    def tick(self, pool: PoolState | None = None) -> None:
        """Report the present state to the callback.

        Args:
            pool: What has changed on Ray; the last one stays.
        """
        self._pool = pool or self._pool
        self._on_progress(self.progress)

    @property
    def progress(self) -> Progress:
        """Where the execution stands."""
        return Progress(
            shards_total=len(self._plan.shards),
            shards_done=len(self._done),
            shards_skipped=len(self._skipped),
            shards_elsewhere=len(self._elsewhere),
            shards_failed=len(self._failed),
            retries=len(self._retried),
            trajectories_total=self._trajectories["total"],
            trajectories_done=self._trajectories["done"],
            trajectories_skipped=self._trajectories["skipped"],
            trajectories_failed=self._trajectories["failed"],
            elapsed_s=time.monotonic() - self._start,
            bytes_written=self._bytes,
            lag_s=self._lag_s,
            reasons=dict(self._reasons),
            conditions=self._conditions(),
            pool=self._pool,
        )

    def _conditions(self) -> dict[str, tuple[int, int]]:
        if len(self._by_condition) > CONDITIONS_SHOWN:
            return {}
        return {name: (self._settled[name], total) for name, total in self._by_condition.items()}

    def report(self) -> ExecutionReport:
        """The result so far."""
        return ExecutionReport(
            done=tuple(shard.id for shard in self._done),
            skipped=tuple(shard.id for shard in self._skipped),
            elsewhere=tuple(shard.id for shard in self._elsewhere),
            failed=tuple(failure for _, failure in self._failed),
            retried=tuple(self._retried),
            wall_seconds=time.monotonic() - self._start,
            merged=self.merged,
        )


def _rows(shards: Sequence[Shard]) -> int:
    return sum(len(shard.rows) for shard in shards)
