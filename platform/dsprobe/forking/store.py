"""The trajectory store: segments by node, in the memory of the process that pins the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.recorder import score_steps
from dsprobe.forking.logger import Stretch
from dsprobe.forking.segment import I32, Segment
from dsprobe.guardrails.base import Setting, Signal, StepLog

_NOTHING = np.zeros(0, dtype=np.float32)


class TrajectoryStore:
    """Segments by node key; trunks (unguarded trajectories) by row digest."""

    def __init__(self) -> None:
        self._segments: dict[bytes, Segment] = {}

    def __len__(self) -> int:
        return len(self._segments)

    def get(self, key: bytes) -> Segment | None:
        """The segment of a node or trunk."""
        return self._segments.get(key)

    def add(self, stretch: Stretch, entered: bytes) -> None:
        """File a logged stretch.

        Args:
            stretch: From `SegmentLogger.stretches`.
            entered: Key of the segment that the row went on with; the row's digest for a trunk.
        """
        if not stretch.is_entry:
            self._segments.setdefault(stretch.segment.key, stretch.segment)
        elif (known := self._segments.get(entered)) is None:
            stretch.segment.key = entered
            self._segments[entered] = stretch.segment
        elif stretch.segment.num_steps:
            self._segments[entered] = known.extended(stretch.segment)


def joint_log(segments: Sequence[Segment], canvas: Canvas, setting: Setting) -> StepLog:
    """One log of several rows' segments, padded to the longest.

    Args:
        segments: One of each row.
        canvas: The rows' canvas, for the response positions; its tokens are not read.
        setting: Supplies scorers; missing risks are scored in one call and kept in the segments.
    """
    longest = max(segment.num_steps for segment in segments)
    device = canvas.tokens_BL.device

    def stacked(values: Callable[[Segment], np.ndarray]) -> torch.Tensor:
        parts = [values(segment) for segment in segments]
        shape = (longest, len(parts), *parts[0].shape[1:])
        padded = np.zeros(shape, dtype=parts[0].dtype)
        for row, part in enumerate(parts):
            padded[: len(part), row] = part
        return torch.from_numpy(padded).to(device)

    def risk(signal: Signal) -> torch.Tensor:
        _score_missing(segments, canvas, setting, signal)
        return stacked(lambda segment: segment.risk.get(signal.key, _NOTHING))

    has_pooled = all(segment.pooled_SD is not None for segment in segments)
    return StepLog(
        step_SB=stacked(lambda segment: segment.start_step + 1 + np.arange(segment.num_steps)),
        fraction_SB=stacked(lambda segment: segment.fraction_S),
        complete_SB=stacked(lambda segment: segment.complete_S),
        valid_SB=stacked(lambda segment: np.ones(segment.num_steps, dtype=np.bool_)),
        risk=risk,
        pooled_SBD=stacked(lambda segment: np.asarray(segment.pooled_SD)) if has_pooled else None,
    )


def _score_missing(segments: Sequence[Segment], canvas: Canvas, setting: Setting, signal: Signal) -> None:
    """Score the steps of each segment that the signal has not seen; what was scored before is kept."""
    fresh = [(row, segment) for row, segment in enumerate(segments) if _scored(segment, signal) < segment.num_steps]
    if not fresh:
        return
    longest = max(segment.num_steps - _scored(segment, signal) for _, segment in fresh)
    width = canvas.tokens_BL.shape[1]
    tokens_SBL = np.full((longest, len(fresh), width), canvas.eos_token_id, dtype=np.int32)
    for column, (_, segment) in enumerate(fresh):
        view_SL = _view(segment, signal, canvas.mask_token_id)[_scored(segment, signal) :]
        tokens_SBL[: len(view_SL), column] = view_SL
    rows = torch.tensor([row for row, _ in fresh], device=canvas.tokens_BL.device)
    tokens = torch.from_numpy(tokens_SBL).to(canvas.tokens_BL.device)
    risk_SB = score_steps(setting.scorer(signal.scorer), tokens, canvas.response_BL[rows])[0].cpu().numpy()
    for column, (_, segment) in enumerate(fresh):
        known = segment.risk.get(signal.key, _NOTHING)
        new = risk_SB[: segment.num_steps - len(known), column]
        segment.risk[signal.key] = np.concatenate([known, new])


def _scored(segment: Segment, signal: Signal) -> int:
    return len(segment.risk.get(signal.key, _NOTHING))


def _view(segment: Segment, signal: Signal, mask_token_id: int) -> I32:
    """Canvases of one view at every step of a segment."""
    if signal.view == "committed":
        return segment.tokens_SL
    return np.where(segment.tokens_SL == mask_token_id, segment.greedy_SL, segment.tokens_SL)
