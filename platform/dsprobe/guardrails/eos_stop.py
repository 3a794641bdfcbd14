"""EOS stop: a model that wants to say nothing at once is taken at its word."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.records import ACTION_STOP
from dsprobe.decoding.schedule import planned_steps
from dsprobe.errors import ConfigError
from dsprobe.guardrails.base import Guardrail, Setting
from dsprobe.guardrails.refuse import DEFAULT_REFUSAL, refusal_tokens, refuse
from dsprobe.registry import ComponentConfig


class EosStopConfig(ComponentConfig):
    """When, and what happens then."""

    threshold: float = Field(default=0.9, ge=0.0, le=1.0)
    """τ: stop where P(end-of-text) > τ; the paper reports 0.9 and 0.8."""
    steps: int = Field(default=1, ge=1)
    """At which first steps of a row to look; the paper looks at the first."""
    action: Literal["stop", "refuse"] = "stop"
    """`stop` leaves the reply empty from the first undecided position on, `refuse` writes `text`."""
    text: str = DEFAULT_REFUSAL
    """The refusal, under `action: refuse`; the model's tokenizer must know its words."""


class EosStop(Guardrail):
    """Stops a row whose model puts end-of-text at the left-most undecided reply position with a high probability.

    A2D trains a model to predict end-of-text wherever the context is harmful; its probability at the first step then is
    a monitor. Without that training the same reading tells how sure a model is to end its reply there. The distribution
    is the model's own (after guidance and suppression, before other guardrails edit it), and all tokens that end a
    reply count together. What the step has just committed to a stopped row is taken back.

    Args:
        config: Settings.
        setting: Model and decoding.

    Raises:
        ConfigError: The refusal does not fit the reply, or the tokenizer does not know its words.
    """

    Config: ClassVar[type[ComponentConfig]] = EosStopConfig
    source: ClassVar[str] = "A2D, 2509.23286, early rejection by P([EOS]) at the first step"
    config: EosStopConfig

    def __init__(self, config: EosStopConfig, setting: Setting) -> None:
        self.config, self.model = config, setting.model
        self.refusal_R = refusal_tokens(config.text, setting) if config.action == "refuse" else None
        info, device = self.model.info, self.model.device
        self._ends_E = torch.tensor(info.eos_token_ids, device=device)
        self._suppressed_X = torch.tensor(info.suppressed_token_ids, dtype=torch.long, device=device)

    @classmethod
    def check(cls, config: ComponentConfig, decoding: DecodingConfig) -> None:
        """Refuse more first steps than there are.

        Raises:
            ConfigError: There are fewer steps.
        """
        steps, planned = cast("EosStopConfig", config).steps, planned_steps(decoding)
        if steps > planned:
            raise ConfigError(f"eos_stop steps {steps}: the decoding takes {planned} steps. Allowed: 1 to {planned}.")

    def on_init(self, canvas: Canvas) -> None:
        """Start without rows to stop."""
        super().on_init(canvas)
        self._hit_B = torch.zeros_like(canvas.stopped_B)

    def on_logits(self, context: StepContext) -> None:
        """Read the probability, and remember which rows to stop."""
        self._hit_B = torch.zeros_like(context.running_B)
        open_BL = context.canvas.masked_BL & context.canvas.response_BL
        look_B = context.running_B & (context.step_B <= self.config.steps) & open_BL.any(dim=1)
        if bool(look_B.any()):
            self._hit_B = look_B & (self._end_probability(context.hidden_BLD, open_BL) > self.config.threshold)

    def _end_probability(self, hidden_BLD: Tensor, open_BL: Tensor) -> Tensor:
        """P(end-of-text) at the left-most open position of each row, float32 ``[B]``.

        Taken from the hidden states: the position need not be a candidate of the step, whose logits are known.
        """
        row_B = torch.arange(open_BL.shape[0], device=open_BL.device)
        logits_BV = self.model.head(hidden_BLD[row_B, open_BL.int().argmax(dim=1)]).float()
        logits_BV = logits_BV.index_fill(-1, self._suppressed_X, torch.finfo(logits_BV.dtype).min)
        return torch.softmax(logits_BV, dim=-1)[:, self._ends_E].sum(dim=-1)

    def on_canvas(self, context: StepContext) -> None:
        """Stop the rows."""
        hit_B, canvas = self._hit_B, context.canvas
        if bool(hit_B.any()):
            if self.refusal_R is not None:
                refuse(context, hit_B, self.refusal_R)
            else:
                canvas.tokens_BL = torch.where(hit_B[:, None], context.before_BL, canvas.tokens_BL)
                canvas.stop(hit_B)
                context.action_B |= hit_B * ACTION_STOP
        self.note(hit_B)
