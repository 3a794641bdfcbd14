"""From a reducer state to the `step_stats` and `position_stats` tables.

Counts are exact, so these are the statistics of the float16 values themselves, not of a sketch: means and variances
are computed in integers and rounded once to float64; quantiles are those of `numpy.quantile` with linear
interpolation between order statistics. Equal states give equal tables, bit for bit.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.accumulators import PositionSums, SparseCounts
from dsprobe.storage.derived import QUANTITIES, VIEWS
from dsprobe.storage.float16 import FRACTION_BITS, HISTOGRAM_SHIFT, bin_bounds, fixed_point, from_codes
from dsprobe.storage.reducer import ABSORBING, ABSORBING_POSITIONS, FINAL, ConditionState, ReducerState
from dsprobe.storage.schemas import schema, with_metadata
from dsprobe.storage.tables import condition_columns

Int64 = npt.NDArray[np.int64]

STEP_QUANTITIES: Final = (*QUANTITIES, "harmful_committed", "harmful_predicted")
"""Quantities with a distribution per step."""

POSITION_QUANTITIES: Final = ("attribution", "entropy", "kl", "probability", "committed")
"""Quantities with a mean per step and position."""

QUANTILES: Final = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def finalise(state: ReducerState, run_id: str = "") -> dict[str, pa.Table]:
    """Compute the statistics tables.

    Finished trajectories keep counting with their last value (`ABSORBING`, `ABSORBING_POSITIONS`) up to the
    condition's last step; other quantities count where they are defined.

    Args:
        state: Any state; it is not changed.
        run_id: Stored in the tables' metadata.

    Returns:
        ``{"step_stats": …, "position_stats": …}``, sorted by condition, step, position and quantity.
    """
    parts: dict[str, list[pa.Table]] = {"step_stats": [], "position_stats": []}
    for condition in sorted(state.conditions, key=lambda c: c.id):
        parts["step_stats"].append(_step_stats(condition, state.conditions[condition]))
        parts["position_stats"].append(_position_stats(condition, state.conditions[condition]))
    return {
        kind: with_metadata(
            pa.concat_tables([schema(kind).empty_table(), *tables]).unify_dictionaries(), kind, run_id
        ).combine_chunks()
        for kind, tables in parts.items()
    }


def _step_stats(condition: Condition, state: ConditionState) -> pa.Table:
    last_step = _last_step(state)
    parts = [
        _described(quantity, *_distributions(state, quantity, last_step))
        for quantity in STEP_QUANTITIES
        if len(_counts(state, quantity).items()[0])
    ]
    parts += [_survival(_counts(state, f"fhs_{view}"), f"fhs_{view}", last_step) for view in VIEWS]
    merged = pa.concat_tables(parts, promote_options="default").sort_by(
        [("step", "ascending"), ("quantity", "ascending")]
    )
    return _with_condition("step_stats", condition, merged)


def _last_step(state: ConditionState) -> int:
    """The condition's last step: the latest at which any trajectory still ran."""
    steps = [_counts(state, quantity).items()[0] for quantity in STEP_QUANTITIES]
    return max((int(step_N[-1]) for step_N in steps if len(step_N)), default=0)


def _distributions(state: ConditionState, quantity: str, last_step: int) -> tuple[Int64, Int64, Int64]:
    """Steps, codes and counts, sorted, finished trajectories included where they keep their value."""
    step_N, code_N, count_N = _counts(state, quantity).items()
    if quantity not in ABSORBING:
        return step_N, code_N, count_N
    ended_N, ended_code_N, ended_count_N = _counts(state, FINAL + quantity).items()
    universe, where_N = np.unique(code_N, return_inverse=True)  # every last value has been a value before
    ended_where_N = np.searchsorted(universe, ended_code_N)
    steps = np.arange(1, last_step + 2)
    bounds, ended_bounds = np.searchsorted(step_N, steps), np.searchsorted(ended_N, steps)
    absorbed = np.zeros(len(universe), np.int64)
    parts = []
    for step in range(last_step):
        here, ended = slice(*bounds[step : step + 2]), slice(*ended_bounds[step : step + 2])
        counts = absorbed.copy()
        counts[where_N[here]] += count_N[here]
        present = np.flatnonzero(counts)
        parts.append((np.full(len(present), step + 1), universe[present], counts[present]))
        absorbed[ended_where_N[ended]] += ended_count_N[ended]
    steps_M, codes_M, counts_M = (np.concatenate(part) for part in zip(*parts, strict=True))
    return steps_M, codes_M, counts_M


