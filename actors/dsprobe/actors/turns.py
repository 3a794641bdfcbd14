"""Fair turns: several tenants use one model, one at a time. No Ray and no torch here.

Start-time fair queueing (Goyal, Vin and Cheng 1996, section 2) by seconds served. Every request gets a start tag, the
larger of the virtual time and the finish tag of its tenant's last turn; the smallest tag goes first, and the virtual
time is the tag of the turn under way. While two tenants both have work, the seconds that they were served differ by
no more than the longest turn of each, whatever the lengths of their turns; and who comes anew waits for the turn under
way and for those who were ahead already, not for whole queues.

A tenant between two turns of one piece of work asks again within milliseconds. If the model went to the next tenant at
once, one with long turns would get one for every short one of the other. So a tenant that comes first is waited for, up
to `GRACE_S`, and the wait counts as served: each tenant of n gets at least an n-th of what it would get alone. One that
took longer to ask again the last time is not waited for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

GRACE_S: Final = 0.5
"""How long the model waits for the tenant that comes first and is between two turns, at most."""
_INSTANT_S: Final = 1e-6
"""Differences below this are rounding."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who shares a model with others."""

    job: str
    """Ray job of the driver."""
    user: str
    """Label of a person; two of one job have turns of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a tenant wants the model for."""

    tenant: Tenant
    kind: Literal["shard", "call", "load"]
    run: str = ""
    """Run id of a shard."""
    shard: str = ""
    """Its id."""
    stall_s: float = 0.0
    """Seconds without a finished batch after which a shard's owner takes the replica for hung; 0 never."""


