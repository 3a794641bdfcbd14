"""Objects: put-if-absent has one winner everywhere, and what cannot promise that is refused."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsprobe.errors import ConfigError, PrerequisiteError, StorageError
from dsprobe.storage.objects import ObjectStore


def test_put_if_absent_has_one_winner_among_threads(root: str) -> None:
    store = ObjectStore(root)
    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(lambda i: store.put_if_absent("commits/x.json", b"%d" % i), range(16)))
    assert sum(wins) == 1
    assert store.read("commits/x.json") == b"%d" % wins.index(True)
    assert store.list("commits") == ["commits/x.json"]


def _race(url: str, barrier: Any, results: Any, number: int) -> None:
    store = ObjectStore(url)
    barrier.wait()
    results.put((number, store.put_if_absent("commits/x.json", b"%d" % number)))


def test_put_if_absent_has_one_winner_among_processes(local_root: str) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(16), context.Queue()
    processes = [context.Process(target=_race, args=(local_root, barrier, results, i)) for i in range(16)]
    for process in processes:
        process.start()
    outcome = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    winners = [number for number, won in outcome.items() if won]
    assert len(winners) == 1
    assert ObjectStore(local_root).read("commits/x.json") == b"%d" % winners[0]
    assert [p.name for p in Path(local_root, "commits").iterdir()] == ["x.json"]


def test_create_shows_nothing_until_it_is_complete(root: str) -> None:
    store = ObjectStore(root)
    with store.create("a/part.parquet") as sink:
        sink.write(b"half")
        assert store.list("a") == []
        sink.write(b"whole")
    assert store.read("a/part.parquet") == b"halfwhole"

    def fail() -> None:
        with store.create("a/other.parquet") as sink:
            sink.write(b"x" * (6 << 20))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.list("a") == ["a/part.parquet"]


def test_temporary_names_match_no_reader_pattern(local_root: str) -> None:
    store = ObjectStore(local_root)
    with store.create("a/part.parquet") as sink:
        sink.write(b"half")
        sink.flush()
        (temporary,) = Path(local_root, "a").iterdir()
        assert temporary.name.startswith("_")
        assert temporary.suffix == ".tmp"
        assert list(Path(local_root).glob("**/*.parquet")) == []


def test_probe_passes_and_leaves_nothing(root: str) -> None:
    store = ObjectStore(root)
    store.probe()
    assert store.list("") == []


def test_probe_names_a_place_that_cannot_be_written(tmp_path: Path, s3_root: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for url in (f"{tmp_path}/file/results", "s3://no-such-bucket/results"):
        with pytest.raises(StorageError, match=url):
            ObjectStore(url).probe()


def test_probe_unmasks_a_server_that_ignores_conditions(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(s3_root)
    call = type(store.fs).call_s3

    def unconditional(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("IfNoneMatch", None)
        return call(self, method, *args, **kwargs)

    monkeypatch.setattr(type(store.fs), "call_s3", unconditional)
    with pytest.raises(StorageError, match="ignores conditional writes"):
        store.probe()


def test_a_store_without_atomic_create_is_refused() -> None:
    store = ObjectStore("data://x")
    with pytest.raises(StorageError, match="`data` store has no atomic create"):
        store.put_if_absent("x", b"1")


def test_unknown_schemes_and_missing_packages_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean `s3`"):
        ObjectStore("s33://bucket/x")
    for name in [name for name in sys.modules if name.split(".")[0] == "s3fs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "dsprobe.storage.s3_objects", raising=False)
    with pytest.raises(PrerequisiteError, match=r"dsprobe\[s3\]"):
        ObjectStore("s3://bucket/x")


def test_missing_objects_are_named_and_removal_is_idempotent(root: str) -> None:
    store = ObjectStore(root)
    with pytest.raises(StorageError, match=r"nothing\.json"):
        store.read("commits/nothing.json")
    store.remove("commits/nothing.json")
    assert store.list("commits") == []
    assert not store.exists("commits/nothing.json")


def test_stores_travel_between_processes(root: str) -> None:
    store = ObjectStore(root)
    store.put("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.url, copy.read("x")) == (store.url, b"1")
