"""The two accumulators of the reducer: sparse counts of codes, and exact sums per position."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.errors import StorageError
from dsprobe.storage.packed import ADDENDS, BLOCK, Bits, Cells, Int64, Ints, float16_table, look_up, unpack

PENDING: Final = 1 << 20
"""Codes that are collected before they are sorted into the counts."""

_SHORT_RUN: Final = 32
"""Mean length below which adding run by run costs more than scattering value by value."""

_LIMIT: Final = float(1 << 62)


class SparseCounts:
    """Counts by (step, code), both below 2^16, as sorted unique keys with their counts."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint32)
        self._counts = np.empty(0, np.int64)
        self._pending: list[npt.NDArray[np.uint32]] = []
        self._waiting = 0

    def add(self, step_N: Ints, code_N: npt.NDArray[np.generic]) -> None:
        """Count N occurrences."""
        self._pending.append(_keys(step_N, code_N))
        self._waiting += len(step_N)
        if self._waiting >= PENDING:
            self.settle()

    def load(self, step_N: Ints, code_N: Ints, count_N: Int64) -> None:
        """Add N distinct keys with their counts."""
        keys = _keys(step_N, code_N)
        if (keys[1:] <= keys[:-1]).any():
            order = np.argsort(keys)
            keys, count_N = keys[order], count_N[order]
        self._combine(keys, count_N)

    def merge(self, other: SparseCounts) -> None:
        """Add another table of counts."""
        other.settle()
        self._combine(other._keys, other._counts)

    def items(self) -> tuple[Int64, Int64, Int64]:
        """Steps, codes and counts, sorted by step, then code."""
        self.settle()
        return (self._keys >> 16).astype(np.int64), (self._keys & 0xFFFF).astype(np.int64), self._counts

    def settle(self) -> None:
        """Sort what waits into the counts; the memory it took is free again."""
        if self._pending:
            keys = np.sort(np.concatenate(self._pending))
            self._pending, self._waiting = [], 0
            first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
            self._combine(keys[first], np.diff(first, append=len(keys)))

    def _combine(self, keys: npt.NDArray[np.uint32], counts: Int64) -> None:
        """Add sorted unique keys: those that are known in place, the others by merging two sorted lists."""
        if not len(self._keys):
            self._keys, self._counts = keys, counts.astype(np.int64)
            return
        where = np.searchsorted(self._keys, keys)
        known = self._keys[np.minimum(where, len(self._keys) - 1)] == keys
        self._counts = self._counts.copy()  # it may be shared with a state that was merged into this one
        self._counts[where[known]] += counts[known]
        fresh = ~known
        if fresh.any():
            self._keys = np.insert(self._keys, where[fresh], keys[fresh])
            self._counts = np.insert(self._counts, where[fresh], counts[fresh])


