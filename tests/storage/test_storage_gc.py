"""Garbage collection: what no record names goes once it is old, and nothing else ever does."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.command_line import dsprobe

from dsprobe.errors import StorageError
from dsprobe.storage.compaction import compact, digest
from dsprobe.storage.garbage import Collected, collect
from dsprobe.storage.irreversibility import write_forks
from dsprobe.storage.objects import ObjectEntry, ObjectStore
from dsprobe.storage.run_store import RunStore, commit_name
from dsprobe.storage.scores import committed_replies, write_scores
from dsprobe.storage.testing import synthetic_batch
from dsprobe.storage.verifying import verify

MakeRun = Callable[..., RunStore]
EmptyRun = Callable[[str], RunStore]

AT_ONCE, DAY = timedelta(0), timedelta(hours=24)
ID = "0123456789abcdef" * 2


def _garbage() -> dict[str, str]:
    """A name of every kind of garbage → its kind."""
    return {
        f"shards/direct-0/{ID}/steps.parquet": "attempts",
        f"shards/direct-0/{ID}/raw/step_log-00000.parquet": "attempts",
        f"shards/unheard-of/{ID}/steps.parquet": "attempts",
        f"shards/direct-1/{ID}/_steps.parquet.{ID}.tmp": "attempts",
        f"_probe-{ID}": "probes",
        f"commits/_direct-1.json.{ID}.tmp": "temporaries",
        f"tables/steps/model=a/attack=b/_part-{ID}.parquet.{ID}.tmp": "temporaries",
        f"tables/steps/model=a/attack=b/part-{ID}.parquet": "tables",
        f"scores/second/{ID[:16]}.parquet": "scores",
        f"irreversibility/{ID[:16]}.parquet": "irreversibility",
    }


UNKNOWN = (
    "notes.txt",
    "shards/direct-0/readme",
    "tables/steps/mine.parquet",
    "scores/second/mine.csv",
    "own/a.parquet",
)


def _full_run(root: str, make_run: MakeRun) -> RunStore:
    """A run that has everything records can name."""
    store = make_run(root)
    replies = committed_replies(store)
    scores = replies.select(["condition", "prompt_id", "sample", "reply"])
    for name, value, kind in (("value", True, pa.bool_()), ("score", 0.5, pa.float32()), ("note", "", pa.string())):
        scores = scores.append_column(name, pa.repeat(pa.scalar(value, kind), scores.num_rows))
    scores = scores.append_column("cached", pa.repeat(pa.scalar(value=False), scores.num_rows))
    write_scores(store, judge="second", spec={}, question="refusal", identity={}, scores=scores)
    forks = {"condition": ["c"], "prompt_id": ["p"], "step": [1], "share": [0.5], "harmful_committed": [True],
             "harmful_predicted": [True], "harmful_at_end": [False]}  # fmt: skip
    write_forks(store, {}, pa.table(forks))
    compact(store)
    for name in ("labels.json", "hypotheses.json", "report/index.html", "sweep/trials/x-0.0-1.0.parquet"):
        store.objects.put(name, b"{}")
    store.objects.put(f"reduced/{ID[:16]}/step_stats.parquet", b"{}")
    return store


@pytest.fixture
def make_configured_run(make_run: MakeRun) -> MakeRun:
    """`make_run` with a manifest that has a configuration."""

    def make(root: str) -> RunStore:
        store = make_run(root)
        manifest = store.manifest()
        store.objects.remove("manifest.json")
        store.write_manifest({**manifest, "config": {}})
        return store

    return make


def _counts(found: dict[Any, Any]) -> dict[str, int]:
    return {kind: tally.count for kind, tally in found.items()}


def test_only_what_no_record_names_is_removed_and_only_when_old(root: str, make_configured_run: MakeRun) -> None:
    store = _full_run(root, make_configured_run)
    named, before = set(store.objects.list("")), digest(store)
    for name in [*_garbage(), *UNKNOWN]:
        store.objects.put(name, b"12345")
    kinds = {"attempts": 3, "probes": 1, "temporaries": 2, "tables": 1, "scores": 1, "irreversibility": 1}
    young = collect(store, DAY)
    assert (_counts(young.waiting), young.removed) == (kinds, {})
    tried = collect(store, AT_ONCE, dry_run=True)
    assert (_counts(tried.removed), tried.waiting) == (kinds, {})
    assert {e.name for e in store.objects.entries("")} == {*named, *_garbage(), *UNKNOWN}
    found = collect(store, AT_ONCE)
    assert _counts(found.removed) == kinds
    assert found.removed["attempts"].bytes == 20
    assert (found.unknown.count, found.unknown.bytes) == (len(UNKNOWN), 5 * len(UNKNOWN))
    assert {e.name for e in store.objects.entries("")} == {*named, *UNKNOWN}
    assert collect(store, AT_ONCE).removed == {}
    assert digest(store) == before
    assert not verify(store).damage


def _aged(store: RunStore, name: str, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(Path(store.objects.path(name)), (then, then))


def test_an_attempt_is_as_old_as_its_newest_file_and_the_future_is_young(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    ages = {"a": (25, 30), "b": (25, 1), "c": (25, -400), "d": (24.1, 24.1)}
    for shard, hours in ages.items():
        for number, age in enumerate(hours):
            name = f"shards/{shard}/{ID}/{number}.parquet"
            store.objects.put(name, b"1")
            _aged(store, name, age)
    for record in store.committed().values():  # ages of what counts do not matter
        for file in record.files:
            _aged(store, f"shards/{record.shard_id}/{record.attempt}/{file}", 1000)
    found = collect(store, DAY)
    assert (_counts(found.removed), _counts(found.waiting)) == ({"attempts": 2}, {"attempts": 2})
    left = {name.split("/")[1] for name in store.objects.list("shards")} - set(store.committed())
    assert left == {"b", "c"}


@pytest.mark.parametrize("skew", [timedelta(days=-30), timedelta(days=30)])
def test_a_store_with_another_clock_keeps_what_is_fresh(
    local_root: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, skew: timedelta
) -> None:
    store = make_run(local_root)
    entries = ObjectStore.entries

    def skewed(self: ObjectStore, folder: str) -> list[ObjectEntry]:
        return [
            ObjectEntry(name=entry.name, bytes=entry.bytes, modified=entry.modified + skew)
            for entry in entries(self, folder)
        ]

    monkeypatch.setattr(ObjectStore, "entries", skewed)
    store.objects.put(f"shards/fresh/{ID}/steps.parquet", b"1")
    store.objects.put(f"shards/stale/{ID}/steps.parquet", b"1")
    _aged(store, f"shards/stale/{ID}/steps.parquet", 25)
    found = collect(store, DAY)
    assert (_counts(found.removed), _counts(found.waiting)) == ({"attempts": 1}, {"attempts": 1})
    assert store.objects.exists(f"shards/fresh/{ID}/steps.parquet")


@pytest.mark.parametrize("moment", ["after the listing", "after the records were read"])
def test_what_is_committed_meanwhile_stays(
    root: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Even without any grace: the writer has its files in place and commits while garbage is being collected."""
    store = make_run(root, ["direct-1"])
    put, entries, committed = store.objects.put_if_absent, store.objects.entries, store.committed
    found: list[Collected] = []

    def collecting(name: str, data: bytes) -> bool:
        def commits(then: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                answer = then(*args)
                monkeypatch.undo()
                assert put(name, data)
                return answer

            return call

        monkeypatch.undo()
        if moment == "after the listing":
            monkeypatch.setattr(store.objects, "entries", commits(entries))
        else:
            monkeypatch.setattr(store, "committed", commits(committed))
        found.append(collect(store, AT_ONCE))
        return True

    writer = store.open_attempt("direct-0")
    writer.add(synthetic_batch(0))
    monkeypatch.setattr(store.objects, "put_if_absent", collecting)
    assert writer.commit()
    assert [_counts(one.removed) for one in found] == [{}]
    assert set(store.committed()) == {"direct-0", "direct-1"}
    assert not verify(store).damage


def test_a_table_that_is_written_again_meanwhile_stays(
    local_root: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed compaction left it; the next one gives it the same name and names it in its index when it is done."""
    store = make_run(local_root)
    name, entries = f"tables/steps/model=a/attack=b/part-{ID}.parquet", store.objects.entries
    store.objects.put(name, b"1")
    _aged(store, name, 25)

    def rewriting(folder: str) -> Any:
        answer = entries(folder)
        monkeypatch.undo()
        store.objects.put(name, b"1")
        return answer

    monkeypatch.setattr(store.objects, "entries", rewriting)
    assert _counts(collect(store, DAY).removed) == {}
    assert store.objects.exists(name)


def test_nothing_is_removed_while_a_record_cannot_be_read(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    store.objects.put(f"shards/old/{ID}/steps.parquet", b"1")
    store.objects.put(commit_name("direct-0"), b"{")
    before = store.objects.list("")
    with pytest.raises(StorageError, match=r"direct-0\.json is damaged"):
        collect(store, AT_ONCE)
    assert store.objects.list("") == before


def test_a_revoked_attempt_waits_from_its_revocation(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    record = store.committed()["direct-0"]
    for file in record.files:
        _aged(store, f"shards/direct-0/{record.attempt}/{file}", 1000)
    kept = store.revoke("direct-0", record.attempt, store.objects.read(commit_name("direct-0")))
    assert kept == f"revoked/direct-0-{record.attempt}.json"
    assert _counts(collect(store, DAY).waiting) == {"attempts": 1}
    _aged(store, kept, 25)
    assert _counts(collect(store, DAY).removed) == {"attempts": 1}
    assert store.objects.exists(kept)


def test_the_command_says_what_it_removed(local_root: str, make_run: MakeRun, tmp_path: Path) -> None:
    store = make_run(local_root)
    store.objects.put(f"_probe-{uuid.uuid4().hex}", b"1")
    store.objects.put("mine.txt", b"123")
    code, out, _ = dsprobe("gc", store.url, "--dry-run", "--grace", "0s", cwd=tmp_path)
    assert code == 0
    assert "Would remove" in out
    assert "1 probes (1 byte)" in out
    assert "1 files (3 bytes)" in out
    code, out, _ = dsprobe("gc", store.url, cwd=tmp_path)
    assert "Removed" in out
    assert "nothing" in out
    assert "Younger than 24h" in out
    code, _, err = dsprobe("gc", store.url, "--grace", "soon", cwd=tmp_path)
    assert code == 2
    assert "`soon`" in err
