"""Runs of every earlier version stay readable; runs of a newer one are refused with the version they need.

The runs under ``tests/fixtures/runs`` were written by the code of their time, with a toy model:

* ``schema-1``: before guardrails; no `guardrail`, `interventions`, `extra_steps`, `remasked`;
* ``schema-2-early``: `forward_passes` in 16 bits;
* ``schema-2``: commit records without raw logs, one index of the tables, scores of a second judge.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dsprobe.cli.results import write_report
from dsprobe.errors import ConfigError, StorageError
from dsprobe.storage.compaction import compact
from dsprobe.storage.query import query, read_table, run_judges
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import RunStore, commit_name
from dsprobe.storage.schemas import SCHEMA_VERSION, TABLES, schema
from dsprobe.storage.table_index import newest_index
from dsprobe.storage.upgrade import LATER_COLUMNS, sql_columns
from dsprobe.storage.verifying import verify

VERSIONS = ("schema-1", "schema-2-early", "schema-2")

Copied = Callable[[str], RunStore]


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, copied: Copied) -> RunStore:
    """A run of each earlier version in turn."""
    return copied(request.param)


def _rows(store: RunStore) -> dict[str, list[dict[str, Any]]]:
    """All tables' rows, but `extra_steps`, which is filled by compaction. NaN compares equal as text."""
    return {kind: [{name: repr(value) for name, value in row.items() if name != "extra_steps"}
                   for row in read_table(store, kind).to_pylist()] for kind in TABLES}  # fmt: skip


def test_an_older_run_reads_as_the_present_schema(old: RunStore) -> None:
    for kind in TABLES:
        table = read_table(old, kind)
        own = [name for name in table.column_names if not name.startswith(("verdict_", "score_"))]
        assert own == schema(kind).names
        assert set(table["guardrail"].to_pylist()) == {"none"}
    assert read_table(old, "trajectories").num_rows == 4
    assert len(read_table(old, "steps", [("step", "<=", 2), ("guardrail", "=", "none")])) == 8
    assert read_table(old, "steps", [[("guardrail", "=", "other")], [("step", ">", 99)]]).num_rows == 0
    with pytest.raises(ConfigError, match="Did you mean `guardrail`"):
        read_table(old, "steps", [("guardrial", "=", "none")])
    sql = "SELECT guardrail, sum(interventions) AS i, sum(forward_passes) AS f FROM trajectories GROUP BY 1"
    assert query(old, sql).to_pylist() == [{"guardrail": "none", "i": 0, "f": 24}]
    assert query(old, "SELECT sum(remasked) AS r FROM steps").to_pylist() == [{"r": 0}]
    assert query(old, "SELECT * FROM steps").column_names == schema("steps").names
    assert not verify(old).damage


def test_an_older_run_is_compacted_to_the_present_version_with_the_same_rows(old: RunStore) -> None:
    before = _rows(old)
    compact(old)
    index = newest_index(old.objects)
    assert index is not None
    for kind in TABLES:
        for entry in index.tables[kind]:
            found = pq.read_schema(pa.BufferReader(old.objects.read(entry["path"])))
            assert found.metadata[b"dsprobe.schema_version"] == b"%d" % SCHEMA_VERSION
            judges = [name for name in found.names if name.startswith(("verdict_", "score_"))]
            assert [found.field(name).type for name in found.names if name not in judges] == schema(kind).types
    assert _rows(old) == before
    assert read_table(old, "trajectories")["extra_steps"].to_pylist() == [0] * 4
    assert not verify(old).damage
    assert run_judges(old)["toy_oracle"] == "harm"


def test_an_older_run_is_reported(copied: Copied) -> None:
    page = Path(write_report(copied("schema-1"), show_text=False))
    assert "toy-diffusion" in page.read_text()


