"""Parquet files named after their content: written under no name, then put into the store and described."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dsprobe.errors import StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import open_writer

ROW_GROUP = 1 << 20
"""Rows of a row group at most."""


class ContentFile:
    """One Parquet file under construction on the local disk; it is named once its content is known.

    Args:
        table_schema: From `dsprobe.storage.schemas.schema`.
    """

    def __init__(self, table_schema: pa.Schema) -> None:
        self._scratch = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `publish`, or with this object
        self._writer = open_writer(self._scratch, table_schema)
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Append the rows of one condition, as row groups of their own."""
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._rows += table.num_rows

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
            shutil.copyfileobj(self._scratch, sink, 1 << 20)
        self._scratch.close()
        return {"path": path, "bytes": size, "sha256": sha256, "rows": self._rows}


def read_checked(objects: ObjectStore, entry: Mapping[str, Any], remedy: str) -> bytes:
    """Read a file and check it against its description.

    Args:
        objects: The store.
        entry: At least ``path`` and ``sha256``.
        remedy: What the user can do about a damaged file.

    Raises:
        StorageError: Missing or damaged; the message names the file.
    """
    data = objects.read(entry["path"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise StorageError(
            f"{objects.address(entry['path'])} is damaged: its SHA-256 is not the one noted when it was written. "
            f"{remedy}"
        )
    return data
