"""Parquet files named after their content: written under no name, then put into the store and described."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import DamagedError
from dsprobe.storage.damage import damage
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import open_writer

BLOCK: Final = 1 << 20
"""Bytes that are read and checked at a time."""

ROW_GROUP: Final = 1 << 17
"""Rows of a row group at most: as many as DuckDB gives a thread, and few enough to be skipped by their statistics."""


class ContentFile:
    """One Parquet file under construction on the local disk; it is named once its content is known.

    Args:
        table_schema: From `dsprobe.storage.schemas.schema`.
    """

    def __init__(self, table_schema: pa.Schema) -> None:
        self._scratch = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `publish`, or with this object
        self._writer = open_writer(self._scratch, table_schema)
        self._rows = 0

    def write(self, table: pa.Table, row_group: int = ROW_GROUP) -> None:
        """Append the rows of one condition, as row groups of their own.

        Args:
            table: The rows.
            row_group: How many of them make a row group.
        """
        self._writer.write_table(table, row_group_size=row_group)
        self._rows += table.num_rows

    @property
    def bytes(self) -> int:
        """Size so far."""
        return int(self._scratch.tell())

    def row_groups(self) -> Iterator[pa.Table]:
        """Close the file, which is not to be published any more, and read it back."""
        self._writer.close()
        file = pq.ParquetFile(self._scratch)
        return (file.read_row_group(index) for index in range(file.num_row_groups))

    def publish(self, objects: ObjectStore, folder: str, prefix: str = "") -> dict[str, Any]:
        """Close the file, put it into the store under a name made of its content, and describe it.

        Returns:
            Its ``path`` relative to the store, ``bytes``, ``sha256`` and ``rows``.
        """
        self._writer.close()
        self._scratch.seek(0)
        sha256 = hashlib.file_digest(self._scratch, "sha256").hexdigest()
        path, size = f"{folder}/{prefix}{sha256[:16]}.parquet", self._scratch.tell()
        self._scratch.seek(0)
        with objects.create(path) as sink:
            shutil.copyfileobj(self._scratch, sink, BLOCK)
        self._scratch.close()
        return {"path": path, "bytes": size, "sha256": sha256, "rows": self._rows}


@contextmanager
def open_checked(objects: ObjectStore, entry: Mapping[str, Any], remedy: str) -> Iterator[Any]:
    """Open a file that has been checked against its description; no more than a block of it is held in memory.

    A remote file is copied to the local disk while it is checked, so it crosses the network once.

    Args:
        objects: The store.
        entry: At least ``path`` and ``sha256``.
        remedy: What the user can do about a damaged file.

    Yields:
        A seekable binary file object, at its beginning.

    Raises:
        DamagedError: It is not what was written; the message names the file.
        StorageError: It is missing, or the store failed.
    """
    with ExitStack() as stack:
        source = stack.enter_context(objects.open(entry["path"]))
        local = source if objects.kind == "file" else stack.enter_context(tempfile.TemporaryFile())
        digest = hashlib.sha256()
        while block := source.read(BLOCK):
            digest.update(block)
            if local is not source:
                local.write(block)
        if digest.hexdigest() != entry["sha256"]:
            where = objects.address(entry["path"])
            raise DamagedError(f"{where} is damaged: its SHA-256 is not the one noted when it was written. {remedy}")
        local.seek(0)
        with damage(objects.address(entry["path"]), remedy):
            yield local
