"""From an evaluated batch to the tables of the raw logs.

`step_log` and `position_log` together hold everything that `dsprobe.storage.reducer.ReducerState.update` reads, with
the very values it reads, so that a scan of them gives the same state, bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.derived import StepValues, step_values
from dsprobe.storage.tables import Columns, Index, arrow_table, position_columns, row_keys

STEP_MEANS = ("entropy_mean", "kl_mean", "fraction_committed")


def step_log_table(batch: EvaluatedBatch, values: StepValues | None = None) -> pa.Table:
    """One row per trajectory and step up to the trajectory's last, ordered by trajectory, then step.

    A trajectory without any step has one row with step 0 and NaN values.

    Args:
        batch: B trajectories.
        values: `step_values` of the same batch, where the caller has them already.

    Raises:
        StorageError: A value is infinite.
    """
    rows = batch.trajectories
    values = step_values(rows) if values is None else values
    idle_1B = rows.num_steps_B[None] == 0
    row_N, step_N = np.nonzero(np.concatenate([idle_1B, values.running_SB]).T)
    columns: Columns = {
        **row_keys(batch.condition, rows, row_N),
        "step": step_N,
        "num_steps": rows.num_steps_B[row_N],
    }
    planes: dict[str, npt.NDArray[np.floating]] = {name: values.values[name] for name in STEP_MEANS}
    planes |= {"risk_committed": rows.risk_committed_SB, "risk_predicted": rows.risk_predicted_SB}
    for name, plane_SB in planes.items():
        undefined_1B = np.full_like(idle_1B, np.nan, plane_SB.dtype)
        columns[name] = np.concatenate([undefined_1B, plane_SB])[step_N, row_N]
    return arrow_table("step_log", columns)


def position_log_table(batch: EvaluatedBatch, rows: Index | None = None) -> pa.Table:
    """One row per trajectory, step and response position, in this order.

    Args:
        batch: B trajectories.
        rows: Which of them, in this order; all when `None`.

    Raises:
        StorageError: A value is infinite.
    """
    chosen = np.arange(batch.trajectories.num_rows) if rows is None else rows
    chosen_N, columns = position_columns(batch, chosen)
    return arrow_table("position_log", {**columns, "num_steps": batch.trajectories.num_steps_B[chosen][chosen_N]})