class Visit:
    """One piece of work, from its arrival to its end; compared by identity.

    Args:
        work: What it is.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.begun = False
        """It has had a turn."""
        self.asks = False
        self.gave_back: float | None = None
        """When it gave its last turn back."""


class FairQueue:
    """Who is next; single-threaded and without a clock. Visits of one tenant come one after the other, in order.

    Args:
        grace_s: See `GRACE_S`.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.holder: Visit | None = None
        self._grace_s = grace_s
        self._visits: dict[Tenant, deque[Visit]] = {}
        """Open visits of each tenant, oldest first; tenants in order of their arrival."""
        self._tags: dict[Tenant, float] = {}
        """Start tag of the next turn of each tenant with open visits."""
        self._finished: dict[Tenant, float] = {}
        self._virtual = 0.0
        self._longest = 0.0
        """Seconds of the longest turn of this busy period."""
        self._slow: set[Tenant] = set()
        """Those that took longer than the grace to ask again."""
        self._awaited: tuple[Tenant, float] | None = None
        """Who is waited for, and since when."""

    def open(self, visit: Visit) -> None:
        """Queue a visit behind its tenant's others."""
        tenant = visit.work.tenant
        if tenant not in self._visits:
            self._visits[tenant] = deque()
            self._tags[tenant] = max(self._virtual, self._finished.get(tenant, 0.0))
        self._visits[tenant].append(visit)

    def close(self, visit: Visit) -> None:
        """End a visit that does not hold the turn."""
        tenant = visit.work.tenant
        self._visits[tenant].remove(visit)
        if not self._visits[tenant]:
            del self._visits[tenant], self._tags[tenant]
            self._slow.discard(tenant)
        if not self._visits:  # a busy period is over
            self._virtual, self._longest = max([self._virtual, *self._finished.values()]), 0.0
        self._finished = {
            name: tag for name, tag in self._finished.items() if tag > self._virtual or name in self._visits
        }

    def ask(self, visit: Visit, now: float) -> None:
        """Want a turn. A tenant that was away saves up no more than the longest turn of the others.

        Args:
            visit: One that is open.
            now: Seconds on any clock.
        """
        visit.asks = True
        tenant = visit.work.tenant
        self._tags[tenant] = max(self._tags[tenant], self._virtual - self._longest)
        if visit.gave_back is not None:
            slow = now - visit.gave_back > self._grace_s
            (self._slow.add if slow else self._slow.discard)(tenant)

    def grant(self, now: float) -> float | None:
        """Give the turn to whose it is, where it is free.

        Args:
            now: As in `ask`.

        Returns:
            Seconds after which to try again because somebody is waited for; `None` where there is nothing to wait for.
        """
        if self.holder is not None:
            return None
        self._charge_wait(now)
        asking = {tenant: visits[0] for tenant, visits in self._visits.items() if visits[0].asks}
        if not asking:
            return None
        first = min(asking, key=self._tags.__getitem__)  # of equals, the one that came first
        for tenant, visits in self._visits.items():
            ahead, left = self._tags[first] - self._tags[tenant], self._patience(visits[0], now)
            if not visits[0].asks and min(ahead, left) > _INSTANT_S:
                self._awaited = tenant, now
                return min(ahead, left)
        self.holder = asking[first]
        self.holder.asks, self.holder.begun = False, True
        self._virtual = max(self._virtual, self._tags[first])
        return None

    def give_back(self, seconds: float, now: float) -> None:
        """End the turn.

        Args:
            seconds: How long the model was used.
            now: As in `ask`.
        """
        assert self.holder is not None
        tenant, self.holder.gave_back = self.holder.work.tenant, now
        self._finished[tenant] = self._tags[tenant] = self._tags[tenant] + seconds
        self._longest = max(self._longest, seconds)
        self.holder = None

    def _patience(self, visit: Visit, now: float) -> float:
        """Seconds for which a visit between two turns is still waited for."""
        if visit.gave_back is None or visit.work.tenant in self._slow:
            return 0.0
        return visit.gave_back + self._grace_s - now

    def _charge_wait(self, now: float) -> None:
        """Count the wait up to now as served: whoever keeps the model idle pays for it."""
        if self._awaited is not None:
            tenant, since = self._awaited
            if tenant in self._tags:
                self._tags[tenant] += now - since
            self._awaited = None

    def visits(self) -> list[Visit]:
        """All open visits: those that have had a turn first, each tenant's in order."""
        found = [visit for visits in self._visits.values() for visit in visits]
        return sorted(found, key=lambda visit: not visit.begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnState:
    """Who uses the model, and who waits."""

    holder: Work | None
    begun: tuple[Work, ...]
    """Has had a turn and is not over; the holder's is not among them."""
    waiting: tuple[Work, ...]
    """Has had none yet."""
    idle_s: float
    """Seconds since the last use; 0 while there is work."""

    @property
    def works(self) -> tuple[Work, ...]:
        """All of it: the holder of the turn first, then who has begun, then who waits."""
        return (*filter(None, [self.holder]), *self.begun, *self.waiting)


class Turns:
    """A `FairQueue` for threads.

    Args:
        clock: Seconds.
        grace_s: See `GRACE_S`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, grace_s: float = GRACE_S) -> None:
        self._clock = clock
        self._queue = FairQueue(grace_s)
        self._changed = threading.Condition()
        self._used = clock()
        self._left = False

    @contextmanager
    def visit(self, work: Work) -> Iterator[Visit]:
        """Queue for turns until the work is over. Never returns where `leave` has succeeded."""
        visit = Visit(work)
        with self._changed:
            self._changed.wait_for(lambda: not self._left)
            self._queue.open(visit)
        try:
            yield visit
        finally:
            with self._changed:
                self._queue.close(visit)
                self._used = self._clock()
                self._changed.notify_all()

    @contextmanager
    def turn(self, visit: Visit) -> Iterator[None]:
        """Wait for a turn, and give it back at the end."""
        with self._changed:
            self._queue.ask(visit, self._clock())
            while self._queue.holder is not visit:
                again = self._queue.grant(self._clock())
                if self._queue.holder is not None:
                    self._changed.notify_all()
                if self._queue.holder is not visit:
                    self._changed.wait(again)
        began = self._clock()
        try:
            yield
        finally:
            with self._changed:
                now = self._clock()
                self._queue.give_back(now - began, now)
                self._changed.notify_all()

    def touch(self) -> None:
        """Count as used now. Never returns where `leave` has succeeded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left)
            self._used = self._clock()

    def leave(self, idle_s: float) -> bool:
        """Admit nobody any more, if nobody is there and nobody was for so long; whoever comes later waits for the end.

        Returns:
            Whether that is so now.
        """
        with self._changed:
            self._left = self._left or (not self._queue.visits() and self._clock() - self._used >= idle_s)
            return self._left

    def is_shared(self, tenant: Tenant) -> bool:
        """Whether others than this tenant use the model or wait for it."""
        with self._changed:
            return any(visit.work.tenant != tenant for visit in self._queue.visits())

    def state(self) -> TurnState:
        """Who uses the model, and who waits."""
        with self._changed:
            visits, holder = self._queue.visits(), self._queue.holder
            return TurnState(
                holder=holder.work if holder else None,
                begun=tuple(visit.work for visit in visits if visit.begun and visit is not holder),
                waiting=tuple(visit.work for visit in visits if not visit.begun),
                idle_s=0.0 if visits else self._clock() - self._used,
            )
