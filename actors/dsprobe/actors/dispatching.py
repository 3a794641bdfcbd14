"""Handing out work to actors that may die or hang: one loop for shards on replicas and for batches on judges.

Work goes to whichever slot is free, a few pieces ahead. The loss of an actor is charged to one piece of its work, the
one that it was busy with, so losses end either in success or in a reported failure. An actor on a node that is about to
go ends the piece under way, if there is time; then it moves, and nothing is charged.

Slots whose actors are coming up wait beside those at work, without a limit: an actor that finds no room is what an
autoscaler acts on, and it joins once there is a node for it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from dsprobe.actors.draining import draining_nodes, is_due, node_of
from dsprobe.actors.heartbeat import Heartbeats
from dsprobe.errors import PrerequisiteError

Item = TypeVar("Item")

LOOKAHEAD: Final = 2
"""Pieces handed to an actor: the one under way and the next, so that it never waits for the driver."""

START_LIMIT_S: Final = 120.0
"""How long an actor's process may take to come up, where nothing has to be awaited but the process."""

LOOK_EVERY_S: Final = 2.0
"""Seconds between two looks at the cluster's nodes."""


@dataclass(eq=False, slots=True)
class Slot(Generic[Item]):
    """A place for an actor; outlives the actor."""

    index: int
    actor: ActorHandle[Any]
    starting: ObjectRef[Any] | None = None
    """Answer of an actor that is coming up; work waits for it."""
    since: float = field(default_factory=time.monotonic)
    """When the present gap began, where an actor is coming up."""
    work: list[Assignment[Item]] = field(default_factory=list)
    """Oldest first, which is the order in which the actor does it."""
    free_since: float = field(default_factory=time.monotonic)
    """When it had no work last, where it has none."""
    node: str | None = None
    """Where the actor lives, once that is known."""
    leaves_at: float | None = None
    """When its node goes (seconds since 1970), where that is known."""

    @property
    def takes_work(self) -> bool:
        """Whether its actor is up and will stay."""
        return self.starting is None and self.leaves_at is None


@dataclass(eq=False, slots=True)
class Assignment(Generic[Item]):
    """One attempt at a piece of work."""

    item: Item
    slot: Slot[Item]
    actor: ActorHandle[Any]
    culprit: bool = False
    """The piece that its actor was busy with when it was lost."""
    excused: bool = False
    """Its actor's node was about to go, so a loss is nobody's fault."""


