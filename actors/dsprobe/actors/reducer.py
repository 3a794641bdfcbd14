"""A reducer: an actor that takes shards' streams from replicas and writes them, so that generation never waits for I/O.

The reducer owns the streams. What may wait for it is bounded in bytes (`dsprobe.actors.window`): a replica asks before
it hands a batch over, so a slow store slows generation and never fills memory. When the reducer dies the question
fails, which ends the stream and frees the replica for the next attempt.

The statistics of all shards that it committed stay merged here, for whoever wants them while the run goes on and for
the tables at its end.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dsprobe.actors import meters
from dsprobe.actors.heartbeat import Beat
from dsprobe.actors.turns import Tenant
from dsprobe.actors.window import ByteWindow, WindowStats
from dsprobe.actors.writing import Store, Written, describe, write_shard
from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.merged_state import MergedState
from dsprobe.telemetry.logs import begin_actor, log_context
from dsprobe.telemetry.metrics import (
    BATCHES_WRITTEN,
    BYTES_WRITTEN,
    REDUCER_LAG_SECONDS,
    REDUCER_WAITING_BYTES,
    SHARDS_COMMITTED,
)
from dsprobe.telemetry.spans import SPANS, Span, belonging_to, span

if TYPE_CHECKING:
    from dsprobe.actors.replica import Replica
    from dsprobe.experiment.plan import Plan, Shard

BEGIN_S: Final = 2.0
"""Seconds that a replica waits at most until its reducer knows that it turns to a shard."""

Status = Literal["done", "raised", "storage", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt at a shard ended."""

    status: Status
    """`raised`: an exception of the shard itself; `storage`: the store refused; `lost`: the replica died."""
    reason: str = ""
    traceback: str = ""
    won: bool = True
    """False where the shard is done by another driver's attempt, which was first."""
    begun: bool = False
    """`lost`: the replica was busy with this shard, so its death is this shard's."""
    bytes: int = 0
    """Of the committed files."""
    lag_s: float = 0.0
    """Seconds from a finished batch to a written one, mean over the reducer's batches so far."""
    spans: tuple[Span, ...] = ()
    """What took how long, in the reducer and in its replicas."""


def outcome_of(error: RayError) -> Outcome:
    """What an error of a call to a replica means.

    An error that Ray raised inside the call concerns the replica and not the shard: it lost sight of the plan or of the
    reducer, or its class is gone with the driver that started it, so that no new process can call it.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RayError):
        return Outcome(status="lost", reason=f"replica lost ({type(cause).__name__})")
    return Outcome(status="raised", reason=describe(cause), traceback=str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A shard to be run, by reference: the reducer looks into neither, and so imports neither torch nor models."""

    run: str
    """Run id."""
    tenant: Tenant
    """Whose it is."""
    shard_id: str
    stall_s: float
    """See `dsprobe.actors.turns.Work`."""
    plan: ObjectRef[Plan]
    shard: ObjectRef[Shard]


@dataclass(frozen=True, slots=True)
class Gate:
    """Where a replica asks before it hands over a batch of one stream; travels to the replica."""

    reducer: ActorHandle[Reducer]
    stream: str
    run: str
    tenant: Tenant
    stall_s: float

    def begin(self) -> None:
        """Say that the replica turns to the shard. Waits for the answer, but not long: others wait for the turn.

        Raises:
            RayError: The reducer is gone.
        """
        answer: ObjectRef[None] = self.reducer.begin.remote(self.stream)
        ready, _ = ray.wait([answer], timeout=BEGIN_S)
        if ready:
            ray.get(answer)

    def admit(self, size: int, *, shared: bool, spans: Sequence[Span] = ()) -> bool:
        """Wait until a batch may pass; False when nobody wants the stream any more.

        Args:
            size: Bytes of the batch.
            shared: Meanwhile the replica may be at work for others.
            spans: What the replica has measured since it asked last.

        Raises:
            RayError: The reducer is gone.
        """
        answer: ObjectRef[bool] = self.reducer.admit.remote(self.stream, size, shared, spans)
        return ray.get(answer)


