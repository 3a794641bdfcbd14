"""The life of a run: attempts, commits, crashes, compaction and queries, on every kind of store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.config import RunConfig
from dsprobe.errors import ConfigError, StorageError
from dsprobe.storage.commit_record import WriterOptions
from dsprobe.storage.compaction import compact, digest
from dsprobe.storage.derived import step_values
from dsprobe.storage.query import open_run, query, read_table
from dsprobe.storage.run_store import RunStore, commit_name
from dsprobe.storage.schemas import TABLES
from dsprobe.storage.selection import Candidate, select
from dsprobe.storage.table_index import current_files, newest_index
from dsprobe.storage.tables import trajectories_table
from dsprobe.storage.testing import synthetic_batch, synthetic_condition

MakeRun = Callable[..., RunStore]
EmptyRun = Callable[[str], RunStore]
Attempt = Callable[[RunStore, str], bool]

SHARDS = [f"{attack}-{part}" for attack in ("direct", "dija") for part in range(3)]


def _comparable(store: RunStore) -> dict[str, bytes]:
    """Every table file's bytes; trajectories hold wall times and are left to the digest."""
    return {e["path"]: store.objects.read(e["path"]) for k in TABLES if k != "trajectories"
            for e in current_files(store.objects, k)}  # fmt: skip


def test_tables_do_not_depend_on_order_retries_or_store(root: str, local_root: str, make_run: MakeRun) -> None:
    calm = make_run(f"{local_root}-calm")
    disturbed = make_run(root, [*reversed(SHARDS), *SHARDS[:2]])
    assert _comparable(disturbed) == _comparable(calm)
    assert digest(disturbed) == digest(calm)
    assert read_table(disturbed, "trajectories").num_rows == 48


def test_one_of_sixteen_attempts_counts_and_the_others_leave_nothing(
    root: str, empty_run: EmptyRun, attempt: Attempt
) -> None:
    store = empty_run(root)
    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(lambda _: attempt(store, "direct-0"), range(16)))
    assert sum(wins) == 1
    (record,) = store.committed().values()
    folders = {name.split("/")[2] for name in store.objects.list("shards")}
    assert folders == {record.attempt}


