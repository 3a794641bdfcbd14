"""The raw logs of one attempt at a shard: closed files, within a budget of bytes.

``raw/<kind>-<number>.parquet`` in the attempt's folder, by kind:

* ``step_log`` and ``position_log`` of every trajectory, in the order they come. The two files of one number hold the
  same trajectories, so that pairs can be read on their own.
* ``topk``, ``hidden`` and ``logits`` of the random sample, as they come, and at the end of the extremes, one file each.

A file is closed once it has its size and its last trajectory is complete; from then on it can be read by itself,
whatever becomes of the attempt. The extremes are known at the end only: until then the candidates lie in nameless
files on the local disk, so memory is bounded by one batch and one row group per open file.

Budget. What does not fit any more is left out and counted, by upper bounds of what a table will take, so the limit
holds to the byte and a repeated attempt leaves out the same. Vectors leave room for the step logs; the sample comes
before the extremes, those with the larger risk integral first.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from typing import Final

import numpy as np
import pyarrow as pa

from dsprobe.decoding.records import RAW_CUT, RAW_SAMPLE
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.commit_record import FileRecord, RawOptions
from dsprobe.storage.derived import StepValues
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.open_table import OpenTable
from dsprobe.storage.raw_tables import position_log_table, step_log_table
from dsprobe.storage.raw_vectors import Entries, entries_of, group_rows, vector_tables
from dsprobe.storage.schemas import RawKind, open_writer, schema, width_in
from dsprobe.storage.selection import Candidate, candidates_of, select
from dsprobe.storage.tables import Index

STEP_KINDS: Final[tuple[RawKind, ...]] = ("step_log", "position_log")
VECTOR_KINDS: Final[tuple[RawKind, ...]] = ("topk", "hidden", "logits")

POSITION_ROWS: Final = 1 << 18
"""Rows of `position_log` that are made at a time."""

FILE_BYTES: Final = 16 << 10
"""Upper bound of what a file takes without its row groups: schema with notes, and metadata."""
GROUP_FOOT: Final = 4 << 10
"""Upper bound of a row group's part of the footer, without the texts in its statistics."""
GROUP_HEAD: Final = 8 << 10
"""Upper bound of a row group's page headers."""
ROW_BYTES: Final = {"step_log": 26, "position_log": 26}
VECTOR_ROW_BYTES: Final = 48
"""Upper bounds of a row, uncompressed; of a vector's row without the vector."""

_Key = tuple[str, int]


@dataclass(slots=True, kw_only=True)
class _Extreme:
    """A candidate, and its files on the local disk."""

    candidate: Candidate
    files: dict[RawKind, tuple[BufferedRandom, int]]
    """Kind → file and its number of rows."""

    @property
    def size(self) -> int:
        return sum(file.tell() for file, _ in self.files.values())

    def close(self) -> None:
        for file, _ in self.files.values():
            file.close()


