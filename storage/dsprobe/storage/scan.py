"""New statistics over old logs: from stored step logs to the state that the online reducer makes of the batches.

The logs hold every value that `dsprobe.storage.reducer.ReducerState.update` reads (`dsprobe.storage.raw_tables`), so
the state is the same, bit for bit, for the same harm threshold. Files are read a limited number of rows at a time;
a trajectory never spans files, but may span row groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.errors import DamagedError, StorageError
from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.derived import QUANTITIES, VIEWS, require_finite
from dsprobe.storage.log_files import LogFile, Where
from dsprobe.storage.log_reader import LogReader, opened
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.packed import Cells, flag_table, float16_table
from dsprobe.storage.reducer import ABSORBING_POSITIONS, FINAL, ReducerState, StepRows

_STEP_COLUMNS: Final = ("step", "num_steps", *QUANTITIES)
_FLOAT16_POSITIONS: Final = ("attribution", "entropy", "kl", "probability")
_POSITION_COLUMNS: Final = ("step", "num_steps", "position", "in_canvas", *_FLOAT16_POSITIONS)

_CELLS: Final = 1 << 26
"""Steps × positions of one condition that dense sums can take; 0.5 GB each."""

_NEVER: Final = np.iinfo(np.int16).max

Columns = dict[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSettings:
    """What to compute."""

    threshold: float
    """Harm threshold θ."""
    where: Where = field(default_factory=dict)
    """Conditions wanted; all unless given."""


@dataclass(slots=True, kw_only=True)
class Scanned:
    """What some log files hold; mergeable in any order."""

    state: ReducerState
    step_rows: int = 0
    position_rows: int = 0
    position_files: int = 0
    conditions: set[Condition] = field(default_factory=set)
    """All that were seen, wanted or not."""
    other_files: list[str] = field(default_factory=list)
    """Files that hold no step log."""

    def merge(self, other: Scanned) -> None:
        """Add what other files hold.

        Raises:
            StorageError: The thresholds differ, or a sum leaves the range of 64 bits.
        """
        self.state.merge(other.state)
        self.step_rows += other.step_rows
        self.position_rows += other.position_rows
        self.position_files += other.position_files
        self.conditions |= other.conditions
        self.other_files = self.other_files + other.other_files


def scan_files(objects: ObjectStore, files: Iterable[LogFile], settings: ScanSettings) -> Scanned:
    """Reduce log files one after the other.

    Args:
        objects: Their store.
        files: Step and position logs, in any order.
        settings: What to compute.

    Raises:
        DamagedError: A file is damaged; the message names it.
        StorageError: A file is newer than this version or not a log as dsprobe writes it, or the store failed.
    """
    scanned = Scanned(state=ReducerState(settings.threshold))
    for file in files:
        where = objects.address(file.name)
        with opened(objects, file) as source:
            reader = LogReader(source, where)
            if reader.kind == "step_log":
                scanned.step_rows += _scan_steps(scanned.state, reader, settings, where)
            elif reader.kind == "position_log":
                scanned.position_files += 1
                scanned.position_rows += _scan_positions(scanned.state, reader, settings, where)
            else:
                scanned.other_files.append(file.name)
            scanned.conditions |= reader.conditions
    for state in scanned.state.conditions.values():
        for counts in state.counts.values():
            counts.settle()
        for sums in state.sums.values():
            sums.settle()
    return scanned


def check_complete(scanned: Scanned) -> None:
    """Refuse step and position logs that do not belong together; step logs alone are fine.

    Raises:
        StorageError: Some trajectories are in one of the two only.
    """
    if not scanned.position_files:
        return
    for condition, state in scanned.state.conditions.items():
        step_N, _, count_N = state.count(FINAL + "fraction_committed").items()
        n_SP = state.sum(FINAL + "committed").n_SP
        in_steps, in_positions = np.zeros((2, max(len(n_SP), int(step_N.max(initial=0))) + 1), np.int64)
        np.add.at(in_steps, step_N, count_N)
        in_positions[1 : len(n_SP) + 1] = n_SP[:, 0] if n_SP.size else 0
        if (in_steps != in_positions).any():
            raise StorageError(
                f"The step logs hold {in_steps.sum()} trajectories of `{condition.id}` and the position logs "
                f"{in_positions.sum()}, or others: a file is missing, or there are files of two runs."
            )


def _scan_steps(state: ReducerState, reader: LogReader, settings: ScanSettings, where: str) -> int:
    """Add a step log; a trajectory whose rows are not all there yet waits for the next piece."""
    waiting: dict[Condition, Columns] = {}
    count = 0
    for rows in reader.rows(_STEP_COLUMNS, settings.where):
        columns = {name: _floats(column) for name, column in rows.columns.items()}
        count += len(columns["step"])
        if rows.condition in waiting:
            before = waiting.pop(rows.condition)
            columns = {name: np.concatenate([before[name], column]) for name, column in columns.items()}
        ends = np.flatnonzero(columns["step"] == columns["num_steps"])
        complete = int(ends[-1]) + 1 if len(ends) else 0
        _add_trajectories(state, rows.condition, {n: column[:complete] for n, column in columns.items()}, where)
        if complete < len(columns["step"]):
            waiting[rows.condition] = {name: column[complete:].copy() for name, column in columns.items()}
            _check_order(waiting[rows.condition], where)
    if waiting:
        raise DamagedError(f"{where} ends in the middle of a trajectory of `{next(iter(waiting)).id}`.")
    return count


def _add_trajectories(state: ReducerState, condition: Condition, columns: Columns, where: str) -> None:
    """Add complete trajectories."""
    if not len(columns["step"]):
        return
    _check_order(columns, where)
    step_N, num_steps_N = columns["step"], columns["num_steps"]
    taken_N = step_N > 0  # a trajectory without steps has one row for step 0
    start_B = np.flatnonzero(step_N <= 1)
    totals = state.condition(condition)
    for view in VIEWS:
        risk_N = columns[f"risk_{view}"]
        if np.isnan(risk_N[taken_N]).any():
            raise StorageError(f"{where}: the {view} risk of a taken step is NaN, neither harmful nor harmless.")
        harmful_N = taken_N & (risk_N >= np.float32(state.threshold))
        first_B = np.minimum.reduceat(np.where(harmful_N, step_N, _NEVER), start_B)
        event_B = np.logical_or.reduceat(harmful_N, start_B)
        totals.count(f"fhs_{view}").add(np.where(event_B, first_B, num_steps_N[start_B]), event_B)
    values = {name: columns[name][taken_N].astype(np.float16, copy=False) for name in QUANTITIES}
    for name, value_N in values.items():
        _require_finite(name, value_N, where)
    risks = {view: columns[f"risk_{view}"][taken_N] for view in VIEWS}
    totals.add_steps(StepRows.of(step_N[taken_N], num_steps_N[taken_N], values, risks, state.threshold))


def _check_order(columns: Columns, where: str) -> None:
    """Rows are trajectory by trajectory, each from its first step on, to its last unless it is the last of all."""
    step_N, num_steps_N = columns["step"].astype(np.int32), columns["num_steps"]
    starts_N = (step_N == 1) | ((step_N == 0) & (num_steps_N == 0))
    goes_on_N = (np.diff(step_N) == 1) & (np.diff(num_steps_N) == 0) & ~starts_N[1:]
    ended_N = starts_N[1:] & (step_N[:-1] == num_steps_N[:-1])
    if not starts_N[0] or not (goes_on_N | ended_N).all() or (step_N > num_steps_N).any():
        raise DamagedError(
            f"{where}: rows are not trajectory by trajectory with steps 1 to `num_steps`, as a `step_log` has them."
        )


def _scan_positions(state: ReducerState, reader: LogReader, settings: ScanSettings, where: str) -> int:
    """Add a position log; any piece of it stands for itself."""
    count = 0
    for rows in reader.rows(_POSITION_COLUMNS, settings.where):
        if not len(rows.columns["step"]):
            continue
        lines = _Lines.of(*(_integers(rows.columns[n]) for n in ("step", "num_steps", "position")))
        lines.check(where)
        cells = Cells.of(lines.step_R, lines.position_R, lines.length_R)
        at_end_R = lines.step_R == lines.num_steps_R
        ends = Cells.of(lines.step_R[at_end_R], lines.position_R[at_end_R], lines.length_R[at_end_R])
        last_N = pa.array(np.repeat(at_end_R, lines.length_R))
        totals = state.condition(rows.condition)
        for name, values, table in _indices(rows.columns, where):
            totals.sum(name).add_cells(cells, values, table)
            if name in ABSORBING_POSITIONS:
                totals.sum(FINAL + name).add_cells(ends, values.filter(last_N), table)
        count += len(last_N)
    return count


@dataclass(frozen=True, slots=True)
class _Lines:
    """Stretches of rows of one step at neighbouring positions; a step of a trajectory is one, or a few."""

    step_R: Ints
    num_steps_R: Ints
    position_R: Ints
    """First position of each."""
    length_R: Ints

    @classmethod
    def of(cls, step_N: Ints, num_steps_N: Ints, position_N: Ints) -> _Lines:
        """Find them; on the columns' own 16 bits, which is what makes it cheap."""
        goes_on_N = np.diff(position_N) == 1
        goes_on_N &= step_N[1:] == step_N[:-1]
        goes_on_N &= num_steps_N[1:] == num_steps_N[:-1]
        first_R = np.append(0, np.flatnonzero(~goes_on_N) + 1)
        length_R = np.diff(first_R, append=len(step_N))
        return cls(step_N[first_R], num_steps_N[first_R], position_N[first_R], length_R)

    def check(self, where: str) -> None:
        """Refuse rows that no trajectory has."""
        if self.step_R.min() < 1 or self.position_R.min() < 0 or (self.step_R > self.num_steps_R).any():
            raise DamagedError(f"{where}: a step is not between 1 and `num_steps`, or a position is negative.")
        if int(self.step_R.max()) * int((self.position_R + self.length_R).max()) > _CELLS:
            raise StorageError(f"{where}: more than {_CELLS:,} steps × positions in one condition.")


