"""Judge replicas on Ray, private to a call.

Batches go to whichever replica is free, a few at a time; what a dead one was judging goes to its successor.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dsprobe.actors.judge_replica import JudgeReplica
from dsprobe.actors.judging import Batches, BatchFailure, Done, blame
from dsprobe.actors.pool import START_LIMIT_S
from dsprobe.actors.ray_executor import CLUSTER_ROOM_LIMIT_S, LOOKAHEAD, PRIVATE_ROOM_LIMIT_S
from dsprobe.actors.replica import ReplicaSpec
from dsprobe.actors.room import capacity, describe_room, is_free
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig, Spec
from dsprobe.errors import DSProbeError, PrerequisiteError
from dsprobe.judges import Verdict


def judge_on_ray(spec: Spec, batches: Batches, execution: ExecutionConfig, done: Done) -> list[BatchFailure]:
    """See `dsprobe.actors.judging.judge_batches`."""
    with ray_session(execution, include_dashboard=False):
        dispatcher = _Dispatcher(spec, batches, execution, done)
        try:
            return dispatcher.run()
        finally:
            dispatcher.close()


@dataclass(eq=False, slots=True)
class _Slot:
    """A replica's place; outlives the replica."""

    replica: ActorHandle[JudgeReplica]
    starting: ObjectRef[int] | None
    """Answer of a replica that is coming up; work waits for it."""
    since: float
    work: list[ObjectRef[list[Verdict]]] = field(default_factory=list)
    """Oldest first, which is the order in which the replica answers."""


class _Dispatcher:
    """Hands out batches, settles answers, replaces the dead.

    Every loss of a replica is charged to the batch it was judging, so losses end in verdicts or in a reported failure.
    """

    def __init__(self, judge: Spec, batches: Batches, execution: ExecutionConfig, done: Done) -> None:
        self._judge, self._batches, self._done = judge, batches, done
        self._retries = execution.retries
        self._spec = ReplicaSpec.of(execution)
        self._pending = deque(range(len(batches)))
        self._batch_of: dict[ObjectRef[list[Verdict]], int] = {}
        self._charges: Counter[int] = Counter()
        self._failures: list[BatchFailure] = []
        self._replicas = min(execution.replicas, len(batches))
        self._slots: list[_Slot] = []
        _await_room(self._spec, self._replicas, execution)

    def run(self) -> list[BatchFailure]:
        """Start the replicas and work until nothing is pending or in flight; `close` ends them, whatever happens."""
        for _ in range(self._replicas):
            self._slots.append(self._new_slot())
        while self._pending or self._batch_of:
            self._assign()
            starting = {slot.starting: slot for slot in self._slots if slot.starting is not None}
            # Oldest first: of several answers of one replica, ray.wait gives the earliest first.
            waiting: list[ObjectRef[Any]] = [*self._batch_of, *starting]
            ready, _ = ray.wait(waiting, timeout=1.0)
            for ref in ready:
                if ref in starting:
                    self._welcome(starting[ref], ref)
                else:
                    self._settle(ref)
            self._check_alive()
        return self._failures

    def close(self) -> None:
        """End the replicas."""
        for slot in self._slots:
            ray.kill(slot.replica)

    def _assign(self) -> None:
        for depth in range(LOOKAHEAD):  # first one batch for every replica, then the second
            for slot in self._slots:
                if slot.starting is None and len(slot.work) <= depth and self._pending:
                    number = self._pending.popleft()
                    ref: ObjectRef[list[Verdict]] = slot.replica.judge.remote(list(self._batches[number]))
                    slot.work.append(ref)
                    self._batch_of[ref] = number

    def _settle(self, ref: ObjectRef[list[Verdict]]) -> None:
        slot = next(slot for slot in self._slots if ref in slot.work)
        try:
            verdicts = ray.get(ref)
        except RayTaskError as error:  # raised inside the replica
            number = self._taken(slot, ref)
            reason = blame(error.cause)
            self._failures.append(BatchFailure(batch=number, reason=reason, traceback=str(error)))
            if isinstance(error.cause, DSProbeError):
                self._pending.clear()
        except RayError as error:
            self._replace(slot, f"judge replica lost ({type(error).__name__})")
        else:
            self._done(self._taken(slot, ref), verdicts)

    def _taken(self, slot: _Slot, ref: ObjectRef[list[Verdict]]) -> int:
        slot.work.remove(ref)
        return self._batch_of.pop(ref)

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Start a successor; the batch that was being judged is charged, the ones behind it are not."""
        lost = [self._taken(slot, ref) for ref in list(slot.work)]
        culprit = lost[0]
        self._charges[culprit] += 1
        if self._charges[culprit] > self._retries:
            self._failures.append(BatchFailure(batch=culprit, reason=reason))
            lost = lost[1:]
        self._pending.extend(lost)
        slot.since = time.monotonic()
        self._restart(slot)

    def _restart(self, slot: _Slot) -> None:
        ray.kill(slot.replica)  # an unreachable one must not keep its resources
        slot.replica = self._new_replica()
        slot.starting = slot.replica.ping.remote()

    def _welcome(self, slot: _Slot, answer: ObjectRef[int]) -> None:
        try:
            ray.get(answer)
        except RayError:
            time.sleep(0.2)
            self._restart(slot)
        else:
            slot.starting = None

    def _check_alive(self) -> None:
        now = time.monotonic()
        if all(slot.starting is not None and now - slot.since > START_LIMIT_S for slot in self._slots):
            raise PrerequisiteError(
                f"No replica of judge `{self._judge.key}` came up within {START_LIMIT_S:.0f} s. "
                f"{describe_room(self._spec, len(self._slots))}"
            )

    def _new_slot(self) -> _Slot:
        replica = self._new_replica()
        return _Slot(replica, replica.ping.remote(), time.monotonic())

    def _new_replica(self) -> ActorHandle[JudgeReplica]:
        actor: Any = ray.remote(JudgeReplica)
        handle: ActorHandle[JudgeReplica] = actor.options(
            num_gpus=self._spec.num_gpus,
            num_cpus=self._spec.num_cpus,
            # A lost batch is retried here, where its cost is known; Ray's own restarts would hide it.
            max_restarts=0,
            runtime_env={"env_vars": self._spec.environment},
        ).remote(self._judge)
        return handle


def _await_room(spec: ReplicaSpec, replicas: int, execution: ExecutionConfig) -> None:
    """Wait until the replicas fit: a pending actor would wait without an end and without a word."""
    limit = PRIVATE_ROOM_LIMIT_S if execution.address == "local" else CLUSTER_ROOM_LIMIT_S
    deadline = time.monotonic() + limit
    while capacity(spec) < replicas or not is_free(spec, replicas):
        if time.monotonic() > deadline:
            raise PrerequisiteError(
                f"No room for the judge's replicas. {describe_room(spec, replicas)} Ask for fewer (--replicas, "
                "--num-gpus), stop other pools, or judge in this process (--executor local)."
            )
        time.sleep(0.25)
