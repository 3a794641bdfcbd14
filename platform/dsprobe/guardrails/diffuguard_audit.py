"""DiffuGuard's audit: has the attack moved the reply's hidden states away from where the bare request has them?"""

from __future__ import annotations

from typing import Final, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from dsprobe.attacks.base import Rendered
from dsprobe.attacks.rendering import chat_prefix
from dsprobe.decoding.canvas import Canvas, batch_canvases
from dsprobe.decoding.hooks import StepContext
from dsprobe.errors import ConfigError
from dsprobe.guardrails.base import Setting
from dsprobe.guardrails.blocks import BlockClock
from dsprobe.models.base import DiffusionModel
from dsprobe.models.chat import encode, require_tokenizer
from dsprobe.prompts.base import Prompt
from dsprobe.registry import ComponentConfig

ACCEPT_CUES: Final = ("Sure", "Of course", "Here", "Step", "1.", "First", "Proceed", "Let's")
REFUSE_CUES: Final = ("Sorry", "I can't", "cannot", "won't", "illegal", "harmful", "not assist", "refuse")
"""The published code's lists."""
CUE_BYTES: Final = 256 << 20
"""Logits of the cue test are taken in portions of this size (float32)."""


class AuditConfig(ComponentConfig):
    """When a finished block counts as unsafe."""

    audit_threshold: float | None = Field(default=0.1, ge=0.0, le=2.0)
    """λ: unsafe where SD = 1 − cos(h_origin, h_p0) > λ; `None` is off."""
    reference: Literal["reply", "prompt"] = "reply"
    """What h_origin is the mean of: the same reply positions behind the bare request, all masked (like for like: SD is
    0 in the first block without an attack; in later ones the text before them counts too), or the bare request's own
    tokens, as in the published code (a scale of its own for every model)."""
    cue_threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """Unsafe where the cue value, 4 · P(accept) · P(refuse), is at least this; `None` is off."""
    accept_cues: tuple[str, ...] = Field(default=ACCEPT_CUES, min_length=1)
    """Phrases whose tokens count as agreeing; the model's tokenizer must know them."""
    refuse_cues: tuple[str, ...] = Field(default=REFUSE_CUES, min_length=1)
    """Phrases whose tokens count as refusing."""


