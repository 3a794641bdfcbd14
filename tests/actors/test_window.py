"""The byte window and the merged state: bounds hold, nothing waits for ever, nothing counts twice."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.actors.window import ByteWindow, batch_bytes
from dsprobe.storage.merged_state import MergedState
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.testing import synthetic_batch, synthetic_condition


@settings(deadline=None)
@given(
    limit=st.integers(1, 50),
    streams=st.lists(st.lists(st.integers(0, 80), max_size=6), min_size=1, max_size=4),
)
def test_waiting_bytes_stay_below_the_limit_or_are_one_batch(limit: int, streams: list[list[int]]) -> None:
    window, consumed = ByteWindow(limit), list[int]()

    def produce_and_write(name: str, sizes: list[int]) -> None:
        window.open(name)
        for size in sizes:
            assert window.admit(name, size)
            consumed.append(size)
            window.written(name)
        window.close(name)

    threads = [threading.Thread(target=produce_and_write, args=(str(i), sizes)) for i, sizes in enumerate(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    everything = [size for sizes in streams for size in sizes]
    stats = window.stats()
    assert sorted(consumed) == sorted(everything)
    assert stats.peak_bytes <= max(limit, *everything, 0)
    assert (stats.waiting_bytes, stats.batches, stats.bytes) == (0, len(everything), sum(everything))


def test_a_producer_waits_until_its_consumer_gets_on() -> None:
    window = ByteWindow(10)
    window.open("a")
    assert window.admit("a", 8)
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: window.admit("a", 8) and passed.set())
    waiting.start()
    assert not passed.wait(0.1)
    window.written("a")
    assert passed.wait(5)
    waiting.join()
    assert window.stats().blocked_s >= 0.1


def test_a_closed_stream_frees_its_bytes_and_turns_its_producer_away() -> None:
    window = ByteWindow(10)
    window.open("dead")
    window.open("alive")
    assert window.admit("dead", 9)
    answers: dict[str, bool] = {}
    threads = [
        threading.Thread(target=lambda name=name: answers.update({name: window.admit(name, 9)}))
        for name in ("dead", "alive")
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    window.close("dead")
    for thread in threads:
        thread.join(5)
    assert answers == {"dead": False, "alive": True}
    assert not window.admit("dead", 1)


def test_a_batch_counts_all_its_arrays() -> None:
    batch = synthetic_batch(0, rows=2, steps=3, length=5)
    planes = batch.trajectories.predicted_SBL.nbytes + batch.trajectories.kl_SBL.nbytes
    assert planes < batch_bytes(batch) < 20 * planes
    before = batch_bytes(batch)
    batch.trajectories.hidden_SBLD = {1: batch.trajectories.kl_SBL, 2: batch.trajectories.kl_SBL}
    assert batch_bytes(batch) == before + 2 * batch.trajectories.kl_SBL.nbytes


def shard_state(seed: int) -> ReducerState:
    state = ReducerState(0.5)
    state.update(synthetic_batch(seed, condition=synthetic_condition("dija" if seed % 2 else "direct"), rows=3))
    return state


@pytest.mark.parametrize("cuts", [(1, 2, 3), (3, 5, 6), (0, 0, 4)])
def test_a_tree_of_merged_states_equals_one_state(cuts: tuple[int, int, int]) -> None:
    expected = ReducerState(0.5)
    for seed in range(7):
        expected.merge(shard_state(seed))
    parts = [MergedState() for _ in range(4)]
    for seed in range(7):
        parts[sum(seed >= cut for cut in cuts)].add(f"s{seed}", shard_state(seed))
    parts[0].absorb(parts[1])
    parts[2].absorb(parts[3])
    parts[0].absorb(parts[2])
    assert parts[0].shards.keys() == {f"s{seed}" for seed in range(7)}
    assert parts[0].state is not None
    assert parts[0].state.to_tables() == expected.to_tables()


def test_a_shard_counts_once() -> None:
    merged, both = MergedState(), MergedState()
    for shard in ("a", "b"):
        both.add(shard, shard_state(0))
    merged.add("a", shard_state(0))
    merged.absorb(MergedState())
    merged.absorb(both)
    merged.add("a", shard_state(0))
    assert merged.shards.keys() == {"a"}
    assert merged.state is not None
    assert merged.state.to_tables() == shard_state(0).to_tables()


def test_what_is_known_of_a_condition_leaves_the_whole_as_it_is() -> None:
    merged = MergedState()
    for seed in range(4):
        merged.add(f"s{seed}", shard_state(seed))
    assert merged.state is not None
    before = merged.state.to_tables()
    direct = synthetic_condition("direct")
    state, shards = merged.of(direct, {"s0", "s2", "other"})
    assert state is not None
    assert shards == {"s0", "s2"}
    expected = shard_state(0)
    expected.merge(shard_state(2))
    assert state.to_tables() == expected.to_tables()
    state.merge(shard_state(6))
    assert merged.state.to_tables() == before
    assert merged.of(direct, {"s0"}) == (None, set())  # one was revoked: what was merged cannot be taken apart
    assert merged.of(synthetic_condition("pad"), {"s0"}) == (None, set())
