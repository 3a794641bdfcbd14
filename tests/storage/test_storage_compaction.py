"""Compaction: the same files however the rows came, only what changed, several at once, killed anywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dsprobe.storage.table_files as table_files
from benchmarks.compaction import make_run as make_large_run
from benchmarks.compaction import measure
from dsprobe.errors import ConfigError, StorageError
from dsprobe.storage.commit_record import CommitRecord, WriterOptions
from dsprobe.storage.compaction import compact, digest
from dsprobe.storage.merged_state import MergedState
from dsprobe.storage.query import iter_table, query, read_table
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import TABLES
from dsprobe.storage.scores import committed_replies, write_scores
from dsprobe.storage.table_index import FIRST_INDEX, current_files, newest_index, referenced_files
from dsprobe.storage.testing import synthetic_batch, synthetic_condition, take_rows

MakeRun = Callable[..., RunStore]
EmptyRun = Callable[[str], RunStore]
Attempt = Callable[[RunStore, str], bool]
OPTIONS = WriterOptions(threshold=0.5, sample_positions=3, extreme_positions=2)
TRAJECTORIES = 60


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and row groups a thousandth of their size."""
    monkeypatch.setattr(table_files, "ROW_GROUP", 48)
    monkeypatch.setattr(table_files, "TARGET_BYTES", 4 << 10)
    monkeypatch.setattr(table_files, "LEAST_BYTES", 2 << 10)


def write_spread(root: str, shard_of: list[int], guardrails: tuple[str, ...] = ("none", "late")) -> RunStore:
    """The same trajectories in the given shards, without clocks."""
    store = RunStore(root, "spread-00000000", OPTIONS)
    store.write_manifest({"run_id": store.run_id, "shards": []})
    for number, guardrail in enumerate(guardrails):
        condition = synthetic_condition(guardrail=guardrail)
        batch = synthetic_batch(number, condition=condition, rows=TRAJECTORIES, steps=6)
        batch.trajectories.wall_seconds_B[:] = np.nan
        for shard in sorted(set(shard_of)):
            rows = [row for row, place in enumerate(shard_of) if place == shard]
            with store.open_attempt(f"{guardrail}-{shard}") as writer:
                for half in (rows[::2], rows[1::2]):
                    if half:
                        writer.add(take_rows(batch, half))
                writer.commit()
    compact(store)
    return store


def files_of(store: RunStore) -> dict[str, bytes]:
    return {name: store.objects.read(name) for name in referenced_files(store.objects)}


@pytest.mark.usefixtures("small_files")
def test_files_are_equal_however_the_trajectories_were_spread(memory_root: str) -> None:
    order = np.random.default_rng(0).permutation(TRAJECTORIES)
    spreads = {
        "one": [0] * TRAJECTORIES,
        "order": [row // 7 for row in range(TRAJECTORIES)],
        "turn": [row % 5 for row in range(TRAJECTORIES)],
        "mixed": [int(place) // 11 for place in order],
    }
    found = {name: files_of(write_spread(f"{memory_root}/{name}", spread)) for name, spread in spreads.items()}
    expected = found.pop("one")
    assert len([name for name in expected if "/steps/" in name]) > 2
    for name, files in found.items():
        assert files == expected, name


@pytest.mark.usefixtures("small_files")
def test_files_and_row_groups_have_the_sizes_and_statistics_that_prune(memory_root: str) -> None:
    store = write_spread(memory_root, [0] * TRAJECTORIES)
    entries = current_files(store.objects, "steps")
    assert len(entries) > 2
    ranges = []
    for entry in entries:
        metadata = pq.read_metadata(pa.BufferReader(store.objects.read(entry["path"])))
        assert metadata.num_rows == entry["rows"]
        assert 2 << 10 <= _compressed(metadata) <= 8 << 10
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            columns = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
            assert all(found is not None and found.has_min_max for found in columns.values())
            assert columns["condition"].min == columns["condition"].max
            first, last = columns["prompt_id"].min, columns["prompt_id"].max
            ranges.append((columns["condition"].min, first, last))
            assert group.num_rows <= 48 + 5  # ends with the trajectory that fills it
    assert ranges == sorted(ranges)
    whole = read_table(store, "steps")
    keys = list(zip(*(whole[name].to_pylist() for name in ("condition", "prompt_id", "sample", "step")), strict=True))
    assert keys == sorted(keys)


def _compressed(metadata: Any) -> int:
    """Bytes of a file's columns, without its footer."""
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    return sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))


