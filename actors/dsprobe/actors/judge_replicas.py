"""Judge replicas on Ray, private to a call.

Batches go to whichever replica is free, a few at a time; what a dead one was judging goes to its successor.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dsprobe.actors.dispatching import START_LIMIT_S, Assignment, Dispatcher, Slot
from dsprobe.actors.judge_replica import JudgeReplica
from dsprobe.actors.judging import Batches, BatchFailure, Done, blame
from dsprobe.actors.placement import spread, without_gpu
from dsprobe.actors.replica import ReplicaSpec
from dsprobe.actors.room import GROWTH_LIMIT_S, await_room, describe_room, may_grow, room_limit
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig, Spec
from dsprobe.errors import DSProbeError


def judge_on_ray(spec: Spec, batches: Batches, execution: ExecutionConfig, done: Done) -> list[BatchFailure]:
    """See `dsprobe.actors.judging.judge_batches`."""
    with ray_session(execution, include_dashboard=False):
        dispatcher = JudgeDispatcher(spec, batches, execution, done)
        try:
            dispatcher.bring_up(min(execution.replicas, len(batches)))
            dispatcher.run()
        finally:
            dispatcher.close()
        return dispatcher.failures


class JudgeDispatcher(Dispatcher[int]):
    """Asks replicas of a judge; a piece of work is a batch's number.

    A loss of a replica is charged to the batch it was judging.

    Args:
        judge: The judge.
        batches: Replies.
        execution: Replicas, and what each is given.
        done: Receives the verdicts.
    """

    def __init__(self, judge: Spec, batches: Batches, execution: ExecutionConfig, done: Done) -> None:
        self._judge, self._batches, self._done = judge, batches, done
        self._retries = execution.retries
        self._spec = ReplicaSpec.of(execution)
        self._charges: Counter[int] = Counter()
        self.failures: list[BatchFailure] = []
        """Batches without verdicts."""
        self._least, self._grows = execution.least_replicas, may_grow(execution)
        patience_s = GROWTH_LIMIT_S if self._grows else START_LIMIT_S
        super().__init__(deque(range(len(batches))), (), execution.stall_s, patience_s)
        self._room_limit_s = room_limit(execution)

    def bring_up(self, replicas: int) -> None:
        """Start replicas; `close` ends those that were, also where a later one cannot be.

        Raises:
            PrerequisiteError: There is no room for enough of them, and the cluster does not grow.
        """
        least = min(self._least, replicas)
        if not self._grows:
            await_room(
                "the judge's replicas",
                self._spec,
                least,
                lambda: least,
                limit_s=self._room_limit_s,
                remedy="Ask for fewer (--replicas, --num-gpus), stop other pools, or judge in this process "
                "(--executor local).",
            )
        for index in range(replicas):
            self.slots.append(self._new_slot(index))

    def submit(self, assignment: Assignment[int]) -> ObjectRef[Any] | None:
        """Hand a batch to a replica."""
        answer: ObjectRef[Any] = assignment.actor.judge.remote(list(self._batches[assignment.item]))
        return answer

    def settle(self, assignment: Assignment[int], answer: ObjectRef[Any]) -> None:
        """Pass verdicts on, note failures, queue again what was lost."""
        number = assignment.item
        try:
            verdicts = ray.get(answer)
        except RayTaskError as error:  # raised inside the replica
            self.failures.append(BatchFailure(batch=number, reason=blame(error.cause), traceback=str(error)))
            if isinstance(error.cause, DSProbeError):
                self.pending.clear()
        except RayError as error:
            self.lose(assignment)
            self._lost(assignment, f"judge replica lost ({type(error).__name__})")
        else:
            self._done(number, verdicts)

    def start(self, slot: Slot[int]) -> ActorHandle[Any]:
        """Start a successor."""
        ray.kill(slot.actor)  # an unreachable one must not keep its resources
        return self._new_replica(slot.index)

    def explain(self) -> str:
        """Which judge, and what the cluster has."""
        return f"Judge `{self._judge.key}`: {describe_room(self._spec, len(self.slots))}"

    def close(self) -> None:
        """End the replicas."""
        for slot in self.slots:
            ray.kill(slot.actor)

    def _lost(self, assignment: Assignment[int], reason: str) -> None:
        number = assignment.item
        self._charges[number] += assignment.culprit
        if self._charges[number] > self._retries:
            self.failures.append(BatchFailure(batch=number, reason=reason))
        else:
            self.pending.append(number)

    def _new_slot(self, index: int) -> Slot[int]:
        replica = self._new_replica(index)
        return Slot(index, replica, starting=replica.ping.remote())

    def _new_replica(self, index: int) -> ActorHandle[Any]:
        remote: Any = ray.remote  # its type hints do not know concurrency groups
        handle: ActorHandle[JudgeReplica] = (
            remote(concurrency_groups={"control": 1})(JudgeReplica)
            .options(
                num_gpus=self._spec.num_gpus,
                num_cpus=self._spec.num_cpus,
                **(spread() if self._spec.num_gpus else without_gpu(index, self._spec.num_cpus)),
                # A lost batch is retried here, where its cost is known; Ray's own restarts would hide it.
                max_restarts=0,
                runtime_env={"env_vars": self._spec.environment},
            )
            .remote(self._judge)
        )
        return handle
