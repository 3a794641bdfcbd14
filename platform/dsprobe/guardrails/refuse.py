"""Stop and refuse: what end-only filters do to finished text, as an action at any step."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.records import ACTION_STOP
from dsprobe.errors import ConfigError
from dsprobe.guardrails.base import Setting
from dsprobe.guardrails.trigger import TriggerConfig, TriggeredGuardrail
from dsprobe.models.chat import encode, require_tokenizer
from dsprobe.registry import ComponentConfig

DEFAULT_REFUSAL = "Sorry, I can't help with that."


class RefuseConfig(TriggerConfig):
    """When, and what is said."""

    text: str = DEFAULT_REFUSAL
    """The refusal that replaces the reply; the model's tokenizer must know its words."""


class RefuseGuardrail(TriggeredGuardrail):
    """Where λ-weighted risk exceeds τ the row is stopped and its reply replaced by a refusal.

    With `window: end` this is the output filter that deployed systems have; with earlier windows it is a monitor that
    stops generation.

    Args:
        config: Settings.
        setting: Model, decoding and scorers.

    Raises:
        ConfigError: The window lies outside the steps, the refusal does not fit the reply, or the tokenizer does not
            know its words.
    """

    Config: ClassVar[type[ComponentConfig]] = RefuseConfig
    source: ClassVar[str] = "end-only filtering, the programme's baseline; stopping as in SRI Guard, 2602.02600 §5"
    config: RefuseConfig

    def __init__(self, config: RefuseConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.refusal = refusal_tokens(config.text, setting)

    def act(self, context: StepContext, fired_B: Tensor) -> None:
        """Stop the rows and write the refusal."""
        refuse(context, fired_B, self.refusal)


def refusal_tokens(text: str, setting: Setting) -> Tensor:
    """Token ids of a refusal.

    Raises:
        ConfigError: It does not fit the reply, or holds words that the tokenizer does not know.
    """
    tokenizer = require_tokenizer(setting.model)
    tokens = encode(setting.model, text)
    if not tokens or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens):
        raise ConfigError(
            f"refusal text `{text}`: the tokenizer of model `{setting.model.info.name}` does not know its words. "
            "Allowed: any text in the model's language, e.g. `i can not help with that .` for the toy models."
        )
    if len(tokens) > setting.decoding.reply_length:
        raise ConfigError(
            f"refusal text `{text}` takes {len(tokens)} tokens; the reply has {setting.decoding.reply_length}."
        )
    return torch.tensor(tokens, device=setting.model.device)


def refuse(context: StepContext, rows_B: Tensor, refusal_R: Tensor) -> None:
    """Stop rows and replace their replies by a refusal, filled up with end-of-text.

    Args:
        context: A step, after its commits.
        rows_B: Rows to stop.
        refusal_R: Token ids.
    """
    canvas = context.canvas
    canvas.stop(rows_B)
    index_L = torch.arange(canvas.tokens_BL.shape[1], device=rows_B.device)
    offset_BL = index_L[None] - canvas.response_start_B[:, None]
    written_BL = torch.where(
        (offset_BL >= 0) & (offset_BL < len(refusal_R)),
        refusal_R[offset_BL.clamp(0, len(refusal_R) - 1)],
        canvas.eos_token_id,
    )
    canvas.tokens_BL = torch.where(rows_B[:, None] & canvas.response_BL, written_BL, canvas.tokens_BL)
    context.action_B |= rows_B * ACTION_STOP
