"""Bringing the rows of many shards into one order without holding them: an external merge.

A run is one shard's rows, sorted. Runs are merged by trajectory (prompt, sample): one is opened when its turn comes, so
shards that follow each other are never in memory together, and of those that interleave each keeps one piece in memory
and the rest in a scratch file. More than `FAN_IN` interleaving runs are merged in levels. The order depends on the rows
alone, not on how they were spread over shards.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.storage.scratch import Scratch

Int64 = npt.NDArray[np.int64]

Key = tuple[str, int]
"""A trajectory within its condition: prompt id and sample number, ordered as Arrow orders them."""

KEY: Final = ("prompt_id", "sample")

ORDER: Final = ("condition", *KEY, "step", "position", "quantity")
"""The canonical order of rows, as far as a table has these columns."""

FAN_IN: Final = 32
"""Runs that are open at a time."""

PIECE_BYTES: Final = 1 << 18
"""Size of the pieces in which an open run is read; at least one trajectory."""

CHUNK_BYTES: Final = 1 << 21
"""Size of what `merged` gives out."""


def in_order(table: pa.Table) -> pa.Table:
    """The rows in canonical order, in one chunk."""
    names = [(name, "ascending") for name in ORDER if name in table.column_names]
    return table.unify_dictionaries().sort_by(names).combine_chunks()


@dataclass(slots=True)
class Rows:
    """Rows of whole trajectories in canonical order."""

    table: pa.Table
    keys: list[Key]
    """Their T trajectories, increasing."""
    bounds: Int64
    """Trajectory t has the rows ``bounds[t]:bounds[t + 1]``; length T + 1."""

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """Find the trajectories in a sorted table."""
        bounds = _bounds(table)
        first = table.select(KEY).take(pa.array(bounds[:-1]))
        keys = list(zip(first["prompt_id"].to_pylist(), first["sample"].to_pylist(), strict=True))
        return cls(table, keys, bounds)

    def part(self, start: int, stop: int) -> Rows:
        """Some of the trajectories."""
        low, high = int(self.bounds[start]), int(self.bounds[stop])
        return Rows(self.table.slice(low, high - low), self.keys[start:stop], self.bounds[start : stop + 1] - low)

    def pieces(self, size: int) -> Iterator[Rows]:
        """Whole trajectories in pieces of about `size` bytes."""
        row_bytes = max(1, self.table.nbytes // max(1, self.table.num_rows))
        start = 0
        while start < len(self.keys):
            wanted = self.bounds[start] + size // row_bytes
            stop = max(start + 1, int(np.searchsorted(self.bounds, wanted, side="right")) - 1)
            yield self.part(start, stop)
            start = stop


def _bounds(table: pa.Table) -> Int64:
    """Where trajectories begin in a sorted table, and its end."""
    rows = table.num_rows
    if rows == 0:
        return np.zeros(1, np.int64)
    changed: Any = np.zeros(rows - 1, bool)
    for name in KEY:
        column = table[name].combine_chunks()
        changed |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(changed) + 1, [rows]]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Run:
    """Sorted rows that are read when their turn comes."""

    first: Key | None
    """The smallest key; None without rows."""
    last: Key | None
    """The largest key."""
    read: Callable[[], Iterable[pa.Table]]
    """Gives the rows, cut at trajectories; is called once."""


def merged(runs: Sequence[Run], scratch: Scratch) -> Iterator[Rows]:
    """Merge runs, in chunks of about `CHUNK_BYTES`.

    Args:
        runs: In an order of their own, which decides between equal keys.
        scratch: For those parts of interleaving runs that have to wait.
    """
    ordered = sorted((run for run in runs if run.first is not None), key=_first)
    while _most_open(ordered) > FAN_IN:
        ordered = [_premerged(ordered[at : at + FAN_IN], scratch) for at in range(0, len(ordered), FAN_IN)]
    return _collected(_merged(ordered, scratch))


def _first(run: Run) -> Key:
    assert run.first is not None
    return run.first


def _most_open(ordered: Sequence[Run]) -> int:
    """How many of the runs are under way at a time, at most."""
    lasts: list[Key] = []
    most = 0
    for run in ordered:
        while lasts and lasts[0] < _first(run):
            heapq.heappop(lasts)
        assert run.last is not None
        heapq.heappush(lasts, run.last)
        most = max(most, len(lasts))
    return most


def _premerged(part: Sequence[Run], scratch: Scratch) -> Run:
    pieces = (piece.table for rows in _merged(part, scratch) for piece in rows.pieces(PIECE_BYTES))
    return Run(_first(part[0]), max(run.last for run in part if run.last is not None), scratch.stored(pieces).tables)


def _merged(ordered: Sequence[Run], scratch: Scratch) -> Iterator[Rows]:
    """In each round give out what no run can still precede: up to the least last key of the pieces in memory."""
    cursors: list[_Cursor] = []
    following = 0
    while following < len(ordered) or cursors:
        bound = min((cursor.last for cursor in cursors), default=None)
        while following < len(ordered) and (bound is None or _first(ordered[following]) <= bound):
            run = ordered[following]
            following += 1
            alone = not cursors and (following == len(ordered) or _first(ordered[following]) > (run.last or ("", 0)))
            cursors.append(_Cursor(run, None if alone else scratch))
            bound = cursors[-1].last if bound is None else min(bound, cursors[-1].last)
        assert bound is not None
        yield _interleaved([cursor.take(bound) for cursor in cursors if cursor.rows.keys[0] <= bound])
        cursors = [cursor for cursor in cursors if cursor.advance()]


class _Cursor:
    """An open run: the piece that is in memory, and those to come."""

    def __init__(self, run: Run, scratch: Scratch | None) -> None:
        self._pieces = _pieces(run, scratch)
        self.rows = next(self._pieces)

    @property
    def last(self) -> Key:
        """The largest key in memory."""
        return self.rows.keys[-1]

    def take(self, bound: Key) -> Rows:
        """Take the rows up to a key, which stay behind `advance`."""
        count = bisect.bisect_right(self.rows.keys, bound)
        taken, self.rows = self.rows.part(0, count), self.rows.part(count, len(self.rows.keys))
        return taken

    def advance(self) -> bool:
        """Make sure that a piece with rows is in memory; False at the end."""
        if not self.rows.keys:
            following = next(self._pieces, None)
            if following is None:
                return False
            self.rows = following
        return True


def _pieces(run: Run, scratch: Scratch | None) -> Iterator[Rows]:
    """A run's rows in pieces; with a scratch file only one of them is in memory."""
    for table in run.read():
        pieces = Rows.of(table).pieces(PIECE_BYTES)
        if scratch is None or table.nbytes <= 2 * PIECE_BYTES:
            yield from pieces
        else:
            stored = scratch.stored(piece.table for piece in pieces)
            del table, pieces
            yield from map(Rows.of, stored.tables())