class RawLog:
    """Raw logs of one attempt.

    Args:
        objects: The run's store.
        folder: The attempt's folder in it.
        run_id: Run that the files belong to.
        options: What is kept.
    """

    def __init__(self, objects: ObjectStore, folder: str, run_id: str, options: RawOptions) -> None:
        self.files: dict[str, FileRecord] = {}
        """Closed files, by name in the attempt's folder."""
        self._objects, self._folder, self._run_id, self._options = objects, folder, run_id, options
        self._kinds: tuple[RawKind, ...] = tuple(kind for kind in VECTOR_KINDS if kind in options.keep)
        self._open: dict[RawKind, OpenTable] = {}
        self._feet: Counter[RawKind] = Counter()
        self._numbers: Counter[RawKind] = Counter()
        self._extremes: dict[_Key, _Extreme] = {}
        self._without: dict[str, set[_Key]] = {"steps": set(), "vectors": set()}

    @property
    def dropped(self) -> dict[str, int]:
        """Trajectories without step logs and without vectors that should have them and did not fit."""
        return {what: len(keys) for what, keys in self._without.items()}

    def add(self, batch: EvaluatedBatch, values: StepValues) -> None:
        """Append what is kept of a batch.

        Args:
            batch: B trajectories.
            values: `step_values` of them.

        Raises:
            StorageError: The store failed, or a value is infinite.
        """
        if "steps" in self._options.keep:
            self._add_steps(batch, values)
        if self._kinds:
            self._add_vectors(batch)

    def finish(self) -> None:
        """Close what is open and write the extremes; `files` is then complete.

        Raises:
            StorageError: The store failed.
        """
        for kind in list(self._open):
            self._close(kind)
        best = sorted(self._extremes.values(), key=lambda e: (-e.candidate.tri, e.candidate.rank, e.candidate.key))
        for extreme in best:
            key = extreme.candidate.key
            if self._used() + extreme.size <= self._options.shard_bytes:
                self._publish(extreme)
                self._without["vectors"].discard(key)
            else:
                self._without["vectors"].add(key)
            extreme.close()
        self._extremes.clear()

    def discard(self) -> None:
        """Drop what is not closed; closed files stay for the caller to remove."""
        for open_file in self._open.values():
            open_file.discard()
        self._open.clear()
        for extreme in self._extremes.values():
            extreme.close()
        self._extremes.clear()

    # ---- step logs ------------------------------------------------------------------------------------------------

    def _add_steps(self, batch: EvaluatedBatch, values: StepValues) -> None:
        rows = batch.trajectories
        log = step_log_table(batch, values)
        ends_B = np.cumsum(np.maximum(rows.num_steps_B, 1))
        for part in _parts(rows.num_steps_B.astype(np.int64) * rows.response_BL.sum(axis=1)):
            start = int(ends_B[part[0] - 1]) if part[0] else 0
            tables: dict[RawKind, pa.Table] = {
                "step_log": log.slice(start, int(ends_B[part[-1]]) - start),
                "position_log": position_log_table(batch, part),
            }
            texts = _texts(batch, part)
            bound = sum(
                GROUP_HEAD + GROUP_FOOT + texts + table.num_rows * ROW_BYTES[kind] for kind, table in tables.items()
            )
            if not self._fits(STEP_KINDS, bound):
                self._without["steps"] |= {(rows.keys[row].prompt_id, rows.keys[row].sample) for row in part}
                continue
            for kind, table in tables.items():
                self._write(kind, batch, [table], "all", texts)
            if any(self._open[kind].size >= self._options.flush_bytes for kind in STEP_KINDS):
                for kind in STEP_KINDS:
                    self._close(kind)

    # ---- vectors --------------------------------------------------------------------------------------------------

    def _add_vectors(self, batch: EvaluatedBatch) -> None:
        rows = batch.trajectories
        candidates = candidates_of(batch)
        roles = rows.raw_B if rows.raw_B is not None else np.zeros(rows.num_rows, np.int8)
        for row in np.flatnonzero(roles == RAW_SAMPLE):
            if not self._add_sampled(batch, int(row)):
                self._without["vectors"].add(candidates[row].key)
        self._without["vectors"] |= {candidates[row].key for row in np.flatnonzero(roles == RAW_CUT)}
        if self._options.extreme:
            fresh = {candidates[row].key: int(row) for row in np.flatnonzero(roles != RAW_SAMPLE)}
            self._keep_extremes(batch, fresh, candidates)

    def _add_sampled(self, batch: EvaluatedBatch, row: int) -> bool:
        """Write a sampled row; False if it does not fit."""
        entries = self._entries(batch, row)
        texts = _texts(batch, [row])
        bound = sum(_vector_bound(found, texts) for found in entries.values())
        if not self._fits(list(entries), bound):
            return False
        for kind, found in entries.items():
            self._write(kind, batch, vector_tables(kind, batch, row, found), "sample", texts)
            if self._open[kind].size >= self._options.flush_bytes:
                self._close(kind)
        return True

    def _keep_extremes(self, batch: EvaluatedBatch, fresh: dict[_Key, int], candidates: list[Candidate]) -> None:
        """Replace candidates by better ones; those that cannot end up among the extremes are not written anywhere."""
        known = {candidate.key: candidate for candidate in candidates if candidate.key in fresh}
        everyone = [extreme.candidate for extreme in self._extremes.values()] + list(known.values())
        chosen = select(everyone, 0, self._options.extreme)
        for key in [key for key in self._extremes if key not in chosen]:
            self._extremes.pop(key).close()
        for key, row in fresh.items():
            if key in chosen:
                files = {
                    kind: self._scratch(kind, batch, vector_tables(kind, batch, row, found))
                    for kind, found in self._entries(batch, row).items()
                }
                self._extremes[key] = _Extreme(candidate=known[key], files=files)

    def _entries(self, batch: EvaluatedBatch, row: int) -> dict[RawKind, Entries]:
        found = {kind: entries_of(kind, batch.trajectories, row) for kind in self._kinds}
        return {kind: entries for kind, entries in found.items() if entries}

    def _scratch(self, kind: RawKind, batch: EvaluatedBatch, tables: Iterator[pa.Table]) -> tuple[BufferedRandom, int]:
        """A complete Parquet file without a name: a kill leaves nothing behind."""
        first = next(tables)
        target, count = self._schema(kind, batch, width_in(first.schema), "extreme"), 0
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its candidate
        with open_writer(file, target) as writer:
            for table in _chain(first, tables):
                writer.write_table(table.replace_schema_metadata(target.metadata))
                count += table.num_rows
        return file, count

    def _publish(self, extreme: _Extreme) -> None:
        for kind, (file, rows) in extreme.files.items():
            name, size = self._next_name(kind), file.tell()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with self._objects.create(f"{self._folder}/{name}") as sink:
                shutil.copyfileobj(file, sink, 1 << 20)
            self.files[name] = FileRecord(bytes=size, sha256=sha256, rows=rows)

    # ---- files ----------------------------------------------------------------------------------------------------

    def _write(
        self, kind: RawKind, batch: EvaluatedBatch, tables: Iterable[pa.Table], selection: str, texts: int
    ) -> None:
        for table in tables:
            if kind not in self._open:
                target = self._schema(kind, batch, width_in(table.schema), selection)
                self._open[kind] = OpenTable(self._objects, f"{self._folder}/{self._next_name(kind)}", target)
            self._open[kind].write(table)
            self._feet[kind] += GROUP_FOOT + texts

    def _close(self, kind: RawKind) -> None:
        number = self._numbers[kind] - 1
        self.files[_name(kind, number)] = self._open[kind].finish()
        del self._open[kind], self._feet[kind]

    def _next_name(self, kind: RawKind) -> str:
        self._numbers[kind] += 1
        return _name(kind, self._numbers[kind] - 1)

    def _schema(self, kind: RawKind, batch: EvaluatedBatch, width: int, selection: str) -> pa.Schema:
        plain = schema(kind, run_id=self._run_id, width=width)
        more = {"dsprobe.condition": batch.condition.id, "dsprobe.selection": selection}
        return plain.with_metadata({**plain.metadata, **more})

    def _used(self, kinds: Sequence[RawKind] | None = None) -> int:
        """Bytes written, and an upper bound of the footers that are still to come; of some kinds or all."""
        closed = sum(r.bytes for name, r in self.files.items() if kinds is None or _kind(name) in kinds)
        return closed + sum(
            table.size + FILE_BYTES + self._feet[kind]
            for kind, table in self._open.items()
            if kinds is None or kind in kinds
        )

    def _fits(self, kinds: Sequence[RawKind], bound: int) -> bool:
        """Whether more row groups of some kinds fit; vectors leave what is set aside for the step logs."""
        aside = 0 if kinds is STEP_KINDS else max(0, self._options.step_bytes - self._used(STEP_KINDS))
        fresh = sum(FILE_BYTES for kind in kinds if kind not in self._open)
        return self._used() + fresh + bound + aside <= self._options.shard_bytes


