"""Writing one attempt at a shard: streamed while it is generated, real only once committed.

Memory is bounded by a batch and the position rows of the few candidate trajectories, whatever the shard's size.
"""

from __future__ import annotations

import uuid
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.storage.commit_record import COMMIT_VERSION, CommitRecord, FileRecord, WriterOptions
from dsprobe.storage.derived import step_values
from dsprobe.storage.open_table import OpenTable
from dsprobe.storage.raw_log import RawLog
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import commit_name, shard_folder
from dsprobe.storage.schemas import schema
from dsprobe.storage.selection import Candidate, candidates_of, select
from dsprobe.storage.tables import positions_table, steps_table, trajectories_table

if TYPE_CHECKING:
    from dsprobe.storage.run_store import RunStore


class ShardWriter:
    """One attempt at a shard; from `RunStore.open_attempt`. As a context manager it aborts unless committed.

    Args:
        store: The run.
        shard_id: The shard.
        options: What the files hold.
    """

    def __init__(self, store: RunStore, shard_id: str, options: WriterOptions) -> None:
        self.shard_id, self.attempt = shard_id, uuid.uuid4().hex
        self._store, self._options = store, options
        self.state = ReducerState(options.threshold)
        """Statistics of what was added."""
        self._candidates: dict[tuple[str, int], tuple[Candidate, pa.Table]] = {}
        self._condition: Condition | None = None
        self._files: dict[str, FileRecord] = {}
        self._open: dict[str, OpenTable] = {}
        folder = shard_folder(shard_id, self.attempt)
        self._raw = RawLog(store.objects, folder, store.run_id, options.raw) if options.raw.keep else None
        self._finished = False

    def add(self, batch: EvaluatedBatch) -> None:
        """Append a batch: its rows go to the files, its statistics into the reducer state.

        Raises:
            StorageError: The store failed, a value is infinite, or the batch is of another condition.
        """
        self._require_unfinished()
        if self._condition not in (None, batch.condition):
            raise StorageError(f"Shard `{self.shard_id}` holds `{self._condition}`; cannot add `{batch.condition}`.")
        self._condition = batch.condition
        values = step_values(batch.trajectories)
        trajectories = schema("trajectories", judges=batch.verdicts, run_id=self._store.run_id)
        self._table("trajectories", trajectories).write(trajectories_table(batch, values))
        self._table("steps").write(steps_table(batch, values))
        self._keep_candidates(batch)
        if self._raw is not None:
            self._raw.add(batch, values)
        self.state.update(batch, values)

    def commit(self) -> bool:
        """Finish the files and make the attempt count, unless another attempt did first.

        Returns:
            True if this attempt is now the shard's; False if another one is, in which case this one's files are gone.

        Raises:
            StorageError: The store failed, or nothing was added.
        """
        self._require_unfinished()
        if self._condition is None:
            raise StorageError(f"Shard `{self.shard_id}` has no rows to commit.")
        self._table("positions").write(self._positions())
        for kind, table in self.state.to_tables(self._store.run_id).items():
            self._table(kind, table.schema).write(table)
        for kind in list(self._open):
            self._files[f"{kind}.parquet"] = self._open[kind].finish()
            del self._open[kind]
        if self._raw is not None:
            self._raw.finish()
        # From here on the record may exist even if the answer is lost, so an error must not lead to removed files.
        self._finished = True
        won = self._store.objects.put_if_absent(commit_name(self.shard_id), self._record().to_json())
        if not won:
            self._remove_files()
        return won

    @property
    def bytes_written(self) -> dict[str, int]:
        """Bytes of the attempt's finished files: table, or ``raw/`` and kind of log → bytes."""
        found: Counter[str] = Counter()
        for name, file in self._all_files().items():
            found[name.removesuffix(".parquet").partition("-")[0]] += file.bytes
        return dict(found)

    def abort(self) -> None:
        """Drop the attempt and its files; does nothing once `commit` has asked for the record or after an abort."""
        if self._finished:
            return
        self._finished = True
        for table_file in self._open.values():
            table_file.discard()
        self._open.clear()
        if self._raw is not None:
            self._raw.discard()
        self._remove_files()

    def _remove_files(self) -> None:
        for name in self._all_files():
            self._store.objects.remove(f"{shard_folder(self.shard_id, self.attempt)}/{name}")

    def _all_files(self) -> dict[str, FileRecord]:
        return self._files if self._raw is None else self._files | self._raw.files

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _record(self) -> CommitRecord:
        assert self._condition is not None
        return CommitRecord(
            version=COMMIT_VERSION,
            shard_id=self.shard_id,
            attempt=self.attempt,
            condition=self._condition,
            options=self._options,
            files=self._all_files(),
            raw_dropped={} if self._raw is None else self._raw.dropped,
        )

    def _table(self, kind: str, table_schema: pa.Schema | None = None) -> OpenTable:
        if kind not in self._open:
            name = f"{shard_folder(self.shard_id, self.attempt)}/{kind}.parquet"
            target = table_schema or schema(kind, run_id=self._store.run_id)
            self._open[kind] = OpenTable(self._store.objects, name, target)
        return self._open[kind]

    def _keep_candidates(self, batch: EvaluatedBatch) -> None:
        """Build position rows for those rows only that may end up in the final selection."""
        fresh = {c.key: (row, c) for row, c in enumerate(candidates_of(batch))}
        everyone = [c for c, _ in self._candidates.values()] + [c for _, c in fresh.values()]
        chosen = select(everyone, self._options.sample_positions, self._options.extreme_positions)
        self._candidates = {key: kept for key, kept in self._candidates.items() if key in chosen}
        for key, (row, candidate) in fresh.items():
            if key in chosen:
                table = positions_table(batch, np.array([row]), [chosen[key]])
                self._candidates[key] = (candidate, table)

    def _positions(self) -> pa.Table:
        tables = [table for _, table in self._candidates.values()]
        return pa.concat_tables(tables).unify_dictionaries() if tables else schema("positions").empty_table()

    def _require_unfinished(self) -> None:
        if self._finished:
            raise StorageError(f"Attempt {self.attempt} at shard `{self.shard_id}` is over; open a new one.")
