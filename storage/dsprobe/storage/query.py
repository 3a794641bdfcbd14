"""Reading a run's tables: as Arrow tables, or with SQL through DuckDB. Nothing here can change a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import duckdb
import pyarrow as pa

from dsprobe.errors import ConfigError, StorageError, unknown_name
from dsprobe.judges.base import Decides
from dsprobe.storage.irreversibility import fork_record
from dsprobe.storage.names import given_place
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.raw_views import raw_views
from dsprobe.storage.raw_views import read_raw as stream_raw
from dsprobe.storage.run_store import MANIFEST, RunStore
from dsprobe.storage.schemas import SCHEMA_VERSION, TABLES, check_schema
from dsprobe.storage.scores import own_judges, score_records
from dsprobe.storage.table_index import current_index, scored_judges
from dsprobe.storage.table_reader import read_settled, stream, table_kind
from dsprobe.storage.upgrade import Filters, sql_columns

SWEEP_TABLES: Final = {"trials": "sweep/trials.parquet", "front": "sweep/front.parquet"}
"""Tables of a sweep: name → file below its folder."""


def open_run(run: str) -> RunStore:
    """Find a run.

    Args:
        run: URL or path of a run's folder, or the id of a run below ``./runs``.

    Raises:
        StorageError: There is no run.
    """
    store = RunStore.at(given_place(run))
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

    Returns:
        The rows in canonical order. `iter_table` gives them in parts that fit into memory.

    Raises:
        ConfigError: Unknown table.
        StorageError: No run, no tables yet, or a damaged or newer file.
    """
    store, kind = _store(run), table_kind(table)
    return read_settled(store.objects, lambda: pa.concat_tables(stream(store.objects, kind, filters)))


def iter_table(
    run: str | RunStore, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read one table of a run as a stream, a row group at a time; memory does not grow with the table.

    Args:
        run: See `open_run`.
        table: One of `TABLES`.
        filters: Rows to keep; row groups that hold none are not decoded.
        columns: Columns to keep, in this order.

    Yields:
        The rows in canonical order. At least one table, which may be empty.

    Raises:
        ConfigError: Unknown table or column.
        StorageError: No run, no tables yet, a damaged or newer file, or the tables were compacted meanwhile.
    """
    return stream(_store(run).objects, table_kind(table), filters, columns)


def read_raw(run: str | RunStore, kind: str, filters: Filters | None = None) -> Iterator[pa.Table]:
    """Stream a raw log of a run; see `dsprobe.storage.raw_views.read_raw`.

    Args:
        run: See `open_run`.
        kind: ``step_log``, ``position_log``, ``topk``, ``hidden`` or ``logits``.
        filters: Rows to keep.
    """
    return stream_raw(_store(run), kind, filters)


def query(run: str | RunStore, sql: str) -> pa.Table:
    """Run one SELECT over a run's tables or a sweep's.

    Views are named as in `TABLES` and, where judges scored the run later, ``scores``, and where the irreversibility
    experiment was run on it, ``irreversibility``, and the raw logs that it kept (`RAW_KINDS`); for a sweep as in
    `SWEEP_TABLES`.

    The files are read where they lie (``file://``, ``s3://``, any fsspec store), only the columns and row groups that
    the query needs. No other file can be read, and nothing written.

    Args:
        run: See `open_run`.
        sql: One SELECT statement in DuckDB's dialect. float16 columns appear as FLOAT.

    Raises:
        ConfigError: The statement is wrong, is not one SELECT, or names an unknown table.
        StorageError: No run, or no tables yet.
    """
    store = _store(run)
    return read_settled(store.objects, lambda: _query(store, sql))


def _query(store: RunStore, sql: str) -> pa.Table:
    with duckdb.connect(":memory:") as connection:
        _require_select(connection, sql)
        prefix = "" if store.objects.kind == "file" else _register(connection, store.objects)
        views = _views(store.objects) | raw_views(store, sql)
        try:
            _create_views(connection, store.objects, prefix, _named(views, sql))
            return connection.sql(sql).to_arrow_table()
        except duckdb.CatalogException as error:
            raise _unknown_table(error, views) from None
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise StorageError(f"{store.url}: {str(error).splitlines()[0]}") from error
        except duckdb.Error as error:
            raise ConfigError(f"The query failed: {error}") from None


def _store(run: str | RunStore) -> RunStore:
    return open_run(run) if isinstance(run, str) else run


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
    index = current_index(objects)
    tables = {str(kind): [entry["path"] for entry in index.tables[kind]] for kind in TABLES}
    scores = [record.file for record in score_records(objects).values()]
    forks = fork_record(objects)
    return tables | ({"scores": scores} if scores else {}) | ({"irreversibility": [forks.file]} if forks else {})


def _named(views: dict[str, list[str]], sql: str) -> dict[str, list[str]]:
    """The views that a query names, so that no other's files are opened; all, if it names none."""
    found = {name: files for name, files in views.items() if re.search(rf"\b{name}\b", sql, re.IGNORECASE)}
    return found or views


def _create_views(
    connection: duckdb.DuckDBPyConnection, objects: ObjectStore, prefix: str, views: Mapping[str, Sequence[str]]
) -> None:
    """One view a table; from then on nothing but their files can be opened."""
    if objects.kind == "file" and set("*?") & set(objects.root):
        raise StorageError(f"{objects.root}: DuckDB reads `*` and `?` in a path as a pattern. Rename the folder.")
    everything = []
    for kind, paths in views.items():
        files = ", ".join("'" + (prefix + objects.path(path)).replace("'", "''") + "'" for path in paths)
        version = _version(connection, prefix + objects.path(paths[0]), objects.address(paths[0]))
        source = f"read_parquet([{files}], hive_partitioning = false)"
        shown = "*"
        if version < SCHEMA_VERSION and kind not in SWEEP_TABLES:
            described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
            shown = sql_columns(kind, [row[0] for row in described])
        connection.execute(f"CREATE VIEW {kind} AS SELECT {shown} FROM {source}")
        everything.append(files)
    connection.execute(f"SET allowed_paths = [{', '.join(everything)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET python_enable_replacements = false")  # a table name is never a Python variable
    connection.execute("SET lock_configuration = true")


def _version(connection: duckdb.DuckDBPyConnection, path: str, where: str) -> int:
    """Schema version; a newer one is refused. One dsprobe made all files of a table, so its first speaks for all."""
    sql = "SELECT value FROM parquet_kv_metadata(?) WHERE decode(key) = 'dsprobe.schema_version'"
    found = connection.execute(sql, [path]).fetchone()
    return check_schema({b"dsprobe.schema_version": found[0]} if found else None, where)


def _unknown_table(error: duckdb.CatalogException, views: Iterable[str]) -> ConfigError:
    found = re.search(r"Table with name (\S+) does not exist", str(error))
    return unknown_name("table", found[1], views) if found else ConfigError(f"The query failed: {error}")