def _name(kind: RawKind, number: int) -> str:
    return f"raw/{kind}-{number:05d}.parquet"


def _kind(name: str) -> str:
    return name.removeprefix("raw/").rpartition("-")[0]


def _vector_bound(entries: Entries, texts: int) -> int:
    """Upper bound of what a trajectory's vectors take: incompressible, and every page with its header."""
    groups = -(-len(entries) // group_rows(entries))
    vectors = len(entries) * (entries.width * entries.itemsize * 17 // 16 + VECTOR_ROW_BYTES)
    return groups * (GROUP_HEAD + GROUP_FOOT + texts) + vectors


def _texts(batch: EvaluatedBatch, rows: Sequence[int] | Index) -> int:
    """Upper bound of what keys and labels take in a row group: dictionaries, and statistics in head and foot."""
    labels = len(batch.condition.id.encode()) * 2
    prompts = sum(len(batch.trajectories.keys[row].prompt_id.encode()) + 4 for row in rows)
    longest = max(len(batch.trajectories.keys[row].prompt_id.encode()) for row in rows)
    return 8 * (labels + longest) + prompts


def _parts(positions_B: Index) -> Iterator[Index]:
    """Cut rows into runs of at most `POSITION_ROWS` rows of `position_log`, at least one row each."""
    start, total = 0, 0
    for row, count in enumerate(positions_B):
        if row > start and total + count > POSITION_ROWS:
            yield np.arange(start, row)
            start, total = row, 0
        total += int(count)
    if len(positions_B):
        yield np.arange(start, len(positions_B))


def _chain(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest
