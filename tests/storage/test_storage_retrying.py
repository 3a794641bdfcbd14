"""The retry policy: waits are bounded and jittered, attempts end at the deadline, and only what may pass is retried."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.storage.retrying import DeadlineError, RetryPolicy, TransientError


@given(
    failures=st.integers(1, 10_000),
    seed=st.integers(0, 2**32),
    first=st.floats(0.001, 10),
    longest=st.floats(0.001, 60),
)
def test_waits_double_up_to_their_limit(failures: int, seed: int, first: float, longest: float) -> None:
    policy = RetryPolicy(deadline_s=1, first_wait_s=first, longest_wait_s=longest)
    wait = policy.wait_s(failures, random.Random(seed))
    assert 0 <= wait <= longest
    if failures < 10:
        assert wait <= first * 2 ** (failures - 1)


def test_jitter_is_full() -> None:
    """Uniform from zero: the mean of many waits is half their upper end."""
    policy, noise = RetryPolicy(deadline_s=1), random.Random(0)
    waits = [policy.wait_s(4, noise) for _ in range(4000)]
    assert sum(waits) / len(waits) == pytest.approx(0.4, rel=0.05)
    assert min(waits) < 0.01


@given(failures=st.integers(0, 20))
def test_transient_failures_are_retried_to_success(failures: int) -> None:
    seen: list[int] = []

    async def attempt() -> str:
        seen.append(len(seen))
        if len(seen) <= failures:
            raise TransientError("busy", unknown=False)
        return "done"

    policy = RetryPolicy(deadline_s=30, first_wait_s=0.0)
    assert asyncio.run(policy.call(attempt, "test")) == "done"
    assert len(seen) == failures + 1


def test_other_errors_end_it_at_once() -> None:
    seen: list[int] = []

    async def attempt() -> None:
        seen.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        asyncio.run(RetryPolicy(deadline_s=30).call(attempt, "test"))
    assert seen == [1]


@pytest.mark.parametrize(
    ("answers", "unknown"), [((False, False), False), ((True, False), True), ((False, True), True)]
)
def test_the_deadline_remembers_whether_any_attempt_may_have_worked(answers: tuple[bool, bool], unknown: bool) -> None:
    left = list(answers)

    async def attempt() -> None:
        raise TransientError("busy", unknown=left.pop(0) if left else False)

    with pytest.raises(DeadlineError, match=r"within 0\.1 s \(\d+ attempts\); the last failure: busy") as caught:
        asyncio.run(RetryPolicy(deadline_s=0.1, first_wait_s=0.001, longest_wait_s=0.01).call(attempt, "test"))
    assert caught.value.unknown is unknown


def test_an_attempt_that_hangs_is_cut_off() -> None:
    async def attempt() -> None:
        await asyncio.sleep(60)

    begin = time.monotonic()
    with pytest.raises(DeadlineError, match="no answer") as caught:
        asyncio.run(RetryPolicy(deadline_s=0.2).call(attempt, "test"))
    assert time.monotonic() - begin < 5
    assert caught.value.unknown


def test_waits_leave_seeded_generators_alone() -> None:
    random.seed(3)
    before = random.getstate()
    RetryPolicy(deadline_s=1).wait_s(3)
    assert random.getstate() == before
