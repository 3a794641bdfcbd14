"""When to ask a store again: exponential backoff with full jitter, ended by a deadline.

Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_JITTER: Final = random.Random()
"""Of its own: a wait must not move the generator that an experiment seeded."""

_SEEN: Final = {"retries": 0}
"""Of this process; all its requests are made on one thread, that of fsspec, so plain addition is enough."""

_SILENT_S: Final = 10.0
"""Seconds of failures before the log says at level WARNING that something is waited for."""


def retries_so_far() -> int:
    """How many attempts of this process were not the first of their operation, under any policy; only grows."""
    return _SEEN["retries"]


class TransientError(OSError):
    """One attempt failed in a way that another may not; the reason is its ``__cause__``.

    Attributes:
        unknown: The request may have been carried out all the same: its answer was lost, not refused.
    """

    def __init__(self, message: str, *, unknown: bool) -> None:
        super().__init__(message)
        self.unknown = unknown


class DeadlineError(OSError):
    """No attempt succeeded in time.

    Attributes:
        unknown: At least one attempt may have been carried out.
    """

    def __init__(self, message: str, *, unknown: bool) -> None:
        super().__init__(message)
        self.unknown = unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often an operation is tried."""

    deadline_s: float
    """Seconds for all attempts and the waits between them; an attempt under way is cut off then."""
    first_wait_s: float = 0.1
    """Upper end of the first wait; it doubles with each failure."""
    longest_wait_s: float = 10.0
    """Where the doubling ends."""

    def wait_s(self, failures: int, jitter: random.Random = _JITTER) -> float:
        """Draw the wait after a number of failures (from 1): uniform between 0 and the doubled upper end."""
        doublings = min(failures - 1, 64)  # 2.0**1024 would overflow
        return jitter.uniform(0.0, min(self.longest_wait_s, self.first_wait_s * 2.0**doublings))

    async def call(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        """Make attempts until one succeeds.

        Args:
            attempt: Makes one; raises `TransientError` where another makes sense. Any other error ends it at once.
            what: Names the operation in the log.

        Returns:
            What the attempt returned.

        Raises:
            DeadlineError: The time is over; the message tells the number of attempts and the last failure.
        """
        clock = asyncio.get_running_loop().time
        begin = clock()
        unknown, warned = False, False
        for failures in itertools.count(1):
            try:
                async with asyncio.timeout_at(begin + self.deadline_s):
                    return await attempt()
            except TransientError as error:
                reason, lost = str(error), error.unknown
            except TimeoutError:
                reason, lost = "no answer", True
            unknown = unknown or lost
            wait = self.wait_s(failures)
            passed = clock() - begin
            if passed + wait >= self.deadline_s:
                raise DeadlineError(
                    f"no success within {self.deadline_s:g} s ({failures} attempts); the last failure: {reason}",
                    unknown=unknown,
                )
            _LOG.log(
                logging.WARNING if passed > _SILENT_S and not warned else logging.INFO,
                "%s: attempt %d failed (%s); trying on for %.0f s", what, failures, reason, self.deadline_s - passed,
            )  # fmt: skip
            warned = warned or passed > _SILENT_S
            _SEEN["retries"] += 1
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the count has no end")
