"""From committed shards to the run's tables, in an order that depends on nothing but the rows.

``tables/<table>/model=…/attack=…/part-<digest>.parquet``: rows sorted by condition, prompt, sample, step and position,
one row group per condition (or per million rows), so neither shard sizes, retries nor arrival order show. Files are
named after their content: new ones are written first, then ``tables/_current.json`` is replaced,
which names the files that count, then files it does not name are deleted. dsprobe's own readers follow
``_current.json`` and never see a mixture; a plain ``tables/steps/**/*.parquet`` pattern is exact whenever no compaction
is under way (or was killed between the two last actions: compact again).

Memory is bounded by the tables of one condition.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dsprobe.config import UNGUARDED
from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import Condition
from dsprobe.judges.base import Decides
from dsprobe.storage.content_files import ContentFile, read_checked
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import CommitRecord, RunStore
from dsprobe.storage.schemas import TABLES, VOLATILE, TableKind, check_version, open_writer, with_metadata
from dsprobe.storage.scores import JudgeScores, all_scores, with_scores
from dsprobe.storage.selection import Candidate, sample_rank, select
from dsprobe.storage.statistics import finalise

CURRENT: Final = "tables/_current.json"
"""Names the files of the tables; its underscore and ending match no reader's pattern."""

INDEX_VERSION: Final = 1

STATE_TABLES: Final = ("reducer_counts", "reducer_sums")

_ORDER: Final = ("condition", "prompt_id", "sample", "step", "position", "quantity")


def compact(store: RunStore) -> None:
    """Rebuild all tables from the committed shards and scores; the same ones always give the same tables.

    One process at a time may compact a run. Readers may read meanwhile.

    Raises:
        StorageError: Nothing is committed, a shard's or a score's file is damaged, or the store failed.
    """
    records = sorted(store.committed().values(), key=lambda r: (_partition(r.condition), r.condition.id, r.shard_id))
    if not records:
        raise StorageError(f"{store.url} has no committed shards to make tables of.")
    scored = all_scores(store.objects)
    files: dict[TableKind, list[dict[str, Any]]] = {kind: [] for kind in TABLES}
    for partition, members in groupby(records, key=lambda r: _partition(r.condition)):
        for kind, entry in _write_partition(store, partition, list(members), scored).items():
            files[kind].append(entry)
    questions = {scores.record.judge: scores.record.question for scores in scored}
    index = {"version": INDEX_VERSION, "run_id": store.run_id, "tables": files, "scored": questions}
    store.objects.put(CURRENT, json.dumps(index, indent=1, sort_keys=True).encode())
    current = {entry["path"] for entries in files.values() for entry in entries}
    for name in store.objects.list("tables"):
        if name != CURRENT and name not in current:
            store.objects.remove(name)


def current_files(objects: ObjectStore, kind: TableKind) -> list[dict[str, Any]]:
    """The files of a table: their ``path`` relative to the run, ``bytes``, ``sha256`` and ``rows``.

    Raises:
        StorageError: The run has not been compacted, or by a newer version.
    """
    return list(_index(objects)["tables"][kind])


def scored_judges(objects: ObjectStore) -> dict[str, Decides]:
    """Judges whose scores are columns of the tables: judge key → question, sorted by key.

    Raises:
        StorageError: The run has not been compacted, or by a newer version.
    """
    # Tables made before there were scores say nothing of them, and hold none.
    return dict(sorted(_index(objects).get("scored", {}).items()))