def test_an_older_reducer_state_merges_with_a_present_one(old: RunStore) -> None:
    records = old.committed().values()
    states = [
        ReducerState.from_tables({k: old.read_shard(r, f"{k}.parquet") for k in ("reducer_counts", "reducer_sums")})
        for r in records
    ]
    total = ReducerState(0.5)
    for state in states:
        total.merge(state)
        total.merge(ReducerState.from_tables(state.to_tables()))
    assert len(total.conditions) == 2
    assert {condition.guardrail for condition in total.conditions} == {"none"}


def test_every_later_column_is_of_the_present_schema() -> None:
    for column in LATER_COLUMNS:
        assert 1 < column.version <= SCHEMA_VERSION
        holders = [kind for kind in TABLES if column.name in schema(kind).names]
        assert holders
        for kind in holders:
            present = [name for name in schema(kind).names if name != column.name]
            assert f"AS {column.name}" in sql_columns(kind, present)
            assert sql_columns(kind, schema(kind).names) == "*"


def _edit(store: RunStore, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(store.objects.read(name))
    change(document)
    store.objects.put(name, json.dumps(document).encode())


def _newer_parquet(data: bytes, key: bytes) -> bytes:
    table = pq.read_table(pa.BufferReader(data))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key: b"9"}), sink)
    return sink.getvalue()


def _newer_shard_file(store: RunStore, file: str, key: bytes) -> None:
    record = store.committed()["direct-0"]
    name = f"shards/direct-0/{record.attempt}/{file}"
    data = _newer_parquet(store.objects.read(name), key)
    store.objects.put(name, data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": record.files[file].rows}
    _edit(store, commit_name("direct-0"), lambda document: document["files"].update({file: facts}))


def _newer_table(store: RunStore) -> None:
    index = newest_index(store.objects)
    assert index is not None
    name = index.tables["steps"][0]["path"]
    data = _newer_parquet(store.objects.read(name), b"dsprobe.schema_version")
    store.objects.put(name, data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit(store, index.name, lambda document: document["tables"]["steps"][0].update(facts))


def _newer_index(store: RunStore) -> None:
    index = newest_index(store.objects)
    assert index is not None
    _edit(store, index.name, lambda document: document.update(version=9))


NEWER: dict[str, tuple[Callable[[RunStore], object], Callable[[RunStore], object]]] = {
    "manifest": (
        lambda store: _edit(store, "manifest.json", lambda document: document.update(version=9)),
        lambda store: store.manifest(),
    ),
    "commit record": (
        lambda store: _edit(store, commit_name("direct-0"), lambda document: document.update(version=9)),
        compact,
    ),
    "reducer state": (
        lambda store: _newer_shard_file(store, "reducer_counts.parquet", b"dsprobe.state_version"),
        lambda store: compact(store, rebuild=True),
    ),
    "schema": (
        lambda store: _newer_shard_file(store, "steps.parquet", b"dsprobe.schema_version"),
        lambda store: compact(store, rebuild=True),
    ),
    "table index": (_newer_index, lambda store: query(store, "SELECT 1 FROM steps")),
    "schema (table)": (_newer_table, lambda store: read_table(store, "steps")),
    "schema (query)": (_newer_table, lambda store: query(store, "SELECT count(*) FROM steps")),
}


@pytest.mark.parametrize("what", NEWER)
def test_a_newer_run_is_refused_with_the_version_it_needs(
    local_root: str, make_run: Callable[..., RunStore], what: str
) -> None:
    store = make_run(local_root)
    change, use = NEWER[what]
    use(store)
    change(store)
    name = what.partition(" (")[0]
    with pytest.raises(StorageError, match=f"{name} version 9.*Use a dsprobe that knows {name} version 9"):
        use(store)


def test_a_damaged_manifest_is_named(local_root: str, make_run: Callable[..., RunStore]) -> None:
    store = make_run(local_root)
    for content in (b"{", b"[]", b'"x"', b"\xff\xfe"):
        store.objects.put("manifest.json", content)
        with pytest.raises(StorageError, match=r"manifest\.json is damaged.*Delete it and run the same"):
            store.manifest()
