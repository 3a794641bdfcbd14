from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sweeps.sweep_outcomes import outcomes

from dsprobe.errors import StorageError
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.storage.objects import ObjectStore
from dsprobe.sweeps.archive import Archive, from_table, increments, to_table

ANY_BITS = st.integers(0, 2**64 - 1).map(lambda bits: float(np.uint64(bits).view(np.float64)))
ODD = st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 5e-324])


@st.composite
def row_outcomes(draw) -> RowOutcomes:
    n = draw(st.integers(0, 5))

    def column(values):
        return draw(st.lists(values, min_size=n, max_size=n))

    floats = [np.array(column(ANY_BITS | ODD), np.float64) for _ in range(4)]
    whole = st.integers(-(2**63), 2**63 - 1)
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
    return RowOutcomes(
        **{name: np.array(column(text), np.str_) for name in ("condition", "prompts", "attack", "prompt_id")},
        **{
            name: np.array(column(whole), np.int64)
            for name in ("prompt_index", "sample", "num_steps", "passes", "passes_used", "positions", "interventions")
        },
        **{name: np.array(column(st.booleans()), np.bool_) for name in ("harmful", "empty")},
        verdicts={"a": floats[0], "judge 2": floats[1]},
        log_perplexity=floats[2],
        margin=floats[3],
    )


def bits(rows: RowOutcomes) -> dict[str, list]:
    columns = rows.columns()
    columns |= columns.pop("verdicts")
    return {name: (c.view(np.int64) if c.dtype.kind == "f" else c).tolist() for name, c in columns.items()}


@settings(max_examples=25, deadline=None)
@given(row_outcomes())
def test_outcomes_come_back_bit_for_bit(rows):
    assert bits(from_table(to_table(rows))) == bits(rows)
    archive = Archive(ObjectStore(f"memory://archive-{os.urandom(8).hex()}"))
    assert archive.put("d", 0.0, 1.0, rows)
    found = archive.get("d", 0.0, 1.0)
    assert bits(found) == bits(rows)
    dtypes = {name: column.dtype.kind for name, column in found.columns().items() if name != "verdicts"}
    assert dtypes == {name: column.dtype.kind for name, column in rows.columns().items() if name != "verdicts"}


def test_verdicts_without_an_opinion_are_values_not_nulls():
    table = to_table(outcomes([1, None], [1.0]))
    assert table.column("verdict_toy_oracle").null_count == 0
    assert [name for name in table.column_names if name.startswith("verdict_")] == [
        "verdict_refused", "verdict_toy_oracle", "verdict_toy_utility", "verdict_toy_validity",
    ]  # fmt: skip


def test_the_first_outcomes_of_a_name_stay(tmp_path: Path):
    archive = Archive(ObjectStore(str(tmp_path)))
    first, second = outcomes([1, 0]), outcomes([0, 0])
    assert archive.get("abc", 0, 0.25) is None
    assert archive.put("abc", 0, 0.25, first)
    assert not archive.put("abc", 0, 0.25, second)
    assert bits(archive.get("abc", 0.0, 0.25)) == bits(first)
    assert archive.get("abc", 0.0, 0.5) is None
    assert archive.get("abd", 0.0, 0.25) is None
    assert [path.name for path in (tmp_path / "sweep" / "trials").iterdir()] == ["abc-0.0-0.25.parquet"]


def test_close_shares_have_different_names(tmp_path: Path):
    archive = Archive(ObjectStore(str(tmp_path)))
    assert archive.name("d", 0, 1 / 3) != archive.name("d", 0, 0.333333333333)
    assert archive.name("d", 0, 1) == archive.name("d", 0.0, 1.0)


def test_rungs_are_put_together(tmp_path: Path):
    archive = Archive(ObjectStore(str(tmp_path)))
    rows = outcomes([1, 0, 1, 0], ids=list("abcd"))
    assert increments((0.25, 0.5, 1.0)) == [(0.0, 0.25), (0.25, 0.5), (0.5, 1.0)]
    for (start, stop), chosen in zip(increments((0.25, 0.5, 1.0)), ([0], [1], [2, 3]), strict=True):
        archive.put("d", start, stop, rows.select(np.array(chosen)))
    assert bits(archive.through("d", (0.25, 0.5, 1.0))) == bits(rows)
    assert archive.through("d", (0.25, 0.5)).prompt_id.tolist() == ["a", "b"]
    (tmp_path / "sweep" / "trials" / "d-0.25-0.5.parquet").unlink()
    with pytest.raises(StorageError, match=r"d-0\.25-0\.5\.parquet is missing: the study says that this setting ran"):
        archive.through("d", (0.25, 0.5, 1.0))


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + b"\0" * 60 + b"PAR1"])
def test_damage_is_named(tmp_path: Path, content: bytes):
    archive = Archive(ObjectStore(str(tmp_path)))
    archive.put("d", 0.0, 1.0, outcomes([1]))
    path = tmp_path / "sweep" / "trials" / "d-0.0-1.0.parquet"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=f"{path} is damaged"):
        archive.get("d", 0.0, 1.0)


def test_a_table_without_a_column_is_damage(tmp_path: Path):
    import pyarrow.parquet as pq

    archive = Archive(ObjectStore(str(tmp_path)))
    archive.put("d", 0.0, 1.0, outcomes([1]))
    path = tmp_path / "sweep" / "trials" / "d-0.0-1.0.parquet"
    pq.write_table(to_table(outcomes([1])).drop_columns(["margin"]), path)
    with pytest.raises(StorageError, match=r"damaged .*margin"):
        archive.get("d", 0.0, 1.0)


def test_it_can_be_sent_to_other_processes(tmp_path: Path):
    import pickle

    archive = Archive(ObjectStore(str(tmp_path)))
    archive.put("d", 0.0, 1.0, replace(outcomes([1]), passes_used=np.array([3])))
    assert pickle.loads(pickle.dumps(archive)).get("d", 0.0, 1.0).passes_used.tolist() == [3]
