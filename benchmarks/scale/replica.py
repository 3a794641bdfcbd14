"""A replica whose GPU is a timer: it sleeps as long as the modelled GPU would work and hands over real batches.

It goes through the same door as `dsprobe.actors.replica.Replica`: it asks the gate before each batch, and Ray
serialises the batch while the GPU has nothing to do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.actor import ActorHandle

from benchmarks.scale.event_log import ADMITTED, DROPPED, GENERATED, EventLog
from benchmarks.scale.work import SimulatedShard, Work, batches_of, prepare
from dsprobe.actors.heartbeat import Beat
from dsprobe.actors.window import batch_bytes
from dsprobe.experiment.evaluated import EvaluatedBatch

if TYPE_CHECKING:
    from dsprobe.actors.reducer import Gate
    from dsprobe.actors.replica import ReplicaSpec


class SimulatedReplica:
    """Has what dispatcher and reducer use of a replica.

    Args:
        events: Where it says what it did.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._changed = threading.Condition()
        self._run, self._working = "", False
        self._batches = 0

    def run_shard(self, plan_ref: Sequence[Any], shard: SimulatedShard, gate: Gate) -> Iterator[EvaluatedBatch]:
        """Stream a shard's batches, each after its modelled time; the plan is not looked at."""
        del plan_ref
        self._set_working(True)
        try:
            gate.begin()
            yield from self._stream(shard, gate)
        finally:
            self._set_working(False)

    def _stream(self, shard: SimulatedShard, gate: Gate) -> Iterator[EvaluatedBatch]:
        events = self._events
        for number, batch in enumerate(batches_of(shard)):
            start, size = events.now(), batch_bytes(batch)
            with self._changed:
                seconds = shard.work.seconds(shard.id, number)
                dropped = self._changed.wait_for(lambda: self._run != shard.run, timeout=seconds)
            end = events.now()
            events.add(DROPPED if dropped else GENERATED, start=start, end=end, bytes=size, replica=os.getpid())
            if dropped or not gate.admit(size, shared=False):
                return
            events.add(ADMITTED, start=end, end=events.now(), bytes=size)
            self._batches += 1
            yield _stamped(batch, end)

    @ray.method(concurrency_group="control")
    def begin(self, run: str, work: Work) -> None:
        """Take work of one run only from now on; other work is given up, and what is under way has ended on return."""
        prepare(work)
        with self._changed:
            self._run = run
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._working)

    def _set_working(self, working: bool) -> None:
        with self._changed:
            self._working = working
            self._changed.notify_all()

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """The process id."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Sign of life; a timer does not hang."""
        return Beat(at_work=False, count=self._batches)


def _stamped(batch: EvaluatedBatch, emitted: float) -> EvaluatedBatch:
    """Put the time of emission where rows have their wall time."""
    wall_seconds_B = np.full(batch.trajectories.num_rows, emitted, np.float32)
    return replace(batch, trajectories=replace(batch.trajectories, wall_seconds_B=wall_seconds_B))


class SimulatedPool:
    """What the dispatcher uses of a `dsprobe.actors.pool.ReplicaPool`.

    Args:
        spec: Resources of each replica.
        events: Where they say what they did.
    """

    name = "scale"

    def __init__(self, spec: ReplicaSpec, events: EventLog) -> None:
        self.spec, self._events = spec, events
        self.replicas: list[ActorHandle[SimulatedReplica]] = []
        self.pending: dict[int, ActorHandle[SimulatedReplica]] = {}

    @property
    def numbers(self) -> list[int]:
        """Numbers of the replicas."""
        return list(range(len(self.replicas)))

    def restart(self, number: int) -> ActorHandle[SimulatedReplica]:
        """Start a successor of one that died."""
        self.replicas[number] = self._start()
        return self.replicas[number]

    def first(self, replicas: int) -> SimulatedPool:
        """A pool of the first so many of these replicas; missing ones are started, and answer when this returns."""
        missing = replicas - len(self.replicas)
        self.replicas += [self._start() for _ in range(missing)]
        ray.get([replica.ping.remote() for replica in self.replicas])
        part = SimulatedPool(self.spec, self._events)
        part.replicas = self.replicas[:replicas]
        return part

    def begin(self, run: str, work: Work) -> None:
        """Take work of one run only; see `SimulatedReplica.begin`."""
        ray.get([replica.begin.remote(run, work) for replica in self.replicas])

    def _start(self) -> ActorHandle[SimulatedReplica]:
        remote: Any = ray.remote  # its type hints do not know concurrency groups
        actor = remote(concurrency_groups={"control": 1})(SimulatedReplica)
        handle: ActorHandle[SimulatedReplica] = actor.options(
            num_gpus=self.spec.num_gpus, num_cpus=self.spec.num_cpus, max_restarts=0
        ).remote(self._events)
        return handle
