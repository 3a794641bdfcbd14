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

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.decoding.records import TrajectoryBatch
from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.storage.accumulators import PositionSums, SparseCounts
from dsprobe.storage.derived import VIEWS, StepValues, require_finite, step_values
from dsprobe.storage.float16 import NAN_BITS, bits_of_flags, is_nan, to_codes
from dsprobe.storage.packed import Cells, float16_table
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

F16 = npt.NDArray[np.float16]
Ints = npt.NDArray[np.integer]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepRows:
    """N steps that trajectories of one condition took, in any order."""

    step_N: Ints
    """From 1."""
    last_N: npt.NDArray[np.bool_]
    """True where the trajectory ended."""
    values: dict[str, F16]
    """Quantity → values, NaN where undefined."""

    @classmethod
    def of(
        cls, step_N: Ints, num_steps_N: Ints, values: dict[str, F16], risks: dict[str, F32], theta: float
    ) -> StepRows:
        """Add the harm that the risks stand for.

        Args:
            step_N: From 1.
            num_steps_N: Steps of the trajectory.
            values: Quantities of `dsprobe.storage.derived.QUANTITIES`.
            risks: View → risk, in the precision in which harm is decided.
            theta: Harm threshold θ.
        """
        harmful = {
            f"harmful_{view}": np.where(np.isnan(risk_N), _NAN, (risk_N >= np.float32(theta)).astype(np.float16))
            for view, risk_N in risks.items()
        }
        return cls(step_N, step_N == num_steps_N, values | harmful)


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

    def add_steps(self, rows: StepRows) -> None:
        """Count N steps."""
        for name, value_N in rows.values.items():
            defined_N = ~is_nan(value_N)
            code_N = to_codes(value_N)
            self.count(name).add(rows.step_N[defined_N], code_N[defined_N])
            if name in ABSORBING:
                ended_N = defined_N & rows.last_N
                self.count(FINAL + name).add(rows.step_N[ended_N], code_N[ended_N])


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
        state = self.condition(batch.condition)
        row_N, step_N = np.nonzero(values.running_SB.T)
        state.add_steps(
            StepRows.of(
                step_N + 1,
                rows.num_steps_B[row_N],
                {name: value_SB[step_N, row_N] for name, value_SB in values.values.items()},
                {view: getattr(rows, f"risk_{view}_SB")[step_N, row_N] for view in VIEWS},
                self.threshold,
            )
        )
        if rows.max_steps:
            _add_positions(state, rows, values.running_SB)
        for view in VIEWS:
            state.count(f"fhs_{view}").add(batch.fhs_B[view], batch.fhs_event_B[view])

    def condition(self, condition: Condition) -> ConditionState:
        """The state of a condition, empty at first."""
        return self.conditions.setdefault(condition, ConditionState())

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


def _add_positions(state: ConditionState, rows: TrajectoryBatch, running_SB: npt.NDArray[np.bool_]) -> None:
    """Add the planes, with each row's response positions moved to the front."""
    where, response_BP = _response_index(rows.response_BL)
    inside_BP = response_BP[:, :1] if response_BP.all() else response_BP
    invalid_SB1 = np.where(running_SB[:, :, None] & inside_BP, 0, NAN_BITS).astype(np.uint16)
    row_N = np.flatnonzero(rows.num_steps_B > 0)
    last_N = rows.num_steps_B[row_N].astype(np.intp) - 1
    length = response_BP.shape[1]
    ends = Cells.of(last_N + 1, np.zeros_like(last_N), np.full_like(last_N, length))
    planes = {
        "attribution": rows.attribution_SBL,
        "entropy": rows.entropy_SBL,
        "kl": rows.kl_SBL,
        "probability": rows.probability_SBL,
        "committed": rows.committed_SBL,
    }
    for name, plane_SBL in planes.items():
        value_SBP = np.ascontiguousarray(plane_SBL[where])
        if value_SBP.dtype == np.bool_:
            bits_SBP = bits_of_flags(value_SBP)
        else:
            require_finite(name, value_SBP)
            bits_SBP = value_SBP.view(np.uint16)
        state.sum(name).add(bits_SBP, invalid_SB1)
        if name in ABSORBING_POSITIONS:
            bits_NP = bits_SBP[last_N, row_N] | invalid_SB1[last_N, row_N]
            state.sum(FINAL + name).add_cells(ends, pa.array(bits_NP.reshape(-1)), float16_table())


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


def _groups(table: pa.Table) -> Iterator[tuple[Condition, str, pa.Table]]:
    """Cut a state table where condition or series change."""
    names = [*(part.name for part in fields(Condition)), "series"]
    if not table.num_rows:
        return
    labels = [table[name].cast(pa.string()).combine_chunks().dictionary_encode() for name in names]
    changes = [np.diff(label.indices.to_numpy()) != 0 for label in labels]
    bounds = [0, *(np.flatnonzero(np.logical_or.reduce(changes)) + 1).tolist(), table.num_rows]
    for start, end in pairwise(bounds):
        key = {name: label[start].as_py() for name, label in zip(names, labels, strict=True)}
        series = key.pop("series")
        yield Condition(**key), series, table.slice(start, end - start)
