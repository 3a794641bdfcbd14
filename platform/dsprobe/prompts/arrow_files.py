"""Prompt files as Parquet, and Arrow tables of datasets."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import ConfigError
from dsprobe.prompts.tables import Row, Table, Unreadable

MAX_ROWS: Final = 10_000_000
MAX_BYTES: Final = 4 << 30
"""Of a Parquet file unpacked: a few kilobytes can stand for terabytes."""


def parquet_table(data: bytes, where: str) -> Table:
    """Open a Parquet file; rows are counted from 1.

    Raises:
        ConfigError: It cannot be read as Parquet, or a text in it is not UTF-8; the message names row and column.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_size(file.metadata, where)
        table = file.read()
    except ConfigError:
        raise
    # A damaged file may end in any of these, `UnicodeDecodeError` for the name of a column among them.
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise ConfigError(f"{where}: not a readable Parquet file ({error}).") from None
    return arrow_table(table, where)


def _check_size(metadata: pq.FileMetaData, where: str) -> None:
    """Refuse a file that unpacks to more than prompts can be; its footer says so before anything is unpacked."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if not 0 <= metadata.num_rows <= MAX_ROWS or not 0 <= unpacked <= MAX_BYTES:
        raise ConfigError(
            f"{where}: {metadata.num_rows} rows of {unpacked} bytes unpacked. Allowed: {MAX_ROWS} rows, {MAX_BYTES} "
            "bytes."
        )


def arrow_table(table: pa.Table, where: str) -> Table:
    """Read the texts, integers and truth values of an Arrow table; cells of other types cannot be used.

    Raises:
        ConfigError: A text is not UTF-8; the message names row and column.
    """
    names = tuple(table.column_names)
    columns = [_cells(table.column(i), name, where) for i, name in enumerate(names)]
    rows = [
        Row(where, f"row {number}", "column", dict(zip(names, cells, strict=True)))
        for number, cells in enumerate(zip(*columns, strict=True), start=1)
    ]
    return Table(where, where, names, rows)


def _cells(column: pa.ChunkedArray, name: str, where: str) -> list[Any]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    types = pa.types
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not (texts or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)):
        return [Unreadable(str(kind))] * len(column)
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        row = next(number for number, cell in enumerate(column, start=1) if not _is_utf8(cell))
        raise ConfigError(f"{where}, row {row}, column `{name}`: not UTF-8.") from None


def _is_utf8(cell: pa.Scalar) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True
