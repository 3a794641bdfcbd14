"""From an evaluated batch to Arrow tables, one vectorised pass per table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.decoding.records import TrajectoryBatch, by_guardrails
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.judges.base import VERDICT_PREFIX
from dsprobe.storage.derived import QUANTITIES, StepValues, masked_before, require_finite
from dsprobe.storage.schemas import schema

Index = npt.NDArray[np.intp]
Columns = dict[str, Any]


def trajectories_table(batch: EvaluatedBatch, values: StepValues) -> pa.Table:
    """One row per trajectory, in batch order.

    Args:
        batch: B trajectories.
        values: `step_values` of the same batch.
    """
    rows = batch.trajectories
    canvas, tokens, commit_step = (_unpadded(rows, a) for a in (rows.canvas_BL, rows.tokens_BL, rows.commit_step_BL))
    start_B, end_B = response_bounds(rows)
    columns: Columns = {
        **row_keys(batch.condition, rows, np.arange(rows.num_rows)),
        "category": pa.array([prompt.category for prompt in batch.prompts], pa.string()),
        "harmful": pa.array([prompt.harmful for prompt in batch.prompts], pa.bool_()),
        "canvas": canvas,
        "response_start": start_B,
        "response_end": end_B,
        "tokens": tokens,
        "commit_step": commit_step,
        "events": pa.array(_events(rows), pa.string()),
        "interventions": np.array([len(by_guardrails(events)) for events in rows.events], np.int16),
        "text": pa.array(batch.texts, pa.string()),
        "empty": batch.empty_B,
        "num_steps": rows.num_steps_B,
        "extra_steps": pa.nulls(rows.num_rows, pa.int16()),
        "forward_passes": rows.forward_passes_B,
        "kl_slope": batch.kl_slope_B,
        "margin": rows.margin_B,
        "wall_seconds": rows.wall_seconds_B,
    }
    for view in ("committed", "predicted"):
        columns[f"fhs_{view}"] = batch.fhs_B[view]
        columns[f"fhs_{view}_event"] = batch.fhs_event_B[view]
        columns[f"tri_{view}"] = batch.tri_B[view]
        columns[f"risk_{view}_final"] = _last(values.values[f"risk_{view}"], rows.num_steps_B).astype(np.float32)
    for judge, verdicts in batch.verdicts.items():
        columns[VERDICT_PREFIX + judge] = pa.array(verdicts, pa.bool_())
    return arrow_table("trajectories", columns, judges=batch.verdicts)


def steps_table(batch: EvaluatedBatch, values: StepValues) -> pa.Table:
    """One row per trajectory and step up to the trajectory's last, ordered by row, then step."""
    rows = batch.trajectories
    row_N, step_N = np.nonzero(values.running_SB.T)
    columns: Columns = {
        **row_keys(batch.condition, rows, row_N),
        "step": step_N + 1,
        "num_steps": rows.num_steps_B[row_N],
        **{name: values.values[name][step_N, row_N] for name in QUANTITIES},
        "masked": values.masked_SB[step_N, row_N],
        "committed": values.committed_SB[step_N, row_N],
        "action": rows.action_SB[step_N, row_N],
        "remasked": values.remasked_SB[step_N, row_N],
    }
    return arrow_table("steps", columns)


def positions_table(batch: EvaluatedBatch, chosen: Index, selection: list[str]) -> pa.Table:
    """One row per trajectory, step and response position of chosen trajectories.

    Args:
        batch: B trajectories.
        chosen: Rows of the batch to store.
        selection: Why each of them was chosen: ``"sample"`` or ``"extreme"``.
    """
    chosen_N, columns = position_columns(batch, chosen)
    defined_N = masked_before(batch.trajectories)[response_entries(batch.trajectories, chosen)[1]]
    columns["probability"] = np.where(defined_N, columns["probability"], np.float16(np.nan))
    columns["selection"] = pa.array(selection, pa.string()).take(pa.array(chosen_N))
    return arrow_table("positions", columns)


def response_entries(rows: TrajectoryBatch, chosen: Index) -> tuple[Index, tuple[Index, Index, Index]]:
    """All response positions of all steps of chosen rows, ordered by row, step and position.

    Returns:
        Index into `chosen` of each entry, and the index of the entries into a plane ``[S, B, L]``.
    """
    running_CS = np.arange(rows.max_steps)[None] < rows.num_steps_B[chosen, None]
    wanted_CSL = running_CS[:, :, None] & rows.response_BL[chosen, None]
    chosen_N, step_N, at_N = np.nonzero(wanted_CSL)
    return chosen_N, (step_N, chosen[chosen_N], at_N)


