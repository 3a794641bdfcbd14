"""A run's reducers: where they are, which shard goes to which, what replaces one that is lost or leaves."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dsprobe.actors.draining import draining_nodes, is_due, node_of
from dsprobe.actors.heartbeat import ANSWER_LIMIT_S
from dsprobe.actors.placement import without_gpu
from dsprobe.actors.reducer import Reducer
from dsprobe.actors.writing import Store
from dsprobe.storage.merged_state import MergedState
from dsprobe.telemetry.logs import log_variables

LOGGER = logging.getLogger("dsprobe.actors.reducers")

Handle = ActorHandle[Reducer]


@dataclass(slots=True)
class _Leaving:
    """A reducer whose node is about to go; it ends its streams, and its statistics go to its successor."""

    leaves_at: float
    successor: Handle
    handing_over: ObjectRef[None] | None = None


class Reducers:
    """Starts reducers and keeps as many as there were; they take no GPU, and prefer nodes that have none.

    Args:
        store: The run's store.
        window_bytes: Bytes of finished batches that may wait in each.
        count: How many.
        streams: Shards that one takes at a time.
    """

    def __init__(self, store: Store, window_bytes: int, count: int, streams: int) -> None:
        self._store, self._window_bytes, self._streams = store, window_bytes, streams
        self._turns = itertools.count()
        self._pings: dict[Handle, ObjectRef[None]] = {}
        """Answered once a reducer's process is up."""
        self._nodes: dict[Handle, str] = {}
        self._reducers = [self._new() for _ in range(count)]
        self._leaving: dict[Handle, _Leaving] = {}

    def choose(self, place: int, writing: Iterable[Handle]) -> Handle:
        """A condition's reducer, or the least busy one while that one has no thread free.

        Args:
            place: The condition's place in the plan.
            writing: The reducer of each shard under way.
        """
        load = Counter(writing)
        own = self._reducers[place % len(self._reducers)]
        return own if load[own] < self._streams else min(self._reducers, key=lambda reducer: load[reducer])

    def up(self) -> list[Handle]:
        """Those that have come up: a busy machine may take longer to start one than a hung one is given."""
        pings = {self._pings[reducer]: reducer for reducer in [*self._reducers, *self._leaving]}
        ready, _ = ray.wait(list(pings), num_returns=len(pings), timeout=0)
        return [pings[ref] for ref in ready]

    def lost(self, dead: Handle) -> bool:
        """Replace a reducer that is gone.

        Returns:
            Whether its node was about to go, so that this is nobody's fault.
        """
        ray.kill(dead)  # an unreachable one must not go on writing
        if dead in self._leaving:
            return True  # the others of its shards say the same
        if dead not in self._reducers:
            return False
        leaving = self._nodes.get(dead) in draining_nodes()  # the notice may be younger than the last look
        LOGGER.warning("A reducer is lost%s, and another is started", " with its node, as announced" * leaving)
        successor = self._replace(dead)
        if leaving:
            self._leaving[dead] = _Leaving(0.0, successor)
        else:
            self._forget(dead)
        return leaving

    def look(self, leaving: dict[str, float], writing: Iterable[Handle]) -> None:
        """Move reducers away from nodes that are about to go; see `choose` and `draining_nodes` for the arguments."""
        for reducer in self.up():
            if reducer not in self._nodes and (node := node_of(reducer)):
                self._nodes[reducer] = node
        for reducer in list(self._reducers):
            if (node := self._nodes.get(reducer)) in leaving:
                LOGGER.warning("A reducer's node %s is about to go, and another reducer is started", node)
                self._leaving[reducer] = _Leaving(leaving[node], self._replace(reducer))
        busy = set(writing)
        for reducer, state in list(self._leaving.items()):
            self._see_off(reducer, state, busy=reducer in busy)

    def merged(self) -> MergedState:
        """Statistics of the shards that living reducers committed, merged as a tree; the reducers forget them.

        A reducer that dies takes its part along, and what it was to absorb; then that is read from the shards.
        """
        for state in self._leaving.values():
            if state.handing_over is not None:
                _reached(state.handing_over)
        level = [*self._reducers, *(reducer for reducer, state in self._leaving.items() if not state.handing_over)]
        while len(level) > 1:
            pairs = list(zip(level[::2], level[1::2], strict=False))
            steps: list[ObjectRef[None]] = [left.absorb.remote(right.hand_over.remote()) for left, right in pairs]
            for step in steps:
                _reached(step)
            level = level[::2]
        merged: MergedState | None = _reached(level[0].hand_over.remote())
        return merged or MergedState()

    def close(self) -> None:
        """End them; Ray then closes their streams, and the replicas are free again."""
        for reducer in [*self._reducers, *self._leaving]:
            ray.kill(reducer)

    def _see_off(self, reducer: Handle, state: _Leaving, *, busy: bool) -> None:
        """End a leaving reducer once it has no streams and its successor has its statistics, or no time is left."""
        if state.handing_over is None and not busy:
            state.handing_over = state.successor.absorb.remote(reducer.hand_over.remote())
        done = state.handing_over is not None and bool(ray.wait([state.handing_over], timeout=0)[0])
        if done or is_due(state.leaves_at):
            ray.kill(reducer)
            if not busy:  # otherwise the answers of its shards are still to come
                self._forget(reducer)

    def _forget(self, reducer: Handle) -> None:
        self._leaving.pop(reducer, None)
        self._pings.pop(reducer)
        self._nodes.pop(reducer, None)

    def _replace(self, reducer: Handle) -> Handle:
        index = self._reducers.index(reducer)
        self._reducers[index] = self._new()
        return self._reducers[index]

    def _new(self) -> Handle:
        remote: Any = ray.remote  # its type hints do not know concurrency groups
        actor = remote(concurrency_groups={"admission": self._streams, "control": 1})(Reducer)
        variables = log_variables()
        handle: Handle = actor.options(
            num_cpus=0,
            num_gpus=0,
            max_concurrency=self._streams,
            max_restarts=0,
            # An environment of its own costs an actor a new process, so it has none where it needs none.
            **({"runtime_env": {"env_vars": variables}} if variables else {}),
            **without_gpu(next(self._turns), 0),
        ).remote(self._store, self._window_bytes)
        self._pings[handle] = handle.ping.remote()
        return handle


def _reached(ref: ObjectRef[Any]) -> Any:
    """The answer, or `None` where an actor died on the way, or hangs: statistics can be read from the shards."""
    try:
        return ray.get(ref, timeout=ANSWER_LIMIT_S)
    except RayTaskError as error:
        if isinstance(error.cause, RayError):  # the other side of a step died
            return None
        raise
    except RayError:
        return None
