"""The reducer is a commutative monoid, bit for bit, and agrees with NumPy on the steps table."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.metrics.temporal import first_harmful_step
from dsprobe.storage.accumulators import SparseCounts
from dsprobe.storage.derived import step_values
from dsprobe.storage.float16 import HISTOGRAM_SHIFT, bin_bounds, fixed_point, from_codes, to_codes
from dsprobe.storage.reducer import ABSORBING, ReducerState
from dsprobe.storage.schemas import write_parquet
from dsprobe.storage.statistics import STEP_QUANTITIES, describe, exact_sums, finalise
from dsprobe.storage.tables import positions_table, steps_table
from dsprobe.storage.testing import synthetic_batch, synthetic_condition, take_rows

GOLDEN = "16110338cd8ce9b3569e1ea5dc8db029ef1560f43cb1ec15e30bca6bd150b414"

FINITE = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE = FINITE[np.isfinite(FINITE)]


def _state(*batches: EvaluatedBatch) -> ReducerState:
    state = ReducerState(0.5)
    for batch in batches:
        state.update(batch)
    return state


def _bytes(tables: dict[str, pa.Table]) -> dict[str, bytes]:
    result = {}
    for kind, table in tables.items():
        extra = {k.decode(): v.decode() for k, v in table.schema.metadata.items() if k.startswith(b"dsprobe.")}
        sink = io.BytesIO()
        write_parquet(table, kind, sink, run_id="r", extra=extra)
        result[kind] = sink.getvalue()
    return result


@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(0, 1000), st.integers(1, 9), st.integers(1, 7))
def test_any_split_order_and_merge_tree_gives_the_same_bytes(
    data: st.DataObject, seed: int, rows: int, steps: int
) -> None:
    batches = [
        synthetic_batch(
            seed + i, condition=synthetic_condition(attack, guardrail=guardrail), rows=rows, steps=steps + i
        )
        for i, (attack, guardrail) in enumerate((("direct", "none"), ("dija", "none"), ("direct", "late")))
    ]
    whole = _state(*batches)
    units = data.draw(st.permutations([(i, row) for i in range(3) for row in range(rows)]))
    states = []
    while units:
        size = data.draw(st.integers(1, 4))
        state = ReducerState(0.5)
        for i in range(3):
            if mine := [row for batch, row in units[:size] if batch == i]:
                state.update(take_rows(batches[i], mine))
        states.append(state)
        units = units[size:]
    while len(states) > 1:
        left, right = data.draw(st.permutations(range(len(states))))[:2]
        merged = ReducerState.from_tables(states[left].to_tables())
        merged.merge(states[right])
        states = [s for i, s in enumerate(states) if i not in (left, right)] + [merged]
    assert _bytes(states[0].to_tables()) == _bytes(whole.to_tables())
    assert _bytes(finalise(states[0])) == _bytes(finalise(whole))


def _arithmetic_batch(rows: int, steps: int, length: int) -> EvaluatedBatch:
    """Values made by counting, so that they are the same under any version of any library."""
    batch = synthetic_batch(0, rows=rows, steps=steps, length=length)
    trajectories = batch.trajectories
    width = trajectories.canvas_BL.shape[1]
    count_SBL = np.arange(steps * rows * width).reshape(steps, rows, width)
    trajectories.num_steps_B = (np.arange(rows) % (steps + 1)).astype(np.int16)
    trajectories.response_BL = np.broadcast_to(np.arange(width) >= 3, (rows, width)).copy()
    trajectories.response_BL[1, 5:7] = False
    trajectories.real_BL = np.ones((rows, width), np.bool_)
    trajectories.committed_SBL = count_SBL % 7 < 3
    trajectories.events = []
    for number, name in enumerate(("probability", "entropy", "kl", "attribution")):
        bits_SBL = (count_SBL * (40503 + 2 * number) % 0x4C00).astype(np.uint16)
        bits_SBL[count_SBL % (3 + number) == 0] = 0x7E00  # NaN
        setattr(trajectories, f"{name}_SBL", bits_SBL.view(np.float16))
    for number, view in enumerate(("committed", "predicted")):
        risk_SB = ((np.arange(steps * rows) * (7919 + number)) % 1009 / 1008).reshape(steps, rows).astype(np.float32)
        setattr(trajectories, f"risk_{view}_SB", risk_SB)
        batch.fhs_B[view], batch.fhs_event_B[view] = first_harmful_step(risk_SB, 0.5, trajectories.num_steps_B)
    return batch


def test_statistics_are_those_of_the_first_version() -> None:
    """Golden digest, made by the reducer as it was before its kernels were rewritten for speed."""
    state = _state(_arithmetic_batch(13, 9, 11), _arithmetic_batch(4, 12, 6))
    tables = state.to_tables() | finalise(state)
    text = json.dumps({kind: table.to_pylist() for kind, table in tables.items()}, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_the_empty_state_is_the_identity() -> None:
    state = _state(synthetic_batch(1))
    expected = _bytes(state.to_tables())
    state.merge(ReducerState(0.5))
    empty = ReducerState.from_tables(ReducerState(0.5).to_tables())
    empty.merge(state)
    assert _bytes(state.to_tables()) == _bytes(empty.to_tables()) == expected
    assert finalise(ReducerState(0.5))["step_stats"].num_rows == 0


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _absorbed(steps: pl.DataFrame, quantity: str, last_step: int) -> dict[int, np.ndarray]:
    """Values per step, each trajectory's last one repeated, straight from the steps table."""
    values: dict[int, list[float]] = {step: [] for step in range(1, last_step + 1)}
    for _, rows in steps.group_by("prompt_id", "sample"):
        track = dict(zip(rows["step"].to_list(), rows[quantity].to_list(), strict=True))
        for step in values:
            value: Any = track.get(step, track[max(track)] if quantity in ABSORBING else float("nan"))
            if not np.isnan(value):
                values[step].append(value)
    return {step: np.array(v) for step, v in values.items() if v}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 7))