def _interleaved(parts: Sequence[Rows]) -> Rows:
    """Sorted rows of sorted parts, trajectory by trajectory; of equal keys the earlier part's come first."""
    if len(parts) == 1:
        return parts[0]
    keys = [key for part in parts for key in part.keys]
    order_T = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    starts, offset = [], 0
    for part in parts:
        starts.append(part.bounds[:-1] + offset)
        offset += part.bounds[-1]
    start_T = np.concatenate(starts)[order_T]
    length_T = np.concatenate([np.diff(part.bounds) for part in parts])[order_T]
    bounds = np.concatenate([[0], np.cumsum(length_T)])
    index_N = np.repeat(start_T - bounds[:-1], length_T) + np.arange(offset)
    table = pa.concat_tables(part.table for part in parts).combine_chunks().take(pa.array(index_N))
    return Rows(table, [keys[place] for place in order_T], bounds)


def _collected(parts: Iterable[Rows]) -> Iterator[Rows]:
    """Successive rows in larger chunks."""
    waiting: list[Rows] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += part.table.nbytes
        if size >= CHUNK_BYTES:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[Rows]) -> Rows:
    ends = np.cumsum([0, *(part.bounds[-1] for part in parts)])
    bounds = np.concatenate([*(part.bounds[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)), ends[-1:]])
    table = pa.concat_tables(part.table for part in parts).combine_chunks()
    return Rows(table, [key for part in parts for key in part.keys], bounds)