class _Counting:
    """A file that notes where and how much is read of it."""

    def __init__(self, file: Any, read: list[tuple[int, int]]) -> None:
        self._file, self._read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *size: int) -> bytes:
        data: bytes = self._file.read(*size)
        self._read.append((self._file.tell() - len(data), len(data)))
        return data


def test_queries_read_only_the_row_groups_they_need(
    memory_root: str, empty_run: EmptyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "ROW_GROUP", 1 << 12)
    store = empty_run(memory_root)
    with store.open_attempt("direct-0") as writer:
        writer.add(synthetic_batch(0, rows=3000, steps=32, length=4))
        writer.commit()
    compact(store)
    (entry,) = current_files(store.objects, "steps")
    read: list[tuple[int, int]] = []
    data_end = entry["bytes"] - 8 - pq.read_metadata(pa.BufferReader(store.objects.read(entry["path"]))).serialized_size
    open_file = store.objects.fs.open
    monkeypatch.setattr(store.objects.fs, "open", lambda *a, **k: _Counting(open_file(*a, **k), read), raising=False)

    def cost(sql: str) -> tuple[int, int]:
        read.clear()
        rows = query(store, f"SELECT count(*) AS n, avg(kl_mean), avg(entropy_mean) FROM steps {sql}").to_pylist()
        return rows[0]["n"], sum(size for start, size in read if start < data_end)

    everything, whole = cost("")
    some, pruned = cost("WHERE prompt_id = 'p00003'")
    assert everything == entry["rows"]
    assert 0 < some < everything / 100
    assert 0 < pruned < whole / 5


@pytest.mark.usefixtures("small_files")
def test_streams_are_the_table_in_parts(memory_root: str) -> None:
    store = write_spread(memory_root, [0] * TRAJECTORIES)
    parts = list(iter_table(store, "steps"))
    assert max(part.num_rows for part in parts) <= 53
    assert pa.concat_tables(parts).select(["prompt_id", "step"]) == read_table(store, "steps").select(
        ["prompt_id", "step"]
    )
    filters = [("prompt_id", "=", "p00003"), ("step", "<=", 2)]
    columns = ["step", "guardrail", "prompt_id"]
    some = pa.concat_tables(iter_table(store, "steps", filters, columns))
    assert some == read_table(store, "steps", filters).select(columns)
    assert some.num_rows
    assert [part.num_rows for part in iter_table(store, "steps", [("prompt_id", "=", "none")], ["step"])] == [0] * len(
        current_files(store.objects, "steps")
    )
    with pytest.raises(ConfigError, match=r"Unknown column `stepp`\. Did you mean `step`"):
        next(iter_table(store, "steps", columns=["stepp"]))


def _times(store: RunStore) -> dict[str, int]:
    return {name: Path(store.objects.path(name)).stat().st_mtime_ns for name in referenced_files(store.objects)}


