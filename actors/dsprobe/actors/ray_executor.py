"""The executor on Ray: shards go to replicas, their streams to reducers, and what dies is replaced and repeated.

The driver moves no data. For every shard it asks a reducer to take the stream of a replica, and keeps each replica one
shard ahead, so that a replica generates while its previous shard is being committed. Shards of one condition go to one
reducer as long as it keeps up, so that few reducers hold statistics of a condition; at the end they are merged as a
tree, log2(reducers) rounds deep.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dsprobe.actors import meters
from dsprobe.actors.dispatching import LOOKAHEAD, Assignment, Dispatcher, Slot
from dsprobe.actors.executor import Ledger
from dsprobe.actors.meters import Totals
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.reducer import Job, Outcome, Reducer, outcome_of
from dsprobe.actors.room import describe_room, room_limit
from dsprobe.actors.session import LOGGER, ray_session
from dsprobe.actors.writing import Store, describe
from dsprobe.errors import PrerequisiteError, StorageError
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.storage.merged_state import MergedState
from dsprobe.telemetry.logs import log_context
from dsprobe.telemetry.metrics import QUEUE_DEPTH, REPLICAS

REPLICAS_PER_REDUCER = 4
"""A reducer writes several streams on threads; beyond a few they wait for each other in Python."""
MAX_WAITS = 10
"""Replicas that may be lost while a shard waits for its turn, before a loss is charged to it all the same."""
VISIBLE_LIMIT_S = 40.0
"""How long a commit may take to be seen from here; network file systems cache folders for half a minute."""


def run_on_ray(plan: Plan, store: Store, ledger: Ledger) -> None:
    """Run the ledger's pending shards on the pool that the configuration names; outcomes go into the ledger.

    Raises:
        PrerequisiteError: Ray or the resources asked for are not there, or replicas and driver see different stores.
        ConfigError: A running pool of that name has other resources.
    """
    execution = plan.config.execution
    with ray_session(execution):
        limit = room_limit(execution)
        pool = ReplicaPool.get_or_create(execution.pool, execution, plan.config.models, room_limit_s=limit)
        dispatcher = ShardDispatcher(plan, store, ledger, pool)
        try:
            dispatcher.run()
            ledger.merged.absorb(dispatcher.merged())
        finally:
            dispatcher.close()


class ShardDispatcher(Dispatcher[Shard]):
    """Runs shards on a pool's replicas.

    A loss of a replica is charged to the shard it had begun with, a loss of a reducer to the shards it was writing.

    Args:
        plan: The plan; put into the object store once.
        store: The run's store; must be picklable.
        ledger: Queue and outcomes.
        pool: Replicas that answer.
    """

    def __init__(self, plan: Plan, store: Store, ledger: Ledger, pool: ReplicaPool) -> None:
        slots: list[Slot[Shard]] = [Slot(index, replica) for index, replica in enumerate(pool.replicas)]
        super().__init__(ledger.pending, slots, plan.config.execution.stall_s)
        self._plan_ref, self._run = ray.put(plan), plan.run_id
        self._totals = Totals(plan.run_id)
        self._store, self._ledger, self._pool = store, ledger, pool
        self._window_bytes = plan.config.execution.window_mib << 20
        self._streams = LOOKAHEAD * min(len(slots), REPLICAS_PER_REDUCER)
        self._pings: dict[ActorHandle[Reducer], ObjectRef[None]] = {}
        """Answered once a reducer's process is up."""
        self._reducers = [self._new_reducer() for _ in range(math.ceil(len(slots) / REPLICAS_PER_REDUCER))]
        self._place = {condition: index for index, condition in enumerate(plan.conditions)}
        self._writing: dict[Assignment[Shard], ActorHandle[Reducer]] = {}
        self._waits: Counter[str] = Counter()
        self._proven: set[ActorHandle[Reducer]] = set()

    def submit(self, assignment: Assignment[Shard]) -> ObjectRef[Any] | None:
        """Ask a reducer to take the shard's stream from the replica, unless another driver was faster."""
        shard = assignment.item
        try:
            if self._store.is_committed(shard.id):
                self._ledger.elsewhere(shard)
                return None
        except StorageError as error:
            self._ledger.failed(shard, describe(error), retry=True, traceback=traceback.format_exc())
            return None
        reducer = self._writing[assignment] = self._reducer_for(shard)
        answer: ObjectRef[Outcome] = reducer.reduce.remote(
            assignment.actor, Job(run=self._run, shard_id=shard.id, plan=self._plan_ref, shard=ray.put(shard))
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
            self._replace_reducer(reducer)
            outcome = Outcome(status="storage", reason=f"reducer lost ({type(error).__name__})")
        if outcome.status == "lost":
            self.lose(assignment)
        if outcome.status == "done":
            self._prove(shard, reducer)
            (self._ledger.done if outcome.won else self._ledger.elsewhere)(shard)
        elif outcome.status == "lost" and not self._is_charged(shard, outcome):
            self._ledger.requeue(shard)
        else:
            retry = outcome.status != "raised"
            self._ledger.failed(shard, outcome.reason, retry=retry, traceback=outcome.traceback)

    def _is_charged(self, shard: Shard, outcome: Outcome) -> bool:
        """Whether the loss of a replica is this shard's: it had begun with it, or never gets to begin."""
        self._waits[shard.id] += not outcome.begun
        return outcome.begun or self._waits[shard.id] > MAX_WAITS

    def start(self, slot: Slot[Shard]) -> ActorHandle[Any]:
        """Start a successor under the lost replica's name."""
        with log_context(run=self._run, replica=slot.index):
            LOGGER.warning("The replica is lost, and another is started")
        ray.kill(slot.actor)  # one out of reach must not keep its resources and its name
        return self._pool.replace(slot.index)

    def explain(self) -> str:
        """Which pool, and what the cluster has."""
        return f"Pool `{self._pool.name}`: {describe_room(self._pool.spec, len(self.slots))}"

    def helpers(self) -> list[ActorHandle[Any]]:
        """The reducers that have come up: a busy machine may take longer to start one than a hung one is given."""
        pings = [self._pings[reducer] for reducer in self._reducers]
        up = set(ray.wait(pings, num_returns=len(pings), timeout=0)[0])
        return [reducer for reducer, ping in zip(self._reducers, pings, strict=True) if ping in up]

    def tick(self) -> None:
        """Report progress."""
        self._ledger.tick()
        starting = sum(slot.starting is not None for slot in self.slots)
        self._show(len(self.pending), up=len(self.slots) - starting, starting=starting)

    def _show(self, queue: int, **replicas: int) -> None:
        self._totals.progress(self._ledger.progress)
        meters.put(QUEUE_DEPTH, queue, run=self._run)
        self._totals.show(REPLICAS, replicas, "state")

    def merged(self) -> MergedState:
        """Statistics of the shards that living reducers committed, merged as a tree; the reducers forget them.

        A reducer that dies takes its part along, which then is read from the committed shards.
        """
        level = list(self._reducers)
        while len(level) > 1:
            pairs = list(zip(level[::2], level[1::2], strict=False))
            steps: list[ObjectRef[None]] = [left.absorb.remote(right.hand_over.remote()) for left, right in pairs]
            for step in steps:
                _reached(step)
            level = level[::2]
        merged: MergedState | None = _reached(level[0].hand_over.remote())
        return merged or MergedState()

    def close(self) -> None:
        """End the reducers; Ray then closes their streams, and the replicas are free again."""
        for reducer in self._reducers:
            ray.kill(reducer)
        self._show(0, up=0, starting=0)

    def _reducer_for(self, shard: Shard) -> ActorHandle[Reducer]:
        """The reducer of the shard's condition, or the least busy one while that one has no thread free."""
        load = Counter(self._writing.values())
        own = self._reducers[self._place[shard.condition] % len(self._reducers)]
        return own if load[own] < self._streams else min(self._reducers, key=lambda reducer: load[reducer])

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

    def _replace_reducer(self, dead: ActorHandle[Reducer]) -> None:
        for index, reducer in enumerate(self._reducers):
            if reducer is dead:
                ray.kill(dead)  # an unreachable one must not go on writing
                del self._pings[dead]
                self._reducers[index] = self._new_reducer()

    def _new_reducer(self) -> ActorHandle[Reducer]:
        remote: Any = ray.remote  # its type hints do not know concurrency groups
        actor = remote(concurrency_groups={"admission": self._streams, "control": 1})(Reducer)
        handle: ActorHandle[Reducer] = actor.options(num_cpus=0, max_concurrency=self._streams, max_restarts=0).remote(
            self._store, self._window_bytes
        )
        self._pings[handle] = handle.ping.remote()
        return handle


def _reached(ref: ObjectRef[Any]) -> Any:
    """The answer, or `None` where an actor died on the way."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RayError):  # the other side of a step died
            return None
        raise
    except RayError:
        return None
