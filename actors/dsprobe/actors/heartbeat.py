"""Finding processes that live and do nothing: a frozen one does not answer, a stuck one does not get on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

ANSWER_LIMIT_S: Final = 120.0
"""How long an actor may take to answer on its control thread, at most; a busy interpreter answers within seconds."""

ASK_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """An actor's sign of life."""

    at_work: bool
    """False while it has nothing to do, or waits for others."""
    count: int
    """Grows with every finished piece of work."""
    stall_s: float | None = None
    """Seconds that its work may take by its owner's word, which may be somebody else; 0 without a limit."""


@dataclass(slots=True)
class _Pulse:
    asked: float
    """When the question under way was asked, or the last one was answered."""
    question: ObjectRef[Beat] | None
    last: Beat
    since: float
    """When `last` was first seen, or work began."""


class Heartbeats:
    """Asks actors for a `beat` now and then.

    Args:
        stall_s: Seconds without an answer (at most `ANSWER_LIMIT_S`), or at work without a finished piece, after which
            an actor counts as hung; 0 never.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._answer_s = min(stall_s, ANSWER_LIMIT_S)
        self._pulses: dict[ActorHandle[Any], _Pulse] = {}

    def hung(self, actors: Iterable[ActorHandle[Any]]) -> list[ActorHandle[Any]]:
        """The actors that hang, each named once; actors that are no longer given are forgotten.

        Args:
            actors: Actors that have come up. Each has ``beat() -> Beat`` on a thread of its own.
        """
        if not self._stall_s:
            return []
        now = time.monotonic()
        self._pulses = {actor: self._pulses.get(actor) or _new(now) for actor in actors}
        found = [actor for actor, pulse in self._pulses.items() if self._hangs(actor, pulse, now)]
        for actor in found:
            self._pulses[actor] = _new(now)
        return found

    def _hangs(self, actor: ActorHandle[Any], pulse: _Pulse, now: float) -> bool:
        if pulse.question is None:
            if now - pulse.asked >= min(ASK_EVERY_S, self._answer_s / 4):
                pulse.question, pulse.asked = actor.beat.remote(), now
            return False
        if not self._listen(pulse, now):
            return now - pulse.asked > self._answer_s
        # Judged by a fresh answer alone: this process may itself have been stopped for long.
        return pulse.last.at_work and now - pulse.since > self._limit_s(pulse.last)

    def _limit_s(self, beat: Beat) -> float:
        """Whose work it is says how long it may take; nobody's impatience ends another's."""
        if beat.stall_s is None:
            return self._stall_s
        return max(self._stall_s, beat.stall_s) if beat.stall_s else math.inf

    def _listen(self, pulse: _Pulse, now: float) -> bool:
        """Take an answer, if there is one."""
        ready, _ = ray.wait([pulse.question], timeout=0)
        if not ready:
            return False
        try:
            beat: Beat = ray.get(ready[0])
        except RayError:  # dead, which the work it had will say
            beat = Beat(at_work=False, count=0)
        if beat != pulse.last:
            pulse.last, pulse.since = beat, now
        pulse.question, pulse.asked = None, now
        return True


def _new(now: float) -> _Pulse:
    return _Pulse(now, None, Beat(at_work=False, count=-1), now)