def _index(objects: ObjectStore) -> dict[str, Any]:
    if not objects.exists(CURRENT):
        raise StorageError(f"{objects.url} has no tables yet; they are made when the run is compacted.")
    try:
        index: dict[str, Any] = json.loads(objects.read(CURRENT))
        check_version(index["version"], "table index", objects.address(CURRENT), INDEX_VERSION)
        missing = set(TABLES) - set(index["tables"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{objects.address(CURRENT)} is damaged: {type(error).__name__}: {error}") from error
    if missing:
        raise StorageError(f"{objects.address(CURRENT)} is damaged: it does not name `{min(missing)}`.")
    return index


def digest(store: RunStore) -> str:
    """SHA-256 over all columns of all tables but the `VOLATILE` ones (wall-clock times).

    Two runs of the same plan have the same digest, however often one of them was disturbed.

    Raises:
        StorageError: A file is missing or damaged.
    """
    total = hashlib.sha256()
    for kind in TABLES:
        for entry in current_files(store.objects, kind):
            total.update(entry["path"].rpartition("/")[0].encode())
            for table in _row_groups(read_file(store.objects, entry)):
                total.update(content_digest(table).encode())
    return total.hexdigest()


def content_digest(table: pa.Table) -> str:
    """SHA-256 of a table's content without its volatile columns, independent of how it is chunked in memory."""
    kept = table.drop_columns([name for name in table.column_names if name in VOLATILE]).combine_chunks()
    sink = pa.BufferOutputStream()
    with open_writer(sink, kept.schema) as writer:
        writer.write_table(kept)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def read_file(objects: ObjectStore, entry: dict[str, Any]) -> bytes:
    """Read one file of a table and check it against the index.

    Raises:
        StorageError: Missing or damaged; the message names the file.
    """
    return read_checked(objects, entry, "Compact the run again to rebuild it.")


def _row_groups(data: bytes) -> Iterator[pa.Table]:
    file = pq.ParquetFile(pa.BufferReader(data))
    return (file.read_row_group(index) for index in range(file.num_row_groups))


def _partition(condition: Condition) -> str:
    """Hive folders of a condition; values are percent-encoded, which every Hive reader undoes."""
    return f"model={quote(condition.model, safe='')}/attack={quote(condition.attack, safe='')}"


def _write_partition(
    store: RunStore, partition: str, records: list[CommitRecord], scored: Sequence[JudgeScores]
) -> dict[TableKind, dict[str, Any]]:
    """Write one file per table for one model and attack, condition by condition."""
    writers: dict[TableKind, ContentFile] = {}
    unguarded: dict[Condition, pa.Table] = {}
    for condition, members in groupby(records, key=lambda r: r.condition):
        tables = _condition_tables(store, list(members))
        rows = _with_extra_steps(tables["trajectories"], condition, unguarded)
        tables["trajectories"] = with_scores(rows, condition.id, scored, store.run_id)
        for kind, table in tables.items():
            if kind not in writers:
                writers[kind] = ContentFile(table.schema)
            writers[kind].write(table)
    return {
        kind: part.publish(store.objects, f"tables/{kind}/{partition}", "part-")
        for kind, part in sorted(writers.items())
    }


def _condition_tables(store: RunStore, records: list[CommitRecord]) -> dict[TableKind, pa.Table]:
    """All tables of one condition, sorted."""
    trajectories, steps = (_gather(store, records, kind) for kind in ("trajectories", "steps"))
    state = ReducerState(records[0].options.threshold)
    for record in records:
        state.merge(ReducerState.from_tables({k: store.read_shard(record, f"{k}.parquet") for k in STATE_TABLES}))
    statistics = finalise(state, store.run_id)
    positions = _cut(_gather(store, records, "positions"), trajectories, records[0])
    return {
        "trajectories": trajectories,
        "steps": steps,
        "positions": with_metadata(positions, "positions", store.run_id),
        "step_stats": statistics["step_stats"],
        "position_stats": statistics["position_stats"],
    }


def _with_extra_steps(rows: pa.Table, condition: Condition, unguarded: dict[Condition, pa.Table]) -> pa.Table:
    """Fill `extra_steps` from the unguarded condition of the same cell.

    A condition's id begins with that of its unguarded twin, so the twin has been seen when its turn comes.

    Args:
        rows: Trajectories of one condition.
        condition: The condition.
        unguarded: Identities and steps of the unguarded conditions seen so far; this one is added if it is one.
    """
    identity = ["prompt_id", "sample"]
    if condition.guardrail == UNGUARDED:
        unguarded[condition] = rows.select([*identity, "num_steps"])
    twin = unguarded.get(replace(condition, guardrail=UNGUARDED))
    if twin is None:
        return rows
    place = pa.table({"place": np.arange(rows.num_rows)})
    numbered = rows.select([*identity, "num_steps"]).append_column("place", place["place"])
    joined = numbered.join(twin, identity, join_type="left outer", right_suffix="_unguarded").sort_by("place")
    extra = pc.subtract(joined["num_steps"], joined["num_steps_unguarded"])
    index = rows.schema.get_field_index("extra_steps")
    return rows.set_column(index, rows.schema.field(index), extra.combine_chunks())


def _gather(store: RunStore, records: list[CommitRecord], kind: TableKind) -> pa.Table:
    table = pa.concat_tables(store.read_shard(record, f"{kind}.parquet") for record in records)
    keys = [(name, "ascending") for name in _ORDER if name in table.column_names]
    return with_metadata(table.unify_dictionaries().sort_by(keys).combine_chunks(), kind, store.run_id)


def _cut(positions: pa.Table, trajectories: pa.Table, record: CommitRecord) -> pa.Table:
    """Cut the shards' candidates to the condition's final selection."""
    condition, options = record.condition.id, record.options
    rows = trajectories.select(["prompt_id", "sample", "tri_predicted"]).to_pylist()
    candidates = [
        Candidate(
            prompt_id=row["prompt_id"],
            sample=row["sample"],
            rank=sample_rank(condition, row["prompt_id"], row["sample"]),
            tri=row["tri_predicted"],
        )
        for row in rows
    ]
    chosen = select(candidates, options.sample_positions, options.extreme_positions)
    names = pa.array([f"{sample}/{prompt}" for prompt, sample in chosen], pa.string())
    key_N = pc.binary_join_element_wise(positions["sample"].cast(pa.string()), positions["prompt_id"], "/")
    which_N = pc.index_in(key_N, value_set=names)
    kept = positions.filter(which_N.is_valid())
    reasons = pa.array(list(chosen.values()), pa.string()).take(which_N.drop_null().combine_chunks())
    index = kept.schema.get_field_index("selection")
    return kept.set_column(index, kept.schema.field(index), reasons)
