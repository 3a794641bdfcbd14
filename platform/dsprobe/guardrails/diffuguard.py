"""DiffuGuard: a noisy commit order that anneals, and an audit of finished blocks with repair."""

from __future__ import annotations

import math
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.ordering import ORDERINGS
from dsprobe.errors import ConfigError
from dsprobe.guardrails.bans import TokenBans
from dsprobe.guardrails.base import Guardrail, Setting
from dsprobe.guardrails.blocks import BlockClock
from dsprobe.guardrails.diffuguard_audit import Audit, AuditConfig
from dsprobe.guardrails.ranking import ranks
from dsprobe.prompts.base import Prompt
from dsprobe.registry import ComponentConfig

STREAM_ANNEALING: Final = 31
"""R of stage 1."""
STREAM_REPAIR: Final = 32
"""Which positions stage 2 re-masks."""


class DiffuGuardConfig(AuditConfig):
    """Both stages; defaults are the paper's."""

    alpha: float = Field(default=0.3, ge=0.0, le=1.0)
    """α₀ of stage 1; 0 leaves the order alone."""
    mode: Literal["annealed", "constant"] = "annealed"
    """α_n = α₀ · (1 − (n − 1) / (N − 1)) at step n of a block's N, or α₀ at every step."""
    remask_share: float = Field(default=0.9, gt=0.0, le=1.0)
    """γ: share of an unsafe block's written reply positions that are re-masked."""
    first_block_only: bool = True
    """Audit the first block only, as published."""

    @property
    def audits(self) -> bool:
        """Whether stage 2 is on."""
        return self.audit_threshold is not None or self.cue_threshold is not None


