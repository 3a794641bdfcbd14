"""Fair turns: shares within a turn of fair, nobody starves, one tenant's work in order, and leaving is one decision."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.actors.turns import GRACE_S, FairQueue, Tenant, Turns, Visit, Work


def work(job, shard="s"):
    return Work(tenant=Tenant(job, "u"), kind="shard", run="r", shard=shard)


@dataclass
class Sweep:
    """A tenant in a simulation: pieces of work one after the other, each of so many turns of so many seconds."""

    name: str
    turn_s: list[float]
    turns_a_piece: int
    gap_s: float
    served: list[tuple[float, float]] = field(default_factory=list)


def simulate(sweeps, until):
    """Run tenants that always have work on a queue with a clock of its own; fills `served` with (begin, end)."""
    queue, now = FairQueue(), 0.0
    visits, asks_at, count = {}, {}, dict.fromkeys(range(len(sweeps)), 0)
    for index, sweep in enumerate(sweeps):
        visits[index] = [Visit(work(sweep.name, str(place))) for place in range(2)]  # as the executor: one ahead
        for visit in visits[index]:
            queue.open(visit)
            queue.ask(visit, now)
        asks_at[index] = None
    while now < until:
        for index, moment in asks_at.items():
            if moment is not None and moment <= now:
                queue.ask(visits[index][0], moment)
                asks_at[index] = None
        again = queue.grant(now)
        if queue.holder is None:
            moments = [moment for moment in asks_at.values() if moment is not None]
            now = min([*moments, *([] if again is None else [now + again])], default=until)
            continue
        index = next(i for i, own in visits.items() if queue.holder in own)
        sweep, holder = sweeps[index], queue.holder
        assert holder is visits[index][0]  # a tenant's pieces come in order
        seconds = sweep.turn_s[count[index] % len(sweep.turn_s)]
        sweep.served.append((now, now + seconds))
        for other, moment in asks_at.items():  # those whose moment comes while the turn is under way
            if moment is not None and moment < now + seconds:
                queue.ask(visits[other][0], moment)
                asks_at[other] = None
        now += seconds
        queue.give_back(seconds, now)
        count[index] += 1
        if count[index] % sweep.turns_a_piece == 0:
            queue.close(holder)
            visits[index] = [visits[index][1], Visit(work(sweep.name, str(count[index] + 2)))]
            queue.open(visits[index][1])
            queue.ask(visits[index][1], now)
        else:
            asks_at[index] = now + sweep.gap_s


def seconds_in(served, begin, end):
    return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in served)


seconds = st.floats(0.02, 20.0)
sweep_strategy = st.builds(
    lambda turns, piece, gap: ("", turns, piece, gap), st.lists(seconds, min_size=1, max_size=5), st.integers(1, 9),
    st.floats(0.0, 0.45),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(sweep_strategy, min_size=2, max_size=4), st.floats(0.1, 0.9))
def test_each_of_n_gets_an_nth_of_what_it_would_get_alone(given_sweeps, cut):
    """Whatever the turns and the gaps between them; and, but for cut turns, no more than an n-th of the time."""
    sweeps = [Sweep(f"job{i}", turns, piece, gap) for i, (_, turns, piece, gap) in enumerate(given_sweeps)]
    until = 200.0
    simulate(sweeps, until)
    bound = 2 * sum(max(sweep.turn_s) for sweep in sweeps) + GRACE_S  # cut turns at either end, and the theorem's
    for begin, end in ((0.0, until), (0.0, until * cut), (until * cut, until)):
        for sweep in sweeps:
            turn_s = sum(sweep.turn_s) / len(sweep.turn_s)
            share, alone = (end - begin) / len(sweeps), turn_s / (turn_s + sweep.gap_s)
            assert share * alone - bound <= seconds_in(sweep.served, begin, end) <= share + bound


def test_short_turns_with_gaps_get_their_share_beside_long_ones():
    for turn_s, gap_s in ((0.02, 0.03), (0.1, 0.15), (1.0, 0.25)):
        short, long = Sweep("short", [turn_s], 50, gap_s), Sweep("long", [5.0], 5, 0.01)
        simulate([short, long], 400.0)
        assert seconds_in(short.served, 0.0, 400.0) >= 200 * turn_s / (turn_s + gap_s) - 10


def test_one_that_is_slow_to_ask_is_waited_for_once():
    queue = FairQueue(grace_s=0.5)
    slow, other = Visit(work("slow")), Visit(work("other"))
    for visit in (slow, other):
        queue.open(visit)
        queue.ask(visit, 0.0)
    queue.grant(0.0)
    queue.give_back(0.1, 0.1)
    queue.grant(0.1)
    assert queue.holder is other
    queue.give_back(0.3, 0.4)
    queue.ask(slow, 1.4)
    queue.grant(1.4)
    assert queue.holder is slow
    queue.give_back(0.1, 1.5)
    queue.ask(other, 1.5)
    assert queue.grant(1.5) is None
    assert queue.holder is other


@settings(max_examples=30, deadline=None)
@given(st.lists(sweep_strategy, min_size=2, max_size=5))
def test_nobody_starves(given_sweeps):
    """Between two turns of a tenant that always has work, the others get what is fair, and no more."""
    sweeps = [Sweep(f"job{i}", turns, piece, gap) for i, (_, turns, piece, gap) in enumerate(given_sweeps)]
    simulate(sweeps, 200.0)
    longest = max(max(sweep.turn_s) for sweep in sweeps)
    for sweep in sweeps:
        waits = [after[0] - before[1] for before, after in zip(sweep.served, sweep.served[1:], strict=False)]
        assert sweep.served[0][0] <= len(sweeps) * longest + 1
        assert max(waits, default=0.0) <= 4 * len(sweeps) * longest


def test_a_tenant_with_short_turns_is_waited_for():
    """Its gaps do not let the other with long turns in after every one of its own."""
    short, long = Sweep("short", [1.0], 5, 0.01), Sweep("long", [10.0], 5, 0.01)
    simulate([short, long], 500.0)
    assert sum(end - begin for begin, end in short.served) == pytest.approx(250, abs=12)


def test_who_comes_anew_waits_for_the_turn_under_way_only():
    queue = FairQueue()
    old = Visit(work("old"))
    queue.open(old)
    now = 0.0
    for _ in range(100):
        queue.ask(old, now)
        queue.grant(now)
        now += 1.0
        queue.give_back(1.0, now)
    queue.ask(old, now)
    queue.grant(now)
    new = Visit(work("new"))
    queue.open(new)
    queue.ask(new, now)
    queue.give_back(1.0, now + 1)
    queue.grant(now + 1)
    assert queue.holder is new
    queue.give_back(0.1, now + 1.1)
    queue.close(new)
    queue.close(old)
    assert not queue._finished  # nothing is kept of those who are gone


def test_one_that_is_away_for_long_is_not_waited_for():
    queue = FairQueue(grace_s=0.2)
    one, other = Visit(work("one")), Visit(work("other"))
    for visit in (one, other):
        queue.open(visit)
        queue.ask(visit, 0.0)
    queue.grant(0.0)
    queue.give_back(1.0, 1.0)
    queue.grant(1.0)
    assert queue.holder is other
    queue.give_back(10.0, 11.0)
    queue.ask(other, 11.0)  # `one` has the smaller tag, and waits for its reducer since long
    assert queue.grant(11.0) is None
    assert queue.holder is other


def test_threads_take_turns_and_an_error_gives_the_turn_back():
    turns, busy, order = Turns(), threading.Lock(), []

    def run(job, count):
        with turns.visit(work(job)) as visit:
            for _ in range(count):
                with turns.turn(visit):
                    assert busy.acquire(blocking=False)  # never two at a time
                    order.append(job)
                    time.sleep(0.02)
                    busy.release()

    with pytest.raises(KeyError), turns.visit(work("broken")) as visit, turns.turn(visit):
        raise KeyError
    threads = [threading.Thread(target=run, args=(job, 15)) for job in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(order) == ["a"] * 15 + ["b"] * 15
    middle = order[5:20]
    assert 5 <= middle.count("a") <= 10
    assert turns.state().holder is None
    assert turns.state().waiting == ()


def test_state_says_who_has_the_turn_and_who_waits():
    now = [0.0]
    turns = Turns(clock=lambda: now[0])
    now[0] = 5.0
    assert turns.state().idle_s == 5.0
    with turns.visit(work("a", "s1")) as first, turns.visit(work("b", "s2")), turns.turn(first):
        state = turns.state()
        assert (state.holder, state.waiting, state.idle_s) == (work("a", "s1"), (work("b", "s2"),), 0.0)
    assert turns.state().idle_s == 0.0


def test_leaving_is_decided_in_one_step_with_admitting():
    now = [0.0]
    turns = Turns(clock=lambda: now[0])
    with turns.visit(work("a")):
        now[0] = 100.0
        assert not turns.leave(10.0)  # there is work
    assert not turns.leave(10.0)  # there was a moment ago
    now[0] = 105.0
    turns.touch()
    now[0] = 111.0
    assert not turns.leave(10.0)
    now[0] = 115.0
    assert turns.leave(10.0)
    came = threading.Event()

    def come():
        with turns.visit(work("late")):
            came.set()

    threading.Thread(target=come, daemon=True).start()
    assert not came.wait(0.2)  # waits for the end, which it sees as a death
    assert turns.leave(10.0)
