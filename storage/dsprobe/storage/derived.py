"""Per-step quantities of a batch: what the `steps` table stores and the reducer counts, computed once.

All values are float16, rounded once from exact sums, so they do not depend on padding, batch size or row order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dsprobe.decoding.records import TrajectoryBatch, by_guardrails
from dsprobe.errors import StorageError
from dsprobe.storage.float16 import is_infinite, is_nan, sum_where

F16 = npt.NDArray[np.float16]
I16 = npt.NDArray[np.int16]
Bool = npt.NDArray[np.bool_]

VIEWS: Final = ("committed", "predicted")
"""The canvas of committed tokens x_s, and the full greedy prediction x̂_s."""

QUANTITIES: Final = ("risk_committed", "risk_predicted", "entropy_mean", "kl_mean", "fraction_committed")
"""Quantities of the `steps` table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepValues:
    """Quantities of S steps × B rows; entries after a row's last step are undefined, cut with `running_SB`."""

    running_SB: Bool
    """True up to each row's last step."""
    values: dict[str, F16]
    """Quantity of `QUANTITIES` → float16 ``[S, B]``, NaN where undefined."""
    masked_SB: I16
    """Masked positions before the step."""
    committed_SB: I16
    """Positions that were masked before the step and hold a token after it."""
    remasked_SB: I16
    """Positions that guardrails took back in the step: they held a token after its commits and a mask after it."""


def step_values(batch: TrajectoryBatch) -> StepValues:
    """Compute the per-step quantities of a batch.

    Mean entropy and mean KL are over the positions masked before the step where they are defined. The committed
    fraction is the share of response positions that hold a token after the step, given ones included.

    Raises:
        StorageError: A value to be stored is infinite.
    """
    running_SB = np.arange(batch.max_steps)[:, None] < batch.num_steps_B[None]
    masked_SBL = masked_before(batch)
    response_BL = batch.response_BL & batch.real_BL
    committed_SB = (batch.committed_SBL & response_BL).sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction_SB = committed_SB / response_BL.sum(axis=1)
    values = {
        "risk_committed": batch.risk_committed_SB.astype(np.float16),
        "risk_predicted": batch.risk_predicted_SB.astype(np.float16),
        "entropy_mean": _mean_SB(batch.entropy_SBL),
        "kl_mean": _mean_SB(batch.kl_SBL),
        "fraction_committed": fraction_SB.astype(np.float16),
    }
    for name, value_SB in values.items():
        require_finite(name, value_SB[running_SB])
    return StepValues(
        running_SB=running_SB,
        values=values,
        masked_SB=masked_SBL.sum(axis=2).astype(np.int16),
        committed_SB=(masked_SBL & batch.committed_SBL).sum(axis=2).astype(np.int16),
        remasked_SB=remasked(batch),
    )


def remasked(batch: TrajectoryBatch) -> I16:
    """Number of positions that guardrails took back, ``[S, B]``: those of the events that hold a mask afterwards."""
    changes = [
        (event["step"] - 1, row, position)
        for row, events in enumerate(batch.events)
        for event in by_guardrails(events)
        for position in event["positions"]
    ]
    step_N, row_N, position_N = np.array(changes, np.intp).reshape(-1, 3).T
    remasked_SB = np.zeros((batch.max_steps, batch.num_rows), np.int16)
    np.add.at(remasked_SB, (step_N, row_N), ~batch.committed_SBL[step_N, row_N, position_N])
    return remasked_SB


def masked_before(batch: TrajectoryBatch) -> Bool:
    """True at positions that held a mask before the step, ``[S, B, L]``.

    Before the first step these are the positions with a probability; before any later one, those without a token
    after the step before it.
    """
    masked_SBL = np.empty_like(batch.committed_SBL)
    masked_SBL[1:] = ~batch.committed_SBL[:-1] & batch.real_BL
    masked_SBL[:1] = (~is_nan(batch.probability_SBL[:1]) | ~batch.committed_SBL[:1]) & batch.real_BL
    return masked_SBL


def require_finite(name: str, values: F16) -> None:
    """Refuse infinities, which would swallow every sum they enter; NaN means "undefined" and is skipped.

    Raises:
        StorageError: A value is infinite (or beyond ±65504, the largest float16).
    """
    if is_infinite(values).any():
        raise StorageError(f"`{name}` holds an infinite value; stored quantities are finite, or NaN where undefined.")


def _mean_SB(plane_SBL: F16) -> F16:
    """Mean over defined positions; the float64 sum of float16 values is exact, whatever the padding."""
    defined_SBL = ~is_nan(plane_SBL)
    total_SB = sum_where(plane_SBL, defined_SBL, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_SB: F16 = (total_SB / defined_SBL.sum(axis=2)).astype(np.float16)
    return mean_SB