def test_only_what_changed_is_written_again(local_root: str, empty_run: EmptyRun, attempt: Attempt) -> None:
    store = empty_run(local_root)
    for shard in ("direct-0", "direct-1"):
        attempt(store, shard)
    compact(store)
    first = _times(store)
    compact(store)
    assert _times(store) == first
    index = newest_index(store.objects)
    assert index is not None
    assert index.generation == 1  # nothing new, no new index
    attempt(store, "dija-0")
    compact(store)
    second = _times(store)
    assert {name: second[name] for name in first} == first
    replies = committed_replies(store)
    scores = replies.select(["condition", "prompt_id", "sample", "reply"])
    for name, values in {"value": [True] * 24, "score": [0.5] * 24, "note": [""] * 24, "cached": [False] * 24}.items():
        scores = scores.append_column(name, pa.array(values))
    write_scores(store, judge="late", spec={}, question="harm", identity={}, scores=scores)
    for name in store.objects.list("shards"):
        if not name.endswith("/trajectories.parquet"):
            store.objects.remove(name)  # a judge needs nothing else
    compact(store)
    third = _times(store)
    assert {n: t for n, t in third.items() if "/trajectories/" not in n} == {
        n: t for n, t in second.items() if "/trajectories/" not in n
    }
    assert read_table(store, "trajectories")["verdict_late"].to_pylist() == [True] * 24


