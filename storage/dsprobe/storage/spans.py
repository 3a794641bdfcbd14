"""Spans in a run's folder: ``telemetry/spans/<unique>.parquet``, for `dsprobe trace` and for DuckDB.

Best effort: a store that refuses is logged and no more, and spans that a killed driver held are gone.
"""

from __future__ import annotations

import io
import logging
import uuid
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import DamagedError, StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.telemetry.spans import SPANS, Span, belonging_to

LOGGER = logging.getLogger("dsprobe.storage.spans")

FOLDER: Final = "telemetry/spans"

_NUMBERS: Final = {"start_ns": pa.int64(), "duration_ns": pa.int64(), "pid": pa.int64(), "thread": pa.int64(),
                   "batch": pa.int32()}  # fmt: skip
SCHEMA: Final = pa.schema([(name, _NUMBERS.get(name, pa.string())) for name in Span._fields])


def keep_spans(objects: ObjectStore) -> None:
    """Write the spans that this process holds of a run, and those from before a run was known, into its folder.

    Args:
        objects: The run's folder, which is called as the run.
    """
    run = objects.url.rpartition("/")[2]
    spans = belonging_to(run, SPANS.take(run, ""))
    if not spans:
        return
    columns = dict(zip(Span._fields, map(list, zip(*spans, strict=True)), strict=True))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), buffer, compression="zstd")
    try:
        objects.put(f"{FOLDER}/{uuid.uuid4().hex}.parquet", buffer.getvalue())
    except StorageError as error:
        LOGGER.warning("The spans of this run cannot be written: %s", error)


def read_spans(objects: ObjectStore) -> list[Span]:
    """All spans of a run, sorted by their start.

    Raises:
        DamagedError: A file holds no spans; the message names it.
        StorageError: The store failed.
    """
    found: list[Span] = []
    for name in objects.list(FOLDER):
        try:
            table = pq.read_table(pa.BufferReader(objects.read(name)))
            if table.schema.remove_metadata() != SCHEMA or any(column.null_count for column in table.columns):
                raise ValueError("its columns are not those of spans")
            found += [Span(**row) for row in table.to_pylist()]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedError(
                f"{objects.address(name)} holds no spans: {error}. Delete it; nothing depends on it."
            ) from error
    return sorted(found, key=lambda span: span.start_ns)
