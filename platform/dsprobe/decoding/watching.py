"""Watching a batch while it is decoded: one callback after every step, on top of what is recorded anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.records import F16, F32, I32, Bool, TrajectoryBatch

if TYPE_CHECKING:
    from dsprobe.decoding.recorder import Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSnapshot:
    """One step of B rows: what `TrajectoryBatch` holds of it, in the same types."""

    step: int
    """1-based number of the loop's turn."""
    running_B: Bool
    """True for rows that took this step."""
    response_BL: Bool
    before_BL: I32
    """Canvas before the step."""
    canvas_BL: I32
    """Canvas after the step."""
    committed_BL: Bool
    """True where the canvas after the step holds a token."""
    predicted_BL: I32
    risk_committed_B: F32
    risk_predicted_B: F32
    """NaN without a scorer."""
    attribution_BL: F16
    events: list[list[dict[str, Any]]]
    """Per row: what attacks and guardrails changed in this step; see `TrajectoryBatch.events`."""


OnStep = Callable[[StepSnapshot], None]


class Watcher(Hook):
    """Hands every step to a callback; stands behind the recorder in the list of hooks.

    Args:
        recorder: The recorder of the same batch.
        on_step: Called after every step of the loop. What it raises ends the decoding.
    """

    def __init__(self, recorder: Recorder, on_step: OnStep) -> None:
        self._recorder, self._on_step = recorder, on_step

    def on_step_end(self, context: StepContext) -> None:
        """Hand the step over."""
        self._on_step(self._recorder.latest(context))


def snapshot_of(batch: TrajectoryBatch, step: int) -> StepSnapshot:
    """A step of a finished batch, as a watcher saw it.

    Args:
        batch: The batch.
        step: 1-based.
    """
    at = step - 1
    return StepSnapshot(
        step=step,
        running_B=batch.num_steps_B >= np.int16(step),
        response_BL=batch.response_BL,
        before_BL=batch.canvas_SBL[at - 1] if at else batch.canvas_BL,
        canvas_BL=batch.canvas_SBL[at],
        committed_BL=batch.committed_SBL[at],
        predicted_BL=batch.predicted_SBL[at],
        risk_committed_B=batch.risk_committed_SB[at],
        risk_predicted_B=batch.risk_predicted_SB[at],
        attribution_BL=batch.attribution_SBL[at],
        events=events_at(batch.events, step),
    )


def events_at(events: list[list[dict[str, Any]]], step: int) -> list[list[dict[str, Any]]]:
    """The events of one step, per row."""
    return [[event for event in row if event["step"] == step] for row in events]
