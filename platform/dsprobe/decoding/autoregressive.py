"""The autoregressive loop: the same step records, a step being a token.

Prompts are padded on the left (all rows generate at the same place), keys and values are cached, and a finished row
goes on
with end-of-text until the batch is done. Undecided positions hold the padding id; both views coincide, and the
step-to-step KL is undefined, since a position is predicted once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsprobe.attacks.base import Rendered
from dsprobe.config import DecodingConfig, RecordingConfig
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import bucket_length, random_key
from dsprobe.decoding.logits_capture import LogitsCapture
from dsprobe.decoding.recorder import score_steps, wall_seconds
from dsprobe.decoding.records import F16, F32, I8, I32, NEVER, RowKey, TrajectoryBatch
from dsprobe.decoding.sampling import filter_logits, sample_inverse_cdf
from dsprobe.decoding.vocabulary import VocabularyStatistics, vocabulary_statistics
from dsprobe.decoding.watching import OnStep, StepSnapshot
from dsprobe.models.base import CausalModel
from dsprobe.risk.base import RiskInput, RiskOutput, RiskScorer


@torch.inference_mode()
def generate(
    model: CausalModel,
    rows: Sequence[Rendered],
    keys: Sequence[RowKey],
    config: DecodingConfig,
    *,
    recording: RecordingConfig,
    scorer: RiskScorer | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    raw_B: I8 | None = None,
) -> TrajectoryBatch:
    """Generate replies token by token and record every step.

    Args:
        model: An autoregressive model.
        rows: Rendered rows; `tokens` end where generation starts, `response_start` may lie inside them (a prefill).
            Forced tokens are said when generation reaches them, and no row ends before its last one.
        keys: Identity of each row.
        config: `reply_length`, `temperature`, `top_p` and `top_k` are used.
        recording: `top_k`, `raw` and `enabled` are used; hidden layers are a diffusion-model option.
        scorer: In-loop scorer, of tokens or of logits.
        seed: Seed of the run.
        on_step: Called after every token.
        raw_B: What each row is to the raw logs (`TrajectoryBatch.raw_B`); `None` logs nothing raw.

    Returns:
        The batch; step s of a row commits its s-th generated token; end-of-text or a full reply finishes it.
    """
    start = time.perf_counter()
    state = _State(model, rows, keys, config, seed)
    state.capture = LogitsCapture.of(recording, raw_B)
    steps: list[_Step] = []
    while not bool(state.done_B.all()) and state.length < state.width:
        steps.append(state.advance(recording, scorer))
        if on_step is not None:
            on_step(state.latest(steps[-1], scorer))
    batch = _records(state, steps, scorer, wall_seconds(time.perf_counter() - start, len(keys), recording))
    kept: dict[str, Any] = {"raw_B": raw_B}
    if recording.top_k:
        kept["topk_tokens_SBLK"], kept["topk_logprobs_SBLK"] = _top_planes(state, steps)
    if state.capture is not None:
        kept |= state.capture.finish()
    return replace(batch, **kept)


FREE = -1
"""Where nothing is forced."""


def _forced(rows: Sequence[Rendered], pads: Sequence[int], width: int) -> Tensor:
    """Tokens that rows are made to say, int64 ``[B, L]``."""
    forced_BL = torch.full((len(rows), width), FREE)
    for index, (row, pad) in enumerate(zip(rows, pads, strict=True)):
        for position, token in row.forced:
            forced_BL[index, position + pad] = token
    return forced_BL


class _Step:
    """What one token's step leaves behind."""

    def __init__(self, token_B: Tensor, logprob_B: Tensor, statistics: VocabularyStatistics, running_B: Tensor) -> None:
        self.running_B, self.logprob_B = running_B, logprob_B
        self.token_B, self.statistics = token_B, statistics
        self.risk: RiskOutput | None = None