def test_known_statistics_save_reading_and_change_nothing(
    local_root: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_run(local_root)
    expected, known, read = files_of(store), MergedState(), list[str]()
    for shard_id in ("direct-0", "direct-2", "dija-1"):
        record = store.committed()[shard_id]
        states = ("reducer_counts", "reducer_sums")
        known.add(shard_id, ReducerState.from_tables({k: store.read_shard(record, f"{k}.parquet") for k in states}))
    read_shard = RunStore.read_shard

    def noting(store: RunStore, record: CommitRecord, name: str) -> pa.Table:
        if name == "reducer_counts.parquet":
            read.append(record.shard_id)
        return read_shard(store, record, name)

    monkeypatch.setattr(RunStore, "read_shard", noting)
    compact(store, rebuild=True, known=known)
    assert files_of(store) == expected
    assert sorted(read) == ["dija-0", "dija-2", "direct-1"]
    (Path(store.url) / "commits/direct-2.json").unlink()
    compact(store, rebuild=True, known=known)
    fewer = files_of(store)
    compact(store, rebuild=True)
    assert files_of(store) == fewer != expected


def test_lost_and_damaged_table_files_are_made_again(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    before, files = digest(store), files_of(store)
    lost, damaged = (current_files(store.objects, kind)[0]["path"] for kind in ("steps", "positions"))
    store.objects.remove(lost)
    with pytest.raises(StorageError, match=f"{lost} cannot be read"):
        read_table(store, "steps")
    compact(store)
    assert digest(store) == before
    data = bytearray(files[damaged])
    data[len(data) // 2] ^= 1
    store.objects.put(damaged, bytes(data))
    with pytest.raises(StorageError, match=r"dsprobe compact RUN --rebuild"):
        read_table(store, "positions")
    compact(store, rebuild=True)
    assert files_of(store) == files


def _as_first_version(store: RunStore) -> None:
    """Turn the index into the one that dsprobe wrote before there were generations."""
    index = newest_index(store.objects)
    assert index is not None
    facts = {"version": 1, "run_id": store.run_id, "tables": index.tables, "scored": index.scored}
    store.objects.put(FIRST_INDEX, json.dumps(facts).encode())
    store.objects.remove(index.name)


def test_runs_with_the_first_index_are_read_and_taken_over(root: str, make_run: MakeRun) -> None:
    store = make_run(root)
    _as_first_version(store)
    rows = read_table(store, "steps").num_rows
    assert query(store, "SELECT count(*) AS n FROM steps").to_pylist() == [{"n": rows}]
    assert referenced_files(store.objects) == {e["path"] for k in TABLES for e in current_files(store.objects, k)}
    compact(store)
    names = set(store.objects.list("tables"))
    assert names == {"tables/_index-00000001.json"} | referenced_files(store.objects)
    assert read_table(store, "steps").num_rows == rows


def test_old_indexes_go_and_strangers_stay(local_root: str, empty_run: EmptyRun, attempt: Attempt) -> None:
    store = empty_run(local_root)
    stranger = "tables/steps/model=toy/attack=direct/part-0123456789abcdef.parquet"
    for number, shard in enumerate(("direct-0", "direct-1", "direct-2", "dija-0", "dija-1"), start=1):
        attempt(store, shard)
        store.objects.put(stranger, b"of a compaction under way")
        compact(store)
        indexes = [name for name in store.objects.list("tables") if name.endswith(".json")]
        assert indexes == [f"tables/_index-{n:08d}.json" for n in range(max(1, number - 2), number + 1)]
    assert set(store.objects.list("tables")) - set(indexes) - referenced_files(store.objects) == {stranger}


PROCESS = """
import sys
from dsprobe.storage.compaction import compact
from dsprobe.storage.run_store import RunStore
store = RunStore.at(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    compact(store)
"""


def test_several_compactions_at_once_agree(local_root: str, empty_run: EmptyRun, attempt: Attempt) -> None:
    """Three processes compact while shards arrive and this process reads."""
    store = empty_run(local_root)
    attempt(store, "direct-0")
    compact(store)
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, store.url, "4"], stdin=-1, stdout=-1, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for shard in ("direct-1", "dija-0", "direct-2", "dija-1", "dija-2"):
        attempt(store, shard)
        assert read_table(store, "trajectories").num_rows % 8 == 0
        assert query(store, "SELECT count(*) AS n FROM trajectories").to_pylist()[0]["n"] % 8 == 0
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    compact(store)
    calm = empty_run(f"{local_root}-calm")
    for shard in ("direct-0", "direct-1", "direct-2", "dija-0", "dija-1", "dija-2"):
        attempt(calm, shard)
    compact(calm)
    assert digest(store) == digest(calm)
    assert read_table(store, "trajectories").num_rows == 48


KILLED = """
import os, shutil, signal, sys
from dsprobe.storage.compaction import compact
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore

def work(url, point):
    left = [point]
    def counted(method):
        def call(*arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments)
            return result
        return call
    for name in ("create", "put_if_absent", "remove"):
        setattr(ObjectStore, name, counted(getattr(ObjectStore, name)))
    compact(RunStore.at(url))
    os._exit(0)

base, name, point = sys.argv[1], sys.argv[2], 0
while True:
    point += 3
    copy = f"{base}-{point}/{name}"
    shutil.copytree(f"{base}/{name}", copy)
    child = os.fork()  # before any thread of Arrow's has started
    if child == 0:
        work(copy, point)
    _, status = os.waitpid(child, 0)
    print(point, os.WIFSIGNALED(status), flush=True)
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_compaction_killed_anywhere_leaves_the_old_tables_or_the_new(
    local_root: str, empty_run: EmptyRun, attempt: Attempt
) -> None:
    store = empty_run(local_root)
    for shard in ("direct-0", "dija-0"):
        attempt(store, shard)
    compact(store)
    old = files_of(store)
    for shard in ("direct-1", "dija-1"):
        attempt(store, shard)
    base, _, name = store.url.rpartition("/")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, base, name], stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    points = [int(line.split()[0]) for line in killed.stdout.splitlines()]
    new = files_of(RunStore.at(f"{base}-{points[-1]}/{name}"))
    assert points[-1] == 24  # of 10 new files, the index and 10 old files; the last was not killed
    for point in points:
        disturbed = RunStore.at(f"{base}-{point}/{name}")
        assert files_of(disturbed) == (old if point <= 11 else new), point
        compact(disturbed)
        assert files_of(disturbed) == new, point
        indexes = {name for name in disturbed.objects.list("tables") if name.endswith(".json")}
        assert set(disturbed.objects.list("tables")) == indexes | set(new), point
        shutil.rmtree(disturbed.url)


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """50 times the trajectories of one condition; the bound is a few row groups, which the small run does not fill."""
    small, large = (
        measure(make_large_run(str(tmp_path), shards, rows=64, steps=64, length=16))["peak"] for shards in (2, 100)
    )
    assert large - small < 96 << 20
