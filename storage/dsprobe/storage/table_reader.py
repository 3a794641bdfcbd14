"""Reading a run's tables as a stream: every file is checked, then decoded one row group at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dsprobe.errors import DamagedError, StorageError, unknown_name
from dsprobe.storage.compaction import REMEDY
from dsprobe.storage.content_files import open_checked
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import SCHEMA_VERSION, TABLES, TableKind, check_schema, schema
from dsprobe.storage.table_index import current_files, newest_generation
from dsprobe.storage.upgrade import Filters, plain_strings, sound, upgraded

_ATTEMPTS: Final = 5

_Result = TypeVar("_Result")


def table_kind(table: str) -> TableKind:
    """The table of a name.

    Raises:
        ConfigError: There is none.
    """
    for kind in TABLES:
        if kind == table:
            return kind
    raise unknown_name("table", table, TABLES)


def stream(
    objects: ObjectStore, kind: TableKind, filters: Filters | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of a table in canonical order, a row group at a time; at least one table, which may be empty.

    Args:
        objects: The run's store.
        kind: The table.
        filters: Rows to keep; row groups that hold none are not decoded.
        columns: Columns to keep, in this order; all when `None`.

    Raises:
        ConfigError: A column is unknown.
        StorageError: No tables yet, a damaged or newer file, or a compaction replaced the tables while they were read.
    """
    given = False
    for entry in current_files(objects, kind):
        with open_checked(objects, entry, REMEDY) as source:
            for part in _row_groups(source, objects.address(entry["path"]), filters, columns):
                given = True
                yield plain_strings(part)
    if not given:
        yield plain_strings(_selected(schema(kind).empty_table(), columns))


def _row_groups(source: Any, where: str, filters: Filters | None, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Row groups of one checked file; a file without matching ones gives an empty table, for its columns."""
    expression = pq.filters_to_expression(filters) if filters else None
    try:
        fragment = ds.ParquetFileFormat().make_fragment(source)
        version = check_schema(fragment.physical_schema.metadata, where)
        _check_columns(_filtered(filters), upgraded(fragment.physical_schema.empty_table(), where).column_names)
        groups = fragment.split_by_row_group(filter=expression if version == SCHEMA_VERSION else None)
    except pa.ArrowInvalid as error:
        raise DamagedError(f"{where} is damaged: {error}") from error
    if not groups:
        groups, expression = [fragment], pc.scalar(False)
    for group in groups:
        if version == SCHEMA_VERSION and columns is not None:
            _check_columns(columns, fragment.physical_schema.names)
            yield sound(group.to_table(filter=expression, columns=list(columns)), where)
        elif version == SCHEMA_VERSION:
            yield upgraded(group.to_table(filter=expression), where)
        else:
            table = upgraded(group.to_table(), where)
            yield _selected(table if expression is None else table.filter(expression), columns)


def read_settled(objects: ObjectStore, read: Callable[[], _Result]) -> _Result:
    """Read, and read again if a compaction replaced the tables meanwhile.

    Raises:
        StorageError: As raised by `read` while the tables stayed the same.
    """
    for _ in range(_ATTEMPTS):
        before = newest_generation(objects)
        try:
            return read()
        except StorageError:
            if newest_generation(objects) == before:
                raise
    return read()


def _filtered(filters: Filters | None) -> list[str]:
    """Columns that filters name."""
    alternatives: Any = [filters] if filters and isinstance(filters[0][0], str) else filters or []
    return [str(condition[0]) for alternative in alternatives for condition in alternative]


def _check_columns(columns: Sequence[str], known: Sequence[str]) -> None:
    for name in columns:
        if name not in known:
            raise unknown_name("column", name, known)


def _selected(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    if columns is None:
        return table
    _check_columns(columns, table.column_names)
    return table.select(list(columns))
