"""The tables of one model and attack: conditions one after another, the rows of their shards in one stream.

Of a condition the trajectories are read first: sorted shard by shard into a scratch file, while the final selection of
the `positions` table is chosen. Then steps are merged from the shards themselves, in the order that is known by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.config import UNGUARDED
from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.commit_record import CommitRecord
from dsprobe.storage.lockstep import Lockstep, row_key
from dsprobe.storage.merged_state import MergedState
from dsprobe.storage.merging import KEY, PIECE_BYTES, Key, Rows, Run, in_order, merged
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import TableKind, judges_in, schema, with_metadata
from dsprobe.storage.scores import JudgeScores, scores_of, with_scores
from dsprobe.storage.scratch import Scratch, Stored
from dsprobe.storage.selection import Candidate, Selection, sample_rank, select
from dsprobe.storage.statistics import finalise
from dsprobe.storage.table_files import Int64, TableFiles
from dsprobe.storage.table_index import FileEntry
from dsprobe.storage.tables import condition_columns

STATE_FILES: Final = ("reducer_counts", "reducer_sums")

_STATISTICS: Final[tuple[TableKind, ...]] = ("step_stats", "position_stats")
_LABELS: Final = ("condition", *(part.name for part in fields(Condition)))
_IDENTITY: Final = (*KEY, "num_steps")


@dataclass(slots=True)
class _Chosen:
    """A trajectory whose positions are kept, and the shard that has them."""

    candidate: Candidate
    reason: Selection
    shard: int


@dataclass(slots=True)
class _Survey:
    """What the trajectories of a condition say before any table is written."""

    runs: list[Run]
    """One a shard, of its trajectories in the scratch file."""
    chosen: dict[Key, _Chosen]


class PartitionWriter:
    """Some tables of one model and attack; a context manager that owns the scratch files.

    Args:
        store: The run.
        partition: Hive folders.
        scored: Judges that scored the run later.
        kinds: Tables to write.
        known: Statistics of shards that need not be read.
    """

    def __init__(
        self,
        store: RunStore,
        partition: str,
        scored: Sequence[JudgeScores],
        kinds: set[TableKind],
        known: MergedState,
    ) -> None:
        self._store, self._partition, self._scored, self._kinds = store, partition, scored, kinds
        self._known = known
        self._files: dict[TableKind, TableFiles] = {}
        self._scratch = Scratch()
        self._unguarded: dict[Condition, Stored] = {}

    def __enter__(self) -> PartitionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.close()

    def add(self, condition: Condition, records: Sequence[CommitRecord]) -> None:
        """Append a condition; they come in the order of their ids.

        Args:
            condition: The condition.
            records: Its shards, in an order of their own.

        Raises:
            StorageError: A shard's file is damaged, or the store failed.
        """
        with Scratch() as scratch:
            if self._kinds & {"trajectories", "steps", "positions"}:
                survey = self._survey(condition, records, scratch)
                if "trajectories" in self._kinds:
                    self._add_trajectories(condition, merged(survey.runs, scratch))
                if "steps" in self._kinds:
                    self._add_steps(condition, records, survey, scratch)
                if "positions" in self._kinds:
                    self._add_positions(condition, records, survey)
        if self._kinds & set(_STATISTICS):
            self._add_statistics(condition, records)
        for files in self._files.values():
            files.end_group()

    def publish(self) -> dict[TableKind, list[FileEntry]]:
        """Put the files into the store and describe them."""
        return {kind: files.publish() for kind, files in sorted(self._files.items())}

    def _write(self, kind: TableKind, table: pa.Table, bounds: Int64) -> None:
        if kind not in self._files:
            self._files[kind] = TableFiles(self._store.objects, f"tables/{kind}/{self._partition}", table.schema)
        self._files[kind].write(table, bounds)

    def _survey(self, condition: Condition, records: Sequence[CommitRecord], scratch: Scratch) -> _Survey:
        options = records[0].options
        survey = _Survey([], {})
        for shard, record in enumerate(records):
            table = in_order(self._read(record, "trajectories"))
            shards = {key: chosen.shard for key, chosen in survey.chosen.items()}
            everyone = {key: chosen.candidate for key, chosen in survey.chosen.items()}
            everyone |= {candidate.key: candidate for candidate in _candidates(condition, table)}
            kept = select(everyone.values(), options.sample_positions, options.extreme_positions)
            survey.chosen = {key: _Chosen(everyone[key], why, shards.get(key, shard)) for key, why in kept.items()}
            rows = Rows.of(table)
            stored = scratch.stored(piece.table for piece in rows.pieces(PIECE_BYTES))
            first, last = (rows.keys[0], rows.keys[-1]) if rows.keys else (None, None)
            survey.runs.append(Run(first, last, stored.tables))
        return survey

    def _add_trajectories(self, condition: Condition, chunks: Iterable[Rows]) -> None:
        """Write the trajectories; identities of an unguarded condition are kept for its guarded twins."""
        cell = replace(condition, guardrail=UNGUARDED)
        if condition == cell:
            self._unguarded[cell] = self._scratch.stored()
        twin = self._unguarded.get(cell) if condition != cell else None
        steps = Lockstep(twin.tables(), _identity_schema()) if twin else None
        scores = scores_of(self._scored, condition.id)
        for rows in chunks:
            identity = rows.table.select(_IDENTITY)
            if condition == cell:
                self._unguarded[cell].append(identity)
            table = self._labelled("trajectories", condition, rows.table)
            if condition == cell or steps is not None:
                table = _with_extra_steps(table, identity if steps is None else steps.matching(identity))
            self._write("trajectories", with_scores(table, scores, self._store.run_id), rows.bounds)

    def _add_steps(
        self, condition: Condition, records: Sequence[CommitRecord], survey: _Survey, scratch: Scratch
    ) -> None:
        """Write the steps; a shard's are read when those of its first trajectory are due."""
        runs = [
            replace(run, read=partial(self._sorted, record, "steps"))
            for run, record in zip(survey.runs, records, strict=True)
        ]
        for rows in merged(runs, scratch):
            self._write("steps", self._labelled("steps", condition, rows.table), rows.bounds)

    def _add_positions(self, condition: Condition, records: Sequence[CommitRecord], survey: _Survey) -> None:
        """Write the positions of the chosen trajectories, reading only the shards that have one."""
        names = pa.array([f"{sample}/{prompt}" for prompt, sample in survey.chosen], pa.string())
        reasons = pa.array([chosen.reason for chosen in survey.chosen.values()], pa.string())
        parts = []
        for shard in sorted({chosen.shard for chosen in survey.chosen.values()}):
            candidates = self._read(records[shard], "positions")
            which_N = pc.index_in(row_key(candidates), value_set=names)
            kept = candidates.filter(which_N.is_valid())
            index = kept.schema.get_field_index("selection")
            parts.append(kept.set_column(index, kept.schema.field(index), reasons.take(which_N.drop_null())))
        if not parts:
            parts.append(self._read(records[0], "positions").slice(0, 0))
        rows = Rows.of(in_order(pa.concat_tables(parts)))
        self._write("positions", self._labelled("positions", condition, rows.table), rows.bounds)

    def _add_statistics(self, condition: Condition, records: Sequence[CommitRecord]) -> None:
        """Write the statistics, from what is known and the states of the other shards."""
        state, covered = self._known.of(condition, [record.shard_id for record in records])
        state = state or ReducerState(records[0].options.threshold)
        for record in (record for record in records if record.shard_id not in covered):
            tables = {kind: self._store.read_shard(record, f"{kind}.parquet") for kind in STATE_FILES}
            state.merge(ReducerState.from_tables(tables))
        for kind, table in finalise(state, self._store.run_id).items():
            for wanted in _STATISTICS:
                if kind == wanted and wanted in self._kinds:
                    self._write(wanted, table, np.arange(table.num_rows + 1))

    def _read(self, record: CommitRecord, kind: TableKind) -> pa.Table:
        """A shard's table without the columns that are the same in the whole condition."""
        return self._store.read_shard(record, f"{kind}.parquet").drop_columns(_LABELS)

    def _sorted(self, record: CommitRecord, kind: TableKind) -> list[pa.Table]:
        return [in_order(self._read(record, kind))]

    def _labelled(self, kind: TableKind, condition: Condition, rows: pa.Table) -> pa.Table:
        """Rows with the columns of their condition, in the order of the schema."""
        labels = {name: pa.chunked_array([c]) for name, c in condition_columns(condition, rows.num_rows).items()}
        names = schema(kind, judges=judges_in(rows.schema)).names
        table = pa.table({name: labels[name] if name in labels else rows[name] for name in names})
        return with_metadata(table, kind, self._store.run_id)


def _identity_schema() -> pa.Schema:
    columns = schema("trajectories")
    return pa.schema([columns.field(name) for name in _IDENTITY])


def _candidates(condition: Condition, trajectories: pa.Table) -> Iterator[Candidate]:
    columns = (trajectories[name].to_pylist() for name in (*KEY, "tri_predicted"))
    for prompt, sample, tri in zip(*columns, strict=True):
        rank = sample_rank(condition.id, prompt, sample)
        yield Candidate(prompt_id=prompt, sample=sample, rank=rank, tri=tri)


def _with_extra_steps(rows: pa.Table, twins: pa.Table) -> pa.Table:
    """Fill `extra_steps`.

    Args:
        rows: N trajectories.
        twins: The same N in the unguarded condition of the same cell, null where it does not have one.
    """
    index = rows.schema.get_field_index("extra_steps")
    return rows.set_column(index, rows.schema.field(index), pc.subtract(rows["num_steps"], twins["num_steps"]))