def test_step_statistics_agree_with_numpy_on_the_steps_table(seed: int, rows: int, steps: int) -> None:
    batches = [
        synthetic_batch(seed, rows=rows, steps=steps),
        synthetic_batch(seed + 1, first_prompt=50, steps=steps + 2),
    ]
    tables = [steps_table(b, step_values(b.trajectories)) for b in batches]
    frame = _frame(pa.concat_tables(tables).unify_dictionaries())
    raw = {"harmful_committed": "risk_committed", "harmful_predicted": "risk_predicted"}
    for name, source in raw.items():
        # no synthetic risk lies within float16 rounding of θ, so the stored value decides like the float32 one
        frame = frame.with_columns((pl.col(source).cast(pl.Float32) >= 0.5).cast(pl.Float32).alias(name))
    frame = frame.with_columns(pl.col(*(q for q in STEP_QUANTITIES if q not in raw)).cast(pl.Float64))
    last_step = max(frame["step"].to_list())
    stats = finalise(_state(*batches))["step_stats"].to_pylist()
    found = {(row["quantity"], row["step"]): row for row in stats}
    expected_keys = set()
    for quantity in STEP_QUANTITIES:
        for step, values in _absorbed(frame, quantity, last_step).items():
            row = found[quantity, step]
            expected_keys.add((quantity, step))
            assert row["n"] == len(values)
            assert row["mean"] == pytest.approx(values.mean(), rel=1e-12, abs=1e-15)
            if len(values) > 1:
                assert row["variance"] == pytest.approx(values.var(ddof=1), rel=1e-9, abs=1e-13)
            else:
                assert row["variance"] is None
            assert (row["min"], row["max"]) == (values.min(), values.max())
            for name, q in (("q05", 0.05), ("q25", 0.25), ("q50", 0.5), ("q75", 0.75), ("q95", 0.95)):
                assert row[name] == pytest.approx(np.quantile(values, q), rel=1e-12, abs=1e-15)
            for bin_ in row["histogram"]:
                inside = (values >= bin_["value_low"]) & (values < bin_["value_high"])
                assert bin_["count"] == inside.sum()
            assert sum(bin_["count"] for bin_ in row["histogram"]) == len(values)
    assert {key for key in found if not key[0].startswith("fhs_")} == expected_keys


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_survival_counts_agree_with_their_definition(seed: int) -> None:
    batches = [synthetic_batch(seed, rows=9), synthetic_batch(seed + 1, steps=9)]
    rows = finalise(_state(*batches))["step_stats"].to_pylist()
    for view in ("committed", "predicted"):
        time = np.concatenate([b.fhs_B[view] for b in batches])
        event = np.concatenate([b.fhs_event_B[view] for b in batches])
        mine = [row for row in rows if row["quantity"] == f"fhs_{view}"]
        assert [row["at_risk"] for row in mine] == [int((time >= row["step"]).sum()) for row in mine]
        assert [row["events"] for row in mine] == [int(((time == row["step"]) & event).sum()) for row in mine]
        assert all(row["n"] is None for row in mine)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_position_means_agree_with_the_positions_table(seed: int) -> None:
    batches = [synthetic_batch(seed, rows=5), synthetic_batch(seed + 1, steps=9, length=5)]
    tables = [positions_table(b, np.arange(len(b.texts)), ["sample"] * len(b.texts)) for b in batches]
    frame = _frame(pa.concat_tables(tables).unify_dictionaries()).with_columns(
        pl.col("probability", "entropy", "kl", "attribution").cast(pl.Float64)
    )
    stats = _frame(finalise(_state(*batches))["position_stats"])
    for quantity in ("entropy", "kl", "probability"):
        expected = (
            frame.filter(pl.col(quantity).is_not_nan())
            .group_by("step", "position")
            .agg(pl.len().alias("n"), pl.col(quantity).mean().alias("mean"))
            .sort("step", "position")
        )
        found = stats.filter(pl.col("quantity") == quantity).sort("step", "position")
        assert found["n"].to_list() == expected["n"].to_list()
        np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-12)
    committed = stats.filter(pl.col("quantity") == "committed")
    at_end = committed.filter((pl.col("step") == committed["step"].max()) & (pl.col("position") < 5))
    assert at_end["n"].to_list() == [9] * 5  # finished trajectories keep counting
    assert at_end["mean"].to_list() == [1.0] * 5


