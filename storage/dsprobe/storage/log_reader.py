"""Reading step logs in pieces of bounded size, Parquet or Arrow, one condition at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import DamagedError, StorageError
from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.content_files import open_checked
from dsprobe.storage.log_files import LABELS, LOG_KINDS, LogFile, Where, wanted
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import check_schema, schema

BATCH_ROWS: Final = 1 << 18
"""Rows that are decoded at a time."""

_BUFFER: Final = 1 << 20
"""Bytes of a column that are read ahead, so that memory does not depend on the size of row groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRows:
    """Consecutive rows of a log that belong to one condition."""

    condition: Condition
    columns: Mapping[str, pa.Array]


@contextmanager
def opened(objects: ObjectStore, file: LogFile) -> Iterator[Any]:
    """Open a log; a committed one is checked against its digest first.

    Raises:
        DamagedError: It cannot be read as what it is; the message names it.
        StorageError: The store failed.
    """
    where = objects.address(file.name)
    try:
        with _checked(objects, file) if file.sha256 else objects.open(file.name) as source:
            if objects.kind == "file":
                with pa.OSFile(objects.path(file.name)) as native:  # no way through Python for every read
                    yield native
            else:
                yield source
    except pa.ArrowException as error:
        raise DamagedError(f"{where} is damaged: {error}") from error
    except StorageError as error:
        if isinstance(error.__cause__, pa.ArrowException) or type(error.__cause__) is OSError:
            raise DamagedError(f"{where} is damaged: {error.__cause__}") from error
        raise


def _checked(objects: ObjectStore, file: LogFile) -> AbstractContextManager[Any]:
    remedy = "Find all damage with `dsprobe verify RUN --repair`, then run the same `dsprobe run` again."
    return open_checked(objects, {"path": file.name, "sha256": file.sha256}, remedy)


class LogReader:
    """One open log file.

    Args:
        source: Seekable, as from `opened`.
        where: Its name, for messages.

    Raises:
        StorageError: A newer version, or columns of a log with other types.
    """

    def __init__(self, source: Any, where: str) -> None:
        self._where = where
        self._file = pq.ParquetFile(source, buffer_size=_BUFFER) if _magic(source, 4) == b"PAR1" else None
        self._source = source
        names = self._arrow().schema if self._file is None else self._file.schema_arrow
        self.kind = self._kind(names)
        """One of `LOG_KINDS`; `None` for a file of something else."""
        self.conditions: set[Condition] = set()
        """Conditions seen by `rows`, those that are not wanted too."""
        if self.kind is not None:
            self._check_types(self.kind, names)

    def rows(self, columns: Sequence[str], where: Where) -> Iterator[LogRows]:
        """Read in order, a limited number of rows at a time, in each the wanted conditions one after the other.

        Args:
            columns: Columns wanted.
            where: Conditions wanted; row groups whose statistics show another one are not decoded.
        """
        pieces = self._arrow_pieces(columns) if self._file is None else self._parquet_pieces(columns, where)
        for condition, batch in pieces:
            for part in [(condition, batch)] if condition is not None else _by_condition(batch):
                self.conditions.add(part[0])
                if wanted(part[0], where):
                    yield LogRows(condition=part[0], columns={name: part[1].column(name) for name in columns})

    def _parquet_pieces(
        self, columns: Sequence[str], where: Where
    ) -> Iterator[tuple[Condition | None, pa.RecordBatch]]:
        assert self._file is not None
        for condition, members in groupby(range(self._file.num_row_groups), self._only_condition):
            if condition is not None and not wanted(condition, where):
                self.conditions.add(condition)
                continue
            names = list(columns) if condition is not None else [*columns, *LABELS]
            for batch in self._file.iter_batches(BATCH_ROWS, list(members), names, use_threads=False):
                yield condition, batch

    def _only_condition(self, row_group: int) -> Condition | None:
        """The condition of all rows of a row group, if its statistics say that there is one only."""
        assert self._file is not None
        metadata, names = self._file.metadata.row_group(row_group), self._file.schema_arrow.names
        parts = {}
        for label in LABELS:
            facts = metadata.column(names.index(label)).statistics
            if facts is None or not facts.has_min_max or facts.null_count != 0 or facts.min != facts.max:
                return None
            parts[label] = facts.min
        return Condition(**parts)

    def _arrow_pieces(self, columns: Sequence[str]) -> Iterator[tuple[None, pa.RecordBatch]]:
        names = self._arrow().schema.names
        kept = [names.index(name) for name in (*columns, *LABELS)]
        for batch in _arrow_batches(self._arrow(pa.ipc.IpcReadOptions(included_fields=kept, use_threads=False))):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield None, batch.slice(start, BATCH_ROWS)

    def _arrow(self, options: pa.ipc.IpcReadOptions | None = None) -> Any:
        """Arrow's file format, or its stream format."""
        ipc = pa.ipc.open_file if _magic(self._source, 6) == b"ARROW1" else pa.ipc.open_stream
        return ipc(self._source, options=options)

    def _kind(self, found: pa.Schema) -> str | None:
        metadata = found.metadata or {}
        if b"dsprobe.table" in metadata:
            check_schema(metadata, self._where)
            kind = metadata[b"dsprobe.table"].decode(errors="replace")
            return kind if kind in LOG_KINDS else None
        return next((kind for kind in LOG_KINDS if set(schema(kind).names) <= set(found.names)), None)

    def _check_types(self, kind: str, found: pa.Schema) -> None:
        for expected in schema(kind):
            if expected.name not in found.names:
                raise StorageError(f"{self._where} lacks column `{expected.name}` of a `{kind}`.")
            dtype = found.field(expected.name).type
            if expected.name not in LABELS and dtype != expected.type and not pa.types.is_string(expected.type):
                raise StorageError(
                    f"{self._where}: column `{expected.name}` of a `{kind}` is {dtype}; needed is {expected.type}."
                )


def _magic(source: Any, count: int) -> bytes:
    source.seek(0)
    magic: bytes = source.read(count)
    source.seek(0)
    return magic


def _arrow_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _by_condition(batch: pa.RecordBatch) -> Iterator[tuple[Condition, pa.RecordBatch]]:
    """The rows of each condition, in their order."""
    labels = [batch.column(label).cast(pa.string()).dictionary_encode() for label in LABELS]
    codes_NL = np.stack([label.indices.to_numpy(zero_copy_only=False) for label in labels], axis=1)
    found, which_N = np.unique(codes_NL, axis=0, return_inverse=True)
    for index, codes in enumerate(found.tolist()):
        condition = Condition(
            **{name: label.dictionary[code].as_py() for name, label, code in zip(LABELS, labels, codes, strict=True)}
        )
        yield (
            condition,
            batch if len(found) == 1 else batch.take(pa.array(np.flatnonzero(which_N.reshape(-1) == index))),
        )
