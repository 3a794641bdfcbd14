"""Reading the raw logs of a run: in pieces of bounded size, or as views for SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dsprobe.errors import DamagedError, StorageError, unknown_name
from dsprobe.storage.commit_record import CommitRecord
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore, shard_folder
from dsprobe.storage.schemas import RAW_KINDS, check_schema
from dsprobe.storage.upgrade import Filters, plain_strings


def raw_files(records: dict[str, CommitRecord], kind: str) -> dict[str, int]:
    """Committed files of one kind.

    Args:
        records: From `RunStore.committed`.
        kind: One of `RAW_KINDS`.

    Returns:
        Path relative to the run → bytes; by shard id, then number.
    """
    return {
        f"{shard_folder(shard_id, records[shard_id].attempt)}/{name}": record.bytes
        for shard_id in sorted(records)
        for name, record in sorted(records[shard_id].files.items())
        if name.startswith(f"raw/{kind}-")
    }


def read_raw(store: RunStore, kind: str, filters: Filters | None = None) -> Iterator[pa.Table]:
    """Stream a raw log, one row group at a time; row groups that hold no wanted row are not read.

    Args:
        store: The run.
        kind: One of `RAW_KINDS`.
        filters: Rows to keep.

    Yields:
        Tables that are not empty, by shard id and in the order of the files. Keys are plain strings.

    Raises:
        ConfigError: Unknown kind.
        DamagedError: A file is missing or has another size than noted; the message names it.
        StorageError: The store failed, or a file is newer than this version.
    """
    if kind not in RAW_KINDS:
        raise unknown_name("raw log", kind, RAW_KINDS)
    wanted = None if filters is None else pq.filters_to_expression(filters)
    for path, size in raw_files(store.committed(), kind).items():
        yield from _row_groups(store.objects, path, size, wanted)


def _row_groups(objects: ObjectStore, path: str, size: int, wanted: pc.Expression | None) -> Iterator[pa.Table]:
    where = objects.address(path)
    try:
        with objects.open(path) as source:
            found = source.seek(0, 2)
            if found != size:
                raise DamagedError(f"{where} is damaged: it has {found} bytes, and its commit record says {size}.")
            parquet = pq.ParquetFile(source)
            check_schema(parquet.schema_arrow.metadata, where)
            for group in range(parquet.num_row_groups) if wanted is None else _groups(source, wanted):
                table = plain_strings(parquet.read_row_group(group, use_threads=False))
                if wanted is not None:
                    table = table.filter(wanted)
                if table.num_rows:
                    yield table
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DamagedError(f"{where} is missing, though its shard is committed.") from error
        raise


def _groups(source: Any, wanted: pc.Expression) -> list[int]:
    """Row groups whose statistics do not rule a row out."""
    fragment = ds.ParquetFileFormat().make_fragment(source)
    return [info.id for part in fragment.split_by_row_group(wanted) for info in part.row_groups]


def raw_views(store: RunStore, sql: str) -> dict[str, list[str]]:
    """Views over the raw logs that a query names: kind → its files, relative to the run.

    The commit records, which say where they are, are read only if it names one.
    """
    named = [kind for kind in RAW_KINDS if re.search(rf"\b{kind}\b", sql, re.IGNORECASE)]
    records = store.committed() if named else {}
    found = {kind: list(raw_files(records, kind)) for kind in named}
    return {kind: files for kind, files in found.items() if files}
