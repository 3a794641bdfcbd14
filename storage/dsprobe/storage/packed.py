"""Count and sum in one integer: what makes exact sums over positions fast.

A value's packed integer is ``2^52 + value × 2^24``, looked up by its bit pattern, and 0 for NaN. Adding up to
`ADDENDS` of them adds the counts above bit 52 and the values below it, exactly, with one look-up and one addition each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.storage.float16 import fixed_point, is_infinite, is_nan, to_codes

Int64 = npt.NDArray[np.int64]
Ints = npt.NDArray[np.integer]
Bits = npt.NDArray[np.uint16]
"""Bit patterns of float16 values."""

BLOCK: Final = 1 << 16
"""Values that are looked up at a time, so that the integers stay in the cache."""

_COUNT_BIT: Final = 52
ADDENDS: Final = (1 << 11) - 1
"""Packed values that one 64-bit integer holds: sums stay below 2^11 × 2^40 = 2^51, counts below 2^11."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Where N values in a row belong in a table of S steps × P positions: R stretches of neighbouring cells."""

    shape: tuple[int, int]
    length_R: Ints
    """Values of each stretch."""
    key_R: Ints
    """(step − 1) · P + position of its first one."""

    @classmethod
    def of(cls, step_R: Ints, position_R: Ints, length_R: Ints) -> Cells:
        """Join stretches that follow each other, as the lines of one trajectory's full table do.

        Args:
            step_R: 1-based step of each stretch.
            position_R: Its first position, from 0.
            length_R: Its number of positions.
        """
        steps, positions = int(step_R.max(initial=0)), int((position_R + length_R).max(initial=0))
        key_R = (step_R.astype(np.int64) - 1) * positions + position_R
        first_M = np.flatnonzero(np.append(True, key_R[1:] != key_R[:-1] + length_R[:-1])[: len(key_R)])
        joined_M = np.add.reduceat(length_R.astype(np.int64), first_M) if len(first_M) else length_R
        return cls((steps, positions), joined_M, key_R[first_M])

    def add_runs(self, sums: Int64, first: int, last: int, values: pa.Array, table: pa.Array) -> None:
        """Add stretches ``first … last - 1`` to packed sums ``[S · P]``.

        Args:
            sums: Changed in place.
            first: First stretch.
            last: One past the last.
            values: All N values.
            table: See `PositionSums.add_cells`.
        """
        end_R = np.cumsum(self.length_R)
        part = slice(first, last)
        base = ready = 0
        runs = zip((end_R - self.length_R)[part].tolist(), end_R[part].tolist(), self.key_R[part].tolist(), strict=True)
        for start, end, key in runs:
            if end > ready:
                base, ready = start, max(end, start + BLOCK)
                packed = look_up(values[base:ready], table)
            sums[key : key + end - start] += packed[start - base : end - base]

    def keys(self) -> Int64:
        """The cell of every value."""
        start_R = np.cumsum(self.length_R) - self.length_R
        keys: Int64 = np.arange(int(self.length_R.sum())) + np.repeat(self.key_R - start_R, self.length_R)
        return keys


def look_up(values: pa.Array, table: pa.Array) -> Int64:
    """Integers that hold a count of one and a value in units of 2^-24, or 0 for NaN.

    Arrow's take is several times as fast as NumPy's, and takes small indices as they are.
    """
    packed: Int64 = pc.take(table, values, boundscheck=False).to_numpy()
    return packed


@functools.cache
def float16_table() -> pa.Array:
    """Packed integers of all bit patterns."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = ~(is_nan(bits.view(np.float16)) | is_infinite(bits.view(np.float16)))
    return pa.array(_packed(np.where(finite, bits, 0).astype(np.uint16)) * finite)


@functools.cache
def flag_table() -> pa.Array:
    """Packed integers of 0.0 and 1.0."""
    return pa.array(_packed(np.array([0, 1], np.float16).view(np.uint16)))


def _packed(bits: Bits) -> Int64:
    return fixed_point(to_codes(bits.view(np.float16))) + (1 << _COUNT_BIT)


def unpack(packed: Int64) -> tuple[Int64, Int64]:
    """Counts and sums."""
    n = (packed + (1 << (_COUNT_BIT - 1))) >> _COUNT_BIT
    return n, packed - (n << _COUNT_BIT)
