"""The tables open unchanged, by their documented patterns, in every reader that people use."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from dsprobe.errors import ConfigError, DamagedError, StorageError
from dsprobe.storage.query import iter_table, read_table
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import TABLES, TableKind, check_schema, schema, write_parquet
from dsprobe.storage.table_index import current_index

MakeRun = Callable[..., RunStore]


@pytest.fixture
def store(local_root: str, make_run: MakeRun) -> RunStore:
    return make_run(local_root)


@pytest.mark.parametrize("kind", TABLES)
def test_every_reader_gives_the_same_rows(store: RunStore, kind: TableKind, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    expected = read_table(store, kind)
    folder, pattern = f"{store.url}/tables/{kind}", f"{store.url}/tables/{kind}/**/*.parquet"
    readers: dict[str, Callable[[], Any]] = {
        "pyarrow": lambda: pq.read_table(folder),
        "pyarrow.dataset": lambda: ds.dataset(folder).to_table(),
        "pandas": lambda: pd.read_parquet(folder),
        "polars": lambda: pl.read_parquet(pattern),
        "polars hive": lambda: pl.scan_parquet(folder, hive_partitioning=True).collect(),
        "duckdb": lambda: duckdb.execute(f"SELECT * FROM '{pattern}'").df(),
        "datasets": lambda: datasets.load_dataset(
            "parquet", data_files=pattern, cache_dir=str(tmp_path / "cache"), split="train"
        ),
    }
    for name, read in readers.items():
        table = read()
        assert len(table) == expected.num_rows, name
        columns = getattr(table, "column_names", None) or list(table.columns)
        assert sorted(columns) == sorted(expected.column_names), name
        assert sorted(set(map(str, table["attack"]))) == ["dija", "direct"], name


def test_float16_columns_keep_their_values(store: RunStore) -> None:
    pattern = f"{store.url}/tables/steps/**/*.parquet"
    expected = np.sort(read_table(store, "steps")["risk_committed"].to_numpy().astype(np.float64))
    found = duckdb.execute(f"SELECT risk_committed FROM '{pattern}' ORDER BY 1").fetchnumpy()["risk_committed"]
    np.testing.assert_array_equal(found.astype(np.float64), expected)
    polars = pl.read_parquet(pattern)["risk_committed"].cast(pl.Float64).sort()
    np.testing.assert_array_equal(polars.to_numpy(), expected)
    sums = duckdb.execute(f"SELECT sum(list_sum(tokens)) FROM '{pattern.replace('steps', 'trajectories')}'").fetchall()
    assert sums == [(sum(map(sum, read_table(store, "trajectories")["tokens"].to_pylist())),)]


def test_encodings_and_metadata_are_the_documented_ones(store: RunStore) -> None:
    (first, _) = sorted(e for e in store.objects.list("tables/steps"))
    metadata = pq.read_metadata(store.objects.path(first))
    encodings = {
        metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i)
        for i in range(metadata.num_columns)
    }
    assert "DELTA_BINARY_PACKED" in encodings["step"].encodings
    assert "RLE_DICTIONARY" in encodings["prompt_id"].encodings
    assert set(encodings["risk_committed"].encodings) == {"PLAIN", "RLE"}
    assert {column.compression for column in encodings.values()} == {"ZSTD"}
    arrow = pq.read_schema(store.objects.path(first))
    assert arrow.metadata[b"dsprobe.schema_version"] == b"2"
    assert arrow.metadata[b"dsprobe.run_id"] == store.run_id.encode()
    assert all(field.metadata[b"note"] for field in arrow)


def test_newer_and_foreign_files_are_refused() -> None:
    with pytest.raises(StorageError, match="schema version 12"):
        check_schema({b"dsprobe.schema_version": b"12"}, "a.parquet")
    with pytest.raises(StorageError, match=r"a\.parquet is not a dsprobe table"):
        check_schema({b"dsprobe.schema_version": b"0"}, "a.parquet")
    with pytest.raises(StorageError, match=r"a\.parquet is not a dsprobe table"):
        check_schema(None, "a.parquet")


def test_wrong_columns_and_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean `steps`"):
        schema("step")
    with pytest.raises(StorageError, match="has columns"):
        write_parquet(schema("steps").empty_table(), "positions", tmp_path / "x.parquet", run_id="r")


@pytest.mark.parametrize("columns", [None, ["prompt_id", "text"]])
def test_texts_that_are_not_utf8_are_damage_even_where_the_digest_agrees(
    store: RunStore, columns: list[str] | None
) -> None:
    index = current_index(store.objects)
    entry = index.tables["trajectories"][0]
    table = pq.read_table(store.objects.path(entry["path"]), partitioning=None)
    place = table.schema.get_field_index("text")
    texts = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(table.set_column(place, table.schema.field(place), texts), sink)
    store.objects.put(entry["path"], sink.getvalue())
    facts = json.loads(index.to_json())
    facts["tables"]["trajectories"][0] |= {"sha256": hashlib.sha256(sink.getvalue()).hexdigest()}
    store.objects.put(index.name, json.dumps(facts).encode())
    with pytest.raises(DamagedError, match=entry["path"]):
        list(iter_table(store, "trajectories", columns=columns))
