"""A Parquet file that is written into an object store while its size and digest are taken."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import StorageError
from dsprobe.storage.commit_record import FileRecord
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import open_writer


@dataclass(slots=True)
class _Hashing:
    """A file object that keeps size and digest of what passes through; Parquet is written front to back."""

    sink: Any
    digest: Any
    size: int = 0
    closed: bool = False
    discarding: bool = False

    def write(self, data: Any) -> int:
        if self.discarding:
            return len(data)
        self.digest.update(data)
        written: int = self.sink.write(data)
        self.size += written
        return written

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if not self.discarding:
            self.sink.flush()

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


class OpenTable:
    """A Parquet file under construction; each write is a row group.

    Args:
        objects: The store.
        name: Name of the file in it, which it gets by `finish`.
        table_schema: From `dsprobe.storage.schemas.schema`.
    """

    def __init__(self, objects: ObjectStore, name: str, table_schema: pa.Schema) -> None:
        self._objects, self._name = objects, name
        self._stack = ExitStack()
        self._hashing = _Hashing(self._stack.enter_context(objects.create(name)), hashlib.sha256())
        self._writer: pq.ParquetWriter = open_writer(self._hashing, table_schema)
        self._schema, self._rows = table_schema, 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._hashing.size

    def write(self, table: pa.Table) -> None:
        """Append a row group.

        Raises:
            StorageError: The store failed, or the columns are others.
        """
        if self._schema.names != table.schema.names:
            raise StorageError(f"Columns changed within a shard: {table.schema.names} after {self._schema.names}.")
        with self._objects.named("cannot be written", self._name):
            self._writer.write_table(table.replace_schema_metadata(self._schema.metadata))
        self._rows += table.num_rows

    def finish(self) -> FileRecord:
        """Close the file; it now exists under its name."""
        with self._objects.named("cannot be written", self._name):
            self._writer.close()
        self._stack.close()
        return FileRecord(bytes=self._hashing.size, sha256=self._hashing.digest.hexdigest(), rows=self._rows)

    def discard(self) -> None:
        """Leave nothing behind; a store that fails now, such as a full disk, is no news."""
        self._hashing.discarding = True
        with suppress(OSError, StorageError):
            self._writer.close()
        with suppress(OSError, StorageError):
            self._stack.__exit__(_DiscardedError, _DiscardedError(), None)


class _DiscardedError(Exception):
    """Tells an open object that it is not wanted any more."""
