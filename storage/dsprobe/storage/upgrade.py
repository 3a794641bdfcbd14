"""Reading what older versions wrote: columns that came later are filled, types that grew are widened.

Every schema version that a released or committed dsprobe wrote stays readable; ``tests/fixtures/runs`` holds a run of
each. Newer files are refused by `dsprobe.storage.schemas.check_schema`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.config import UNGUARDED
from dsprobe.errors import DamagedError
from dsprobe.storage.damage import damage
from dsprobe.storage.schemas import (
    SCHEMA_VERSION,
    check_schema,
    judges_in,
    schema,
    scored_in,
    width_in,
    with_metadata,
)

Filters = Sequence[tuple[str, str, Any]] | Sequence[Sequence[tuple[str, str, Any]]]
"""pyarrow's filters: ``[("step", "<=", 8), …]`` are joined by *and*, lists of them by *or*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterColumn:
    """A column that files of earlier versions do not have."""

    version: int
    """Schema version that brought it."""
    name: str
    value: str | int | None
    """What holds for files without it; `None` is unknown."""
    sql: str
    """Its type in DuckDB."""


LATER_COLUMNS: Final = (
    LaterColumn(version=2, name="guardrail", value=UNGUARDED, sql="VARCHAR"),
    LaterColumn(version=2, name="interventions", value=0, sql="SMALLINT"),
    LaterColumn(version=2, name="extra_steps", value=None, sql="SMALLINT"),
    LaterColumn(version=2, name="remasked", value=0, sql="SMALLINT"),
)
"""All steps from version 1 to the present one. Before version 2 there were no guardrails."""


def upgraded(table: pa.Table, where: str) -> pa.Table:
    """A table of any version in the present schema of its kind.

    Args:
        table: As read, with its file's metadata.
        where: The file, for messages.

    Raises:
        DamagedError: Columns are missing that its version has, or are of another type.
        StorageError: Of a newer version.
    """
    version = check_schema(table.schema.metadata, where)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    kind, run_id = metadata["dsprobe.table"], metadata.get("dsprobe.run_id", "")
    names = table.schema
    target = schema(kind, judges=judges_in(names), scored=scored_in(names), run_id=run_id, width=width_in(names))
    if version == SCHEMA_VERSION and table.schema.equals(target):
        return sound(table, where)
    for column in LATER_COLUMNS:
        if version < column.version and column.name in target.names and column.name not in table.column_names:
            value = pa.scalar(column.value, target.field(column.name).type)
            table = table.append_column(column.name, pa.repeat(value, table.num_rows))
    extra = {key: value for key, value in metadata.items() if key.startswith("dsprobe.")}
    try:
        sound(table, where)
        rows = with_metadata(table.select(target.names), kind, run_id)
    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DamagedError(f"{where} is damaged: as a table `{kind}` of version {version}: {error}") from error
    return rows.replace_schema_metadata({**extra, **_text(rows.schema.metadata)})


def sound(table: pa.Table, where: str) -> pa.Table:
    """The table, once its texts are known to be UTF-8 and its keys to be there: readers rely on both.

    Raises:
        DamagedError: They are not.
    """
    with damage(where):
        table.validate(full=True)
    for name in ("condition", "prompt_id", "sample", "step", "position", "num_steps", "text", "reply", "judge"):
        if name in table.column_names and table[name].null_count:
            raise DamagedError(f"{where} is damaged: column `{name}` has rows without a value.")
    return table


def read_parquet(source: Any, where: str, filters: Filters | None = None) -> pa.Table:
    """Read a Parquet file of any version in the present schema.

    Args:
        source: A seekable Arrow or Python file.
        where: The file, for messages.
        filters: Rows to keep; row groups that hold none are not decoded where the file is of the present version.

    Raises:
        DamagedError: It is no Parquet file, or not one of this format.
        StorageError: Of a newer version.
    """
    with damage(where):
        version = check_schema(pq.read_schema(source).metadata, where)
        if version == SCHEMA_VERSION:
            return upgraded(pq.read_table(source, filters=filters), where)
        table = upgraded(pq.read_table(source), where)
    return table.filter(pq.filters_to_expression(filters)) if filters else table


def plain_strings(table: pa.Table) -> pa.Table:
    """A table whose dictionaries are plain strings, which every kernel takes."""
    fields = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def sql_columns(kind: str, present: Collection[str]) -> str:
    """The select list with which DuckDB shows an older table as the present one; ``*`` where nothing is missing.

    Args:
        kind: Table.
        present: Columns of its files.
    """
    expected = schema(kind).names
    later = {column.name: column for column in LATER_COLUMNS if column.name in expected and column.name not in present}
    if not later:
        return "*"
    others = [name for name in present if name not in expected]
    names = [name for name in [*expected, *others] if name in present or name in later]
    return ", ".join(_filled(later[name]) if name in later else f'"{name}"' for name in names)


def _filled(column: LaterColumn) -> str:
    value = "NULL" if column.value is None else repr(column.value)
    return f"CAST({value} AS {column.sql}) AS {column.name}"


def _text(metadata: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in metadata.items()}
