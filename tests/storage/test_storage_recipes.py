"""The code of docs/tables.md runs as it stands, and the tables keep their types in Hugging Face `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from dsprobe.storage.query import query, read_table
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import TABLES, TableKind
from dsprobe.storage.table_index import current_files

MakeRun = Callable[..., RunStore]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
SQL = re.findall(r'^dsprobe query RUN "(.*?)"', DOCUMENT, re.MULTILINE)


@pytest.fixture
def store(local_root: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_DATASETS_OFFLINE", True)
    return make_run(local_root)


def test_every_reader_has_a_recipe() -> None:
    imports = "\n".join(re.findall(r"^(?:import|from) (\S+)", "\n".join(PYTHON), re.MULTILINE)).split()
    assert {"duckdb", "pandas", "polars", "pyarrow.dataset", "dsprobe.storage.query", "datasets"} <= set(imports)
    assert len(SQL) >= 4


def test_the_recipes_run(store: RunStore) -> None:
    for code in PYTHON:
        exec(compile(code, "docs/tables.md", "exec"), {"RUN": store.url})
    duckdb.sql("DROP VIEW IF EXISTS direct")


@pytest.mark.parametrize("sql", SQL)
def test_the_queries_run(store: RunStore, sql: str) -> None:
    query(store, sql.replace("verdict_toy_oracle", "verdict_keyword"))


@pytest.mark.parametrize("kind", TABLES)
def test_types_survive_in_datasets(store: RunStore, kind: TableKind) -> None:
    import datasets

    rows = datasets.load_dataset("parquet", data_files=f"{store.url}/tables/{kind}/**/*.parquet", split="train")
    expected = read_table(store, kind)
    stored = pq.read_schema(store.objects.path(current_files(store.objects, kind)[0]["path"]))
    assert sorted(rows.column_names) == sorted(stored.names)
    for name in ("risk_predicted", "entropy", "histogram", "tokens", "attack", "mean"):
        if name in stored.names:
            found, wanted = rows.with_format("arrow")[:][name].to_pylist(), expected[name].to_pylist()
            np.testing.assert_equal(sorted(map(repr, found)), sorted(map(repr, wanted)))
    if kind == "steps":
        assert rows.features["risk_predicted"].dtype == "float16"
