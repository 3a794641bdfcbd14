"""Handing out work to actors that may die or hang: one loop for shards on replicas and for batches on judges.

Work goes to whichever slot is free, a few pieces ahead. The loss of an actor is charged to one piece of its work, the
one that it was busy with, so losses end either in success or in a reported failure.
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

from dsprobe.actors.heartbeat import Heartbeats
from dsprobe.errors import PrerequisiteError

Item = TypeVar("Item")

LOOKAHEAD: Final = 2
"""Pieces handed to an actor: the one under way and the next, so that it never waits for the driver."""

START_LIMIT_S: Final = 120.0
"""How long an actor's process may take to come up once it has its resources."""


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


@dataclass(eq=False, slots=True)
class Assignment(Generic[Item]):
    """One attempt at a piece of work."""

    item: Item
    slot: Slot[Item]
    actor: ActorHandle[Any]
    culprit: bool = False
    """The piece that its actor was busy with when it was lost."""


class Dispatcher(ABC, Generic[Item]):
    """Works off a queue on slots.

    Args:
        pending: Pieces of work; more may be appended at any time.
        slots: At least one by the time of `run`.
        stall_s: See `dsprobe.actors.heartbeat.Heartbeats`.
    """

    def __init__(self, pending: deque[Item], slots: Iterable[Slot[Item]], stall_s: float) -> None:
        self.pending = pending
        self.slots = list(slots)
        self.inflight: dict[ObjectRef[Any], Assignment[Item]] = {}
        self._heartbeats = Heartbeats(stall_s)

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

    def helpers(self) -> list[ActorHandle[Any]]:
        """Further actors that are to be watched."""
        return []

    def tick(self) -> None:
        """Called about once a second."""

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
        if slot.work:
            slot.work[0].culprit = True
        slot.work = []
        slot.since = time.monotonic()
        self._restart(slot)

    def _assign(self) -> None:
        for depth in range(LOOKAHEAD):  # first one piece for every slot, then the second
            for slot in self.slots:
                while slot.starting is None and len(slot.work) <= depth and self.pending:
                    assignment = Assignment(self.pending.popleft(), slot, slot.actor)
                    ref = self.submit(assignment)
                    if ref is not None:
                        slot.work.append(assignment)
                        self.inflight[ref] = assignment

    def _answered(self, ref: ObjectRef[Any]) -> None:
        assignment = self.inflight.pop(ref)
        self.settle(assignment, ref)
        if assignment in assignment.slot.work:
            assignment.slot.work.remove(assignment)

    def _restart(self, slot: Slot[Item]) -> None:
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
            slot.starting = None

    def _end_the_hung(self) -> None:
        """Kill what hangs; from there on it is a loss like any other."""
        working = [slot.actor for slot in self.slots if slot.starting is None]
        for actor in self._heartbeats.hung([*working, *self.helpers()]):
            ray.kill(actor)

    def _check_alive(self) -> None:
        now = time.monotonic()
        if all(slot.starting is not None and now - slot.since > START_LIMIT_S for slot in self.slots):
            raise PrerequisiteError(
                f"All {len(self.slots)} replica(s) are gone and none came up within {START_LIMIT_S:.0f} s. "
                f"{self.explain()}"
            )
