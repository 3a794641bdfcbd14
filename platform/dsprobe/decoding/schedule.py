"""Unmasking schedules: how many positions a step commits.

A schedule sees, per row, the masks left in the current block, the masks the block started with, and how far the row is
in the block's step budget. All formulas work from the masks *left*, so a row that was re-masked catches up by itself
and the last step of a block always commits whatever remains.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.registry import ComponentConfig, Entry, Registry


@dataclass(slots=True, kw_only=True)
class BlockProgress:
    """Where each row stands in its current block; all tensors int64 ``[B]``."""

    masked_B: Tensor
    """Masks left in the block."""
    initial_B: Tensor
    """Masks when the block was entered."""
    step_B: Tensor
    """Steps already spent in the block (0-based number of the coming step)."""
    steps_B: Tensor
    """Step budget of the block."""

    @property
    def last_B(self) -> Tensor:
        """True where the coming step is the block's last."""
        return self.step_B >= self.steps_B - 1


class Schedule(ABC):
    """Turns block progress into a commit quota.

    Contract: pure; the quota of a row depends on that row alone; on a block's last step it equals the masks left.
    """

    class Config(ComponentConfig):
        """No parameters."""

    config: ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def default_steps(self, length: Tensor) -> Tensor:
        """Steps for blocks of these lengths when the configuration gives none: one per position."""
        return length

    def tier(self, offset: Tensor, length: Tensor) -> Tensor | None:
        """Priority class of positions (lower first), or `None` when the ordering alone decides.

        Args:
            offset: 0-based position within the block, int64, any shape.
            length: Length of the block, int64, broadcastable with `offset`.
        """
        return None

    @abstractmethod
    def fraction(self, progress: BlockProgress) -> Tensor:
        """Share of the masks left that the coming step commits in expectation, float32 ``[B]`` in [0, 1]."""

    @abstractmethod
    def quota(self, progress: BlockProgress, tier_masked: Tensor | None = None) -> Tensor:
        """Positions to commit in the coming step.

        Args:
            progress: Block progress of each row.
            tier_masked: Masks left in the lowest unfinished tier, int64 ``[B]`` (tiered schedules only).

        Returns:
            int64 ``[B]``, between 0 and ``progress.masked_B``.
        """


class UniformSchedule(Schedule):
    """LLaDA's even counts (2502.09992, `get_num_transfer_tokens`): the remainder goes to the first steps.

    ``ceil(masked / steps left)`` is the same sequence, and adapts when masks come back.
    """

    def fraction(self, progress: BlockProgress) -> Tensor:
        """One over the steps left."""
        return 1.0 / (progress.steps_B - progress.step_B).clamp_min(1).float()

    def quota(self, progress: BlockProgress, tier_masked: Tensor | None = None) -> Tensor:
        """``ceil(masked / steps left)``."""
        left_B = (progress.steps_B - progress.step_B).clamp_min(1)
        return (progress.masked_B + left_B - 1) // left_B


class DreamSchedule(Schedule):
    """Dream's timestep rule (Dream 7B, `diffusion_generate`): ``int(masked · (1 − s/t))`` on linspace(1, ε, steps + 1).

    Arithmetic is float32 and truncates, as published; the quota is per row, where the official code uses the mean over
    the batch (see `dsprobe.decoding.official` for that behaviour).
    """

    class Config(ComponentConfig):
        """Parameters of the timestep rule."""

        eps: float = Field(default=1e-3, gt=0.0, lt=1.0)
        """Last timestep ε."""

    config: Config

    def fraction(self, progress: BlockProgress) -> Tensor:
        """``1 − s/t`` in float32, 1 on the last step."""
        t_B = dream_timestep(progress.step_B, progress.steps_B, self.config.eps)
        s_B = dream_timestep(progress.step_B + 1, progress.steps_B, self.config.eps)
        return torch.where(progress.last_B, 1.0, 1.0 - s_B / t_B)

    def quota(self, progress: BlockProgress, tier_masked: Tensor | None = None) -> Tensor:
        """``int(masked · fraction)``."""
        return (progress.masked_B.float() * self.fraction(progress)).long()


