"""The decoding policy: one step's decisions, from logits to the set of commits.

`Policy` is what varies inside the loop. `SchedulePolicy` composes schedule, ordering and sampling with counter-based
randomness; `dsprobe.decoding.official` re-states the published decoders with their quirks, for parity checks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.ordering import ORDERINGS, OrderingInput
from dsprobe.decoding.records import ACTION_STOP
from dsprobe.decoding.sampling import filter_logits, sample_inverse_cdf
from dsprobe.decoding.schedule import SCHEDULES, BlockProgress
from dsprobe.models.base import ModelInfo


class Policy(ABC):
    """Decides, for every step, which positions are candidates, what they would become, and which are committed.

    Contract: `propose` fills `token_BL` and `score_BL`, `select` fills `commit_BL`; hooks run in between.
    """

    cfg_scale: float = 0.0
    suppressed: Tensor | None = None
    """Token ids whose logits are set to the lowest value before anything is decided."""

    @abstractmethod
    def begin(self, canvas: Canvas) -> None:
        """Prepare per-row state for a canvas."""

    @abstractmethod
    def running(self, canvas: Canvas) -> Tensor:
        """Rows that take another step, bool ``[B]``."""

    @abstractmethod
    def candidates(self, canvas: Canvas) -> Tensor:
        """Positions that the coming step may commit, bool ``[B, L]``."""

    @abstractmethod
    def propose(self, context: StepContext) -> None:
        """Set the proposed token and the ordering score of every candidate."""

    @abstractmethod
    def select(self, context: StepContext) -> None:
        """Set the positions to commit."""

    def commit(self, context: StepContext) -> None:
        """Write the commits into the canvas."""
        context.canvas.tokens_BL = torch.where(context.commit_BL, context.token_BL, context.canvas.tokens_BL)

    @abstractmethod
    def end_step(self, context: StepContext) -> None:
        """Update per-row state after hooks have run; enforce the bound on extra steps."""

    def margin(self, context: StepContext) -> Tensor:
        """Smallest decision margin of the step, float32 ``[B]``; +inf where nothing was decided."""
        return torch.full(context.running_B.shape, torch.inf, device=context.running_B.device)


class SchedulePolicy(Policy):
    """Schedule × ordering × sampling, per row, with blocks.

    The block partition starts at the response, or at the first mask where one stands before it. A row moves on when
    nothing up to its block's end is masked, so what a guardrail re-masks in an earlier block is finished first.
    """

    def __init__(self, config: DecodingConfig, info: ModelInfo, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.cfg_scale = config.cfg_scale
        self.schedule = SCHEDULES.build(config.schedule.name, config.schedule.params)
        self.ordering = ORDERINGS.build(config.ordering.name, config.ordering.params)
        self.suppressed = torch.tensor(sorted(info.suppressed_token_ids), dtype=torch.long, device=device)
        self._by_round = config.steps is None

    # ---- progress -------------------------------------------------------------------------------------------------

    def begin(self, canvas: Canvas) -> None:
        """Lay out blocks and step budgets from the initial masks."""
        masked_BL = canvas.masked_BL
        rows, width = masked_BL.shape
        index_L = torch.arange(width, device=masked_BL.device)
        first_B = torch.where(canvas.response_BL.any(dim=1), canvas.response_start_B, masked_BL.int().argmax(dim=1))
        first_B = torch.minimum(first_B, masked_BL.int().argmax(dim=1))
        end_B = (masked_BL * (index_L + 1)).amax(dim=1)
        span_B = (end_B - first_B).clamp_min(1)
        self._length_B = torch.full_like(span_B, self.config.block_length) if self.config.block_length else span_B
        offset_BL = (index_L[None] - first_B[:, None]).clamp_min(0)
        self._block_BL = offset_BL // self._length_B[:, None]
        self._tier_BL = self.schedule.tier(offset_BL % self._length_B[:, None], self._length_B[:, None])
        self._default_B = self.schedule.default_steps(self._length_B)
        self._blocks_B = (span_B + self._length_B - 1) // self._length_B
        self._taken_B = torch.zeros(rows, dtype=torch.long, device=masked_BL.device)
        self._extra_B = torch.zeros_like(self._taken_B)
        self._current_B = torch.full_like(self._taken_B, -1)
        self._step_B = torch.zeros_like(self._taken_B)
        self._steps_B = torch.zeros_like(self._taken_B)
        self._initial_B = torch.zeros_like(self._taken_B)
        self._enter_blocks(canvas)

    def row_state(self) -> Tensor:
        """Progress of every row, int64 ``[B, 6]``: with the initial canvas, all that the coming steps depend on."""
        counters = (self._taken_B, self._extra_B, self._current_B, self._step_B, self._steps_B, self._initial_B)
        return torch.stack(counters, dim=1)

    def restore(self, state_BC: Tensor) -> None:
        """Put back what `row_state` gave, after `begin` on the rows' initial canvas."""
        counters = state_BC.unbind(dim=1)
        self._taken_B, self._extra_B, self._current_B, self._step_B, self._steps_B, self._initial_B = (
            counter.clone() for counter in counters
        )

    def _base_steps(self) -> Tensor:
        """Step budget of each row's current block when it is entered for the first time."""
        if self.config.steps is None:
            return self._default_B
        if self.config.threshold is not None:
            return self._length_B
        base_B = self.config.steps // self._blocks_B.clamp_min(1)
        more_B = self._current_B < self.config.steps % self._blocks_B.clamp_min(1)
        return (base_B + more_B).clamp_min(1)

    def _enter_blocks(self, canvas: Canvas) -> None:
        """Move rows that have no mask left up to their current block on to their next block with masks."""
        masked_BL = canvas.masked_BL
        nothing = self._block_BL.max() + 1
        next_B = torch.where(masked_BL, self._block_BL, nothing).amin(dim=1)
        entered_B = (next_B > self._current_B) & masked_BL.any(dim=1)
        self._current_B = torch.where(entered_B, next_B, self._current_B)
        self._steps_B = torch.where(entered_B, self._base_steps(), self._steps_B)
        self._step_B = torch.where(entered_B, 0, self._step_B)
        self._initial_B = torch.where(entered_B, self.candidates(canvas).sum(dim=1), self._initial_B)

    def _share(self, count_B: Tensor) -> Tensor:
        """Steps that a number of masks needs at the block's own pace, rounded up."""
        return (count_B * self._base_steps() + self._length_B - 1) // self._length_B

    def running(self, canvas: Canvas) -> Tensor:
        """Rows with masks that are not stopped; finishing is derived from the canvas, never stored."""
        return canvas.masked_BL.any(dim=1) & ~canvas.stopped_B

    def candidates(self, canvas: Canvas) -> Tensor:
        """Masks up to the current block's end: the block itself, and what was re-masked in blocks before it."""
        return canvas.masked_BL & (self._block_BL <= self._current_B[:, None])

    def _progress(self, candidate_BL: Tensor) -> BlockProgress:
        return BlockProgress(
            masked_B=candidate_BL.sum(dim=1),
            initial_B=self._initial_B,
            step_B=self._step_B,
            steps_B=self._steps_B,
        )

    # ---- decisions ------------------------------------------------------------------------------------------------

    def propose(self, context: StepContext) -> None:
        """Choose a token for every position with logits, and score the candidates."""
        canvas, row_N, position_N = context.canvas, context.row_N, context.position_N
        key_N, taken_N = canvas.random_key_B[row_N], self._taken_B[row_N]
        token_N, processed_NV = self._tokens(context, key_N, taken_N)
        logit_N = context.logits_NV.gather(-1, token_N[:, None])[:, 0].float()
        logsumexp_N = context.statistics.logsumexp_N
        if context.edited_N is not None:  # rows that no hook touched keep their bits, whatever happens beside them
            logsumexp_N = torch.where(context.edited_N, context.logits_NV.float().logsumexp(dim=-1), logsumexp_N)
        raw_logprob_N = logit_N - logsumexp_N
        score_N = self.ordering.score(
            OrderingInput(
                raw_logprob_N=raw_logprob_N,
                processed_logits_NV=processed_NV,
                uniform_N=randomness.uniform(key_N, taken_N, position_N, randomness.STREAM_ORDER),
                token_N=token_N,
                position_N=position_N,
            )
        )
        context.token_BL = canvas.tokens_BL.index_put((row_N, position_N), token_N)
        candidate_BL = self.candidates(canvas)
        context.score_BL = _scatter(context, score_N).masked_fill(~candidate_BL, -torch.inf)
        self._sure_BL = _scatter(context, raw_logprob_N)

    def _tokens(self, context: StepContext, key_N: Tensor, taken_N: Tensor) -> tuple[Tensor, Tensor]:
        """Proposed tokens, and the logits they were drawn from."""
        config = self.config
        if config.temperature == 0:
            token_N = context.statistics.argmax_N
            if context.edited_N is not None:
                token_N = torch.where(context.edited_N, context.logits_NV.argmax(dim=-1), token_N)
            return token_N, context.logits_NV
        processed_NV = filter_logits(context.logits_NV.float(), config.temperature, config.top_p, config.top_k)
        uniform_N = randomness.uniform(key_N, taken_N, context.position_N, randomness.STREAM_TOKEN)
        return sample_inverse_cdf(torch.softmax(processed_NV, dim=-1), uniform_N), processed_NV

    def select(self, context: StepContext) -> None:
        """Commit by coin, by threshold, or the quota's best."""
        eligible_BL = context.score_BL > -torch.inf
        progress = self._progress(eligible_BL)
        if self.ordering.stochastic_commit:
            context.commit_BL = eligible_BL & (context.score_BL < self.schedule.fraction(progress)[:, None])
            return
        rank_BL = self._rank(context.score_BL, eligible_BL)
        if self.config.threshold is not None:
            sure_BL = self._sure_BL > math.log(max(self.config.threshold, 1e-30))
            context.commit_BL = eligible_BL & (sure_BL | (rank_BL == 0))
            return
        quota_B = self.schedule.quota(progress, self._tier_masked(eligible_BL))
        context.commit_BL = eligible_BL & (rank_BL < quota_B[:, None])

    def _rank(self, score_BL: Tensor, eligible_BL: Tensor) -> Tensor:
        """Rank of each position by (eligible, tier, score, position); stable sorts break ties by position."""
        order_BL = torch.argsort(score_BL, dim=1, descending=True, stable=True)
        if self._tier_BL is not None:
            tier_BL = self._tier_BL.masked_fill(~eligible_BL, torch.iinfo(torch.int64).max)
            by_tier_BL = torch.argsort(tier_BL.gather(1, order_BL), dim=1, stable=True)
            order_BL = order_BL.gather(1, by_tier_BL)
        places_BL = torch.arange(score_BL.shape[1], device=score_BL.device).expand_as(order_BL)
        return torch.empty_like(order_BL).scatter_(1, order_BL, places_BL)

    def _tier_masked(self, eligible_BL: Tensor) -> Tensor | None:
        """Masks left in each row's lowest unfinished tier, where tiers are steps."""
        if self._tier_BL is None or not self._by_round:
            return None
        tier_BL = self._tier_BL.masked_fill(~eligible_BL, torch.iinfo(torch.int64).max)
        return ((tier_BL == tier_BL.amin(dim=1, keepdim=True)) & eligible_BL).sum(dim=1)

    # ---- after the hooks ------------------------------------------------------------------------------------------

    def end_step(self, context: StepContext) -> None:
        """Count the step, grant steps to re-masked rows within the bound, and end rows that may take none."""
        canvas = context.canvas
        self._taken_B += context.running_B
        self._step_B += context.running_B
        if self.config.eos_early_stop:
            canvas.stop(_text_is_complete(canvas))
        remasked_BL = canvas.masked_BL & (context.committed_BL != canvas.mask_token_id)
        overdue_B = self.candidates(canvas).any(dim=1) & (self._step_B >= self._steps_B)
        # What an attack re-masks is no guardrail's doing: one step for it after a block's last, outside the bound.
        reopened_B = overdue_B & _reopened(context)
        self._steps_B += reopened_B
        overdue_B = overdue_B & ~reopened_B
        wanted_B = torch.maximum(self._share(remasked_BL.sum(dim=1)), overdue_B.long())
        granted_B = torch.minimum(wanted_B, self.config.max_extra_steps - self._extra_B)
        self._extra_B += granted_B
        self._steps_B += granted_B
        refused_B = (wanted_B > 0) & (granted_B == 0)
        canvas.tokens_BL = torch.where(refused_B[:, None] & remasked_BL, context.committed_BL, canvas.tokens_BL)
        stuck_B = refused_B & overdue_B & self.candidates(canvas).any(dim=1)
        canvas.stop(stuck_B)
        context.action_B |= stuck_B * ACTION_STOP
        self._enter_blocks(canvas)

    def margin(self, context: StepContext) -> Tensor:
        """Smallest of the committed tokens' argmax gaps (greedy only, nats) and the selection gap (score units)."""
        top_NK = context.statistics.top_logprobs_NK
        rest_BL = context.score_BL.masked_fill(context.commit_BL, -torch.inf).amax(dim=1)
        best_BL = context.score_BL.masked_fill(~context.commit_BL, torch.inf).amin(dim=1)
        decided_B = context.commit_BL.any(dim=1)
        margin_B = torch.where(decided_B & (rest_BL > -torch.inf), (best_BL - rest_BL).abs(), torch.inf)
        if self.config.temperature == 0:
            gap_BL = _scatter(context, top_NK[:, 0] - top_NK[:, 1], fill=torch.inf)
            margin_B = torch.minimum(margin_B, gap_BL.masked_fill(~context.commit_BL, torch.inf).amin(dim=1))
        return margin_B


def _scatter(context: StepContext, value_N: Tensor, fill: float = -torch.inf) -> Tensor:
    """Spread N entries over a ``[B, L]`` float32 tensor."""
    out_BL = torch.full(context.canvas.tokens_BL.shape, fill, device=value_N.device)
    out_BL[context.row_N, context.position_N] = value_N.float()
    return out_BL


def _reopened(context: StepContext) -> Tensor:
    """Rows in which an attack has re-masked something in this step."""
    if context.unattacked_BL is None:
        return torch.zeros_like(context.running_B)
    mask = context.canvas.mask_token_id
    return ((context.unattacked_BL != mask) & (context.committed_BL == mask)).any(dim=1)


def _text_is_complete(canvas: Canvas) -> Tensor:
    """Rows whose response has an end-of-text token with no mask before it."""
    eos_BL = (canvas.tokens_BL == canvas.eos_token_id) & canvas.response_BL
    before_BL = (eos_BL.int().cumsum(dim=1) == 0) & canvas.response_BL
    return eos_BL.any(dim=1) & ~(before_BL & canvas.masked_BL).any(dim=1)
