"""Verification: every damaged or missing file is named, and repair plus another run give the same tables again."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.command_line import dsprobe

from dsprobe.errors import DamagedError, StorageError
from dsprobe.storage.commit_record import CommitRecord, FileRecord
from dsprobe.storage.compaction import compact, digest
from dsprobe.storage.query import read_table
from dsprobe.storage.run_store import RunStore, commit_name, shard_folder
from dsprobe.storage.schemas import TABLES
from dsprobe.storage.table_index import current_files, newest_index
from dsprobe.storage.verifying import verify

MakeRun = Callable[..., RunStore]
Attempt = Callable[[RunStore, str], bool]


def _flip(store: RunStore, name: str) -> None:
    data = bytearray(store.objects.read(name))
    data[len(data) // 2] ^= 1
    store.objects.put(name, bytes(data))


def _truncate(store: RunStore, name: str) -> None:
    store.objects.put(name, store.objects.read(name)[:-7])


def _delete(store: RunStore, name: str) -> None:
    store.objects.remove(name)


DAMAGES = {"flip": (_flip, "other bytes"), "truncate": (_truncate, "instead of"), "delete": (_delete, "is missing")}


def _file(store: RunStore, shard_id: str, file: str = "steps.parquet") -> str:
    return f"{shard_folder(shard_id, store.committed()[shard_id].attempt)}/{file}"


def test_a_whole_run_verifies(root: str, make_run: MakeRun) -> None:
    store = make_run(root)
    found = verify(store)
    tables = sum(len(current_files(store.objects, kind)) for kind in TABLES)
    assert (found.files, found.damage) == (6 * 5 + tables, [])
    assert found.bytes == sum(e.bytes for e in store.objects.entries("") if e.name.endswith(".parquet"))


def test_damaged_shards_are_named_and_run_again(root: str, make_run: MakeRun, attempt: Attempt) -> None:
    store = make_run(root)
    before = digest(store)
    files = dict(zip(DAMAGES, (_file(store, shard) for shard in ("direct-0", "direct-2", "dija-1")), strict=True))
    for how, name in files.items():
        DAMAGES[how][0](store, name)
    found = verify(store)
    assert {damage.name for damage in found.damage} == set(files.values())
    for how, name in files.items():
        (damage,) = (one for one in found.damage if one.name == name)
        assert damage.problem.startswith(store.objects.address(name))
        assert DAMAGES[how][1] in damage.problem
    assert found.left == found.damage
    assert len(store.committed()) == 6
    repaired = verify(store, repair=True)
    assert (len(repaired.revoked), repaired.left) == (3, [])
    assert set(store.committed()) == {"direct-1", "dija-0", "dija-2"}
    for name in repaired.revoked:  # nothing is silently lost
        assert CommitRecord.from_json(store.objects.read(name), name).shard_id in ("direct-0", "direct-2", "dija-1")
    for shard_id in ("direct-0", "direct-2", "dija-1"):
        assert attempt(store, shard_id)
    compact(store)
    assert digest(store) == before
    assert not verify(store).damage


@pytest.mark.parametrize("how", DAMAGES)
def test_the_normal_path_names_the_file_and_the_way_out(local_root: str, make_run: MakeRun, how: str) -> None:
    store = make_run(local_root)
    name = _file(store, "dija-0", "trajectories.parquet")
    DAMAGES[how][0](store, name)
    with pytest.raises(DamagedError, match=rf"{store.objects.address(name)} is .*`dsprobe verify RUN --repair`.*again"):
        compact(store, rebuild=True)


@pytest.mark.parametrize("root", ["local", "memory"], indirect=True)
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_tables_are_made_again(root: str, make_run: MakeRun, how: str) -> None:
    store = make_run(root)
    before, index = digest(store), newest_index(store.objects)
    name = current_files(store.objects, "positions")[0]["path"]
    DAMAGES[how][0](store, name)
    assert [(one.part, one.name) for one in verify(store).damage] == [("tables", name)]
    repaired = verify(store, repair=True)
    assert (repaired.rebuilt, repaired.revoked, repaired.left) == (True, [], [])
    assert not verify(store).damage
    assert digest(store) == before
    assert index is not None
    found = newest_index(store.objects)
    assert found is not None
    assert found.tables == index.tables


def test_damaged_shards_and_tables_together(local_root: str, make_run: MakeRun, attempt: Attempt) -> None:
    store = make_run(local_root)
    before = digest(store)
    _flip(store, _file(store, "direct-0"))
    _flip(store, current_files(store.objects, "steps")[0]["path"])  # of the other attack, whose shards are sound
    repaired = verify(store, repair=True)
    assert (repaired.rebuilt, len(repaired.revoked), repaired.left) == (False, 1, [])
    attempt(store, "direct-0")
    compact(store)
    assert digest(store) == before
    assert not verify(store).damage


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1}', "other shard"])
def test_commit_records_that_cannot_be_read_are_taken_back(
    local_root: str, make_run: MakeRun, attempt: Attempt, content: str
) -> None:
    store = make_run(local_root)
    before, name = digest(store), commit_name("dija-2")
    data = store.objects.read(commit_name("dija-1")) if content == "other shard" else content.encode()
    store.objects.put(name, data)
    assert [(one.part, one.name) for one in verify(store).damage] == [("shard", name)]
    repaired = verify(store, repair=True)
    assert repaired.left == []
    (kept,) = repaired.revoked
    assert store.objects.read(kept) == data
    assert set(store.committed()) == {"direct-0", "direct-1", "direct-2", "dija-0", "dija-1"}
    assert attempt(store, "dija-2")
    compact(store)
    assert digest(store) == before


def test_a_damaged_index_is_replaced(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    before, index = digest(store), newest_index(store.objects)
    assert index is not None
    store.objects.put(index.name, b"{")
    assert [(one.part, one.name) for one in verify(store).damage] == [("tables", index.name)]
    assert verify(store, repair=True).rebuilt
    assert not verify(store).damage
    assert digest(store) == before


def test_what_cannot_be_repaired_says_what_to_do(
    fixtures: Path, tmp_path: Path, copied: Callable[[str], RunStore]
) -> None:
    store = copied("schema-2")
    (scores,) = (name for name in store.objects.list("scores") if name.endswith(".parquet"))
    _flip(store, scores)
    code, out, err = dsprobe("verify", store.url, "--repair", cwd=tmp_path)
    assert code == 1
    assert "1 damaged or missing" in out
    assert scores in err
    assert "dsprobe score RUN --judge" in err
    store.objects.put("manifest.json", b"[")
    code, out, err = dsprobe("verify", store.url, "--json", cwd=tmp_path)
    assert code == 1
    shown = json.loads(out)
    assert {(one["part"], one["repaired"]) for one in shown["damage"]} == {("scores", False), ("manifest", False)}


def test_a_run_that_another_repaired_meanwhile_is_left_alone(
    local_root: str, make_run: MakeRun, attempt: Attempt
) -> None:
    store = make_run(local_root)
    old = store.objects.read(commit_name("direct-0"))
    label = store.committed()["direct-0"].attempt
    assert store.revoke("direct-0", label, old) is not None
    assert store.revoke("direct-0", label, old) is None
    attempt(store, "direct-0")
    fresh = store.objects.read(commit_name("direct-0"))
    assert store.revoke("direct-0", label, old) is None
    assert store.objects.read(commit_name("direct-0")) == fresh


def test_memory_does_not_depend_on_the_files(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    record, size = store.committed()["direct-0"], 192 << 20
    path = Path(store.objects.path(_file(store, "direct-0", "large.parquet")))
    with path.open("wb") as sink:
        sink.truncate(size)
    zeros = "97b0a03f0b19ec7c7b94ed4ba2d7e0a1b2cb6cf8c6d2b8bd8ea1e5b3d8e4a3f1"
    changed = {**record.files, "large.parquet": FileRecord(bytes=size, sha256=zeros, rows=0)}
    data = json.loads(record.to_json())
    data["files"] = {name: {"bytes": f.bytes, "sha256": f.sha256, "rows": f.rows} for name, f in changed.items()}
    store.objects.put(commit_name("direct-0"), json.dumps(data).encode())
    tracemalloc.start()
    found = verify(store)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.bytes > size
    assert [Path(one.name).name for one in found.damage] == ["large.parquet"]
    assert peak < 48 << 20


SMALL = """
name: small
models: [toy-diffusion]
prompts: [{source: toy, limit: 4}]
attacks: [direct, {name: dija, placement: reply, label: "step {i} :", spans: 2, masks_per_span: 6}]
decodings: [{name: uniform, steps: 4, reply_length: 24}]
judges: [toy_oracle]
execution: {executor: local, shard_size: 1, batch_size: 1}
"""


def test_a_real_run_is_repaired_by_the_commands_that_the_messages_name(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    run = ("run", "small.yaml", "--no-report", "--json")
    code, out, err = dsprobe(*run, cwd=tmp_path)
    assert code == 0, err
    outcome = json.loads(out)
    assert outcome["shards_elsewhere"] == 0
    store = RunStore.at(outcome["url"])
    before = digest(store)
    shards = sorted(store.committed())
    names = [_file(store, shards[place], file) for place, file in ((0, "steps.parquet"), (3, "reducer_sums.parquet"))]
    names.append(_file(store, shards[5], "trajectories.parquet"))
    for name, damage in zip(names, (_flip, _truncate, _delete), strict=True):
        damage(store, name)
    code, out, err = dsprobe("verify", store.run_id, cwd=tmp_path)
    assert code == 1
    assert "3 damaged or missing" in out
    assert all(name in err for name in names)
    assert "dsprobe verify RUN --repair" in err
    code, out, _ = dsprobe("verify", store.run_id, "--repair", cwd=tmp_path)
    assert code == 0
    assert "3 shards were taken back" in out
    again = json.loads(dsprobe(*run, cwd=tmp_path)[1])
    assert (again["shards_done"], again["shards_skipped"]) == (3, 5)
    assert digest(store) == before
    assert dsprobe("verify", store.run_id, cwd=tmp_path)[0] == 0
    code, out, _ = dsprobe("gc", store.run_id, "--grace", "0s", "--json", cwd=tmp_path)
    assert {kind: tally["count"] for kind, tally in json.loads(out)["removed"].items()} == {"attempts": 3}
    assert read_table(store, "trajectories").num_rows == 8


def test_newer_records_are_not_taken_for_damage(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    raw = json.loads(store.objects.read(commit_name("direct-0")))
    store.objects.put(commit_name("direct-0"), json.dumps({**raw, "version": 9}).encode())
    with pytest.raises(StorageError, match="commit record version 9"):
        verify(store, repair=True)
    assert store.objects.list("revoked") == []
