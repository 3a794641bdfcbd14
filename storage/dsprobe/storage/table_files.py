"""One table of one model and attack as files of a good size, cut where the rows alone say.

Row groups end at a trajectory and at the end of a condition, after at most about `ROW_GROUP` rows or `GROUP_BYTES` of
text and lists, so the statistics of a row group speak of one condition and of few prompts. Files end at a row group
once they have `TARGET_BYTES`; a rest of less than `LEAST_BYTES` joins the file before it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.storage.content_files import ROW_GROUP, ContentFile
from dsprobe.storage.objects import ObjectStore

Int64 = npt.NDArray[np.int64]

GROUP_BYTES: Final = 1 << 24
"""Text and list items of a row group."""

TARGET_BYTES: Final = 64 << 20
"""Size at which a file is full."""

LEAST_BYTES: Final = 10 << 20
"""A table's last file is at least this large, unless it is the only one."""

_STRUCT_BYTES: Final = 16
"""What an item of a list of structures counts."""


class TableFiles:
    """The files of one table and partition, under construction.

    Args:
        objects: The run's store.
        folder: Where they go.
        columns: Their schema.
    """

    def __init__(self, objects: ObjectStore, folder: str, columns: pa.Schema) -> None:
        self._objects, self._folder, self._columns = objects, folder, columns
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._current = ContentFile(columns)
        self._full: ContentFile | None = None
        self._entries: list[dict[str, Any]] = []

    def write(self, table: pa.Table, bounds: Int64) -> None:
        """Append rows; where they end says nothing about where row groups do.

        Args:
            table: Rows of one condition, in canonical order.
            bounds: Rows ``bounds[t]:bounds[t + 1]`` stay together; increasing, from 0 to the number of rows.
        """
        bytes_N = np.concatenate([[0], np.cumsum(_variable_bytes(table))])
        start = 0
        while start < table.num_rows:
            ends = bounds[np.searchsorted(bounds, start, side="right") :]
            rows = self._rows + ends - start
            size = self._bytes + bytes_N[ends] - bytes_N[start]
            full = np.flatnonzero((rows >= ROW_GROUP) | (size >= GROUP_BYTES))
            place = int(full[0]) if len(full) else -1
            stop = int(ends[place])
            self._waiting.append(table.slice(start, stop - start))
            self._rows, self._bytes = int(rows[place]), int(size[place])
            if len(full):
                self.end_group()
            start = stop

    def end_group(self) -> None:
        """Write what is waiting as a row group."""
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._rows, self._bytes = [], 0, 0
        self._current.write(table, row_group=max(1, table.num_rows))
        if self._full is not None and self._current.bytes >= LEAST_BYTES:
            self._publish(self._full)
            self._full = None
        if self._current.bytes >= TARGET_BYTES:
            self._full, self._current = self._current, ContentFile(self._columns)

    def publish(self) -> list[dict[str, Any]]:
        """Finish the files and put them into the store.

        Returns:
            Their descriptions in the rows' order, see `ContentFile.publish`; at least one.
        """
        self.end_group()
        if self._full is not None:
            for group in self._current.row_groups():
                self._full.write(group, row_group=group.num_rows)
            self._current = self._full
        self._publish(self._current)
        return self._entries

    def _publish(self, file: ContentFile) -> None:
        self._entries.append(file.publish(self._objects, self._folder, "part-"))


def _variable_bytes(table: pa.Table) -> Int64:
    """What text and lists of each row take, by their lengths: the same however the rows are chunked."""
    total_N = np.zeros(table.num_rows, np.int64)
    for name, dtype in zip(table.schema.names, table.schema.types, strict=True):
        if pa.types.is_string(dtype):
            total_N += _ints(pc.binary_length(table[name]))
        elif pa.types.is_list(dtype):
            item = dtype.value_type
            width = item.bit_width // 8 if pa.types.is_primitive(item) else _STRUCT_BYTES
            total_N += width * _ints(pc.list_value_length(table[name]))
    return total_N


def _ints(lengths: pa.ChunkedArray) -> Int64:
    result: Int64 = pc.fill_null(lengths, 0).to_numpy().astype(np.int64)
    return result