class DiffuGuard(Guardrail):
    """Stochastic annealing remasking (SAR), then block-level audit and repair.

    Stage 1 puts (1 − α_n) · p + α_n · R in the place of the ordering's score, p the probability of the proposed token
    under the model and R uniform; tokens are not touched. Where α_n is 0 the decoding's own ordering decides; steps
    granted beyond a block's N have α_n = 0 under `annealed`. Under `decoding.threshold` a score only decides which
    position is committed where none is sure.

    Stage 2 looks once at each finished block (and at a text that `eos_early_stop` is about to end). SD compares h_p0,
    the mean hidden state of the block's reply positions at its first step, with h_origin of the bare request: what
    `rewrite` was shown, so list `diffuguard` before guardrails that change the prompt. An unsafe block loses a random
    γ of its written positions; a removed token never comes back at its position.

    Only repairs count as interventions. The audit costs one forward pass a row, however many blocks it looks at, the
    cue test none. Under classifier-free guidance h_p0 is guided and h_origin is not: SD is above 0 without an attack.

    What differs from the published code (niez233/DiffuGuard, `generate_function_llada.py`), and why:

    - h_origin is taken at the same reply positions as h_p0 (`reference: reply`), as the paper's symbols suggest; the
      code averages over the request's tokens without masks, which has another scale for every model (`prompt`).
    - Each test has a threshold of its own (SD: paper 0.1, script 0.35); the code compares two unrelated scales with one
      number, and its cue test runs whichever was asked for. The cue test is off unless `cue_threshold` is given.
    - Given positions (anchors, prefills) are never re-masked, and in every row of the batch tokens are suppressed; the
      code suppresses in the first row only, and by 10⁶ nats instead of for good.
    - The code's `refinement_steps` are the loop's extra steps, as many as the block's pace asks for and at most
      `decoding.max_extra_steps` (8 as published); they commit in the decoding's order, not in a random one.
    - Randomness is counter-based and belongs to the row.

    Args:
        config: Settings.
        setting: Model and decoding.

    Raises:
        ConfigError: The cue test is on and the tokenizer does not know a cue.
    """

    Config: ClassVar[type[ComponentConfig]] = DiffuGuardConfig
    source: ClassVar[str] = "DiffuGuard, 2509.24296 (ICLR 2026), stages 1 and 2"
    config: DiffuGuardConfig

    def __init__(self, config: DiffuGuardConfig, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.audit = Audit(config, setting)

    @classmethod
    def check(cls, config: ComponentConfig, decoding: DecodingConfig) -> None:
        """Refuse an order that is no order, and repairs without steps to write again.

        Raises:
            ConfigError: The ordering commits by coin, or no extra step is allowed.
        """
        assert isinstance(config, DiffuGuardConfig)
        if config.alpha > 0 and ORDERINGS.get(decoding.ordering.name).stochastic_commit:
            raise ConfigError(
                f"diffuguard alpha {config.alpha}: ordering `{decoding.ordering.name}` commits by a coin and has no "
                "order to mix noise into. Allowed: alpha 0, or another ordering, e.g. `low_confidence`."
            )
        if config.audits and decoding.max_extra_steps == 0:
            raise ConfigError(
                "diffuguard writes re-masked blocks again in extra steps, and decoding.max_extra_steps is 0. Allowed: "
                "at least 1 (8 as published), or `audit_threshold: null` without a `cue_threshold`."
            )

    def rewrite(self, prompt: Prompt) -> Prompt:
        """Remember the bare request; nothing is changed."""
        self.audit.remember(prompt)
        return prompt

    def on_init(self, canvas: Canvas) -> None:
        """Start without audits and removed tokens."""
        super().on_init(canvas)
        self.blocks = BlockClock(self.setting.decoding, canvas)
        self.audit.begin(canvas)
        self._audited_B = torch.full_like(canvas.random_key_B, -1)
        # One slot is enough: a position belongs to one block, and a block is repaired at most once.
        shape = (canvas.tokens_BL.shape[0], canvas.tokens_BL.shape[1])
        self.bans = TokenBans(shape, 1 if self.config.audits else 0, math.inf, canvas.tokens_BL.device)

    def on_logits(self, context: StepContext) -> None:
        """Follow the blocks, read their first hidden states, and keep removed tokens from coming back."""
        self.blocks.enter(context)
        self.audit.watch(context, self.blocks)
        self.bans.apply(context)

    # ---- stage 1 --------------------------------------------------------------------------------------------------

    def on_confidence(self, context: StepContext) -> None:
        """Mix noise into the order."""
        if self.config.alpha == 0:
            return
        at = (context.row_N, context.position_N)
        logit_N = context.logits_NV.gather(-1, context.token_BL[at][:, None])[:, 0].float()
        logsumexp_N = context.statistics.logsumexp_N
        if context.edited_N is not None:
            logsumexp_N = torch.where(context.edited_N, context.logits_NV.float().logsumexp(dim=-1), logsumexp_N)
        key_N, step_N = context.canvas.random_key_B[context.row_N], context.step_B[context.row_N]
        noise_N = randomness.uniform(key_N, step_N, context.position_N, STREAM_ANNEALING).float()
        alpha_N = self.alpha_B(context)[context.row_N]
        mixed_N = (1 - alpha_N) * (logit_N - logsumexp_N).exp() + alpha_N * noise_N
        score_N = context.score_BL[at]
        # −inf marks what is no candidate of the step.
        score_N = torch.where((alpha_N > 0) & (score_N > -torch.inf), mixed_N, score_N)
        context.score_BL = context.score_BL.index_put(at, score_N)

    def alpha_B(self, context: StepContext) -> Tensor:
        """α_n of every row, float32."""
        if self.config.mode == "constant":
            return torch.full_like(context.step_B, self.config.alpha, dtype=torch.float32)
        done_B = (self.blocks.step_B(context) - 1).float() / (self.blocks.steps_B() - 1).clamp_min(1).float()
        return self.config.alpha * (1 - done_B).clamp_min(0.0)

    # ---- stage 2 --------------------------------------------------------------------------------------------------

    def on_canvas(self, context: StepContext) -> None:
        """Audit blocks that this step has finished, and repair the unsafe ones."""
        fired_B = torch.zeros_like(context.running_B)
        if self.config.audits:
            due_B = self._due(context)
            if bool(due_B.any()):
                self._audited_B = torch.where(due_B, self.blocks.current_B, self._audited_B)
                fired_B = self._repair(context, self.audit.unsafe(context, self.blocks, due_B))
        self.note(fired_B)

    def _due(self, context: StepContext) -> Tensor:
        """Rows whose current block has just been finished and is to be audited."""
        canvas, blocks = context.canvas, self.blocks
        done_B = blocks.complete(canvas)
        if self.setting.decoding.eos_early_stop:
            done_B = done_B | _text_ends(canvas)
        new_B = blocks.current_B > self._audited_B
        if self.config.first_block_only:
            new_B = new_B & (blocks.current_B == blocks.first_B)
        return context.running_B & done_B & new_B

    def _repair(self, context: StepContext, unsafe_B: Tensor) -> Tensor:
        """Re-mask a random share of the blocks' written positions, and ban what stood there."""
        canvas = context.canvas
        written_BL = self.blocks.inside_BL & canvas.response_BL & canvas.real_BL & ~canvas.given_BL & ~canvas.masked_BL
        written_BL = written_BL & unsafe_B[:, None]
        # The small amount keeps γ = 0.9 of ten positions at nine.
        count_B = (self.config.remask_share * written_BL.sum(dim=1).double() + 1e-9).long()
        index_L = torch.arange(written_BL.shape[1], device=written_BL.device)
        draw_BL = randomness.uniform(
            canvas.random_key_B[:, None], context.step_B[:, None], index_L[None], STREAM_REPAIR
        )
        chosen_BL = written_BL & (ranks(draw_BL.masked_fill(~written_BL, -torch.inf)) < count_B[:, None])
        self.bans.add(chosen_BL, canvas.tokens_BL, torch.zeros_like(self.interventions_B))
        canvas.tokens_BL = torch.where(chosen_BL, canvas.mask_token_id, canvas.tokens_BL)
        return chosen_BL.any(dim=1)


def _text_ends(canvas: Canvas) -> Tensor:
    """Rows whose reply holds an end-of-text token with no mask before it: `eos_early_stop` ends them."""
    ends_BL = (canvas.tokens_BL == canvas.eos_token_id) & canvas.response_BL
    ahead_BL = (ends_BL.int().cumsum(dim=1) == 0) & canvas.response_BL
    return ends_BL.any(dim=1) & ~(ahead_BL & canvas.masked_BL).any(dim=1)
