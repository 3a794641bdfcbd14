"""Looking rows up in another stream of the same order, which is read once and never held."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.storage.merging import KEY, Key


class Lockstep:
    """A stream of rows by (prompt, sample), read as far as the rows that are asked for.

    Args:
        stream: Tables that hold `KEY`, in increasing order.
        columns: Their schema.
    """

    def __init__(self, stream: Iterable[pa.Table], columns: pa.Schema) -> None:
        self._stream: Iterator[pa.Table] = iter(stream)
        self._none = columns.remove_metadata().empty_table()
        self._window: deque[pa.Table] = deque()

    def matching(self, rows: pa.Table) -> pa.Table:
        """The stream's row of each of N trajectories; null where it has none.

        Args:
            rows: N rows that hold `KEY`, increasing, none of them before the last one of an earlier call.
        """
        if rows.num_rows == 0:
            return self._none
        last = _last(rows)
        while not self._window or _last(self._window[-1]) < last:
            table = next(self._stream, None)
            if table is None:
                break
            if table.num_rows:
                self._window.append(table.replace_schema_metadata(None))
        known = pa.concat_tables([self._none, *self._window]).combine_chunks()
        place_N = pc.index_in(row_key(rows), value_set=row_key(known))
        while self._window and _last(self._window[0]) < last:
            self._window.popleft()
        return known.take(place_N)


def row_key(rows: pa.Table) -> pa.Array:
    """One string per row that is equal for equal (prompt, sample) only."""
    key = pc.binary_join_element_wise(rows["sample"].cast(pa.string()), rows["prompt_id"], "/")
    return key.combine_chunks() if isinstance(key, pa.ChunkedArray) else key


def _last(table: pa.Table) -> Key:
    prompt, sample = (table[name][-1].as_py() for name in KEY)
    return prompt, sample
