"""Row outcomes that outlive their trial: one Parquet file for each setting and share of the prompts.

The name of a file is the setting's digest, so the archive is also the cache of a search: samplers repeat settings
(NSGA-II above all), and a setting that ran once costs nothing again, in this session or a later one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsprobe.errors import StorageError
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.judges.base import VERDICT_PREFIX
from dsprobe.storage.objects import ObjectStore

FOLDER: Final = "sweep/trials"
"""Where the files lie, below the run's folder."""

_TYPES: Final[Mapping[str, pa.DataType]] = {
    "condition": pa.string(),
    "prompts": pa.string(),
    "attack": pa.string(),
    "prompt_index": pa.int64(),
    "prompt_id": pa.string(),
    "sample": pa.int64(),
    "harmful": pa.bool_(),
    "empty": pa.bool_(),
    "log_perplexity": pa.float64(),
    "num_steps": pa.int64(),
    "passes": pa.int64(),
    "passes_used": pa.int64(),
    "positions": pa.int64(),
    "interventions": pa.int64(),
    "margin": pa.float64(),
}
"""Columns beside the verdicts."""

_TEXT: Final = [name for name, dtype in _TYPES.items() if pa.types.is_string(dtype)]


class Archive:
    """Outcomes by guardrail digest and rung; picklable.

    Args:
        store: The run's folder. ``memory://`` stores exist in one process only, and trials run in others.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def name(self, digest: str, start: float, stop: float) -> str:
        """Object name of the rows of the prompts' share from `start` to `stop`."""
        return f"{FOLDER}/{digest}-{float(start)!r}-{float(stop)!r}.parquet"

    def get(self, digest: str, start: float, stop: float) -> RowOutcomes | None:
        """What a setting did to a share of the prompts, or `None` where it has not run.

        Args:
            digest: `dsprobe.sweeps.space.guardrail_digest` of the setting.
            start: Share of every prompt set at which the rows start.
            stop: Share at which they end.

        Raises:
            StorageError: The file is damaged, or the store failed.
        """
        name = self.name(digest, start, stop)
        if not self.store.exists(name):
            return None
        data = self.store.read(name)
        try:
            return from_table(pq.read_table(io.BytesIO(data)))
        except (pa.ArrowException, KeyError, TypeError, ValueError, OSError, MemoryError) as error:
            raise StorageError(
                f"{self.store.address(name)} is damaged ({error}); delete it to run it again."
            ) from error

    def put(self, digest: str, start: float, stop: float, outcomes: RowOutcomes) -> bool:
        """Keep outcomes, durably, unless some of that name are kept.

        Returns:
            True if these are kept now, False if others were first.

        Raises:
            StorageError: The store failed.
        """
        sink = io.BytesIO()
        # A dictionary would merge 0 and −0, which are equal but not the same bits.
        pq.write_table(to_table(outcomes), sink, compression="zstd", use_dictionary=_TEXT)
        return self.store.put_if_absent(self.name(digest, start, stop), sink.getvalue())

    def through(self, digest: str, rungs: Sequence[float]) -> RowOutcomes:
        """All rows of a setting up to the last of some rungs; see `parts`."""
        return RowOutcomes.concatenate(self.parts(digest, rungs))

    def parts(self, digest: str, rungs: Sequence[float]) -> list[RowOutcomes]:
        """The rows that each of some rungs added.

        Args:
            digest: See `get`.
            rungs: Growing shares, the first increment starting at 0.

        Raises:
            StorageError: A rung is missing.
        """
        parts = []
        for start, stop in increments(rungs):
            part = self.get(digest, start, stop)
            if part is None:
                raise StorageError(
                    f"{self.store.address(self.name(digest, start, stop))} is missing: the study says that this "
                    "setting ran, but its outcomes are gone. Put the file back, or start a new sweep."
                )
            parts.append(part)
        return parts


def increments(rungs: Sequence[float]) -> list[tuple[float, float]]:
    """Shares between one rung and the next, the first from 0."""
    return list(zip([0.0, *rungs[:-1]], rungs, strict=True))


def to_table(outcomes: RowOutcomes) -> pa.Table:
    """One Arrow row for each row, one column ``verdict_<judge>`` for each judge."""
    columns = outcomes.columns()
    verdicts = columns.pop("verdicts")
    arrays = {name: pa.array(columns[name], dtype) for name, dtype in _TYPES.items()}
    for judge in sorted(verdicts):
        # `from_pandas=False` keeps NaN a value: it says that the judge has no opinion.
        arrays[VERDICT_PREFIX + judge] = pa.array(verdicts[judge], pa.float64(), from_pandas=False)
    return pa.table(arrays)


def from_table(table: pa.Table) -> RowOutcomes:
    """The inverse of `to_table`, bit for bit.

    Raises:
        KeyError: A column is missing.
    """
    judges = [name for name in table.column_names if name.startswith(VERDICT_PREFIX)]
    verdicts = {name.removeprefix(VERDICT_PREFIX): _numpy(table.column(name)) for name in judges}
    return RowOutcomes(**{name: _numpy(table.column(name)) for name in _TYPES}, verdicts=verdicts)


def _numpy(column: pa.ChunkedArray) -> Any:
    values = column.to_numpy()
    return values.astype(np.str_) if pa.types.is_string(column.type) else values