def test_aborted_and_failed_attempts_leave_nothing(root: str, empty_run: EmptyRun) -> None:
    store = empty_run(root)
    writer = store.open_attempt("direct-0")
    writer.add(synthetic_batch(1))
    writer.abort()
    writer.abort()
    with pytest.raises(StorageError, match="is over"):
        writer.add(synthetic_batch(1))

    def fail() -> None:
        with store.open_attempt("direct-0") as writer:
            writer.add(synthetic_batch(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.committed() == {}
    assert store.objects.list("shards") == []


def test_a_commit_whose_answer_is_lost_keeps_its_files(
    local_root: str,
    empty_run: EmptyRun,
    attempt: Attempt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = empty_run(local_root)
    put = store.objects.put_if_absent

    def lost(name: str, data: bytes) -> None:
        put(name, data)
        raise StorageError("connection lost")

    monkeypatch.setattr(store.objects, "put_if_absent", lost)
    with pytest.raises(StorageError, match="connection lost"):
        attempt(store, "direct-0")
    monkeypatch.undo()
    compact(store)
    assert read_table(store, "trajectories").num_rows == 8


KILLED = """
import sys, time
from dsprobe.storage.commit_record import WriterOptions
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.testing import synthetic_batch
options = WriterOptions(threshold=0.5, sample_positions=3, extreme_positions=2)
writer = RunStore(sys.argv[1], sys.argv[2], options).open_attempt("direct-0")
writer.add(synthetic_batch(0))
print("writing", flush=True)
time.sleep(600)
"""


def test_a_killed_writer_leaves_a_run_as_if_nothing_had_happened(
    local_root: str, make_run: MakeRun, empty_run: EmptyRun
) -> None:
    store = empty_run(local_root)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, local_root, store.run_id], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.wait()
    assert list(Path(store.url, "shards").glob("**/*.tmp"))  # it was in the middle of it
    assert store.committed() == {}
    disturbed, calm = make_run(local_root), make_run(f"{local_root}-calm")
    assert digest(disturbed) == digest(calm)
    assert not list(Path(store.url).glob("tables/**/*.tmp"))


def test_sum_of_shards_is_the_whole(local_root: str, make_run: MakeRun) -> None:
    """The same rows in one shard or in three give the same tables."""
    three = make_run(local_root)
    one = RunStore(
        f"{local_root}-one", three.run_id, WriterOptions(threshold=0.5, sample_positions=3, extreme_positions=2)
    )
    one.write_manifest({"run_id": one.run_id, "shards": ["direct", "dija"]})
    for attack, offset in (("direct", 0), ("dija", 100)):
        with one.open_attempt(attack) as writer:
            for number in reversed(range(6)):
                condition = synthetic_condition(attack)
                batch = synthetic_batch(number + offset, condition=condition, steps=5, first_prompt=2 * number)
                writer.add(batch)
            assert writer.commit()
    compact(one)
    assert _comparable(one) == _comparable(three)


def test_tables_hold_what_was_written(local_root: str, empty_run: EmptyRun) -> None:
    store, batch = empty_run(local_root), synthetic_batch(5, rows=6)
    with store.open_attempt("direct-0") as writer:
        writer.add(batch)
        writer.commit()
    compact(store)
    rows = batch.trajectories
    order = sorted(range(6), key=lambda b: (rows.keys[b].prompt_id, rows.keys[b].sample))
    found = read_table(store, "trajectories").to_pylist()
    for row, b in zip(found, order, strict=True):
        real = rows.real_BL[b]
        assert row["canvas"] == rows.canvas_BL[b][real].tolist()
        assert row["tokens"] == rows.tokens_BL[b][real].tolist()
        assert row["commit_step"] == rows.commit_step_BL[b][real].tolist()
        start, end = row["response_start"], row["response_end"]
        assert rows.tokens_BL[b][rows.response_BL[b]].tolist() == row["tokens"][start:end]
        assert row["text"] == batch.texts[b]
        assert row["verdict_keyword"] == batch.verdicts["keyword"][b]
        assert json.loads(row["events"]) == rows.events[b]
        last = rows.num_steps_B[b] - 1
        assert row["risk_committed_final"] == np.float16(rows.risk_committed_SB[last, b])
        steps = read_table(store, "steps", [("prompt_id", "=", row["prompt_id"]), ("sample", "=", row["sample"])])
        assert steps["step"].to_pylist() == list(range(1, last + 2))
        assert steps["masked"][0].as_py() == ((rows.canvas_BL[b] == 1) & real).sum()
        assert pc.sum(steps["committed"]).as_py() == steps["masked"][0].as_py()
        assert steps["fraction_committed"][-1].as_py() == 1.0
    masks = read_table(store, "positions")
    assert set(masks["selection"].to_pylist()) == {"sample", "extreme"}
    assert len(masks.group_by(["prompt_id", "sample"]).aggregate([]).to_pylist()) == 5


@given(
    st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=12),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_selections_of_parts_contain_the_selection_of_the_whole(
    scores: list[float], parts: int, samples: int, extremes: int
) -> None:
    rows = [
        Candidate(prompt_id=f"p{i}", sample=0, rank=hash((i, score)) % 97, tri=score) for i, score in enumerate(scores)
    ]
    kept = [
        row
        for part in range(parts)
        for row in rows[part::parts]
        if row.key in select(rows[part::parts], samples, extremes)
    ]
    assert select(kept, samples, extremes) == select(rows, samples, extremes)


def test_manifests_of_the_same_plan_agree_and_others_do_not(root: str) -> None:
    config = RunConfig.model_validate({"models": ["toy"], "prompts": [{"source": "toy"}], "risk": {"threshold": 0.3}})
    manifest = {"run_id": "r", "shards": ["a", "b"], "config": config.model_dump(mode="json")}
    store = RunStore(root, "r")
    store.write_manifest(manifest)
    store.write_manifest({**manifest, "hardware": "other"})
    assert "hardware" not in store.manifest()
    with pytest.raises(StorageError, match="other `shards`"):
        store.write_manifest({**manifest, "shards": ["a"]})
    with pytest.raises(StorageError, match="needs `shards`"):
        store.write_manifest({"run_id": "r"})
    with store.open_attempt("a") as writer:
        writer.add(synthetic_batch(1))
        writer.commit()
    assert store.committed()["a"].options == WriterOptions(threshold=0.3, sample_positions=8, extreme_positions=4)


def test_no_manifest_no_attempt(root: str) -> None:
    with pytest.raises(StorageError, match="holds no run"):
        RunStore(root, "r").open_attempt("a")


def test_damaged_files_are_named(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    record = store.committed()["direct-0"]
    name = f"shards/direct-0/{record.attempt}/steps.parquet"
    path = Path(store.url, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=f"{name} is damaged"):
        compact(store, rebuild=True)
    table = Path(store.url, current_files(store.objects, "steps")[0]["path"])
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(StorageError, match=f"{table} is damaged"):
        read_table(store, "steps")
    with pytest.raises(StorageError, match="damaged"):
        digest(store)
    Path(store.url, commit_name("direct-1")).write_text("{")
    with pytest.raises(StorageError, match=r"direct-1\.json is damaged"):
        store.committed()


def test_newer_formats_are_refused_by_version(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    index = newest_index(store.objects)
    assert index is not None
    for name, key in ((commit_name("direct-0"), "commit record"), (index.name, "table index")):
        path = Path(store.url, name)
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 7}))
        with pytest.raises(StorageError, match=f"{key} version 7"):
            store.committed() if key == "commit record" else read_table(store, "steps")


def test_stale_tables_are_replaced(
    local_root: str,
    make_run: MakeRun,
    empty_run: EmptyRun,
    attempt: Attempt,
) -> None:
    store = empty_run(local_root)
    attempt(store, "direct-0")
    compact(store)
    before = set(store.objects.list("tables"))
    make_run(local_root)
    after = set(store.objects.list("tables"))
    indexes = [f"tables/_index-{generation:08d}.json" for generation in (1, 2)]
    assert after & before == {indexes[0]}
    assert after == {*indexes, *(e["path"] for k in TABLES for e in current_files(store.objects, k))}


def test_sql_sees_the_tables_of_every_store(root: str, make_run: MakeRun) -> None:
    store = make_run(root)
    sql = "SELECT attack, count(*) AS n FROM steps JOIN trajectories USING (attack, prompt_id, sample) GROUP BY 1"
    found = query(store, f"{sql} ORDER BY 1").to_pylist()
    steps = read_table(store, "steps")
    assert found == [
        {"attack": a, "n": steps.filter(pc.equal(steps["attack"], a)).num_rows} for a in ("dija", "direct")
    ]
    mean = query(store, "SELECT avg(risk_committed) AS m FROM steps").to_pylist()[0]["m"]
    assert mean == pytest.approx(np.mean(steps["risk_committed"].to_numpy().astype(float)))


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM stepz", "Did you mean `steps`"),
        ("DROP VIEW steps", "exactly one SELECT"),
        ("SELECT 1; SELECT 2", "exactly one SELECT"),
        ("COPY (SELECT 1) TO '/tmp/dsprobe-never.csv'", "exactly one SELECT"),
        ("SELECT * FROM read_text('/etc/hostname')", "Cannot access file"),
        ("SELECT nothing FROM steps", "nothing"),
        ("SELEC 1", "syntax error"),
    ],
)
def test_wrong_queries_say_why(local_root: str, make_run: MakeRun, sql: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        query(make_run(local_root), sql)


def test_runs_are_found_by_path_url_and_id(local_root: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_run(local_root)
    for run in (store.url, f"{store.url}/", f"file://{store.url}"):
        assert read_table(run, "steps").num_rows == read_table(store, "steps").num_rows
    monkeypatch.chdir(local_root)
    assert open_run(store.run_id).run_id == store.run_id
    with pytest.raises(StorageError, match="No run at `elsewhere`"):
        open_run("elsewhere")
    with pytest.raises(ConfigError, match="Did you mean `steps`"):
        read_table(store, "step")


def test_a_run_without_shards_has_no_tables(local_root: str, empty_run: EmptyRun) -> None:
    store = empty_run(local_root)
    with pytest.raises(StorageError, match="no committed shards"):
        compact(store)
    with pytest.raises(StorageError, match="no tables yet"):
        read_table(store, "steps")


def test_labels_with_odd_characters_stay_whole(local_root: str, empty_run: EmptyRun) -> None:
    store = empty_run(local_root)
    condition = synthetic_condition("a/b=c d*%", model="org/näme:8b")
    with store.open_attempt("x") as writer:
        writer.add(synthetic_batch(1, condition=condition))
        writer.commit()
    compact(store)
    assert query(store, "SELECT DISTINCT model, attack FROM steps").to_pylist() == [
        {"model": "org/näme:8b", "attack": "a/b=c d*%"}
    ]


def test_memory_of_a_writer_does_not_grow_with_the_shard(local_root: str, empty_run: EmptyRun) -> None:
    """Beyond the first batches nothing but counts may accumulate."""
    import tracemalloc

    writer = empty_run(local_root).open_attempt("direct-0")

    def add(count: int) -> int:
        for number in range(count):
            writer.add(synthetic_batch(number % 7, rows=16, steps=16, length=64, first_prompt=number * 8))
        return int(tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes())

    tracemalloc.start()
    early = add(10)
    late = add(60)
    tracemalloc.stop()
    writer.abort()
    assert late - early < 1 << 20


def _guarded_run(store: RunStore, guardrails: tuple[str, ...]) -> None:
    for place, guardrail in enumerate(guardrails):
        with store.open_attempt(f"direct-{place}") as writer:
            condition = synthetic_condition(guardrail=guardrail)
            writer.add(synthetic_batch(place, condition=condition, rows=9, steps=7))
            writer.commit()
    compact(store)


@pytest.mark.parametrize("guardrails", [("none", "late", "early"), ("late", "none", "early")])
def test_a_guarded_row_knows_its_interventions_and_the_steps_they_cost(
    local_root: str, empty_run: EmptyRun, guardrails: tuple[str, ...]
) -> None:
    store = empty_run(local_root)
    _guarded_run(store, guardrails)
    rows = read_table(store, "trajectories").to_pylist()
    steps = {(r["guardrail"], r["prompt_id"], r["sample"]): r["num_steps"] for r in rows}
    assert len(steps) == 27
    for row in rows:
        assert row["condition"].endswith("default" if row["guardrail"] == "none" else f"default/{row['guardrail']}")
        assert row["extra_steps"] == row["num_steps"] - steps["none", row["prompt_id"], row["sample"]]
        assert row["interventions"] == len(json.loads(row["events"]))
    assert {row["guardrail"] for row in rows if row["interventions"]} == {"late", "early"}
    assert len({row["extra_steps"] for row in rows if row["guardrail"] == "late"}) > 1


def test_extra_steps_are_null_where_nothing_ran_unguarded(local_root: str, empty_run: EmptyRun) -> None:
    store = empty_run(local_root)
    _guarded_run(store, ("late",))
    assert read_table(store, "trajectories")["extra_steps"].null_count == 9


def test_positions_taken_back_are_those_of_the_events(local_root: str, empty_run: EmptyRun) -> None:
    store = empty_run(local_root)
    _guarded_run(store, ("none", "late"))
    expected = {
        (row["condition"], row["prompt_id"], row["sample"], event["step"]): len(event["positions"])
        for row in read_table(store, "trajectories").to_pylist()
        for event in json.loads(row["events"])
    }
    found = {
        (row["condition"], row["prompt_id"], row["sample"], row["step"]): row["remasked"]
        for row in read_table(store, "steps").to_pylist()
        if row["action"] or row["remasked"]
    }
    assert found == expected
    assert expected


def test_positions_of_events_are_counted_without_padding_and_rewritten_ones_are_not_taken_back() -> None:
    batch = synthetic_batch(0, rows=2, steps=3, length=4)
    rows = batch.trajectories
    rows.real_BL[:] = [[False, False, True, True, True, True, True]] * 2
    rows.num_steps_B[:] = 3
    rows.committed_SBL[1] = [[True, True, True, True, False, True, False], [True] * 7]
    rows.events = [[{"step": 2, "action": 3, "positions": [3, 4, 6], "before": [7, 8, 9], "after": [5, 1, 1]}], []]
    values = step_values(rows)
    (first, second) = trajectories_table(batch, values)["events"].to_pylist()
    assert json.loads(first)[0]["positions"] == [1, 2, 4]
    assert second == "[]"
    assert values.remasked_SB.tolist() == [[0, 0], [2, 0], [0, 0]]  # position 3 was rewritten


def test_stores_and_records_travel(local_root: str, make_run: MakeRun) -> None:
    store = make_run(local_root)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.committed() == store.committed()
    record = copy.committed()["dija-0"]
    assert dataclasses.asdict(record.condition)["attack"] == "dija"
    data = copy.objects.read(f"shards/dija-0/{record.attempt}/steps.parquet")
    assert hashlib.sha256(data).hexdigest() == record.files["steps.parquet"].sha256
