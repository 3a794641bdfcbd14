"""Short rollouts: what a canvas becomes when the model writes on for a few steps."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.sampling import filter_logits, sample_inverse_cdf
from dsprobe.guardrails.ranking import ranks
from dsprobe.models.base import DiffusionModel

STREAM_ROLLOUT: Final = 21
"""Which tokens rollouts draw."""
HEAD_BYTES: Final = 256 << 20
"""Logits of the rollouts' masks are taken in portions of this size (float32)."""


class Rollouts:
    """Continues every row of a canvas `count` times, in `horizon` steps that each fill an equal share of the masks.

    A step draws a token for every mask and keeps the surest (by the model's own log-probability); the last step fills
    all that is left greedily. Tokens follow the decoding's `top_p` and `top_k`; blocks, schedule, ordering,
    classifier-free guidance and what other guardrails have banned are not heeded. Numbers belong to the row, its step,
    the rollout and the position, so that a row's rollouts do not depend on its neighbours.

    Args:
        model: A diffusion model.
        decoding: Supplies `top_p` and `top_k`.
        count: Rollouts of each row, at least 1; with a horizon of 1 nothing is drawn and one is enough.
        horizon: Steps, at least 1.
        temperature: Of the draws, above 0.
        greedy_end: Whether the last step is taken; without it its share stays masked, and its pass is saved.
    """

    def __init__(
        self,
        model: DiffusionModel,
        decoding: DecodingConfig,
        *,
        count: int,
        horizon: int,
        temperature: float,
        greedy_end: bool,
    ) -> None:
        self._model, self._decoding, self._temperature = model, decoding, temperature
        self._horizon = horizon
        self._steps = horizon if greedy_end else horizon - 1
        self._suppressed_X = torch.tensor(model.info.suppressed_token_ids, dtype=torch.long, device=model.device)
        self.count = count if horizon > 1 else 1

    def run(self, canvas: Canvas, tokens_BL: Tensor, step_B: Tensor, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Continue rows; the whole batch goes through the model at once, so that a row meets few tensor shapes.

        Args:
            canvas: Says what is padding, and holds the rows' counter keys.
            tokens_BL: What to continue.
            step_B: The rows' own step numbers, part of the counters.
            rows_B: Rows to continue; the others stay as they are.

        Returns:
            Token ids ``[B · count, L]`` (a row's rollouts stand together), and the forward passes spent on each row,
            int64 ``[B]``.
        """
        count = self.count
        masked_BL = (tokens_BL == canvas.mask_token_id) & canvas.real_BL & rows_B[:, None]
        passes_B = count * masked_BL.sum(dim=1).clamp_max(self._steps)
        tokens_RL, masked_RL = (part.repeat_interleave(count, dim=0) for part in (tokens_BL, masked_BL))
        real_RL, key_R = canvas.real_BL.repeat_interleave(count, dim=0), canvas.random_key_B.repeat_interleave(count)
        number_R = torch.arange(count, device=tokens_BL.device).repeat(tokens_BL.shape[0])
        counter_R = (step_B.repeat_interleave(count) * count + number_R) * self._horizon
        for turn in range(self._steps):
            if not bool(masked_RL.any()):
                break
            hidden_RLD = self._model.hidden(tokens_RL, real_RL)
            row_N, position_N = masked_RL.nonzero(as_tuple=True)
            greedy = turn == self._horizon - 1
            uniform_N = randomness.uniform(key_R[row_N], counter_R[row_N] + turn, position_N, STREAM_ROLLOUT)
            token_N, logprob_N = self._draw(hidden_RLD[row_N, position_N], uniform_N, greedy=greedy)
            score_RL = torch.full(tokens_RL.shape, -torch.inf, device=tokens_RL.device)
            score_RL[row_N, position_N] = logprob_N
            left = self._horizon - turn
            share_R = (masked_RL.sum(dim=1) + left - 1) // left
            write_RL = masked_RL & (ranks(score_RL) < share_R[:, None])
            tokens_RL = torch.where(write_RL, tokens_RL.index_put((row_N, position_N), token_N), tokens_RL)
            masked_RL = masked_RL & ~write_RL
        return tokens_RL, passes_B

    def _draw(self, hidden_ND: Tensor, uniform_N: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor]:
        """A token for every mask, and its log-probability under the model."""
        portion = max(1, HEAD_BYTES // (4 * self._model.info.vocab_size))
        parts = [
            self._draw_portion(hidden_ND[start : start + portion], uniform_N[start : start + portion], greedy=greedy)
            for start in range(0, len(uniform_N), portion)
        ]
        return torch.cat([token for token, _ in parts]), torch.cat([logprob for _, logprob in parts])

    def _draw_portion(self, hidden_ND: Tensor, uniform_N: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor]:
        logits_NV = self._model.head(hidden_ND).float()
        logits_NV = logits_NV.index_fill(-1, self._suppressed_X, torch.finfo(logits_NV.dtype).min)
        if greedy:
            token_N = logits_NV.argmax(dim=-1)
        else:
            processed_NV = filter_logits(logits_NV, self._temperature, self._decoding.top_p, self._decoding.top_k)
            token_N = sample_inverse_cdf(torch.softmax(processed_NV, dim=-1), uniform_N)
        logit_N = logits_NV.gather(-1, token_N[:, None])[:, 0]
        return token_N, logit_N - logits_NV.logsumexp(dim=-1)