class Reducer:
    """Writes shards into one run's store; several shards at a time, one thread each.

    Args:
        store: The run's store, opened anew in this process.
        window_bytes: Bytes of finished batches that may wait here, all streams together.
    """

    def __init__(self, store: Store, window_bytes: int) -> None:
        begin_actor("reducer", (ray.get_runtime_context().get_actor_id() or "")[:8])
        self._store = store
        self._window = ByteWindow(window_bytes)
        self._in_turn: set[str] = set()
        """Streams that a replica has begun with, but for those that wait while it may be busy with another tenant's."""
        self._merging = threading.Lock()
        self._merged = MergedState()

    def reduce(self, replica: ActorHandle[Replica], job: Job) -> Outcome:
        """Run a shard on a replica, write its batches as they come, and commit.

        Returns:
            The outcome; never raises, because a bug in one shard must not take the others along.
        """
        gate = Gate(ray.get_runtime_context().current_actor, uuid.uuid4().hex, job.run, job.tenant, job.stall_s)
        with log_context(run=job.run, shard=job.shard_id, stream=gate.stream):
            with span("write", "shard"):
                outcome = self._reduce(replica, job, gate)
                self._in_turn.discard(gate.stream)
            return replace(outcome, spans=tuple(belonging_to(job.run, SPANS.take())))

    def _reduce(self, replica: ActorHandle[Replica], job: Job, gate: Gate) -> Outcome:
        try:
            with closing(self._stream(replica, job, gate)) as batches:
                written = write_shard(self._store, job.shard_id, batches)
        except RayError as error:
            return replace(outcome_of(error), begun=gate.stream in self._in_turn)
        except StorageError as error:
            return Outcome(status="storage", reason=describe(error), traceback=traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - the actor's edge
            return Outcome(status="raised", reason=describe(error), traceback=traceback.format_exc())
        if written.won:  # another driver's attempt may come from other hardware, and is read when tables are made
            with self._merging:
                self._merged.add(job.shard_id, written.state)
        if written.won:
            self._count(job, written)
        size = sum(written.bytes.values())
        return Outcome(status="done", won=written.won, bytes=size, lag_s=self._window.stats().lag_mean_s)

    @ray.method(concurrency_group="admission")
    def begin(self, stream: str) -> None:
        """Note that a replica turns to a stream: its death is the stream's."""
        self._in_turn.add(stream)

    @ray.method(concurrency_group="admission")
    def admit(self, stream: str, size: int, shared: bool, spans: Sequence[Span] = ()) -> bool:
        """See `ByteWindow.admit`; the replica's spans wait here until a shard's outcome takes them along."""
        if shared:
            self._in_turn.discard(stream)
        SPANS.add(spans)
        return self._window.admit(stream, size)

    @ray.method(concurrency_group="control")
    def ping(self) -> None:
        """Answer once the process is up."""

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Sign of life: at work while batches wait to be written."""
        stats = self._window.stats()
        return Beat(at_work=stats.waiting_bytes > 0, count=stats.batches)

    @ray.method(concurrency_group="control")
    def stats(self) -> WindowStats:
        """What passed through so far."""
        return self._window.stats()

    @ray.method(concurrency_group="control")
    def hand_over(self) -> MergedState:
        """The statistics of the shards committed here since the last call, which are forgotten here."""
        with self._merging:
            merged, self._merged = self._merged, MergedState()
        return merged

    @ray.method(concurrency_group="control")
    def absorb(self, other: MergedState) -> None:
        """Take over what another reducer handed over: one step of the tree."""
        with self._merging:
            self._merged.absorb(other)

    def _stream(self, replica: ActorHandle[Replica], job: Job, gate: Gate) -> Generator[EvaluatedBatch]:
        """Yield a shard's batches; each is given back to the window when the next is asked for."""
        self._window.open(gate.stream)
        try:
            stream: Iterator[ObjectRef[EvaluatedBatch]] = replica.run_shard.options(num_returns="streaming").remote(
                [job.plan], job.shard, gate
            )
            for ref in stream:
                with span("transfer"):
                    batch = ray.get(ref)
                yield batch
                del batch, ref  # or its memory would still be held while the window counts it as free
                lag = self._window.written(gate.stream)
                meters.observe(REDUCER_LAG_SECONDS, lag, run=job.run)
                meters.add(BATCHES_WRITTEN, run=job.run)
                self._show_waiting(job.run)
        finally:
            self._window.close(gate.stream)
            self._show_waiting(job.run)  # or what a lost stream left would be shown as waiting

    def _show_waiting(self, run: str) -> None:
        meters.put(REDUCER_WAITING_BYTES, self._window.stats().waiting_bytes, run=run)
        meters.count_storage_retries(run)

    def _count(self, job: Job, written: Written) -> None:
        meters.add(SHARDS_COMMITTED, run=job.run)
        for kind, amount in written.bytes.items():
            meters.add(BYTES_WRITTEN, amount, run=job.run, kind=kind)