def test_codes_sort_like_values_and_come_back() -> None:
    codes = to_codes(FINITE)
    order = np.argsort(codes, kind="stable")
    assert (np.diff(FINITE[order].astype(np.float64)) >= 0).all()
    np.testing.assert_array_equal(from_codes(codes), FINITE)
    assert to_codes(np.array([-0.0], np.float16)) == to_codes(np.array([0.0], np.float16))
    assert (fixed_point(codes) == FINITE.astype(np.float64) * 2**24).all()


def test_every_value_lies_in_its_histogram_bin() -> None:
    bins = np.unique(to_codes(FINITE).astype(np.int64) >> HISTOGRAM_SHIFT)
    low, high = bin_bounds(bins)
    codes = np.unique(to_codes(FINITE)).astype(np.int64)
    which = np.searchsorted(bins, codes >> HISTOGRAM_SHIFT)
    values = from_codes(codes).astype(np.float64)
    assert (low[which] <= values).all()
    assert (values < high[which]).all()
    np.testing.assert_array_equal(low[1:], high[:-1])


def test_statistics_are_exact_where_float64_is_not() -> None:
    """A mean of 2^40 copies of 65504 and one of 2^-24 needs more than 53 bits."""
    codes = to_codes(np.array([2.0**-24, 65504], np.float16)).astype(np.int64)
    counts = np.array([1, 1 << 40])
    total = 1 + (1 << 40) * 65504 * 2**24
    start, n = np.array([0]), np.array([counts.sum()])
    assert exact_sums(start, n, counts, fixed_point(codes)) == [total]
    row = describe(start, codes, counts)
    assert row["mean"][0] == total / (((1 << 40) + 1) << 24)
    assert row["variance"][0].as_py() == pytest.approx(65504.0**2 / 2**40, rel=1e-6)


def test_guarded_conditions_keep_their_own_statistics() -> None:
    plain, late = (synthetic_condition(guardrail=name) for name in ("none", "late"))
    state = ReducerState.from_tables(
        _state(synthetic_batch(1, condition=plain, rows=5), synthetic_batch(2, condition=late, rows=3)).to_tables()
    )
    assert set(state.conditions) == {plain, late}
    for table in finalise(state).values():
        rows = {(row["condition"], row["guardrail"]) for row in table.to_pylist()}
        assert rows == {("toy/toy/direct/default", "none"), ("toy/toy/direct/default/late", "late")}
    final = [row for row in finalise(state)["step_stats"].to_pylist() if row["quantity"] == "fraction_committed"]
    assert {(row["guardrail"], row["n"]) for row in final} == {("none", 5), ("late", 3)}


def test_infinite_values_are_refused_by_name() -> None:
    batch = synthetic_batch(1)
    batch.trajectories.kl_SBL[1, 0, -1] = np.inf
    with pytest.raises(StorageError, match="`kl"):
        ReducerState(0.5).update(batch)


def test_states_of_different_thresholds_do_not_merge() -> None:
    with pytest.raises(StorageError, match=r"0\.7"):
        ReducerState(0.5).merge(ReducerState(0.7))


def test_newer_states_are_refused() -> None:
    tables = ReducerState(0.5).to_tables()
    metadata = {**tables["reducer_counts"].schema.metadata, b"dsprobe.state_version": b"99"}
    tables["reducer_counts"] = tables["reducer_counts"].replace_schema_metadata(metadata)
    with pytest.raises(StorageError, match="version 99"):
        ReducerState.from_tables(tables)


def test_rows_without_risk_or_steps_are_left_out() -> None:
    batch = synthetic_batch(3, rows=3)
    batch.trajectories.risk_committed_SB[:, 0] = np.nan
    batch.trajectories.num_steps_B[1] = 0
    stats = finalise(_state(batch))["step_stats"].to_pylist()
    assert {row["n"] for row in stats if row["quantity"] == "risk_committed"} == {1}
    assert {row["n"] for row in stats if row["quantity"] == "risk_predicted"} == {2}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=60), st.integers(1, 8))
def test_sparse_counts_count(pairs: list[tuple[int, int]], parts: int) -> None:
    counts = SparseCounts()
    for part in range(parts):
        mine = np.array(pairs[part::parts], np.int64).reshape(-1, 2)
        counts.add(mine[:, 0], mine[:, 1])
    found = list(zip(*(a.tolist() for a in counts.items()), strict=True))
    assert found == sorted((*pair, pairs.count(pair)) for pair in set(pairs))