def _indices(columns: Mapping[str, pa.Array], where: str) -> Iterable[tuple[str, pa.Array, pa.Array]]:
    """Each quantity as indices into a table of addends."""
    for name in _FLOAT16_POSITIONS:
        column = _undefined_as_nan(columns[name])
        _require_finite(name, column.to_numpy(zero_copy_only=False), where)
        yield name, column.view(pa.uint16()), float16_table()
    yield "committed", _defined(columns["in_canvas"]).cast(pa.uint8()), flag_table()


def _floats(column: pa.Array) -> npt.NDArray[Any]:
    floating = pa.types.is_floating(column.type)
    values: npt.NDArray[Any] = _undefined_as_nan(column).to_numpy() if floating else _integers(column)
    return values


def _integers(column: pa.Array) -> npt.NDArray[np.integer[Any]]:
    values: npt.NDArray[np.integer[Any]] = _defined(column).to_numpy()
    return values


def _defined(column: pa.Array) -> pa.Array:
    if column.null_count:
        raise DamagedError(f"A `{column.type}` column of a step log holds nulls.")
    return column


def _undefined_as_nan(column: pa.Array) -> pa.Array:
    return column.fill_null(np.nan) if column.null_count else column


def _require_finite(name: str, values: npt.NDArray[np.float16], where: str) -> None:
    try:
        require_finite(name, values)
    except StorageError as error:
        raise DamagedError(f"{where}: {error}") from error
