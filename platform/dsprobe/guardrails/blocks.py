"""Which block each row is in and for how long, followed from outside the decoding policy."""

from __future__ import annotations

import torch
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.schedule import SCHEDULES


class BlockClock:
    """Follows the blocks of `SchedulePolicy` by the canvas alone, with the same partition and the same step budgets.

    Args:
        decoding: Block length, steps and schedule.
        canvas: The initial canvas.
    """

    def __init__(self, decoding: DecodingConfig, canvas: Canvas) -> None:
        self._decoding = decoding
        masked_BL = canvas.masked_BL
        index_L = torch.arange(masked_BL.shape[1], device=masked_BL.device)
        first_mask_B = masked_BL.int().argmax(dim=1)
        first_B = torch.where(canvas.response_BL.any(dim=1), canvas.response_start_B, first_mask_B)
        first_B = torch.minimum(first_B, first_mask_B)
        span_B = ((masked_BL * (index_L + 1)).amax(dim=1) - first_B).clamp_min(1)
        self._length_B = torch.full_like(span_B, decoding.block_length) if decoding.block_length else span_B
        self._blocks_B = (span_B + self._length_B - 1) // self._length_B
        self.block_BL = (index_L[None] - first_B[:, None]).clamp_min(0) // self._length_B[:, None]
        """Number of each position's block, from 0; what stands before the first one belongs to it."""
        self.current_B = torch.full_like(span_B, -1)
        """Block that each row is in, −1 before its first step."""
        self.first_B = self.current_B
        """The first block that had masks."""
        self.entered_B = torch.zeros_like(canvas.stopped_B)
        """True where the present step is the first one in its block."""
        self._since_B = self.current_B

    @property
    def inside_BL(self) -> Tensor:
        """Positions of each row's current block."""
        return self.block_BL == self.current_B[:, None]

    def enter(self, context: StepContext) -> None:
        """Move rows on at the beginning of a step, before anything is committed."""
        masked_BL = context.canvas.masked_BL
        nothing = self.block_BL.max() + 1
        next_B = torch.where(masked_BL, self.block_BL, nothing).amin(dim=1)
        self.entered_B = context.running_B & (next_B > self.current_B) & masked_BL.any(dim=1)
        self.first_B = torch.where(self.entered_B & (self.current_B < 0), next_B, self.first_B)
        self.current_B = torch.where(self.entered_B, next_B, self.current_B)
        self._since_B = torch.where(self.entered_B, context.step_B, self._since_B)

    def step_B(self, context: StepContext) -> Tensor:
        """n: 1-based number of the present step in its block."""
        return context.step_B - self._since_B + 1

    def steps_B(self) -> Tensor:
        """N: planned steps of each row's current block; steps granted to re-masked rows come on top."""
        decoding = self._decoding
        if decoding.steps is None:
            schedule = SCHEDULES.build(decoding.schedule.name, decoding.schedule.params)
            return schedule.default_steps(self._length_B)
        if decoding.threshold is not None:
            return self._length_B
        blocks_B = self._blocks_B.clamp_min(1)
        return (decoding.steps // blocks_B + (self.current_B < decoding.steps % blocks_B)).clamp_min(1)

    def complete(self, canvas: Canvas) -> Tensor:
        """Rows without a mask up to the end of their current block, bool ``[B]``."""
        return ~(canvas.masked_BL & (self.block_BL <= self.current_B[:, None])).any(dim=1)