def entry_columns(batch: EvaluatedBatch, where: tuple[Index, Index, Index]) -> Columns:
    """Keys, step and position of entries of a plane ``[S, B, L]``."""
    rows = batch.trajectories
    step_N, row_N, at_N = where
    return {
        **row_keys(batch.condition, rows, row_N),
        "step": step_N + 1,
        "position": (np.cumsum(rows.response_BL, axis=1) - 1)[row_N, at_N],
    }


def position_columns(batch: EvaluatedBatch, chosen: Index) -> tuple[Index, Columns]:
    """What was recorded at the response positions of chosen rows, in the order of `response_entries`.

    Returns:
        Index into `chosen` of each entry, and the columns that `positions` and `position_log` have in common.

    Raises:
        StorageError: A value is infinite.
    """
    rows = batch.trajectories
    chosen_N, where = response_entries(rows, chosen)
    columns: Columns = {
        **entry_columns(batch, where),
        "token": rows.predicted_SBL[where],
        "in_canvas": rows.committed_SBL[where],
    }
    planes = {"probability": rows.probability_SBL, "entropy": rows.entropy_SBL}
    planes |= {"kl": rows.kl_SBL, "attribution": rows.attribution_SBL}
    for name, plane_SBL in planes.items():
        columns[name] = plane_SBL[where]
        require_finite(name, columns[name])
    return chosen_N, columns


def response_bounds(rows: TrajectoryBatch) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """First and one-past-last response position of each row, counted without padding; 0, 0 without a response."""
    index_BL = np.cumsum(rows.real_BL, axis=1) - 1
    inside_BL = rows.response_BL & rows.real_BL
    start_B = np.where(inside_BL, index_BL, index_BL.shape[1]).min(axis=1)
    end_B = np.where(inside_BL, index_BL + 1, 0).max(axis=1)
    return np.minimum(start_B, end_B).astype(np.int32), end_B.astype(np.int32)


def condition_columns(condition: Condition, count: int) -> Columns:
    """The condition's id and its parts, constant over `count` rows."""
    labels = {"condition": condition.id, **asdict(condition)}
    return {name: pa.repeat(pa.scalar(label, pa.string()), count) for name, label in labels.items()}


def row_keys(condition: Condition, rows: TrajectoryBatch, row_N: Index) -> Columns:
    """Condition, prompt and sample of each of N table rows, given their row of the batch."""
    prompt_ids = pa.array([key.prompt_id for key in rows.keys], pa.string())
    return {
        **condition_columns(condition, len(row_N)),
        "prompt_id": prompt_ids.take(pa.array(row_N)),
        "sample": np.array([key.sample for key in rows.keys], dtype=np.int32)[row_N],
    }


def _events(rows: TrajectoryBatch) -> list[str]:
    """Intervention events of each row as JSON, their positions counted without padding, as those of `tokens`."""
    index_BL = np.cumsum(rows.real_BL, axis=1) - 1
    counted = (
        [{**event, "positions": index_BL[row, event["positions"]].tolist()} for event in events]
        for row, events in enumerate(rows.events)
    )
    return [json.dumps(events, sort_keys=True) for events in counted]


def _unpadded(rows: TrajectoryBatch, values_BL: npt.NDArray[np.integer]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(rows.real_BL.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_BL[rows.real_BL]))


def _last(values_SB: npt.NDArray[np.float16], num_steps_B: npt.NDArray[np.int16]) -> npt.NDArray[np.float16]:
    """Value after each row's last step; NaN for rows without steps."""
    padded_SB = np.concatenate([np.full((1, values_SB.shape[1]), np.nan, np.float16), values_SB])
    return padded_SB[num_steps_B.astype(np.intp), np.arange(values_SB.shape[1])]


def arrow_table(kind: str, columns: Columns, judges: Any = (), width: int = 0) -> pa.Table:
    """Columns in the order and with the types of a kind's schema; see `dsprobe.storage.schemas.schema`."""
    target = schema(kind, judges=judges, width=width)
    arrays = []
    for field in target:
        column = columns[field.name]
        array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=target)