class _State:
    """Tokens, cache and counters of a batch under generation."""

    def __init__(
        self,
        model: CausalModel,
        rows: Sequence[Rendered],
        keys: Sequence[RowKey],
        config: DecodingConfig,
        seed: int,
    ) -> None:
        info, device = model.info, model.device
        self.capture: LogitsCapture | None = None
        self.model, self.config, self.keys = model, config, list(keys)
        self.prompt = bucket_length(max(len(row.tokens) for row in rows))
        self.pads = [self.prompt - len(row.tokens) for row in rows]
        response = [
            (row.response_start + pad, row.response_end + pad) for row, pad in zip(rows, self.pads, strict=True)
        ]
        self.width = max(max(end for _, end in response), self.prompt + 1)
        tokens = [[info.pad_token_id] * pad + list(row.tokens) for row, pad in zip(rows, self.pads, strict=True)]
        blank = [[info.pad_token_id] * (self.width - self.prompt)] * len(rows)
        self.tokens_BL = torch.cat([torch.tensor(tokens), torch.tensor(blank)], dim=1).to(device)
        self.forced_BL = _forced(rows, self.pads, self.width).to(device)
        self.last_forced_B = ((self.forced_BL != FREE) * torch.arange(1, self.width + 1, device=device)).amax(dim=1)
        index_L = torch.arange(self.width, device=device)[None]
        self.real_BL = index_L >= torch.tensor(self.pads, device=device)[:, None]
        first_B1 = torch.tensor([[first] for first, _ in response], device=device)
        end_B1 = torch.tensor([[end] for _, end in response], device=device)
        self.response_BL = (index_L >= first_B1) & (index_L < end_B1)
        self.end_B = end_B1[:, 0]
        self.initial_BL = self.tokens_BL.clone()
        self.key_B = torch.tensor([random_key(seed, key) for key in keys], device=device)
        self.eos = torch.tensor(info.eos_token_ids, device=device)
        self.done_B = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self.length, self.cache, self.step = self.prompt, None, 0
        suppressed = [token for token in info.suppressed_token_ids if token not in info.eos_token_ids]
        self.suppressed = torch.tensor(suppressed, dtype=torch.long, device=device)

    def advance(self, recording: RecordingConfig, scorer: RiskScorer | None) -> _Step:
        """Generate one token a row."""
        fresh = self.prompt if self.cache is None else 1
        new_BT = self.tokens_BL[:, self.length - fresh : self.length]
        hidden_BTD, self.cache = self.model.hidden(new_BT, self.real_BL[:, : self.length], self.cache)
        logits_BV = self.model.head(hidden_BTD[:, -1])
        lowest = torch.finfo(logits_BV.dtype).min
        logits_BV.index_fill_(-1, self.suppressed, lowest)
        waiting_B1 = (self.last_forced_B > self.length)[:, None]
        logits_BV[:, self.eos] = logits_BV[:, self.eos].masked_fill(waiting_B1, lowest)
        statistics = vocabulary_statistics(logits_BV, top_k=max(2, recording.top_k), entropy=recording.enabled)
        forced_B = self.forced_BL[:, self.length]
        token_B = torch.where(forced_B == FREE, self._choose(logits_BV, statistics), forced_B)
        logprob_B = logits_BV.gather(-1, token_B[:, None])[:, 0].float() - statistics.logsumexp_N
        if self.capture is not None:
            row_N = (~self.done_B & (forced_B == FREE)).nonzero()[:, 0]
            self.capture.keep(logits_BV[row_N], row_N, torch.full_like(row_N, self.length))
        step = _Step(torch.where(self.done_B, self.eos[0], token_B), logprob_B, statistics, ~self.done_B)
        if scorer is not None and scorer.needs_logits:
            step.risk = scorer.score(self._logit_risk(logits_BV))
        self.tokens_BL[:, self.length] = step.token_B
        self.length += 1
        ended_B = torch.isin(step.token_B, self.eos) & (self.last_forced_B <= self.length)
        self.done_B = self.done_B | ended_B | (self.length >= self.end_B)
        self.step += 1
        return step

    def latest(self, step: _Step, scorer: RiskScorer | None) -> StepSnapshot:
        """The step taken last, scored now; both views coincide."""
        before_BL = self.tokens_BL.clone()
        before_BL[:, self.length - 1] = self.initial_BL[:, self.length - 1]
        written_L = torch.arange(self.width, device=before_BL.device) < self.length
        if step.risk is None:
            risk_SB, attribution_SBL = score_steps(scorer, self.tokens_BL.int()[None], self.response_BL)
            risk_B, attribution_BL = risk_SB[0], attribution_SBL[0]
        else:
            risk_B, attribution_BL = step.risk.risk_N, step.risk.attribution_NL
        canvas_BL = self.tokens_BL.int().cpu().numpy()
        return StepSnapshot(
            step=self.step,
            running_B=step.running_B.cpu().numpy(),
            response_BL=self.response_BL.cpu().numpy(),
            before_BL=before_BL.int().cpu().numpy(),
            canvas_BL=canvas_BL,
            committed_BL=written_L.expand_as(before_BL).cpu().numpy(),
            predicted_BL=canvas_BL,
            risk_committed_B=risk_B.cpu().numpy(),
            risk_predicted_B=risk_B.cpu().numpy(),
            attribution_BL=attribution_BL.masked_fill(~self.response_BL, torch.nan).half().cpu().numpy(),
            events=[[] for _ in self.keys],
        )

    def _logit_risk(self, logits_BV: Tensor) -> RiskInput:
        """The coming position's logits, as a logit scorer sees them."""
        rows_B = torch.arange(len(self.keys), device=logits_BV.device)
        return RiskInput(
            tokens_NL=self.tokens_BL,
            response_NL=self.response_BL,
            logits_MV=logits_BV,
            row_M=rows_B,
            position_M=torch.full_like(rows_B, self.length),
        )

    def _choose(self, logits_BV: Tensor, statistics: VocabularyStatistics) -> Tensor:
        config = self.config
        if config.temperature == 0:
            return statistics.argmax_N
        processed_BV = filter_logits(logits_BV.float(), config.temperature, config.top_p, config.top_k)
        position_B = torch.full_like(self.key_B, self.step)
        uniform_B = randomness.uniform(self.key_B, self.step, position_B, randomness.STREAM_TOKEN)
        return sample_inverse_cdf(torch.softmax(processed_BV, dim=-1), uniform_B)


