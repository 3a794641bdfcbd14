"""Guardrails: interventions in the one loop.

A guardrail is a `Hook` with a name in the registry, a published source and settings. Several are stacked by listing
them; they act in that order. What distinguishes *forkable* guardrails: they leave a trajectory alone until their first
trigger, which is a pure function of a logged step, so that a run under other settings can start from the log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dsprobe.config import DecodingConfig, Spec
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.schedule import planned_steps
from dsprobe.models.base import LanguageModel, ModelKind
from dsprobe.prompts.base import Prompt
from dsprobe.registry import ComponentConfig
from dsprobe.risk import SCORERS
from dsprobe.risk.base import RiskInput, RiskOutput, RiskScorer, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A risk that a guardrail watches: a scorer on one view of the canvas."""

    scorer: Spec
    view: View

    @property
    def key(self) -> str:
        """Identity of the signal."""
        return f"{self.view}:{self.scorer.model_dump_json()}"


@dataclass(slots=True, kw_only=True)
class Setting:
    """What guardrails are built on: a model, the decoding they run in, and scorers that are built once."""

    model: LanguageModel
    decoding: DecodingConfig
    _scorers: dict[str, RiskScorer] = field(default_factory=dict)

    @property
    def planned_steps(self) -> int:
        """S: steps of an undisturbed reply; u = s / S."""
        return planned_steps(self.decoding)

    def scorer(self, spec: Spec) -> RiskScorer:
        """The scorer of a spec, built on first use."""
        key = spec.model_dump_json()
        if key not in self._scorers:
            self._scorers[key] = SCORERS.build(spec.name, spec.params, self.model)
        return self._scorers[key]


@dataclass(slots=True, kw_only=True)
class StepLog:
    """Logged steps of B rows under which `ForkableGuardrail.triggers` decides; S steps, padded at the end."""

    step_SB: Tensor
    """1-based step numbers, int64."""
    fraction_SB: Tensor
    """φ: share of the response positions that hold a token after the step's commits, float32."""
    complete_SB: Tensor
    """True where no mask is left after the step's commits."""
    valid_SB: Tensor
    """True on logged steps, False on padding."""
    risk: Callable[[Signal], Tensor]
    """Risk of a signal at every step, float32 ``[S, B]``."""
    pooled_SBD: Tensor | None
    """Pooled hidden states, where a guardrail needs them."""


class Guardrail(Hook):
    """An intervention in the loop.

    Contract: acts on running rows only (`StepContext.running_B`); a row's treatment never depends on the other rows;
    everything it changes is counted (re-masked positions by extra steps, own forward passes in
    `StepContext.passes_B`). `fired_B` is True for the rows that the present step intervened on.

    Args (of every subclass): ``config`` (its nested ``Config``) and ``setting``.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    """Settings; a class of its own in every subclass that has any."""
    source: ClassVar[str]
    """Where the method is published, e.g. ``"DiffuGuard, 2509.24296 §4.2"``."""
    supports: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion"})
    """Model kinds; prompt-level guardrails support both."""
    fired_B: Tensor
    """Rows that the present step intervened on."""
    interventions_B: Tensor
    """Interventions on each row so far."""

    @classmethod
    def check(cls, config: ComponentConfig, decoding: DecodingConfig) -> None:
        """Refuse settings that do not fit a decoding, before any model is loaded.

        Raises:
            ConfigError: They do not fit.
        """

    def rewrite(self, prompt: Prompt) -> Prompt:
        """Change the user's prompt before it is rendered (prompt-level defences)."""
        return prompt

    def on_init(self, canvas: Canvas) -> None:
        """Start without interventions."""
        self.fired_B = torch.zeros_like(canvas.stopped_B)
        self.interventions_B = torch.zeros_like(canvas.random_key_B)

    def note(self, fired_B: Tensor) -> None:
        """Write down which rows the present step intervened on."""
        self.fired_B = fired_B
        self.interventions_B = self.interventions_B + fired_B


class ForkableGuardrail(Guardrail, ABC):
    """A guardrail that leaves a trajectory alone until a trigger that can be found in the log.

    Contract: decides in `on_canvas` only, by `triggers`; later steps are influenced only through the canvas and through
    what `effects` tells; all else that its decisions depend on is in `row_state`.
    """

    needs_predicted: bool = False
    """Whether it reads the predicted view, so that greedy tokens are logged at every mask."""
    needs_pooled: bool = False
    """Whether it reads pooled hidden states, so that they are logged."""

    @abstractmethod
    def signals(self) -> Sequence[Signal]:
        """The risks it watches."""

    @abstractmethod
    def triggers(self, log: StepLog) -> Tensor:
        """Where it would intervene, given its present row state: bool ``[S, B]``. The loop asks with S = 1."""

    @abstractmethod
    def effects(self) -> list[bytes]:
        """What changes the coming steps beside the canvas (bans, penalties), as one digestible text per row.

        Two rows with equal canvases and equal effects continue alike until the next trigger, whatever the settings;
        a row without effects gives ``b""``.
        """

    @abstractmethod
    def row_state(self) -> Mapping[str, Tensor]:
        """All of its state per row, first axis B; `effects` is a function of it."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `row_state` gave; called right after `on_init`."""


def step_log(context: StepContext, setting: Setting, guardrail: ForkableGuardrail) -> StepLog:
    """The present step as a log of one step, for the decision in the loop.

    Args:
        context: After the step's commits.
        setting: Supplies scorers.
        guardrail: Says whether pooled hidden states are needed.
    """
    canvas = context.canvas

    def risk(signal: Signal) -> Tensor:
        return score_view(context, setting, signal).risk_N[None]

    masked_BL = canvas.masked_BL
    response_B = canvas.response_BL.sum(dim=1).clamp_min(1)
    return StepLog(
        step_SB=context.step_B[None],
        fraction_SB=(1 - (masked_BL & canvas.response_BL).sum(dim=1) / response_B)[None],
        complete_SB=~masked_BL.any(dim=1)[None],
        valid_SB=(context.running_B & ~canvas.stopped_B)[None],
        risk=risk,
        pooled_SBD=context.pooled_BD[None] if guardrail.needs_pooled else None,
    )


def score_view(context: StepContext, setting: Setting, signal: Signal) -> RiskOutput:
    """Score one view of the canvas in a step; see `RiskScorer.score`."""
    tokens_BL = context.canvas.tokens_BL if signal.view == "committed" else context.predicted_BL
    batch = RiskInput(tokens_NL=tokens_BL, response_NL=context.canvas.response_BL)
    return setting.scorer(signal.scorer).score(batch)
