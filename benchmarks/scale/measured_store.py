"""A run's store that tells when a batch was written and a shard committed, and that can be slow."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from benchmarks.scale.event_log import COMMITTED, WRITTEN, EventLog
from dsprobe.actors.window import batch_bytes
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.shard_writer import ShardWriter


@dataclass(frozen=True, slots=True)
class MeasuredStore:
    """Everything is the real store's.

    Args:
        store: The run.
        events: Where it says what happened.
        delay_s: Seconds that every batch takes longer.
    """

    store: RunStore
    events: EventLog
    delay_s: float = 0.0

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url

    def committed_ids(self) -> Collection[str]:
        """Ids of committed shards."""
        return self.store.committed_ids()

    def is_committed(self, shard_id: str) -> bool:
        """Whether a shard is committed."""
        return self.store.is_committed(shard_id)

    def open_attempt(self, shard_id: str) -> MeasuredWriter:
        """Begin an attempt."""
        return MeasuredWriter(self, self.store.open_attempt(shard_id))


class MeasuredWriter:
    """One attempt at a shard.

    Args:
        store: Gives log and delay.
        writer: The real attempt.
    """

    def __init__(self, store: MeasuredStore, writer: ShardWriter) -> None:
        self._events, self._delay_s, self._writer = store.events, store.delay_s, writer

    @property
    def state(self) -> ReducerState:
        """Statistics of what was added."""
        return self._writer.state

    @property
    def bytes_written(self) -> dict[str, int]:
        """Bytes of the finished files by kind."""
        return self._writer.bytes_written

    def add(self, batch: EvaluatedBatch) -> None:
        """Take the shard's next batch."""
        start, cpu = self._events.now(), time.thread_time()
        self._writer.add(batch)
        cpu = time.thread_time() - cpu
        time.sleep(self._delay_s)
        rows = batch.trajectories
        emitted, size = float(rows.wall_seconds_B[0]), batch_bytes(batch)
        end = self._events.now()
        self._events.add(WRITTEN, emitted=emitted, start=start, end=end, cpu=cpu, rows=rows.num_rows, bytes=size)

    def commit(self) -> bool:
        """Make the attempt count."""
        start, cpu = self._events.now(), time.thread_time()
        won = self._writer.commit()
        self._events.add(COMMITTED, start=start, end=self._events.now(), cpu=time.thread_time() - cpu)
        return won

    def abort(self) -> None:
        """Drop the attempt."""
        self._writer.abort()