def _described(quantity: str, step_N: Int64, code_N: Int64, count_N: Int64) -> pa.Table:
    first = np.flatnonzero(np.diff(step_N, prepend=-1))
    columns = {"step": step_N[first], "quantity": pa.repeat(quantity, len(first)), **describe(first, code_N, count_N)}
    return pa.table(columns)


def describe(start_D: npt.NDArray[np.intp], code_N: Int64, count_N: Int64) -> dict[str, Any]:
    """Statistics of D distributions.

    Args:
        start_D: Where each begins among the N entries; the first at 0.
        code_N: Float16 codes that occur, in increasing order within a distribution.
        count_N: How often each occurs; at least 1.

    Returns:
        ``n, mean, variance, min, max``, the quantiles and ``histogram``, as in `step_stats`.
    """
    fixed_N = fixed_point(code_N)
    value_N = from_codes(code_N).astype(np.float64)
    n_D = np.add.reduceat(count_N, start_D)
    totals = exact_sums(start_D, n_D, count_N, fixed_N)
    squares = _exact_squares(start_D, n_D, count_N, fixed_N)
    numbers = n_D.tolist()
    return {
        "n": n_D,
        "mean": np.array([total / (n << FRACTION_BITS) for n, total in zip(numbers, totals, strict=True)]),
        "variance": pa.array([_variance(*sums) for sums in zip(numbers, totals, squares, strict=True)], pa.float64()),
        "min": value_N[start_D],
        "max": value_N[np.append(start_D[1:], len(code_N)) - 1],
        **_quantiles(start_D, n_D, value_N, count_N),
        "histogram": _histograms(start_D, code_N, count_N),
    }


def exact_sums(start_D: npt.NDArray[np.intp], n_D: Int64, count_N: Int64, value_N: Int64) -> list[int]:
    """Σ counts · values of D distributions without rounding or overflow; `n_D` are the sums of their counts."""
    if int(n_D.max()) * int(np.abs(value_N).max()) < 1 << 62:
        products: npt.NDArray[Any] = count_N * value_N
    else:
        products = count_N.astype(object) * value_N
    sums: list[int] = np.add.reduceat(products, start_D).tolist()
    return sums


def _exact_squares(start_D: npt.NDArray[np.intp], n_D: Int64, count_N: Int64, fixed_N: Int64) -> list[int]:
    """Σ counts · fixed², with the 80-bit squares cut into parts that fit 64 bits."""
    high, low = fixed_N >> 20, fixed_N & 0xFFFFF
    parts = [exact_sums(start_D, n_D, count_N, part) for part in (high * high, high * low, low * low)]
    return [(squares << 40) + (mixed << 21) + rest for squares, mixed, rest in zip(*parts, strict=True)]


def _variance(n: int, total: int, squares: int) -> float | None:
    if n < 2:
        return None
    return (n * squares - total * total) / ((n * (n - 1)) << (2 * FRACTION_BITS))


def _quantiles(
    start_D: npt.NDArray[np.intp], n_D: Int64, value_N: npt.NDArray[np.float64], count_N: Int64
) -> dict[str, npt.NDArray[np.float64]]:
    """Linear interpolation between the order statistics around (n − 1)·q, as NumPy's default."""
    last_N = np.cumsum(count_N)  # value_N[i] is the order statistic of ranks last_N[i-1] … last_N[i] - 1
    before_D = last_N[start_D] - count_N[start_D]
    columns = {}
    for name, share in QUANTILES.items():
        place_D = (n_D - 1) * share
        below_D = np.floor(place_D).astype(np.int64)
        lower_D = value_N[np.searchsorted(last_N, before_D + below_D, side="right")]
        upper_D = value_N[np.searchsorted(last_N, before_D + np.minimum(below_D + 1, n_D - 1), side="right")]
        columns[name] = lower_D + (upper_D - lower_D) * (place_D - below_D)
    return columns


