"""Tables that have to wait: on the local disk instead of in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator

import pyarrow as pa

from dsprobe.errors import StorageError


class Scratch:
    """A file on the local disk without a name: gone with the process, however it ends."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`, or with this object
        self._end = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def stored(self, tables: Iterable[pa.Table] = ()) -> Stored:
        """Write tables of one schema, which holds no dictionaries."""
        stored = Stored(self)
        for table in tables:
            stored.append(table)
        return stored

    def write(self, buffer: pa.Buffer) -> tuple[int, int]:
        """Append bytes; returns their place and size."""
        place = (self._end, buffer.size)
        self._file.seek(self._end)
        self._file.write(buffer)
        self._end += buffer.size
        return place

    def read(self, place: tuple[int, int]) -> pa.Buffer:
        """Read what was written."""
        self._file.seek(place[0])
        return pa.py_buffer(self._file.read(place[1]))


class Stored:
    """Tables in a scratch file, read one at a time."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._places: list[tuple[int, int]] = []
        self._schema: pa.Schema | None = None

    def append(self, table: pa.Table) -> None:
        """Write one more.

        Raises:
            StorageError: Its columns are not those of the tables before it.
        """
        if self._schema is None:
            self._schema = table.schema
        elif not self._schema.equals(table.schema):
            raise StorageError(f"Columns change within a table: {table.schema.names} after {self._schema.names}.")
        self._places += [self._scratch.write(batch.serialize()) for batch in table.combine_chunks().to_batches()]

    def tables(self) -> Iterator[pa.Table]:
        """Read them in the order of writing."""
        for place in self._places:
            batch = pa.ipc.read_record_batch(self._scratch.read(place), self._schema)
            yield pa.Table.from_batches([batch])
