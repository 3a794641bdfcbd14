"""The streaming reducer: batches in, small mergeable statistics out, bit-identical for any order of arrival.

A state is a commutative monoid. It holds counts and integer sums only:

* per condition, quantity and step: how often each float16 value occurred (codes of `dsprobe.storage.float16`);
* per condition and quantity: the last value of trajectories, by the step it was reached at, so that finished
  trajectories can keep counting up to a last step that no single batch knows ("absorbing" quantities);
* per condition and view: first-harmful-step events and censorings by step;
* per condition, quantity, step and response position: how many, and the sum in units of 2^-24.

Statistics are made of it by `dsprobe.storage.statistics.finalise`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.decoding.records import TrajectoryBatch
from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.storage.accumulators import PositionSums, SparseCounts
from dsprobe.storage.derived import VIEWS, StepValues, require_finite, step_values
from dsprobe.storage.float16 import is_nan, to_codes
from dsprobe.storage.schemas import check_version, schema, with_metadata
from dsprobe.storage.tables import condition_columns

STATE_VERSION: Final = 1
"""Version of the serialised state."""

FINAL: Final = "final:"
"""Prefix of series that hold last values by the step they were reached at."""

ABSORBING: Final = ("risk_committed", "risk_predicted", "fraction_committed", "harmful_committed", "harmful_predicted")
"""Quantities of which a finished trajectory keeps its last value."""

ABSORBING_POSITIONS: Final = ("attribution", "committed")
"""Position quantities of which a finished trajectory keeps its last value."""

_NAN = np.float16(np.nan)


@dataclass(slots=True)
class ConditionState:
    """Counts and sums of one condition."""

    counts: dict[str, SparseCounts] = field(default_factory=dict)
    """Series → counts by (step, code)."""
    sums: dict[str, PositionSums] = field(default_factory=dict)
    """Series → n and sum by (step, position)."""

    def count(self, series: str) -> SparseCounts:
        """The counts of a series, empty at first."""
        return self.counts.setdefault(series, SparseCounts())

    def sum(self, series: str) -> PositionSums:
        """The sums of a series, empty at first."""
        return self.sums.setdefault(series, PositionSums())


class ReducerState:
    """A mergeable summary of any number of trajectories.

    Args:
        threshold: Harm threshold θ: risk at or above it counts as harmful. States of different thresholds do not
            merge.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.conditions: dict[Condition, ConditionState] = {}

    def update(self, batch: EvaluatedBatch, values: StepValues | None = None) -> None:
        """Add a batch.

        Args:
            batch: B trajectories of one condition.
            values: `step_values` of the same batch, where the caller has them already.

        Raises:
            StorageError: A value is infinite.
        """
        rows = batch.trajectories
        values = step_values(rows) if values is None else values
        state = self.conditions.setdefault(batch.condition, ConditionState())
        quantities = {**values.values, **self._harmful(rows)}
        for name, value_SB in quantities.items():
            _count(state.count(name), value_SB, values.running_SB)
        if rows.max_steps:
            last_SB = np.arange(rows.max_steps)[:, None] == rows.num_steps_B[None] - 1
            for name in ABSORBING:
                _count(state.count(FINAL + name), quantities[name], last_SB)
            _add_positions(state, rows, values.running_SB)
        for view in VIEWS:
            state.count(f"fhs_{view}").add(batch.fhs_B[view], batch.fhs_event_B[view])

    def merge(self, other: ReducerState) -> None:
        """Add another state; the order of merges does not matter.

        Raises:
            StorageError: The thresholds differ, or a sum leaves the range of 64 bits.
        """
        if other.threshold != self.threshold:
            raise StorageError(
                f"Statistics for harm threshold {other.threshold} cannot join those for {self.threshold}."
            )
        for condition, theirs in other.conditions.items():
            ours = self.conditions.setdefault(condition, ConditionState())
            for series, counts in theirs.counts.items():
                ours.count(series).merge(counts)
            for series, sums in theirs.sums.items():
                ours.sum(series).merge(sums)

    def to_tables(self, run_id: str = "") -> dict[str, pa.Table]:
        """Serialise in canonical order: equal states give equal tables.

        Returns:
            ``{"reducer_counts": …, "reducer_sums": …}``, sorted by condition, series, step and code or position.
        """
        extra = {"dsprobe.state_version": str(STATE_VERSION), "dsprobe.threshold": repr(self.threshold)}
        counts, sums = [schema("reducer_counts").empty_table()], [schema("reducer_sums").empty_table()]
        for condition in sorted(self.conditions, key=lambda c: c.id):
            state = self.conditions[condition]
            for series in sorted(state.counts):
                step, code, count = state.counts[series].items()
                columns = {"step": step, "code": code, "count": count}
                counts.append(_series_table("reducer_counts", condition, series, columns))
            for series in sorted(state.sums):
                step, position, n, total = state.sums[series].items()
                columns = {"step": step, "position": position, "n": n, "total": total}
                sums.append(_series_table("reducer_sums", condition, series, columns))
        parts = {"reducer_counts": counts, "reducer_sums": sums}
        return {
            kind: with_metadata(_concat(tables), kind, run_id, extra).combine_chunks() for kind, tables in parts.items()
        }

    @classmethod
    def from_tables(cls, tables: dict[str, pa.Table]) -> ReducerState:
        """Read a serialised state.

        Raises:
            StorageError: A newer state version.
        """
        metadata = tables["reducer_counts"].schema.metadata
        check_version(int(metadata[b"dsprobe.state_version"]), "reducer state", "A reducer state", STATE_VERSION)
        state = cls(float(metadata[b"dsprobe.threshold"]))
        for condition, series, part in _groups(tables["reducer_counts"]):
            arrays = (part["step"].to_numpy(), part["code"].to_numpy(), part["count"].to_numpy())
            state.conditions.setdefault(condition, ConditionState()).count(series).load(*arrays)
        for condition, series, part in _groups(tables["reducer_sums"]):
            names = ("step", "position", "n", "total")
            sums = state.conditions.setdefault(condition, ConditionState()).sum(series)
            sums.load(*(part[name].to_numpy() for name in names))
        return state

    def _harmful(self, rows: TrajectoryBatch) -> dict[str, npt.NDArray[np.float16]]:
        """1 where risk ≥ θ in float32, 0 below, NaN where there is no risk."""
        risks = {"committed": rows.risk_committed_SB, "predicted": rows.risk_predicted_SB}
        theta = np.float32(self.threshold)
        return {
            f"harmful_{view}": np.where(np.isnan(risk_SB), _NAN, (risk_SB >= theta).astype(np.float16))
            for view, risk_SB in risks.items()
        }