def _keys(step_N: Ints, code_N: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    return step_N.astype(np.uint32) * np.uint32(1 << 16) + code_N.astype(np.uint32)


class PositionSums:
    """How many values, and their sum in units of 2^-24, by (step, position); dense ``[S, P]``, step 1 in row 0."""

    def __init__(self) -> None:
        self._n_SP = np.zeros((0, 0), np.int64)
        self._total_SP = np.zeros((0, 0), np.int64)
        self._packed_SP = np.zeros((0, 0), np.int64)
        self._addends = 0
        self._bound = 0.0

    @property
    def n_SP(self) -> Int64:
        """Numbers of values."""
        self.settle()
        return self._n_SP

    @property
    def total_SP(self) -> Int64:
        """Sums of values."""
        self.settle()
        return self._total_SP

    def add(self, bits_SBP: Bits, invalid_SB1: Bits) -> None:
        """Add B rows, each with a value per step and position.

        Args:
            bits_SBP: Bit patterns of finite float16 values, or NaN for none.
            invalid_SB1: `NAN_BITS` where a row has no such step, or no such position (any shape that broadcasts);
                0 elsewhere.
        """
        steps, rows, positions = bits_SBP.shape
        for row in range(0, rows, ADDENDS):
            some_rows = min(rows - row, ADDENDS)
            some_steps = max(1, BLOCK // max(1, some_rows * positions))
            packed_SP = self._room(steps, positions, some_rows)
            for step in range(0, steps, some_steps):
                part = slice(step, min(step + some_steps, steps)), slice(row, row + some_rows)
                values_SBP = bits_SBP[part] | invalid_SB1[part]
                packed = look_up(pa.array(values_SBP.reshape(-1)), float16_table()).reshape(values_SBP.shape)
                packed_SP[part[0]] += packed.sum(axis=1)

    def add_cells(self, cells: Cells, values: pa.Array, table: pa.Array) -> None:
        """Add N values, each to its cell.

        Args:
            cells: Where they belong.
            values: N indices into the table, an unsigned Arrow type without nulls.
            table: `float16_table` for bit patterns of finite values or NaN, `flag_table` for 0 and 1.
        """
        if len(values) >= _SHORT_RUN * len(cells.key_R):
            for first in range(0, len(cells.key_R), ADDENDS):
                last = min(first + ADDENDS, len(cells.key_R))
                sums = self._room(*cells.shape, last - first).reshape(-1)
                cells.add_runs(sums, first, last, values, table)
            return
        key_N, packed_N = cells.keys(), look_up(values, table)
        most = int(np.bincount(key_N).max())
        together = len(values) if most <= ADDENDS else ADDENDS
        for first in range(0, len(values), together):
            part = slice(first, first + together)
            np.add.at(self._room(*cells.shape, min(most, together)).reshape(-1), key_N[part], packed_N[part])

    def settle(self) -> None:
        """Unpack what was added last."""
        if self._addends:
            packed_SP, self._addends = self._packed_SP, 0
            self._packed_SP = np.zeros((0, 0), np.int64)
            self.accumulate(*unpack(packed_SP))

    def _room(self, steps: int, positions: int, addends: int) -> Int64:
        """Packed sums of at least so many steps, and exactly so many positions, that take so many more addends."""
        shape = max(steps, len(self._packed_SP)), positions
        if self._packed_SP.shape != shape or self._addends + addends > ADDENDS:
            self.settle()
            self._packed_SP = np.zeros(shape, np.int64)
        self._addends += addends
        return self._packed_SP

    def load(self, step_N: Ints, position_N: Ints, n_N: Int64, total_N: Int64) -> None:
        """Add N distinct entries."""
        shape = (int(step_N.max(initial=0)), int(position_N.max(initial=-1)) + 1)
        n_SP, total_SP = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        where = (step_N.astype(np.intp) - 1, position_N.astype(np.intp))
        n_SP[where], total_SP[where] = n_N, total_N
        self.accumulate(n_SP, total_SP)

    def merge(self, other: PositionSums) -> None:
        """Add other sums.

        Raises:
            StorageError: A sum leaves the range of 64 bits.
        """
        self.accumulate(other.n_SP, other.total_SP)

    def items(self) -> tuple[Int64, Int64, Int64, Int64]:
        """Steps, positions, numbers and sums of the entries that hold values, sorted by step, then position."""
        step_N, position_N = np.nonzero(self.n_SP)
        return step_N + 1, position_N, self.n_SP[step_N, position_N], self.total_SP[step_N, position_N]

    def accumulate(self, n_SP: Int64, total_SP: Int64) -> None:
        """Add a whole table of numbers and sums.

        Raises:
            StorageError: A sum leaves the range of 64 bits.
        """
        steps, positions = np.maximum(self._n_SP.shape, n_SP.shape)
        self._n_SP, self._total_SP = (_grown(a, steps, positions) for a in (self._n_SP, self._total_SP))
        self._require_room(total_SP)
        part = slice(total_SP.shape[0]), slice(total_SP.shape[1])
        self._n_SP[part] += n_SP
        self._total_SP[part] += total_SP

    def _require_room(self, total_SP: Int64) -> None:
        """Look at the sums themselves only where the largest addends so far could have filled one."""
        self._bound += _largest(total_SP)
        if self._bound < _LIMIT:
            return
        ours = np.abs(self._total_SP.astype(np.float64))
        ours[: total_SP.shape[0], : total_SP.shape[1]] += np.abs(total_SP.astype(np.float64))
        self._bound = float(ours.max(initial=0))
        if self._bound >= _LIMIT:
            raise StorageError(
                "A sum over positions leaves the range of exact 64-bit arithmetic; use fewer rows a run."
            )


def _largest(total_SP: Int64) -> float:
    return float(max(int(total_SP.max(initial=0)), -int(total_SP.min(initial=0))))


def _grown(array_SP: Int64, steps: int, positions: int) -> Int64:
    if array_SP.shape == (steps, positions) and array_SP.flags.writeable:
        return array_SP
    grown = np.zeros((steps, positions), np.int64)
    grown[: array_SP.shape[0], : array_SP.shape[1]] = array_SP
    return grown
