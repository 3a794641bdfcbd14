"""Rows of many shards in one order, and looking rows up along the way: the same as doing it in memory."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsprobe.storage.merging as merging_module
from dsprobe.errors import StorageError
from dsprobe.storage.lockstep import Lockstep
from dsprobe.storage.merging import Rows, Run, in_order, merged
from dsprobe.storage.scratch import Scratch

TRAJECTORIES = st.lists(
    st.tuples(st.text("abé", min_size=1, max_size=3), st.integers(0, 12), st.integers(1, 4)),
    unique_by=lambda row: row[:2],
    max_size=40,
)
"""Prompt, sample and number of steps."""


def steps_of(trajectories: list[tuple[str, int, int]]) -> pa.Table:
    rows = [(prompt, sample, step) for prompt, sample, count in trajectories for step in range(1, count + 1)]
    return pa.table({
        "prompt_id": pa.array([row[0] for row in rows], pa.string()),
        "sample": pa.array([row[1] for row in rows], pa.int32()),
        "step": pa.array([row[2] for row in rows], pa.int16()),
        "value": pa.array([hash(row) % 1000 / 7 for row in rows], pa.float32()),
    })  # fmt: skip


def runs_of(shards: list[pa.Table]) -> list[Run]:
    runs = []
    for shard in shards:
        rows = Rows.of(in_order(shard))
        ends = (rows.keys[0], rows.keys[-1]) if rows.keys else (None, None)
        runs.append(Run(*ends, lambda table=rows.table: [table]))  # type: ignore[misc]
    return runs


@settings(max_examples=60, deadline=None)
@given(rows=TRAJECTORIES, data=st.data())
def test_a_merge_is_the_sort_of_everything_however_it_was_spread(
    rows: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 12))
    shard_of = data.draw(st.lists(st.integers(0, count - 1), min_size=len(rows), max_size=len(rows)))
    shards = [steps_of([row for row, place in zip(rows, shard_of, strict=True) if place == n]) for n in range(count)]
    small = {
        "FAN_IN": data.draw(st.integers(2, 4)),
        "PIECE_BYTES": data.draw(st.sampled_from([1, 60, 1 << 18])),
        "CHUNK_BYTES": data.draw(st.sampled_from([1, 200, 1 << 21])),
    }
    with pytest.MonkeyPatch.context() as patch, Scratch() as scratch:
        for name, value in small.items():
            patch.setattr(merging_module, name, value)
        chunks = list(merged(runs_of(shards), scratch))
    expected = in_order(steps_of(rows))
    found = pa.concat_tables([expected.slice(0, 0), *(chunk.table for chunk in chunks)])
    assert found.combine_chunks().equals(expected)
    for chunk in chunks:
        again = Rows.of(chunk.table)
        assert (chunk.keys, chunk.bounds.tolist()) == (again.keys, again.bounds.tolist())


def test_shards_that_follow_each_other_are_opened_one_at_a_time() -> None:
    opened: list[int] = []

    def run(number: int) -> Run:
        table = steps_of([(f"p{number:03d}", sample, 3) for sample in range(5)])

        def read() -> list[pa.Table]:
            opened.append(number)
            return [table]

        return Run((f"p{number:03d}", 0), (f"p{number:03d}", 4), read)

    with pytest.MonkeyPatch.context() as patch, Scratch() as scratch:
        patch.setattr(merging_module, "CHUNK_BYTES", 1)
        for number, chunk in enumerate(merged([run(number) for number in reversed(range(100))], scratch)):
            assert opened == list(range(number + 1))
            assert chunk.keys[0] == (f"p{number:03d}", 0)


def test_columns_that_change_between_shards_are_refused() -> None:
    table = steps_of([("a", 0, 2)])
    with Scratch() as scratch:
        stored = scratch.stored([table])
        with pytest.raises(StorageError, match="Columns change within a table"):
            stored.append(table.drop_columns("value"))


@given(
    known=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 11)), unique=True),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 11)), unique=True, min_size=1),
    size=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 36), max_size=3),
)
def test_lockstep_finds_what_a_dictionary_finds(
    known: list[tuple[str, int]], asked: list[tuple[str, int]], size: int, cuts: list[int]
) -> None:
    def table(keys: list[tuple[str, int]]) -> pa.Table:
        prompts, samples = pa.array([k[0] for k in keys], pa.string()), pa.array([k[1] for k in keys], pa.int32())
        return pa.table({"prompt_id": prompts, "sample": samples, "place": pa.array(np.arange(len(keys)), pa.int64())})

    stream, rows = table(sorted(known)), table(sorted(asked))
    lookup = Lockstep((stream.slice(at, size) for at in range(0, len(known), size)), stream.schema)
    bounds = [0, *sorted(min(cut, len(asked)) for cut in cuts), len(asked)]
    found = [lookup.matching(rows.slice(low, high - low))["place"].to_pylist() for low, high in pairwise(bounds)]
    places = {key: place for place, key in enumerate(sorted(known))}
    assert list(chain.from_iterable(found)) == [places.get(key) for key in sorted(asked)]