def dream_timestep(index_B: Tensor, steps_B: Tensor, eps: float) -> Tensor:
    """Entry ``index`` of ``torch.linspace(1, eps, steps + 1)`` in float32, bit for bit, for every row at once.

    `torch.linspace` counts from the start in the first half and from the end in the second, with a fused multiply-add:
    the product is exact (a float64 holds it) and only the sum is rounded.
    """
    one = torch.tensor(1.0, dtype=torch.float32, device=index_B.device)
    end = torch.tensor(eps, dtype=torch.float32, device=index_B.device)
    delta_B = ((end - one) / steps_B.float()).double()
    from_start_B = (one.double() + delta_B * index_B.double()).float()
    from_end_B = (end.double() - delta_B * (steps_B - index_B).double()).float()
    return torch.where(index_B < (steps_B + 1) // 2, from_start_B, from_end_B)


class CosineSchedule(Schedule):
    """MaskGIT's cosine schedule (2202.04200, §3.3): ``floor(initial · cos(π/2 · (s+1)/steps))`` masks stay."""

    def _stay(self, progress: BlockProgress) -> Tensor:
        done_B = (progress.step_B + 1).double() / progress.steps_B.double()
        stay_B = progress.initial_B.double() * torch.cos(done_B.clamp_max(1.0) * (math.pi / 2))
        return torch.where(progress.last_B, 0, (stay_B + 1e-9).floor().long())

    def fraction(self, progress: BlockProgress) -> Tensor:
        """Quota over the masks left."""
        return self.quota(progress).float() / progress.masked_B.clamp_min(1).float()

    def quota(self, progress: BlockProgress, tier_masked: Tensor | None = None) -> Tensor:
        """Masks left minus masks that stay."""
        return (progress.masked_B - self._stay(progress)).clamp_min(0)


class DilatedSchedule(Schedule):
    """Dilated Unmasking Schedule (Luxembourg et al. 2506.19037, §3): spread positions first, closer ones each round.

    Round t of a block of length B and base a unmasks the positions k (1-based, still masked) with
    ``(k − 1) mod max(1, ⌊B / aᵗ⌋) = 0``. Without a step count each round is one forward pass (``ceil(log_a B)`` a
    block). With more steps the rounds are spread over them evenly, the ordering deciding within a round.
    """

    class Config(ComponentConfig):
        """Parameters of the dilation."""

        base: int = Field(default=2, ge=2)
        """Factor a by which the spacing shrinks from round to round."""

    config: Config

    def default_steps(self, length: Tensor) -> Tensor:
        """One step a round: R = ceil(log_a length), at least 1, in exact integer arithmetic."""
        rounds = torch.ones_like(length)
        power = torch.full_like(length, self.config.base)
        while bool((power < length).any()):
            rounds += power < length
            power = power * self.config.base
        return rounds

    def tier(self, offset: Tensor, length: Tensor) -> Tensor:
        """The round in which a position is unmasked."""
        rounds = self.default_steps(length)
        tier = (rounds - 1).expand_as(offset)
        for index in range(int(rounds.max()) - 1, -1, -1):
            spacing = (length // self.config.base ** (index + 1)).clamp_min(1)
            tier = torch.where((offset % spacing == 0) & (index < rounds), index, tier)
        return tier

    def fraction(self, progress: BlockProgress) -> Tensor:
        """One over the steps left."""
        return 1.0 / (progress.steps_B - progress.step_B).clamp_min(1).float()

    def quota(self, progress: BlockProgress, tier_masked: Tensor | None = None) -> Tensor:
        """The current round's masks when rounds are steps, else an even share of all that is left."""
        left_B = (progress.steps_B - progress.step_B).clamp_min(1)
        even_B = (progress.masked_B + left_B - 1) // left_B
        if tier_masked is None:
            return even_B
        return torch.where(progress.last_B, progress.masked_B, tier_masked)


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {
        "uniform": Entry("dsprobe.decoding.schedule:UniformSchedule", "LLaDA's even counts (2502.09992)"),
        "dream": Entry("dsprobe.decoding.schedule:DreamSchedule", "Dream's timestep rule, per row"),
        "cosine": Entry("dsprobe.decoding.schedule:CosineSchedule", "few first, many last (MaskGIT 2202.04200)"),
        "dilated": Entry("dsprobe.decoding.schedule:DilatedSchedule", "spread positions first (2506.19037)"),
    },
)


def planned_steps(decoding: DecodingConfig) -> int:
    """Denoising steps of a full reply, extra steps not counted."""
    if decoding.threshold is not None:
        return decoding.reply_length
    if decoding.steps is not None:
        return min(decoding.steps, decoding.reply_length)  # every step commits a token
    block = decoding.block_length or decoding.reply_length
    schedule = SCHEDULES.build(decoding.schedule.name, decoding.schedule.params)
    return -(-decoding.reply_length // block) * int(schedule.default_steps(torch.tensor(block)))
