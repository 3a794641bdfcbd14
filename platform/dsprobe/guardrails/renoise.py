"""Step-wise re-noising: take back what carries the risk, and let the model write it again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import StepContext
from dsprobe.guardrails.bans import EMPTY, TokenBans
from dsprobe.guardrails.base import score_view
from dsprobe.guardrails.span import attributed_span
from dsprobe.guardrails.trigger import TriggerConfig, TriggeredGuardrail
from dsprobe.registry import ComponentConfig
from dsprobe.risk.base import RiskOutput


class RenoiseConfig(TriggerConfig):
    """When, and what is taken back."""

    span_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Positions with this share of the largest attribution carry the risk."""
    margin: int = Field(default=1, ge=0)
    """Positions taken back on both sides of them."""
    include_given: bool = False
    """Take back response tokens that the attack wrote, too."""
    removal: Literal["none", "penalty", "ban"] = "ban"
    """What happens to removed tokens at their positions: nothing, a lower logit, or never again."""
    penalty: float = Field(default=5.0, ge=0.0)
    """Nats subtracted from a removed token's logit under `removal: penalty`."""


class RenoiseGuardrail(TriggeredGuardrail):
    """A risk scorer every k steps; spans whose λ-weighted risk exceeds τ are re-masked.

    Re-masking grants the row the steps it needs within `decoding.max_extra_steps`; beyond that the span stays.
    Without `removal` the model tends to write the same again (irreversibility), which is a condition worth measuring.

    Args:
        config: Settings.
        setting: Model, decoding and scorers.

    Raises:
        ConfigError: The window lies outside the steps, or the scorer cannot score a canvas.
    """

    Config: ClassVar[type[ComponentConfig]] = RenoiseConfig
    source: ClassVar[str] = "programme draft, step-wise risk scoring with re-noising; remasking as in 2503.00307"
    config: RenoiseConfig

    def on_init(self, canvas: Canvas) -> None:
        """Start without interventions and removed tokens."""
        super().on_init(canvas)
        penalty = math.inf if self.config.removal == "ban" else self.config.penalty
        slots = 0 if self.config.removal == "none" else self.config.max_interventions
        shape = (canvas.tokens_BL.shape[0], canvas.tokens_BL.shape[1])
        self.bans = TokenBans(shape, slots, penalty, canvas.tokens_BL.device)

    def on_logits(self, context: StepContext) -> None:
        """Keep removed tokens from coming back."""
        self.bans.apply(context)

    def act(self, context: StepContext, fired_B: Tensor) -> None:
        """Re-mask the spans, and remember what was removed."""
        canvas = context.canvas
        scored = score_view(context, self.setting, self.config.signal)
        span_BL = fired_B[:, None] & self.span(context, scored)
        shown_BL = context.predicted_BL if self.config.view == "predicted" else canvas.tokens_BL
        if self.config.removal != "none":
            word_BL = span_BL & (shown_BL != canvas.mask_token_id) & (shown_BL != canvas.eos_token_id)
            self.bans.add(word_BL, shown_BL, self.interventions_B)
        canvas.tokens_BL = torch.where(span_BL, canvas.mask_token_id, canvas.tokens_BL)

    def span(self, context: StepContext, scored: RiskOutput) -> Tensor:
        """Positions that an intervention takes back, bool ``[B, L]``."""
        return attributed_span(
            scored.attribution_NL,
            context.canvas,
            share=self.config.span_share,
            margin=self.config.margin,
            include_given=self.config.include_given,
        )

    def effects(self) -> list[bytes]:
        """The set of removed (position, token) pairs and the penalty."""
        header = np.float64(self.bans.penalty).tobytes()
        removed_BLJ = self.bans.token_BLJ.cpu().numpy()
        return [header + pairs if (pairs := _pairs(removed_LJ)) else b"" for removed_LJ in removed_BLJ]

    def row_state(self) -> Mapping[str, Tensor]:
        """Interventions and removed tokens."""
        return {**super().row_state(), "removed": self.bans.token_BLJ}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `ForkableGuardrail.restore`."""
        super().restore(state)
        self.bans.token_BLJ = state["removed"].clone()


def _pairs(removed_LJ: npt.NDArray[np.int64]) -> bytes:
    """Distinct (position, token) pairs in order; which intervention removed them does not matter."""
    position, slot = (removed_LJ != EMPTY).nonzero()
    pairs_P2 = np.stack([position, removed_LJ[position, slot]], axis=1)
    return bytes(np.unique(pairs_P2, axis=0).tobytes()) if len(pairs_P2) else b""