class Dispatcher(ABC, Generic[Item]):
    """Works off a queue on slots.

    Args:
        pending: Pieces of work; more may be appended at any time.
        slots: At least one by the time of `run`.
        stall_s: See `dsprobe.actors.heartbeat.Heartbeats`.
        patience_s: How long all slots may be coming up at once; longer where nodes may have to be started first.
    """

    def __init__(
        self, pending: deque[Item], slots: Iterable[Slot[Item]], stall_s: float, patience_s: float = START_LIMIT_S
    ) -> None:
        self.pending = pending
        self.slots = list(slots)
        self.inflight: dict[ObjectRef[Any], Assignment[Item]] = {}
        self._heartbeats = Heartbeats(stall_s)
        self._patience_s = patience_s
        self._next_look = 0.0

    @abstractmethod
    def submit(self, assignment: Assignment[Item]) -> ObjectRef[Any] | None:
        """Begin an attempt; `None` where it turns out that nothing is to be done."""

    @abstractmethod
    def settle(self, assignment: Assignment[Item], answer: ObjectRef[Any]) -> None:
        """Take the answer of an attempt, which may be an error; it is no longer in flight."""

    @abstractmethod
    def start(self, slot: Slot[Item]) -> ActorHandle[Any]:
        """Start a successor for a slot's actor, which is lost; calls to it may wait for it."""

    @abstractmethod
    def explain(self) -> str:
        """Why no actor may have come up: what was asked for, and what there is."""

    def take(self, slot: Slot[Item]) -> Item | None:
        """Take a slot's next piece out of the queue, which is not empty; `None` where it had better wait.

        A slot without work must get a piece.
        """
        del slot
        return self.pending.popleft()

    def may_move(self, slot: Slot[Item]) -> bool:
        """Whether the actor of a slot, whose node is about to go, may be ended before it is time."""
        del slot
        return True

    def helpers(self) -> list[ActorHandle[Any]]:
        """Further actors that are to be watched."""
        return []

    def tick(self) -> None:
        """Called after every answer, and once a second while there is none."""

    def look(self, leaving: dict[str, float]) -> None:
        """Called every few seconds with the nodes that are about to go; see `draining_nodes`."""

    def run(self) -> None:
        """Work until nothing is pending or in flight.

        Raises:
            PrerequisiteError: No actor is left and no successor comes up.
        """
        while self.pending or self.inflight:
            self._assign()
            starting = {slot.starting: slot for slot in self.slots if slot.starting is not None}
            # Oldest first: of several answers of one actor, ray.wait gives the earliest first.
            waiting: list[ObjectRef[Any]] = [*self.inflight, *starting]
            ready, _ = ray.wait(waiting, timeout=1.0) if waiting else ([], [])
            for ref in ready:
                if ref in starting:
                    self._welcome(starting[ref], ref)
                elif ref in self.inflight:
                    self._answered(ref)
            if time.monotonic() >= self._next_look:
                self._look_at_nodes()
            self._end_the_hung()
            self._check_alive()
            self.tick()

    def lose(self, assignment: Assignment[Item]) -> None:
        """Replace the actor of an attempt that failed because the actor is gone.

        The other attempts that it had fail on their own, one by one; only the first of its work is the culprit.
        """
        slot = assignment.slot
        if assignment.actor is not slot.actor:
            return  # an earlier answer reported the same loss
        self._mark_leaving(draining_nodes())  # the notice may be younger than the last look
        if slot.work and slot.leaves_at is None:
            slot.work[0].culprit = True
        self._move(slot)

    def _assign(self) -> None:
        for depth in range(LOOKAHEAD):  # first one piece for every slot, then the second
            for slot in self.slots:
                while slot.takes_work and len(slot.work) <= depth and self.pending:
                    item = self.take(slot)
                    if item is None:
                        break
                    assignment = Assignment(item, slot, slot.actor)
                    ref = self.submit(assignment)
                    if ref is not None:
                        slot.work.append(assignment)
                        self.inflight[ref] = assignment

    def _answered(self, ref: ObjectRef[Any]) -> None:
        assignment = self.inflight.pop(ref)
        self.settle(assignment, ref)
        slot = assignment.slot
        if assignment in slot.work:
            slot.work.remove(assignment)
            slot.free_since = time.monotonic()
            if slot.leaves_at is not None and self.may_move(slot):  # the next piece would begin on a node that goes
                self._move(slot)

    def _look_at_nodes(self) -> None:
        """Note which slots' nodes are about to go, and move actors that have nothing to end there, or no time."""
        self._next_look = time.monotonic() + LOOK_EVERY_S
        for slot in self.slots:
            if slot.starting is None and slot.node is None:
                slot.node = node_of(slot.actor)
        leaving = draining_nodes()
        self._mark_leaving(leaving)
        for slot in self.slots:
            if slot.leaves_at is None:
                continue
            if is_due(slot.leaves_at) or (not slot.work and self.may_move(slot)):
                self._move(slot)
        self.look(leaving)

    def _mark_leaving(self, leaving: dict[str, float]) -> None:
        for slot in self.slots:
            if slot.node in leaving and slot.starting is None:
                slot.leaves_at = leaving[slot.node]

    def _move(self, slot: Slot[Item]) -> None:
        """Start a successor; what the actor still had comes back as lost."""
        for assignment in slot.work:
            assignment.excused = slot.leaves_at is not None
        slot.work = []
        slot.since = slot.free_since = time.monotonic()
        self._restart(slot)

    def _restart(self, slot: Slot[Item]) -> None:
        slot.node = slot.leaves_at = None
        slot.actor = self.start(slot)
        slot.starting = slot.actor.ping.remote()

    def _welcome(self, slot: Slot[Item], answer: ObjectRef[Any]) -> None:
        """Give a successor work, or start another if it died or was the dead one's name still."""
        try:
            ray.get(answer)
        except RayError:
            time.sleep(0.2)
            self._restart(slot)
        else:
            slot.starting, slot.node = None, node_of(slot.actor)

    def _end_the_hung(self) -> None:
        """Kill what hangs; from there on it is a loss like any other."""
        working = [slot.actor for slot in self.slots if slot.starting is None]
        for actor in self._heartbeats.hung([*working, *self.helpers()]):
            ray.kill(actor)

    def _check_alive(self) -> None:
        now = time.monotonic()
        if all(slot.starting is not None and now - slot.since > self._patience_s for slot in self.slots):
            raise PrerequisiteError(
                f"All {len(self.slots)} replica(s) are gone and none came up within {self._patience_s:.0f} s. "
                f"{self.explain()}"
            )