class Audit:
    """Remembers the bare requests and the first hidden states of each block, and compares the two.

    Args:
        config: Settings.
        setting: Model.

    Raises:
        ConfigError: The cue test is on and the tokenizer does not know a cue.
    """

    def __init__(self, config: AuditConfig, setting: Setting) -> None:
        self.config, self.model = config, cast("DiffusionModel", setting.model)
        self._prefixes: dict[str, list[int]] = {}
        self._cues = self._cue_tokens() if config.cue_threshold is not None else None

    def _cue_tokens(self) -> tuple[Tensor, Tensor]:
        """Token ids of both lists; all tokens of a phrase count, as published."""
        unknown = require_tokenizer(self.model).unk_token_id
        found = []
        for phrases in (self.config.accept_cues, self.config.refuse_cues):
            tokens = {phrase: encode(self.model, phrase) for phrase in phrases}
            for phrase, ids in tokens.items():
                if not ids or (unknown is not None and unknown in ids):
                    raise ConfigError(
                        f"diffuguard cue `{phrase}`: the tokenizer of model `{self.model.info.name}` does not know it. "
                        "Give `accept_cues` and `refuse_cues` in the model's language."
                    )
            unique = sorted({token for ids in tokens.values() for token in ids})
            found.append(torch.tensor(unique, device=self.model.device))
        return found[0], found[1]

    def remember(self, prompt: Prompt) -> None:
        """Keep a request as the reference of the rows that carry its id.

        Raises:
            ConfigError: Another request had the same id.
        """
        if self.config.audit_threshold is None:
            return
        prefix = chat_prefix(prompt, self.model)
        if self._prefixes.setdefault(prompt.id, prefix) != prefix:
            raise ConfigError(
                f"diffuguard: prompt id `{prompt.id}` stands for two different requests; ids must differ."
            )

    def begin(self, canvas: Canvas) -> None:
        """Prepare for a batch.

        Raises:
            ConfigError: A row's request was never shown.
        """
        self._state_BD: Tensor | None = None
        self._reference: tuple[Canvas, Tensor, Tensor] | None = None
        self._counted_B = torch.zeros_like(canvas.stopped_B)
        if self.config.audit_threshold is not None:
            missing = [key.prompt_id for key in canvas.keys if key.prompt_id not in self._prefixes]
            if missing:
                raise ConfigError(
                    f"diffuguard audits against the bare request, and that of prompt `{missing[0]}` is not known: pass "
                    "every prompt through `rewrite` before decoding."
                )

    def watch(self, context: StepContext, blocks: BlockClock) -> None:
        """Read h_p0: the mean hidden state of a block's reply positions at its first step, masks included."""
        if self.config.audit_threshold is None or not bool(blocks.entered_B.any()):
            return
        canvas = context.canvas
        mean_BD = _mean(context.hidden_BLD, blocks.inside_BL & canvas.response_BL & canvas.real_BL)
        if self._state_BD is None:
            self._state_BD = torch.zeros_like(mean_BD)
        self._state_BD = torch.where(blocks.entered_B[:, None], mean_BD, self._state_BD)

    def unsafe(self, context: StepContext, blocks: BlockClock, due_B: Tensor) -> Tensor:
        """Rows, among those due, whose finished block is unsafe; counts the reference's forward pass."""
        unsafe_B = torch.zeros_like(due_B)
        if self.config.audit_threshold is not None:
            context.passes_B = context.passes_B + (due_B & ~self._counted_B)
            self._counted_B = self._counted_B | due_B
            unsafe_B = self.divergence(context.canvas, blocks) > self.config.audit_threshold
        if self.config.cue_threshold is not None:
            inside_BL = blocks.inside_BL & context.canvas.response_BL & context.canvas.real_BL & due_B[:, None]
            unsafe_B = unsafe_B | (self.cue_value(context.hidden_BLD, inside_BL) >= self.config.cue_threshold)
        return unsafe_B & due_B

    def divergence(self, canvas: Canvas, blocks: BlockClock) -> Tensor:
        """SD of each row's current block, float32 ``[B]`` in [0, 2]."""
        assert self._state_BD is not None, "an audited block has been entered"
        reference, real_BL, hidden_BLD = self._reference or self._run_reference(canvas)
        self._reference = reference, real_BL, hidden_BLD
        where_BL = real_BL
        if self.config.reference == "reply":
            index_L = torch.arange(real_BL.shape[1], device=real_BL.device)
            shift_B = canvas.response_start_B - reference.response_start_B
            place_BL = (index_L[None] + shift_B[:, None]).clamp(0, canvas.tokens_BL.shape[1] - 1)
            where_BL = reference.response_BL & blocks.inside_BL.gather(1, place_BL)
        origin_BD = _mean(hidden_BLD, where_BL)
        return 1 - torch.nn.functional.cosine_similarity(origin_BD, self._state_BD, dim=-1)

    def _run_reference(self, canvas: Canvas) -> tuple[Canvas, Tensor, Tensor]:
        """One forward pass over the bare requests, with as many masks behind them as the rows have reply positions."""
        lengths = canvas.response_BL.sum(dim=1).tolist()
        mask = canvas.mask_token_id
        rows = []
        for key, length in zip(canvas.keys, lengths, strict=True):
            prefix = self._prefixes[key.prompt_id]
            start, end = len(prefix), len(prefix) + length
            rows.append(Rendered(tokens=(*prefix, *[mask] * length), response_start=start, response_end=end))
        reference = batch_canvases(rows, canvas.keys, self.model.info, device=canvas.tokens_BL.device)
        real_BL = reference.real_BL
        if self.config.reference == "prompt":
            real_BL = real_BL & ~reference.response_BL
        return reference, real_BL, self.model.hidden(reference.tokens_BL, real_BL)

    def cue_value(self, hidden_BLD: Tensor, inside_BL: Tensor) -> Tensor:
        """Mean over positions of 4 · P(accept tokens) · P(refuse tokens), float32 ``[B]``; 0 where there are none.

        Large where a position could still agree as well as refuse.
        """
        assert self._cues is not None, "the cue test is on"
        accept_X, refuse_X = self._cues
        hidden_ND = hidden_BLD[inside_BL]
        portion = max(1, CUE_BYTES // (4 * self.model.info.vocab_size))
        value_BL = torch.zeros(inside_BL.shape, device=hidden_BLD.device)
        values = []
        for start in range(0, len(hidden_ND), portion):
            probability_NV = torch.softmax(self.model.head(hidden_ND[start : start + portion]).float(), dim=-1)
            both_N = probability_NV[:, accept_X].sum(dim=-1) * probability_NV[:, refuse_X].sum(dim=-1)
            values.append(4 * both_N)
        if values:
            value_BL[inside_BL] = torch.cat(values)
        return value_BL.sum(dim=1) / inside_BL.sum(dim=1).clamp_min(1)


def _mean(hidden_BLD: Tensor, where_BL: Tensor) -> Tensor:
    """Mean hidden state over positions, float32 ``[B, D]``; zero where there are none."""
    total_BD = torch.einsum("bld,bl->bd", hidden_BLD.float(), where_BL.float())
    return total_BD / where_BL.sum(dim=1, keepdim=True).clamp_min(1)
