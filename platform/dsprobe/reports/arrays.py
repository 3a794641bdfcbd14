"""From rows of the `steps` table to the arrays that `dsprobe.metrics` computes on."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from dsprobe.metrics.phase_transition import PhaseTransition, phase_transition
from dsprobe.reports.data import F64, I64, floats, integers

_ORDER = [("prompt_id", "ascending"), ("sample", "ascending"), ("step", "ascending")]
_RESAMPLES: Final = 200
"""Resamples of a transition's intervals: a report fits dozens of curves."""


def risk_matrix(rows: pa.Table, view: str) -> tuple[F64, I64, I64]:
    """Risk of one view as a matrix.

    Args:
        rows: Rows of the `steps` table, of one condition, in any order.
        view: ``committed`` or ``predicted``.

    Returns:
        ``risk_SB`` (rows that finished early repeat their last risk), ``num_steps_B``, and the prompt of each
        trajectory as a number; in order of prompt id and sample.
    """
    rows = rows.sort_by(_ORDER)
    step, risk = integers(rows, "step"), floats(rows, f"risk_{view}")
    start_B = np.flatnonzero(step == 1)
    num_steps_B = np.diff(np.append(start_B, len(step)))
    longest = int(num_steps_B.max(initial=0))
    place_SB = np.minimum(np.arange(longest)[:, None], num_steps_B - 1) + start_B
    prompt_B = np.unique(np.array(rows["prompt_id"].to_pylist(), np.str_)[start_B], return_inverse=True)[1]
    return risk[place_SB], num_steps_B, prompt_B.astype(np.int64)


def transition(rows: pa.Table, view: str, theta: float) -> PhaseTransition:
    """Fit the rise of the harmful fraction, prompts resampled: the one way of the report and of hypothesis H1.

    Args:
        rows: See `risk_matrix`.
        view: ``committed`` or ``predicted``.
        theta: θ.
    """
    risk_SB, num_steps_B, prompt_B = risk_matrix(rows, view)
    return phase_transition(risk_SB, theta, num_steps_B, prompt_B, resamples=_RESAMPLES)
