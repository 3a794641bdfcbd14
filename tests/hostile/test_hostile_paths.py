"""No name out of a document or an option reads, writes, lists or removes anything outside its folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile.hostile_targets import TARGETS, fresh_run

from dsprobe.errors import ConfigError, DSProbeError, StorageError
from dsprobe.storage.names import safe_name
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.query import open_run, query, read_table
from dsprobe.storage.scores import score_records

UPWARDS = (
    "../x", "..", ".", "/etc/passwd", "a/../../x", "a//b", "./a", "a/.", "%2e%2e/x", "a/%2E%2e", ".%2e/x", "..\\x",
    "a\\b", "C:\\x", "C:/x", "a\0b", "a\nb", "\x1b[2J", "a/", "/", "\ud800", "x" * 1025, "a/" * 600,
)  # fmt: skip
PIECES = st.sampled_from(
    ["..", ".", "a", "b", "/", "//", "%2e%2e", "\\", "\0", "outside", "link", "~", "", "x.json", "é"]
)
NAMES = st.lists(PIECES, max_size=6).map("/".join) | st.lists(PIECES, max_size=8).map("".join)


@pytest.mark.parametrize("name", UPWARDS)
@pytest.mark.parametrize("url", ["", "memory://hostile"])
def test_names_that_lead_elsewhere_are_refused_on_every_store(name, url, tmp_path):
    store = ObjectStore(url or str(tmp_path))
    for act in (store.read, store.exists, store.list, store.remove, lambda n: store.put(n, b"x")):
        with pytest.raises(StorageError, match="no name of an object"):
            act(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a", "tables/steps/model=a%2Fb/attack=..x/part-1.parquet", "raw/topk-00000.parquet", "é b"]
)
def test_names_that_dsprobe_gives_are_fine(name):
    assert safe_name(name) == name


@settings(max_examples=150, deadline=None)
@given(NAMES)
def test_nothing_outside_the_store_is_touched(name):
    with tempfile.TemporaryDirectory() as folder:
        TARGETS["object_names"](name.encode("utf-8", "surrogateescape"), Path(folder))


def test_links_in_a_run_that_lead_out_of_it_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "run"
    root.mkdir()
    (root / "manifest.json").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner").symlink_to(root)
    store = ObjectStore(str(root))
    for name in ("manifest.json", "folder/secret", "folder/new"):
        for act in (store.read, store.remove, lambda n: store.put(n, b"x"), lambda n: store.put_if_absent(n, b"x")):
            with pytest.raises(StorageError, match="symbolic link"):
                act(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "secret"]
    store.put("inner/x", b"1")
    assert store.read("x") == b"1"


def test_a_run_may_lie_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    store = ObjectStore(str(tmp_path / "runs"))
    store.put("a/b", b"x")
    assert store.read("a/b") == b"x"


def test_an_index_names_files_of_tables_only(tmp_path):
    root = fresh_run(tmp_path)
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    (index,) = [path for path in (root / "tables").iterdir() if path.name.startswith("_index")]
    for path in ("../other.parquet", "manifest.json", "commits/s1.json", "/etc/passwd", "tables/x'); --.json"):
        raw = json.loads(index.read_text())
        raw["tables"]["steps"][0]["path"] = path
        index.write_text(json.dumps(raw))
        store = open_run(str(root))
        with pytest.raises(StorageError):
            read_table(store, "steps")
        with pytest.raises(StorageError):
            query(store, "SELECT * FROM steps")
    assert (root / "manifest.json").exists()


def test_a_commit_record_belongs_to_the_shard_that_its_name_says(tmp_path):
    root = fresh_run(tmp_path)
    record = json.loads((root / "commits" / "s1.json").read_text())
    (root / "commits" / "s2.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="another shard"):
        open_run(str(root)).committed()


@pytest.mark.parametrize("attempt", ["../../../x", "/etc", "..", "a\0"])
def test_a_commit_record_cannot_name_an_attempt_elsewhere(tmp_path, attempt):
    root = fresh_run(tmp_path)
    record = json.loads((root / "commits" / "s1.json").read_text())
    (root / "commits" / "s1.json").write_text(json.dumps({**record, "attempt": attempt}))
    store = open_run(str(root))
    with pytest.raises(StorageError):
        [store.read_shard(found, "steps.parquet") for found in store.committed().values()]


@pytest.mark.parametrize("file", ["../run/manifest.json", "/etc/passwd", "scores/../../x"])
def test_a_score_record_cannot_name_a_file_elsewhere(tmp_path, file):
    root = fresh_run(tmp_path)
    where = root / "scores" / "late.json"
    where.write_text(json.dumps({**json.loads(where.read_text()), "file": file}))
    store = open_run(str(root))
    assert score_records(store.objects)["late"].file == file
    with pytest.raises(StorageError):
        query(store, "SELECT * FROM scores")


@pytest.mark.parametrize("folder", ["it's", 'a"b', "a b", "run; DROP", "[ab]", "a*b", "a?b", "ünï"])
def test_a_run_folder_of_any_name_is_queried_and_no_other(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / "axb").mkdir()
    fresh_run(tmp_path / "axb")
    root = fresh_run(tmp_path / folder)
    sql = "SELECT count(*) AS n FROM trajectories"
    if folder in ("a*b", "a?b"):
        with pytest.raises(StorageError, match="pattern"):
            query(str(root), sql)
        return
    assert query(str(root), sql).to_pylist() == [{"n": 3}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "COPY (SELECT 1) TO '/tmp/x'",
        "ATTACH '/tmp/x.db'",
        "SELECT 1; SELECT 2",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT getenv('HOME')",
    ],
)
def test_a_query_reads_the_tables_and_nothing_else(tmp_path, sql):
    root = fresh_run(tmp_path)
    with pytest.raises(DSProbeError):
        query(str(root), sql)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".x", "", "x\n", "a\\b", "x" * 5000 + "/"])
def test_a_run_is_not_called_after_a_path(name):
    from dsprobe.config import RunConfig
    from dsprobe.registry import validated

    with pytest.raises(ConfigError):
        validated(RunConfig, {"name": name, "models": ["toy-diffusion"], "prompts": [{"source": "toy"}]}, "here")
