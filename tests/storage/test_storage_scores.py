"""Verdicts added to a run later: what readers see, what a crash leaves, what damage says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.errors import StorageError
from dsprobe.storage.commit_record import WriterOptions
from dsprobe.storage.compaction import compact, digest
from dsprobe.storage.derived import step_values
from dsprobe.storage.lockstep import Lockstep
from dsprobe.storage.query import query, read_table, run_judges
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.scores import (
    committed_replies,
    reply_digest,
    score_records,
    with_scores,
    write_scores,
)
from dsprobe.storage.table_index import current_files
from dsprobe.storage.tables import trajectories_table
from dsprobe.storage.testing import synthetic_batch

Attempt = Callable[[RunStore, str], bool]
SHARDS = ["direct-0", "direct-1", "dija-0"]
OPTIONS = WriterOptions(threshold=0.5, sample_positions=3, extreme_positions=2)
FACTS: dict[str, Any] = {"spec": {"name": "scripted"}, "question": "harm", "identity": {"judge": "scripted"}}


def begin(root: str, attempt: Attempt) -> RunStore:
    """A run of three shards whose own judge is `keyword`, not yet compacted."""
    store = RunStore(root, "scored-00000000", OPTIONS)
    store.write_manifest({"run_id": store.run_id, "shards": SHARDS, "judges": {"keyword": "refusal"}})
    for shard in SHARDS:
        attempt(store, shard)
    return store


def scores_of(store: RunStore, *, shift: int = 0, cached: bool = False) -> pa.Table:
    """A verdict for every reply: yes, no and undecided in turn."""
    replies = committed_replies(store)
    rows = range(shift, replies.num_rows + shift)
    return replies.select(["condition", "prompt_id", "sample", "reply"]).append_column(
        "value", pa.array([[True, False, None][row % 3] for row in rows], pa.bool_())
    ).append_column(
        "score", pa.array([None if row % 3 == 2 else row / 8 for row in rows], pa.float32())
    ).append_column(
        "note", pa.array(["" if row % 3 < 2 else "unparsable answer" for row in rows], pa.string())
    ).append_column("cached", pa.array([cached] * replies.num_rows, pa.bool_()))  # fmt: skip


def seen(store: RunStore, judge: str = "late") -> list[tuple[Any, ...]]:
    columns = ("condition", "prompt_id", "sample", f"verdict_{judge}", f"score_{judge}")
    return list(zip(*(read_table(store, "trajectories")[name].to_pylist() for name in columns), strict=True))


def expected(scores: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(scores[n].to_pylist() for n in ("condition", "prompt_id", "sample", "value", "score")),
                    strict=True))  # fmt: skip


def test_scores_become_columns_for_every_reader(root: str, attempt: Attempt) -> None:
    store = begin(root, attempt)
    compact(store)
    assert run_judges(store) == {"keyword": "refusal"}
    before = {kind: current_files(store.objects, kind) for kind in ("steps", "positions", "step_stats")}
    scores = scores_of(store)
    write_scores(store, judge="late", scores=scores.take(list(range(scores.num_rows))[::-1]), **FACTS)
    assert run_judges(store) == {"keyword": "refusal"}  # not a column yet
    compact(store)
    assert run_judges(store) == {"keyword": "refusal", "late": "harm"}
    found = sorted(seen(store))
    assert found == sorted(expected(scores))
    assert len(found) == 24
    assert {kind: current_files(store.objects, kind) for kind in before} == before
    sql = "SELECT judge, count(*) AS n FROM scores WHERE note = 'unparsable answer' GROUP BY 1"
    assert query(store, sql).to_pylist() == [{"judge": "late", "n": 8}]
    counted = query(store, "SELECT count(verdict_late) AS n, count(score_late) AS m FROM trajectories").to_pylist()
    assert counted == [{"n": 16, "m": 16}]


def test_the_same_scores_give_the_same_bytes_on_every_store(root: str, local_root: str, attempt: Attempt) -> None:
    paths, digests = [], []
    for number, place in enumerate((f"{local_root}-calm", root)):
        store = begin(place, attempt)
        for judge in ("one", "two")[:: 1 - 2 * number]:
            write_scores(store, judge=judge, scores=scores_of(store, shift=len(judge)), **FACTS)
        compact(store)
        compact(store)
        paths.append([record.file for record in score_records(store.objects).values()])
        digests.append(digest(store))
    assert paths[0] == paths[1]
    assert digests[0] == digests[1]
    write_scores(store, judge="one", scores=scores_of(store, shift=3, cached=True), **FACTS)
    compact(store)
    assert digest(store) == digests[0]  # where a verdict came from is not part of the tables


def test_replacing_removes_the_earlier_file_and_leaves_others(local_root: str, attempt: Attempt) -> None:
    store = begin(local_root, attempt)
    for judge, shift in (("late", 0), ("late.2", 0), ("late", 1)):
        write_scores(store, judge=judge, scores=scores_of(store, shift=shift), **FACTS)
    compact(store)
    assert sorted(seen(store)) == sorted(expected(scores_of(store, shift=1)))
    files = {record.file for record in score_records(store.objects).values()}
    assert {name for name in store.objects.list("scores") if name.endswith(".parquet")} == files


KILLED = """
import os, signal, sys
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.scores import JudgeScores, score_records, write_scores
store = RunStore.at(sys.argv[1])
record = score_records(store.objects)["late"]
table = JudgeScores(store.objects, record).table().drop_columns("judge")
flipped = table.set_column(4, "value", [[None] * table.num_rows])
ObjectStore.put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_scores(store, judge="late", spec={}, question="harm", identity={}, scores=flipped)
"""


def test_killed_between_file_and_record_the_earlier_scores_stay(local_root: str, attempt: Attempt) -> None:
    store = begin(local_root, attempt)
    scores = scores_of(store)
    write_scores(store, judge="late", scores=scores, **FACTS)
    done = subprocess.run([sys.executable, "-c", KILLED, store.url], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len(store.objects.list("scores")) == 3  # the new file lies there, named by nobody
    compact(store)
    assert sorted(seen(store)) == sorted(expected(scores))
    write_scores(store, judge="late", scores=scores, **FACTS)
    assert len(store.objects.list("scores")) == 2


def test_a_reply_that_has_changed_is_left_open(local_root: str, attempt: Attempt) -> None:
    store = begin(local_root, attempt)
    scores = scores_of(store)
    stale = scores["reply"].to_pylist()
    stale[0] = reply_digest("another text")
    changed = scores.set_column(3, "reply", pa.array(stale)).slice(0, 20)
    write_scores(store, judge="late", scores=changed, **FACTS)
    compact(store)
    found = {row[:3]: row[3:] for row in seen(store)}
    rows = expected(scores)
    assert found[rows[0][:3]] == (None, None)
    assert all(found[row[:3]] == row[3:] for row in rows[1:20])
    assert all(found[row[:3]] == (None, None) for row in rows[20:])


def test_damage_is_named(local_root: str, attempt: Attempt) -> None:
    store = begin(local_root, attempt)
    record = write_scores(store, judge="late", scores=scores_of(store), **FACTS)
    Path(store.objects.path(record.file)).write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=rf"{record.file} is damaged.*--judge late --replace"):
        compact(store)
    where = Path(store.objects.path("scores/late.json"))
    newer = {**json.loads(where.read_bytes()), "version": 9}
    where.write_text(json.dumps(newer))
    with pytest.raises(StorageError, match=r"late\.json has score record version 9"):
        score_records(store.objects)
    for text in ("{", "[]", '{"version": 1}', json.dumps({**newer, "version": 1, "question": "taste"})):
        where.write_text(text)
        with pytest.raises(StorageError, match=r"late\.json is damaged"):
            score_records(store.objects)


def test_a_row_twice_and_a_key_of_the_run_itself_are_refused(local_root: str, attempt: Attempt) -> None:
    store = begin(local_root, attempt)
    scores = scores_of(store)
    with pytest.raises(StorageError, match="occurs twice"):
        write_scores(store, judge="late", scores=pa.concat_tables([scores, scores.slice(3, 1)]), **FACTS)
    with pytest.raises(StorageError, match="Table `scores` has columns"):
        write_scores(store, judge="late", scores=scores.drop_columns("note"), **FACTS)
    assert store.objects.list("scores") == []
    write_scores(store, judge="keyword", scores=scores, **FACTS)
    with pytest.raises(StorageError, match="The run itself has a judge `keyword`"):
        compact(store)


@pytest.mark.parametrize("judge", ["../../escape", "a.b/c", "..", "é % ?", "late.json"])
def test_no_key_leaves_its_folder(local_root: str, attempt: Attempt, judge: str) -> None:
    store = begin(local_root, attempt)
    outside = {path for path in Path(local_root).rglob("*") if "scores" not in path.parts}
    write_scores(store, judge=judge, scores=scores_of(store), **FACTS)
    assert {path for path in Path(local_root).rglob("*") if "scores" not in path.parts} == outside
    assert list(score_records(store.objects)) == [judge]
    compact(store)
    assert sorted(seen(store, judge)) == sorted(expected(scores_of(store)))


@given(data=st.data())
def test_the_join_is_the_plain_one(data: st.DataObject) -> None:
    batch = synthetic_batch(data.draw(st.integers(0, 5)), rows=8)
    rows = trajectories_table(batch, step_values(batch.trajectories))
    known = sorted(data.draw(st.lists(st.sampled_from(range(10)), unique=True)))
    keys = [("p0000" + str(row // 2), row % 2) for row in known]
    texts = [data.draw(st.sampled_from([f"reply {prompt} Ω <b>\n", "other"])) for prompt, _ in keys]
    values = [data.draw(st.sampled_from([True, False, None])) for _ in keys]
    scores = pa.table({
        "prompt_id": pa.array([prompt for prompt, _ in keys], pa.string()),
        "sample": pa.array([sample for _, sample in keys], pa.int32()),
        "reply": pa.array([reply_digest(text) for text in texts], pa.string()),
        "value": pa.array(values, pa.bool_()),
        "score": pa.array([float(row) for row in known], pa.float32()),
    })  # fmt: skip
    cuts = sorted(data.draw(st.lists(st.integers(0, 8), max_size=3)))
    pieces = data.draw(st.integers(1, 11))
    stream = [scores.slice(start, pieces) for start in range(0, len(keys), pieces)]
    late = Lockstep(stream, scores.schema)
    chunks = [rows.slice(low, high - low) for low, high in pairwise([0, *cuts, 8])]
    found = pa.concat_tables(with_scores(chunk, {"late": late}, "run") for chunk in chunks).unify_dictionaries()
    plain = {key: (value, float(row)) for key, text, value, row in zip(keys, texts, values, known, strict=True)
             if text != "other"}  # fmt: skip
    for row in found.select(["prompt_id", "sample", "verdict_late", "score_late"]).to_pylist():
        assert (row["verdict_late"], row["score_late"]) == plain.get((row["prompt_id"], row["sample"]), (None, None))
    assert found.drop_columns(["verdict_late", "score_late"]) == rows