def _count(counts: SparseCounts, value_SB: npt.NDArray[np.float16], where_SB: npt.NDArray[np.bool_]) -> None:
    step_N, row_N = np.nonzero(where_SB & ~is_nan(value_SB))
    counts.add(step_N + 1, to_codes(value_SB[step_N, row_N]))


def _add_positions(state: ConditionState, rows: TrajectoryBatch, running_SB: npt.NDArray[np.bool_]) -> None:
    """Add the planes, with each row's response positions moved to the front."""
    where, response_BP = _response_index(rows.response_BL)
    row_B = np.arange(rows.num_rows)
    last_B = np.maximum(rows.num_steps_B.astype(np.intp) - 1, 0)
    counts_SBP = running_SB[:, :, None] & response_BP
    planes = {
        "attribution": rows.attribution_SBL,
        "entropy": rows.entropy_SBL,
        "kl": rows.kl_SBL,
        "probability": rows.probability_SBL,
        "committed": rows.committed_SBL,
    }
    for name, plane_SBL in planes.items():
        value_SBP = plane_SBL[where].astype(np.float16, copy=False)
        require_finite(name, value_SBP)
        valid_SBP = counts_SBP & ~is_nan(value_SBP)
        state.sum(name).add(value_SBP, valid_SBP)
        if name in ABSORBING_POSITIONS:
            valid_BP = valid_SBP[last_B, row_B]
            state.sum(FINAL + name).add_at(rows.num_steps_B, value_SBP[last_B, row_B], valid_BP)


def _response_index(response_BL: npt.NDArray[np.bool_]) -> tuple[Any, npt.NDArray[np.bool_]]:
    """An index that cuts ``[S, B, L]`` to ``[S, B, P]`` response positions, and which of these a row has.

    A view where all rows respond at the same stretch of the canvas, as they do when prompts are padded on the left.
    """
    column_N = np.flatnonzero(response_BL.any(axis=0))
    if len(column_N):
        stretch = slice(int(column_N[0]), int(column_N[-1]) + 1)
        if response_BL[:, stretch].all():
            return (slice(None), slice(None), stretch), response_BL[:, stretch]
    length = int(response_BL.sum(axis=1).max(initial=0))
    order_BP = np.argsort(~response_BL, axis=1, kind="stable")[:, :length]
    row_B1 = np.arange(len(response_BL))[:, None]
    return (slice(None), row_B1, order_BP), np.take_along_axis(response_BL, order_BP, axis=1)


def _series_table(kind: str, condition: Condition, series: str, columns: dict[str, npt.NDArray[np.int64]]) -> pa.Table:
    count = len(columns["step"])
    target = schema(kind)
    named = {**condition_columns(condition, count), "series": pa.repeat(series, count)}
    named |= {name: pa.array(values) for name, values in columns.items()}
    return pa.Table.from_arrays([named[f.name].cast(f.type) for f in target], schema=target)


def _concat(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries()


def _groups(table: pa.Table) -> list[tuple[Condition, str, pa.Table]]:
    """Cut a state table into runs of equal condition and series."""
    names = [*(part.name for part in fields(Condition)), "series"]
    keys = table.select(names).group_by(names).aggregate([]).to_pylist()
    result = []
    for key in keys:
        mask = None
        for name in names:
            equal = pc.equal(table[name].cast(pa.string()), key[name])
            mask = equal if mask is None else pc.and_(mask, equal)
        series = key.pop("series")
        result.append((Condition(**key), series, table.filter(mask)))
    return result
