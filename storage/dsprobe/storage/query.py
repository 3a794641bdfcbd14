"""Reading a run's tables: as Arrow tables, or with SQL through DuckDB. Nothing here can change a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import ConfigError, StorageError, unknown_name
from dsprobe.judges.base import Decides
from dsprobe.storage.compaction import current_files, read_file, scored_judges
from dsprobe.storage.irreversibility import fork_record
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import MANIFEST, RunStore
from dsprobe.storage.schemas import TABLES, TableKind, check_schema, schema
from dsprobe.storage.scores import own_judges, score_records

SWEEP_TABLES: Final = {"trials": "sweep/trials.parquet", "front": "sweep/front.parquet"}
"""Tables of a sweep: name → file below its folder."""

Filters = Sequence[tuple[str, str, Any]] | Sequence[Sequence[tuple[str, str, Any]]]
"""pyarrow's filters: ``[("step", "<=", 8), …]`` are joined by *and*, lists of them by *or*."""


def open_run(run: str) -> RunStore:
    """Find a run.

    Args:
        run: URL or path of a run's folder, or the id of a run below ``./runs``.

    Raises:
        StorageError: There is no run.
    """
    url = run.rstrip("/")
    if "://" not in url and not Path(url).exists() and Path("runs", url).exists():
        url = str(Path("runs", url))
    if "://" not in url:
        url = str(Path(url).resolve())
    store = RunStore.at(url)
    if not store.objects.exists(MANIFEST):
        raise StorageError(
            f"No run at `{run}`: it holds no `{MANIFEST}`. Give the folder of a run, or the id of one below ./runs."
        )
    return store


def run_judges(store: RunStore) -> dict[str, Decides]:
    """The judges that have a column ``verdict_<key>`` in a run's tables: its own, then those that scored it later.

    Returns:
        Judge key → the question it decides.

    Raises:
        StorageError: The run has no manifest or no tables.
    """
    return own_judges(store) | scored_judges(store.objects)


def read_table(run: str | RunStore, table: str, filters: Filters | None = None) -> pa.Table:
    """Read one table of a run; its files are checked against the digests noted when they were written.

    Args:
        run: See `open_run`.
        table: One of `TABLES`.
        filters: Rows to keep; row groups that hold none are not decoded.

    Raises:
        ConfigError: Unknown table.
        StorageError: No run, no tables yet, or a damaged or newer file.
    """
    store = open_run(run) if isinstance(run, str) else run
    kind = _kind(table)
    parts = []
    for entry in current_files(store.objects, kind):
        data = read_file(store.objects, entry)
        check_schema(pq.read_schema(pa.BufferReader(data)).metadata, store.objects.address(entry["path"]))
        parts.append(_plain(pq.read_table(pa.BufferReader(data), filters=filters)))
    return pa.concat_tables(parts) if parts else _plain(schema(kind).empty_table())


def query(run: str | RunStore, sql: str) -> pa.Table:
    """Run one SELECT over a run's tables or a sweep's.

    Views are named as in `TABLES` and, where judges scored the run later, ``scores``, and where the irreversibility
    experiment was run on it, ``irreversibility``; for a sweep as in `SWEEP_TABLES`.

    The files are read where they lie (``file://``, ``s3://``, any fsspec store), only the columns and row groups that
    the query needs. No other file can be read, and nothing written.

    Args:
        run: See `open_run`.
        sql: One SELECT statement in DuckDB's dialect. float16 columns appear as FLOAT.

    Raises:
        ConfigError: The statement is wrong, is not one SELECT, or names an unknown table.
        StorageError: No run, or no tables yet.
    """
    store = open_run(run) if isinstance(run, str) else run
    with duckdb.connect(":memory:") as connection:
        _require_select(connection, sql)
        prefix = "" if store.objects.kind == "file" else _register(connection, store.objects)
        views = _views(store.objects)
        _create_views(connection, store.objects, prefix, views)
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.CatalogException as error:
            raise _unknown_table(error, views) from None
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise StorageError(f"{store.url}: {error}") from error
        except duckdb.Error as error:
            raise ConfigError(f"The query failed: {error}") from None


def _require_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise ConfigError(f"The query failed: {error}") from None
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        raise ConfigError(f"A query is exactly one SELECT; given: {', '.join(kinds) or 'nothing'}.")


def _register(connection: duckdb.DuckDBPyConnection, objects: ObjectStore) -> str:
    connection.register_filesystem(objects.fs)
    return f"{objects.kind}://"


def _views(objects: ObjectStore) -> dict[str, list[str]]:
    """Table name → its files."""
    swept = {name: [path] for name, path in SWEEP_TABLES.items() if objects.exists(path)}
    if swept:
        return swept
    tables = {str(kind): [entry["path"] for entry in current_files(objects, kind)] for kind in TABLES}
    scores = [record.file for record in score_records(objects).values()]
    forks = fork_record(objects)
    return tables | ({"scores": scores} if scores else {}) | ({"irreversibility": [forks.file]} if forks else {})


def _create_views(
    connection: duckdb.DuckDBPyConnection, objects: ObjectStore, prefix: str, views: Mapping[str, Sequence[str]]
) -> None:
    """One view a table; from then on nothing but their files can be opened."""
    everything = []
    for kind, paths in views.items():
        files = ", ".join("'" + (prefix + objects.path(path)).replace("'", "''") + "'" for path in paths)
        connection.execute(f"CREATE VIEW {kind} AS SELECT * FROM read_parquet([{files}], hive_partitioning = false)")
        everything.append(files)
    connection.execute(f"SET allowed_paths = [{', '.join(everything)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET python_enable_replacements = false")  # a table name is never a Python variable
    connection.execute("SET lock_configuration = true")


def _unknown_table(error: duckdb.CatalogException, views: Iterable[str]) -> ConfigError:
    found = re.search(r"Table with name (\S+) does not exist", str(error))
    return unknown_name("table", found[1], views) if found else ConfigError(f"The query failed: {error}")


def _kind(table: str) -> TableKind:
    for kind in TABLES:
        if kind == table:
            return kind
    raise unknown_name("table", table, TABLES)


def _plain(table: pa.Table) -> pa.Table:
    """The Hive keys as plain strings, which every kernel takes."""
    names = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    for name in names:
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        table = table.set_column(index, field.with_type(pa.string()), table[name].cast(pa.string()))
    return table
