"""The executor on Ray: shards go to replicas, their streams to reducers, and what dies is replaced and repeated.

The driver moves no data. For every shard it asks a reducer to take the stream of a replica, and keeps each replica one
shard ahead, so that a replica generates while its previous shard is being committed. A replica gets shards of the model
that it has loaded, while there are any. Shards of one condition go to one
reducer as long as it keeps up, so that few reducers hold statistics of a condition; at the end they are merged as a
tree, log2(reducers) rounds deep.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dsprobe.actors import meters
from dsprobe.actors.dispatching import LOOKAHEAD, START_LIMIT_S, Assignment, Dispatcher, Slot
from dsprobe.actors.executor import Ledger, PoolState
from dsprobe.actors.locality import Locality
from dsprobe.actors.meters import Totals
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.reducer import Job, Outcome, Reducer, Status, outcome_of
from dsprobe.actors.reducers import Reducers
from dsprobe.actors.replica import ReplicaInfo
from dsprobe.actors.room import GROWTH_LIMIT_S, describe_room, may_grow
from dsprobe.actors.session import LOGGER, current_tenant, ray_session
from dsprobe.actors.writing import Store, describe
from dsprobe.config import ModelConfig
from dsprobe.errors import PrerequisiteError, StorageError
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.storage.merged_state import MergedState
from dsprobe.telemetry.logs import log_context
from dsprobe.telemetry.metrics import FAULTS_RETRIED, QUEUE_DEPTH, REPLICAS
from dsprobe.telemetry.spans import SPANS

REPLICAS_PER_REDUCER = 4
"""A reducer writes several streams on threads; beyond a few they wait for each other in Python."""
MAX_WAITS = 10
"""Replicas that may be lost while a shard waits for its turn, before a loss is charged to it all the same."""
VISIBLE_LIMIT_S = 40.0
"""How long a commit may take to be seen from here; network file systems cache folders for half a minute."""
RELEASE_AFTER_S = 10.0
"""How long a replica beyond the least ones has nothing to do, and nothing waits, before it is given back."""
PENDING_LEFT_S = 30.0
"""A replica that has been coming up for longer when the run ends waits for room, and would wait for ever."""


def run_on_ray(plan: Plan, store: Store, ledger: Ledger) -> None:
    """Run the ledger's pending shards on the pool that the configuration names; outcomes go into the ledger.

    Raises:
        PrerequisiteError: Ray or the resources asked for are not there, or replicas and driver see different stores.
        ConfigError: A running pool of that name has other resources.
    """
    execution = plan.config.execution
    with ray_session(execution):
        pool = ReplicaPool.get_or_create(
            execution.pool,
            execution,
            plan.config.models if len(plan.config.models) == 1 else (),  # several are shared out
            told=lambda up, pending: ledger.tick(_state(len(ledger.pending), up=up, pending=pending)),
        )
        dispatcher = ShardDispatcher(plan, store, ledger, pool)
        try:
            dispatcher.know(pool.loaded())
            dispatcher.run()
            ledger.merged.absorb(dispatcher.merged())
        finally:
            dispatcher.close()


class ShardDispatcher(Dispatcher[Shard]):
    """Runs shards on a pool's replicas.

    A loss of a replica is charged to the shard it was busy with, a loss of a reducer to the shards it was writing.

    Args:
        plan: The plan; put into the object store once.
        store: The run's store; must be picklable.
        ledger: Queue and outcomes.
        pool: Replicas that answer.
    """

    def __init__(self, plan: Plan, store: Store, ledger: Ledger, pool: ReplicaPool) -> None:
        execution = plan.config.execution
        slots: list[Slot[Shard]] = [
            Slot(number, replica) for number, replica in zip(pool.numbers, pool.replicas, strict=True)
        ]
        slots += [Slot(number, replica, replica.ping.remote()) for number, replica in sorted(pool.pending.items())]
        patience_s = GROWTH_LIMIT_S if may_grow(execution) else START_LIMIT_S
        super().__init__(ledger.pending, slots, execution.stall_s, patience_s)
        self._plan_ref, self._run = ray.put(plan), plan.run_id
        self._totals, self._tenant = Totals(plan.run_id), current_tenant()
        self._store, self._ledger, self._pool = store, ledger, pool
        self._least, self._stall_s = execution.least_replicas, execution.stall_s
        self._elastic = self._least < execution.replicas
        self._locality, self._models = Locality(), plan.config.models
        streams = LOOKAHEAD * min(len(slots), REPLICAS_PER_REDUCER)
        reducers = math.ceil(len(slots) / REPLICAS_PER_REDUCER)
        self._reducers = Reducers(store, execution.window_mib << 20, reducers, streams)
        self._place = {condition: index for index, condition in enumerate(plan.conditions)}
        self._writing: dict[Assignment[Shard], ActorHandle[Reducer]] = {}
        self._waits: Counter[str] = Counter()
        self._proven: set[ActorHandle[Reducer]] = set()

    def know(self, loaded: Mapping[int, Sequence[ModelConfig]]) -> None:
        """Take note of the models that replicas have loaded before this run, by the number of the replica."""
        for number, configs in loaded.items():
            names = [model.name for model in self._models if model in configs]
            self._locality.has(number, names)

    def take(self, slot: Slot[Shard]) -> Shard | None:
        """A shard of a model that the replica has loaded, if there is one."""
        return self._locality.take(slot.index, self.pending, ahead=bool(slot.work))

    def submit(self, assignment: Assignment[Shard]) -> ObjectRef[Any] | None:
        """Ask a reducer to take the shard's stream from the replica, unless another driver was faster."""
        shard = assignment.item
        try:
            if self._store.is_committed(shard.id):
                self._ledger.elsewhere(shard)
                return None
        except StorageError as error:
            self._failed(shard, "storage", describe(error), traceback.format_exc())
            return None
        self._locality.has(assignment.slot.index, [shard.condition.model])
        reducer = self._reducers.choose(self._place[shard.condition], self._writing.values())
        self._writing[assignment] = reducer
        answer: ObjectRef[Outcome] = reducer.reduce.remote(
            assignment.actor,
            Job(
                run=self._run,
                tenant=self._tenant,
                shard_id=shard.id,
                stall_s=self._stall_s,
                plan=self._plan_ref,
                shard=ray.put(shard),
            ),
        )
        return answer

    def settle(self, assignment: Assignment[Shard], answer: ObjectRef[Any]) -> None:
        """Enter the outcome into the ledger, and replace what it says is lost."""
        shard, reducer = assignment.item, self._writing.pop(assignment)
        try:
            outcome: Outcome = ray.get(answer)
        except RayTaskError as error:  # the call itself failed before it began
            outcome = outcome_of(error)
        except RayError as error:
            if self._reducers.lost(reducer):
                self._ledger.requeue(shard)
                return
            outcome = Outcome(status="storage", reason=f"reducer lost ({type(error).__name__})")
        SPANS.add(outcome.spans)
        if outcome.status == "lost":
            self.lose(assignment)
        if outcome.status == "done":
            self._prove(shard, reducer)
            if outcome.won:
                self._ledger.done(shard, bytes_written=outcome.bytes, lag_s=outcome.lag_s)
            else:
                self._ledger.elsewhere(shard)
        elif outcome.status == "lost" and (assignment.excused or not self._is_charged(shard, outcome)):
            self._ledger.requeue(shard)
        else:
            self._failed(shard, outcome.status, outcome.reason, outcome.traceback)

    def _failed(self, shard: Shard, status: Status, reason: str, traceback: str) -> None:
        again = self._ledger.failed(shard, reason, retry=status != "raised", traceback=traceback)
        if again:
            meters.add(FAULTS_RETRIED, run=self._run, reason="replica" if status == "lost" else status)

    def _is_charged(self, shard: Shard, outcome: Outcome) -> bool:
        """Whether the loss of a replica is this shard's: it was busy with it, or never gets to be."""
        self._waits[shard.id] += not outcome.begun
        return outcome.begun or self._waits[shard.id] > MAX_WAITS

    def start(self, slot: Slot[Shard]) -> ActorHandle[Any]:
        """Start a successor under the lost replica's name; it waits where there is no room for it."""
        with log_context(run=self._run, replica=slot.index):
            LOGGER.warning("The replica is lost or its node is about to go, and another is started")
        ray.kill(slot.actor)  # one out of reach must not keep its resources and its name
        self._locality.forget(slot.index)
        return self._pool.restart(slot.index)

    def may_move(self, slot: Slot[Shard]) -> bool:
        """Not while another tenant's work is under way there, which may end in time."""
        answer: ObjectRef[ReplicaInfo] = slot.actor.info.remote()
        try:
            if not ray.wait([answer], timeout=1.0)[0]:
                return False
            return all(work.tenant == self._tenant for work in ray.get(answer).turns.works)
        except RayError:  # dead
            return True

    def explain(self) -> str:
        """Which pool, and what the cluster has."""
        return f"Pool `{self._pool.name}`: {describe_room(self._pool.spec, len(self.slots))}"

    def helpers(self) -> list[ActorHandle[Any]]:
        """The reducers that have come up."""
        return list(self._reducers.up())

    def tick(self) -> None:
        """Report progress."""
        up = sum(slot.takes_work for slot in self.slots)
        pending = sum(slot.starting is not None for slot in self.slots)
        draining = len(self.slots) - up - pending
        state = _state(len(self.pending), inflight=len(self.inflight), up=up, pending=pending, draining=draining)
        self._ledger.tick(state)
        self._meter(state)

    def look(self, leaving: dict[str, float]) -> None:
        """Move reducers away from nodes that are about to go, and give back what is not needed any more."""
        self._reducers.look(leaving, self._writing.values())
        if not self.pending:
            self._shrink()

    def _shrink(self) -> None:
        """Give replicas beyond the least ones back that have nothing left to do: first those that are not up yet.

        One that is up and that others use stays.
        """
        now, spare = time.monotonic(), len(self.slots) - self._least
        idle = [slot for slot in self.slots if not slot.work and now - slot.free_since > RELEASE_AFTER_S]
        for slot in sorted(idle, key=lambda slot: (slot.starting is None, -slot.index)):
            if spare > 0 and (_is_coming(slot) or self._agrees_to_leave(slot.actor)):
                self.slots.remove(slot)
                self._pool.release(slot.index)
                self._locality.forget(slot.index)
                spare -= 1

    def _agrees_to_leave(self, replica: ActorHandle[Any]) -> bool:
        """Whether nobody else has used a replica for a while; one that agrees admits nobody any more."""
        answer: ObjectRef[bool] = replica.leave.remote(RELEASE_AFTER_S)
        try:
            return bool(ray.wait([answer], timeout=1.0)[0]) and ray.get(answer)
        except RayError:  # dead, which the next run finds out
            return False

    def _meter(self, state: PoolState) -> None:
        self._totals.progress(self._ledger.progress)
        meters.put(QUEUE_DEPTH, state.queued, run=self._run)
        replicas = {"up": state.replicas_up, "pending": state.replicas_pending, "draining": state.replicas_draining}
        self._totals.show(REPLICAS, replicas, "state")

    def merged(self) -> MergedState:
        """See `Reducers.merged`."""
        return self._reducers.merged()

    def close(self) -> None:
        """End the reducers, and the replicas that wait for room: nobody waits for them any more."""
        self._reducers.close()
        for slot in self.slots:
            waited_s = time.monotonic() - slot.since
            if _is_coming(slot) and (self._elastic or waited_s > PENDING_LEFT_S):
                self._pool.release(slot.index)
        self._meter(_state(0))

    def _prove(self, shard: Shard, reducer: ActorHandle[Reducer]) -> None:
        """Look once a reducer whether what it commits arrives in the store that this process sees."""
        if reducer in self._proven:
            return
        deadline = time.monotonic() + VISIBLE_LIMIT_S
        while not self._store.is_committed(shard.id):
            if time.monotonic() > deadline:
                raise PrerequisiteError(
                    f"Shard `{shard.id}` was committed, but not to the place that this process sees as "
                    f"{self._store.url}: a disk of another machine, or `memory://`. Use an object store or a shared "
                    "file system as `output.root`, or `execution.executor: local`."
                )
            time.sleep(0.5)
        self._proven.add(reducer)


def _is_coming(slot: Slot[Shard]) -> bool:
    """Whether a slot's replica is not up yet, and so nobody else's either."""
    return slot.starting is not None and not ray.wait([slot.starting], timeout=0)[0]


def _state(queued: int, *, inflight: int = 0, up: int = 0, pending: int = 0, draining: int = 0) -> PoolState:
    return PoolState(
        queued=queued, inflight=inflight, replicas_up=up, replicas_pending=pending, replicas_draining=draining
    )
