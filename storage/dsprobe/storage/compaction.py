"""From committed shards to the run's tables, in an order that depends on nothing but the rows.

``tables/<table>/model=…/attack=…/part-<digest>.parquet``: rows sorted by condition, prompt, sample, step and position,
so neither shard sizes, retries nor arrival order show; `dsprobe.storage.table_files` says where files are cut. Files
are named after their content: they are written first, then an index that names the files that count is put if absent
(`dsprobe.storage.table_index`), then files that only older indexes name are deleted. dsprobe's own readers follow the
index and never see a mixture; a plain ``tables/steps/**/*.parquet`` pattern is exact whenever no compaction is under
way or was killed (`dsprobe gc` removes what a killed one left).

Partitions whose shards and scores are those of the last compaction are not written again. Memory is bounded by a few
row groups and by one shard, whatever the number of trajectories; what must wait does so in a scratch file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.commit_record import CommitRecord
from dsprobe.storage.content_files import open_checked
from dsprobe.storage.merged_state import MergedState
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.partition_writer import PartitionWriter
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import SCHEMA_VERSION, TABLES, VOLATILE, TableKind, open_writer
from dsprobe.storage.scores import JudgeScores, all_scores
from dsprobe.storage.table_index import (
    FileEntry,
    TableIndex,
    current_files,
    newest_index,
    put_index,
    remove_superseded,
)
from dsprobe.telemetry.spans import span

REMEDY: Final = "Rebuild the tables: dsprobe compact RUN --rebuild."
"""What the user can do about a damaged file of a table."""

_LAYOUT: Final = 1
"""Bumped when the same shards and scores give other files, so that those of earlier versions are written again."""

_ATTEMPTS: Final = 10

_DIGEST_ROWS: Final = 1 << 16


@span("compact")
def compact(store: RunStore, *, rebuild: bool = False, known: MergedState | None = None) -> None:
    """Make the tables of the committed shards and scores; the same ones always give the same files.

    Any number of processes may compact a run at once, and readers may read meanwhile.

    Args:
        store: The run.
        rebuild: Write every partition, also those that have not changed: the cure for damaged tables.
        known: Statistics of shards that were merged while they were committed; those of the others are read.

    Raises:
        StorageError: Nothing is committed, a shard's or a score's file is damaged, or the store failed.
    """
    for _ in range(_ATTEMPTS):
        last = newest_index(store.objects)
        index = _compacted(store, last, rebuild=rebuild, known=known or MergedState())
        if last is not None and index.same_tables(last):
            remove_superseded(store.objects, last)  # what a killed compaction left to do
            return
        if put_index(store.objects, index):
            remove_superseded(store.objects, index)
            # A slow remover of an older index may have taken a file whose content came back meanwhile.
            if index.files() <= set(store.objects.list("tables")):
                return
    raise StorageError(
        f"{store.url}: other compactions were faster {_ATTEMPTS} times; compact again when they are done."
    )


def _compacted(store: RunStore, last: TableIndex | None, *, rebuild: bool, known: MergedState) -> TableIndex:
    """Write what has changed since the last index, and list all."""
    records = sorted(store.committed().values(), key=lambda r: (_partition(r.condition), r.condition.id, r.shard_id))
    if not records:
        raise StorageError(f"{store.url} has no committed shards to make tables of.")
    unchanged = None if rebuild or last is None else _Unchanged(store.objects, last)
    tables: dict[TableKind, list[FileEntry]] = {kind: [] for kind in TABLES}
    sources: dict[str, dict[str, str]] = {}
    with all_scores(store.objects) as scored:
        for partition, members in groupby(records, key=lambda r: _partition(r.condition)):
            shards = list(members)
            sources[partition] = _sources(shards, scored)
            kept = unchanged.files(partition, sources[partition]) if unchanged else {}
            wanted = set(TABLES) - set(kept)
            made = _write_partition(PartitionWriter(store, partition, scored, wanted, known), shards) if wanted else {}
            for kind in TABLES:
                tables[kind] += kept[kind] if kind in kept else made[kind]
        questions = {scores.record.judge: scores.record.question for scores in scored}
    return TableIndex(
        generation=last.generation + 1 if last else 1,
        run_id=store.run_id,
        tables=tables,
        scored=questions,
        sources=sources,
    )


class _Unchanged:
    """Files of the last compaction that may be kept."""

    def __init__(self, objects: ObjectStore, last: TableIndex) -> None:
        self._last = last
        self._sizes = {entry.name: entry.bytes for entry in objects.entries("tables")}

    def files(self, partition: str, sources: dict[str, str]) -> dict[TableKind, list[FileEntry]]:
        """Table → its files in a partition, where they were made of the same and are still there."""
        made = self._last.sources.get(partition, {})
        same = (kind for kind in TABLES if made.get(kind) == sources[kind])
        found = {kind: self._last.entries(kind, partition) for kind in same}
        return {kind: entries for kind, entries in found.items() if all(map(self._is_there, entries))}

    def _is_there(self, entry: FileEntry) -> bool:
        return bool(self._sizes.get(entry["path"]) == entry["bytes"])


def _sources(records: Sequence[CommitRecord], scored: Sequence[JudgeScores]) -> dict[str, str]:
    """Table → digest of what determines its content in a partition."""
    shards: list[Any] = [_LAYOUT, SCHEMA_VERSION, *sorted([record.shard_id, record.attempt] for record in records)]
    with_judges = [*shards, *([scores.record.judge, scores.record.sha256] for scores in scored)]
    made_of = {kind: with_judges if kind == "trajectories" else shards for kind in TABLES}
    return {kind: hashlib.sha256(json.dumps(made).encode()).hexdigest() for kind, made in made_of.items()}


def _write_partition(writer: PartitionWriter, records: Sequence[CommitRecord]) -> dict[TableKind, list[FileEntry]]:
    """Write some tables of one model and attack, condition by condition."""
    with writer:
        for condition, members in groupby(records, key=lambda r: r.condition):
            writer.add(condition, list(members))
        return writer.publish()


def _partition(condition: Condition) -> str:
    """Hive folders of a condition; values are percent-encoded, which every Hive reader undoes."""
    return f"model={quote(condition.model, safe='')}/attack={quote(condition.attack, safe='')}"


def digest(store: RunStore) -> str:
    """SHA-256 over all columns of all tables but the `VOLATILE` ones (wall-clock times).

    Two runs of the same plan have the same digest, however often one of them was disturbed.

    Raises:
        StorageError: A file is missing or damaged.
    """
    total = hashlib.sha256()
    for kind in TABLES:
        entries = current_files(store.objects, kind)
        for folder, members in groupby(entries, key=lambda entry: entry["path"].rpartition("/")[0]):
            total.update(folder.encode())
            for table in _blocks(_batches(store.objects, list(members))):
                total.update(content_digest(table).encode())
    return total.hexdigest()


def content_digest(table: pa.Table) -> str:
    """SHA-256 of a table's content without its volatile columns, independent of how it is chunked in memory."""
    kept = table.drop_columns([name for name in table.column_names if name in VOLATILE])
    sink = pa.BufferOutputStream()
    with open_writer(sink, kept.schema) as writer:
        writer.write_table(kept.unify_dictionaries().combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _batches(objects: ObjectStore, entries: Sequence[FileEntry]) -> Iterator[pa.Table]:
    for entry in entries:
        with open_checked(objects, entry, REMEDY) as source:
            for batch in pq.ParquetFile(source).iter_batches(_DIGEST_ROWS):
                yield pa.Table.from_batches([batch])


def _blocks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows in blocks of one size, which says nothing of files and row groups."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        while rows + table.num_rows >= _DIGEST_ROWS:
            cut = _DIGEST_ROWS - rows
            yield pa.concat_tables([*waiting, table.slice(0, cut)])
            table, waiting, rows = table.slice(cut), [], 0
        waiting.append(table)
        rows += table.num_rows
    if waiting:
        yield pa.concat_tables(waiting)