def _records(state: _State, steps: list[_Step], scorer: RiskScorer | None, wall_seconds_B: F32) -> TrajectoryBatch:
    """Lay the steps out as a `TrajectoryBatch`; planes of a step hold values at its own position only."""
    rows, count = len(state.keys), len(steps)
    index_L = torch.arange(state.width, device=state.tokens_BL.device)
    running_SB = torch.stack([step.running_B for step in steps])
    written_SL = index_L[None] < state.prompt + 1 + torch.arange(count, device=index_L.device)[:, None]
    canvas_SBL = torch.where(written_SL[:, None], state.tokens_BL, state.initial_BL)
    at_SL = index_L[None] == state.prompt + torch.arange(count, device=index_L.device)[:, None]
    chosen_BL = state.forced_BL == FREE
    active_SBL = at_SL[:, None] & running_SB[..., None] & chosen_BL

    def plane(values: list[Tensor]) -> np.ndarray:
        stacked_SB1 = torch.stack(values)[..., None].half()
        return torch.where(active_SBL, stacked_SB1, torch.nan).cpu().numpy()

    in_loop = [step.risk for step in steps if step.risk is not None]
    if in_loop:
        risk_SB = torch.stack([risk.risk_N for risk in in_loop])
        attribution_SBL = torch.stack([risk.attribution_NL for risk in in_loop])
    else:
        risk_SB, attribution_SBL = score_steps(scorer, canvas_SBL, state.response_BL)
    active_L = active_SBL.any(dim=0)
    order_L = index_L - state.prompt + 1
    margin_SB = torch.stack([s.statistics.top_logprobs_NK[:, 0] - s.statistics.top_logprobs_NK[:, 1] for s in steps])
    greedy = state.config.temperature == 0
    margin_B = (
        margin_SB.masked_fill(~active_SBL.any(dim=-1), torch.inf).amin(0) if greedy else torch.full((rows,), torch.inf)
    )
    num_steps = running_SB.sum(dim=0).short().cpu().numpy()
    ints_SBL = canvas_SBL.int().cpu().numpy()
    return TrajectoryBatch(
        keys=state.keys,
        canvas_BL=state.initial_BL.int().cpu().numpy(),
        real_BL=state.real_BL.cpu().numpy(),
        response_BL=state.response_BL.cpu().numpy(),
        tokens_BL=state.tokens_BL.int().cpu().numpy(),
        num_steps_B=num_steps,
        forward_passes_B=num_steps.astype(np.int32),
        commit_step_BL=torch.where(active_L, order_L, NEVER).short().cpu().numpy(),
        predicted_SBL=ints_SBL,
        committed_SBL=written_SL[:, None].expand_as(canvas_SBL).cpu().numpy(),
        canvas_SBL=ints_SBL,
        probability_SBL=plane([step.logprob_B.exp() for step in steps]),
        entropy_SBL=plane([_entropy(step) for step in steps]),
        kl_SBL=np.full(ints_SBL.shape, np.nan, dtype=np.float16),
        attribution_SBL=attribution_SBL.masked_fill(~state.response_BL, torch.nan).half().cpu().numpy(),
        risk_committed_SB=risk_SB.cpu().numpy(),
        risk_predicted_SB=risk_SB.cpu().numpy(),
        action_SB=np.zeros((count, rows), dtype=np.int8),
        margin_B=margin_B.cpu().numpy(),
        wall_seconds_B=wall_seconds_B,
        events=[[] for _ in state.keys],
    )


def _top_planes(state: _State, steps: list[_Step]) -> tuple[I32, F16]:
    """The K best tokens of every step at the position that it decided, ``[S, B, L, K]``; −1 and NaN elsewhere."""
    shape = (len(steps), *state.tokens_BL.shape, steps[0].statistics.top_tokens_NK.shape[-1])
    tokens_SBLK, logprobs_SBLK = np.full(shape, -1, np.int32), np.full(shape, np.nan, np.float16)
    for index, step in enumerate(steps):
        position = state.prompt + index
        active_B = (step.running_B & (state.forced_BL[:, position] == FREE)).cpu().numpy()
        tokens_SBLK[index, active_B, position] = step.statistics.top_tokens_NK.cpu().numpy()[active_B]
        logprobs_SBLK[index, active_B, position] = step.statistics.top_logprobs_NK.cpu().numpy()[active_B]
    return tokens_SBLK, logprobs_SBLK


def _entropy(step: _Step) -> Tensor:
    nan_B = torch.full_like(step.logprob_B, torch.nan)
    return nan_B if step.statistics.entropy_N is None else step.statistics.entropy_N
