"""Tables of the vectors of one trajectory: top-k tokens, hidden states, logits; in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.decoding.records import TrajectoryBatch
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.schemas import RawKind
from dsprobe.storage.tables import Columns, Index, arrow_table, entry_columns

GROUP_BYTES: Final = 16 << 20
"""Vectors of a row group at most; a reader holds one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """N entries of one row in the order of the file: by step, then position, then layer."""

    step_N: Index
    """Index s."""
    at_N: Index
    """Position in the canvas."""
    slot_N: Index
    """`hidden`: index into the layers; `logits`: index into what was kept of the step; else 0."""
    width: int
    """Length of a vector."""
    itemsize: int
    """Bytes of an element of it."""

    def __len__(self) -> int:
        return len(self.step_N)


def entries_of(kind: RawKind, rows: TrajectoryBatch, row: int) -> Entries | None:
    """Find a row's entries in its response.

    Args:
        kind: ``topk``, ``hidden`` or ``logits``.
        rows: The batch.
        row: Row in it.

    Returns:
        `None` where the batch holds no such values.
    """
    steps, response_L = int(rows.num_steps_B[row]), rows.response_BL[row]
    if kind == "topk" and rows.topk_tokens_SBLK is not None:
        step_N, at_N = np.nonzero((rows.topk_tokens_SBLK[:steps, row, :, 0] >= 0) & response_L)
        return _entries(step_N, at_N, np.zeros_like(at_N), rows.topk_tokens_SBLK.shape[-1], 6)
    if kind == "hidden" and rows.hidden_SBLD:
        count = len(rows.hidden_SBLD)
        shape = (steps, int(response_L.sum()), count)
        step_N, place_N, slot_N = (index.ravel() for index in np.indices(shape))
        return _entries(
            step_N, np.flatnonzero(response_L)[place_N], slot_N, next(iter(rows.hidden_SBLD.values())).shape[-1], 2
        )
    if kind == "logits" and rows.logits_NV:
        return _logit_entries(rows, row, steps, response_L)
    return None


def _entries(step_N: Index, at_N: Index, slot_N: Index, width: int, itemsize: int) -> Entries:
    return Entries(step_N=step_N, at_N=at_N, slot_N=slot_N, width=width, itemsize=itemsize)


def _logit_entries(rows: TrajectoryBatch, row: int, steps: int, response_L: npt.NDArray[np.bool_]) -> Entries:
    assert rows.logits_NV is not None
    assert rows.logits_row_N is not None
    assert rows.logits_position_N is not None
    found = [np.empty((0, 3), np.intp)]
    for step in range(steps):
        position_N = rows.logits_position_N[step]
        slot_K = np.flatnonzero((rows.logits_row_N[step] == row) & response_L[position_N])
        slot_K = slot_K[np.argsort(position_N[slot_K], kind="stable")]
        found.append(np.stack([np.full_like(slot_K, step), position_N[slot_K], slot_K], axis=1))
    step_N, at_N, slot_N = np.concatenate(found).T
    return _entries(step_N, at_N, slot_N, rows.logits_NV[0].shape[-1], 2)


def vector_tables(kind: RawKind, batch: EvaluatedBatch, row: int, entries: Entries) -> Iterator[pa.Table]:
    """Give a row's table in pieces, each a row group.

    Args:
        kind: See `entries_of`.
        batch: The batch.
        row: Row in it.
        entries: From `entries_of`.
    """
    for start in range(0, len(entries), (size := group_rows(entries))):
        part = slice(start, start + size)
        step_N, at_N, slot_N = entries.step_N[part], entries.at_N[part], entries.slot_N[part]
        where = (step_N, np.full_like(step_N, row), at_N)
        columns = entry_columns(batch, where) | _vectors(kind, batch.trajectories, where, slot_N)
        yield arrow_table(kind, columns, width=entries.width)


def group_rows(entries: Entries) -> int:
    """Entries of a row group."""
    return max(1, GROUP_BYTES // max(1, entries.width * entries.itemsize))


def _vectors(kind: RawKind, rows: TrajectoryBatch, where: tuple[Index, Index, Index], slot_N: Index) -> Columns:
    if kind == "topk":
        assert rows.topk_tokens_SBLK is not None
        assert rows.topk_logprobs_SBLK is not None
        return {"tokens": _list(rows.topk_tokens_SBLK[where]), "logprobs": _list(rows.topk_logprobs_SBLK[where])}
    if kind == "hidden":
        assert rows.hidden_SBLD is not None
        layers = np.array(list(rows.hidden_SBLD), np.int16)
        state_ND = np.empty((len(slot_N), next(iter(rows.hidden_SBLD.values())).shape[-1]), np.float16)
        for slot, state_SBLD in enumerate(rows.hidden_SBLD.values()):
            mine_N = slot_N == slot
            state_ND[mine_N] = state_SBLD[tuple(index[mine_N] for index in where)]
        return {"layer": layers[slot_N], "state": _list(state_ND)}
    assert rows.logits_NV is not None
    step_N = where[0]
    parts = [rows.logits_NV[int(step)][slot_N[step_N == step]] for step in np.unique(step_N)]
    return {"logits": _list(np.concatenate(parts))}


def _list(values_NK: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NK.reshape(-1)), values_NK.shape[-1])