def _histograms(start_D: npt.NDArray[np.intp], code_N: Int64, count_N: Int64) -> pa.ListArray:
    """Counts in bins of codes, one list a distribution."""
    bin_N = code_N >> HISTOGRAM_SHIFT
    changed_N = np.diff(bin_N, prepend=-1) != 0
    changed_N[start_D] = True
    first_M = np.flatnonzero(changed_N)
    low_M, high_M = bin_bounds(bin_N[first_M])
    entries = {"value_low": low_M, "value_high": high_M, "count": np.add.reduceat(count_N, first_M)}
    offsets = np.append(np.searchsorted(first_M, start_D), len(first_M)).astype(np.int32)
    structs = pa.StructArray.from_arrays([pa.array(entry) for entry in entries.values()], names=list(entries))
    return pa.ListArray.from_arrays(pa.array(offsets), structs)


def _survival(counts: SparseCounts, quantity: str, last_step: int) -> pa.Table:
    """At-risk and event counts of the first harmful step; the code of a count is its event flag."""
    step_N, event_N, count_N = counts.items()
    ending = np.zeros(max(last_step, int(step_N.max(initial=0))) + 2, np.int64)
    events = np.zeros_like(ending)
    np.add.at(ending, step_N, count_N)
    np.add.at(events, step_N, count_N * event_N)
    at_risk = np.cumsum(ending[::-1])[::-1]
    steps = slice(1, last_step + 1)
    return pa.table(
        {
            "step": np.arange(1, last_step + 1),
            "quantity": pa.repeat(quantity, last_step),
            "at_risk": at_risk[steps],
            "events": events[steps],
        }
    )


def _position_stats(condition: Condition, state: ConditionState) -> pa.Table:
    last_step = _last_step(state)
    names = sorted(POSITION_QUANTITIES)
    sums = [_absorbed(state, name, last_step) for name in names]
    shape = np.max([n_SP.shape for n_SP, _ in sums], axis=0)
    n_SPQ, total_SPQ = np.zeros((2, *shape, len(names)), np.int64)
    for q, (n_SP, total_SP) in enumerate(sums):
        n_SPQ[: n_SP.shape[0], : n_SP.shape[1], q] = n_SP
        total_SPQ[: n_SP.shape[0], : n_SP.shape[1], q] = total_SP
    where = step_N, position_N, name_N = np.nonzero(n_SPQ)
    columns = {
        "step": step_N + 1,
        "position": position_N,
        "quantity": pa.DictionaryArray.from_arrays(name_N.astype(np.int32), names).cast(pa.string()),
        "n": n_SPQ[where],
        "mean": _exact_means(total_SPQ[where], n_SPQ[where]),
    }
    return _with_condition("position_stats", condition, pa.table(columns))


def _exact_means(total_N: Int64, n_N: Int64) -> npt.NDArray[np.float64]:
    """Quotients rounded once: float64 divides integers below 2^53 so, Python all others."""
    mean_N = total_N.astype(np.float64) / (n_N.astype(np.float64) * 2.0**FRACTION_BITS)
    for i in np.flatnonzero(np.maximum(np.abs(total_N), n_N) >= 1 << 53).tolist():
        mean_N[i] = int(total_N[i]) / (int(n_N[i]) << FRACTION_BITS)
    return mean_N


def _absorbed(state: ConditionState, quantity: str, last_step: int) -> tuple[Int64, Int64]:
    """N and sums per step and position, finished trajectories included where they keep their value."""
    sums = PositionSums()
    sums.merge(state.sums.get(quantity, sums))
    if quantity in ABSORBING_POSITIONS:
        ended = state.sums.get(FINAL + quantity, PositionSums())
        sums.accumulate(_after(ended.n_SP, last_step), _after(ended.total_SP, last_step))
    return sums.n_SP, sums.total_SP


def _after(ended_SP: Int64, last_step: int) -> Int64:
    """Running totals of what ended before each step."""
    before_SP = np.zeros((last_step + 1, ended_SP.shape[1]), np.int64)
    before_SP[1 : len(ended_SP) + 1] = ended_SP
    return np.cumsum(before_SP, axis=0)[:last_step]


def _counts(state: ConditionState, series: str) -> SparseCounts:
    return state.counts.get(series, SparseCounts())


def _with_condition(kind: str, condition: Condition, columns: pa.Table) -> pa.Table:
    """The rows in the schema of their table; columns that they lack are null."""
    target = schema(kind)
    named = condition_columns(condition, columns.num_rows) | {name: columns[name] for name in columns.column_names}
    nulls = pa.nulls(columns.num_rows)
    return pa.Table.from_arrays([named.get(f.name, nulls).cast(f.type) for f in target], schema=target)
