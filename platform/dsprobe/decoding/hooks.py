"""Hooks: the one place where attacks, guardrails, monitors and the recorder touch the denoising loop.

A hook overrides the methods it needs. Tensors are the loop's own: assign to the field named in the method to change it,
and decide with tensor operations over the batch, never row by row. Hooks run in the order given.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.vocabulary import VocabularyStatistics


@dataclass(slots=True, kw_only=True)
class StepContext:
    """One denoising step, filled in as the step proceeds. N entries are the masked positions with logits."""

    step: int
    """0-based number of the loop's turn. Rows of a forked batch are at different steps: use `step_B`."""
    step_B: Tensor
    """1-based number of the row's own step; where a row is not running, the last one it took."""
    canvas: Canvas
    running_B: Tensor
    """True for rows that take this step."""
    passes_B: Tensor
    """Forward passes spent on each row in this step; a hook that runs the model adds its own."""
    row_N: Tensor
    position_N: Tensor
    logits_NV: Tensor
    """Logits after guidance and suppression."""
    statistics: VocabularyStatistics
    """Statistics of the model's distribution, taken before hooks edit the logits."""
    hidden_BLD: Tensor
    """Hidden states aligned to the position they predict, after guidance."""
    model_logits_NV: Tensor | None = None
    """`logits_NV` as they were before hooks; kept where the recorder asks for them."""
    edited_N: Tensor | None = None
    """True where a hook has changed `logits_NV`, so that `statistics` no longer describe it; `None` for nowhere."""
    score_BL: Tensor = field(init=False)
    """Ordering score, −inf where not a candidate."""
    token_BL: Tensor = field(init=False)
    """Proposed token at every candidate, the canvas elsewhere."""
    commit_BL: Tensor = field(init=False)
    """Positions that this step commits."""
    before_BL: Tensor = field(init=False)
    """Canvas before the step's commits."""
    committed_BL: Tensor = field(init=False)
    """Canvas right after the commits and what an attack made of them, before guardrails act in `on_canvas`."""
    unattacked_BL: Tensor | None = None
    """Canvas right after the commits where an attack has changed it since; `None` where none has."""
    action_B: Tensor = field(init=False)
    """Bit flags of what hooks did (`dsprobe.decoding.records`)."""
    logged_greedy_BL: Tensor | None = None
    """Set where a logged step is entered again without a forward pass; see `predicted_BL`."""
    logged_pooled_BD: Tensor | None = None
    """Likewise; see `pooled_BD`."""

    @property
    def greedy_BL(self) -> Tensor:
        """The canvas before the step with every mask that has logits filled by its most probable token."""
        if self.logged_greedy_BL is None:
            at = (self.row_N, self.position_N)
            self.logged_greedy_BL = self.before_BL.index_put(at, self.statistics.argmax_N)
        return self.logged_greedy_BL

    @property
    def predicted_BL(self) -> Tensor:
        """The predicted view x̂_s: the canvas as it is now, its masks filled greedily (`StatisticsNeeds.all_masks`)."""
        masked_BL = self.canvas.tokens_BL == self.canvas.mask_token_id
        return torch.where(masked_BL, self.greedy_BL, self.canvas.tokens_BL)

    @property
    def pooled_BD(self) -> Tensor:
        """Mean hidden state over the response positions of each row, float32 ``[B, D]``."""
        if self.logged_pooled_BD is None:
            weight_BL = self.canvas.response_BL.float()
            total_BD = torch.einsum("bld,bl->bd", self.hidden_BLD.float(), weight_BL)
            self.logged_pooled_BD = total_BD / weight_BL.sum(dim=1, keepdim=True).clamp_min(1)
        return self.logged_pooled_BD


class Hook:
    """Base of all hooks; every method does nothing."""

    def on_init(self, canvas: Canvas) -> None:
        """Before the first step; may write any token."""

    def on_hidden(self, canvas: Canvas, hidden_BLD: Tensor) -> Tensor:
        """After the model's body; returns the hidden states to go on with."""
        return hidden_BLD

    def on_logits(self, context: StepContext) -> None:
        """May **assign** `context.logits_NV` (do not write into the tensor: statistics share it)."""

    def on_confidence(self, context: StepContext) -> None:
        """May change `context.score_BL` (the order only)."""

    def on_commit(self, context: StepContext) -> None:
        """May change `context.commit_BL` and `context.token_BL` before anything is written.

        A row whose whole proposal is vetoed commits nothing and is granted another step while its extra steps last;
        after that it is stopped, so a veto never leaves a mask in an output.
        """

    def on_canvas(self, context: StepContext) -> None:
        """After the commits; may re-mask or rewrite `context.canvas.tokens_BL`, or `canvas.stop(rows)`."""

    def on_step_end(self, context: StepContext) -> None:
        """After all changes of a step; for recording."""
