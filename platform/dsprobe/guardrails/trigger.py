"""When a guardrail intervenes: τ, k, window and λ, as one pure rule for the loop and for the log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from dsprobe.config import DecodingConfig, Spec
from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.schedule import planned_steps
from dsprobe.errors import ConfigError
from dsprobe.guardrails.base import ForkableGuardrail, Setting, Signal, StepLog, step_log
from dsprobe.guardrails.weighting import WEIGHTINGS
from dsprobe.registry import ComponentConfig
from dsprobe.risk import SCORERS
from dsprobe.risk.base import View

Phase = Literal["all", "early", "middle", "late", "end"]
PHASES: Final[dict[str, tuple[float, float]]] = {
    "all": (0.0, 1.0),
    "early": (0.0, 1 / 3),
    "middle": (1 / 3, 2 / 3),
    "late": (2 / 3, 1.0),
}
"""Phase → ends of its window over u; `end` looks at finished replies only."""


class TriggerConfig(ComponentConfig):
    """Settings that every step-wise guardrail shares."""

    threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """τ: intervene where λ(s/S) · risk > τ."""
    every: int = Field(default=1, ge=1)
    """k: look at the first step of the window and at every k-th after it."""
    window: Phase | tuple[int, int] = "all"
    """1-based first and last step, or a third of the planned steps by name; `end` is end-only filtering."""
    final_check: bool = False
    """Look at the finished reply too, whatever k and the window say."""
    weighting: Spec = Spec(name="constant")
    """λ family."""
    scorer: Spec = Spec(name="toy_lexicon")
    view: View = "committed"
    """Which view of the canvas is scored."""
    max_interventions: int = Field(default=8, ge=1)
    """Most interventions on one row."""

    @field_validator("window")
    @classmethod
    def _ordered(cls, window: Phase | tuple[int, int]) -> Phase | tuple[int, int]:
        if not isinstance(window, str) and not 1 <= window[0] <= window[1]:
            raise ConfigError(f"window {list(window)}: steps are counted from 1 and the first may not follow the last.")
        return window

    @model_validator(mode="after")
    def _components_exist(self) -> TriggerConfig:
        WEIGHTINGS.config(self.weighting.name, self.weighting.params)
        SCORERS.config(self.scorer.name, self.scorer.params)
        return self

    @property
    def signal(self) -> Signal:
        """The risk that is watched."""
        return Signal(scorer=self.scorer, view=self.view)


def check_window(window: Phase | tuple[int, int], planned_steps: int) -> None:
    """Refuse a window that lies outside the steps.

    Raises:
        ConfigError: The window ends after the last planned step.
    """
    if not isinstance(window, str) and window[1] > planned_steps:
        raise ConfigError(
            f"window {list(window)} lies outside the decoding's {planned_steps} steps. Allowed: 1 to {planned_steps}."
        )


class TriggeredGuardrail(ForkableGuardrail):
    """A forkable guardrail whose triggers are `Trigger`'s; subclasses say what happens then."""

    config: TriggerConfig

    def __init__(self, config: TriggerConfig, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.trigger = Trigger(config, setting)
        self.needs_predicted = config.view == "predicted"

    @classmethod
    def check(cls, config: ComponentConfig, decoding: DecodingConfig) -> None:
        """Refuse a window outside the steps."""
        if isinstance(config, TriggerConfig):
            check_window(config.window, planned_steps(decoding))

    @abstractmethod
    def act(self, context: StepContext, fired_B: Tensor) -> None:
        """Intervene on rows; `interventions_B` does not count this one yet."""

    def on_canvas(self, context: StepContext) -> None:
        """Look, where a look is due, and act."""
        log = step_log(context, self.setting, self)
        fired_B = torch.zeros_like(context.running_B)
        if bool(self.trigger.due(log).any()):
            fired_B = self.triggers(log)[0]
            if bool(fired_B.any()):
                self.act(context, fired_B)
        self.note(fired_B)

    def signals(self) -> Sequence[Signal]:
        """One scorer on one view."""
        return [self.config.signal]

    def triggers(self, log: StepLog) -> Tensor:
        """See `Trigger.fires`."""
        return self.trigger.fires(log, self.interventions_B)

    def effects(self) -> list[bytes]:
        """None but the canvas."""
        return [b""] * len(self.interventions_B)

    def row_state(self) -> Mapping[str, Tensor]:
        """Interventions."""
        return {"interventions": self.interventions_B}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `ForkableGuardrail.restore`."""
        self.interventions_B = state["interventions"].clone()


class Trigger:
    """The rule: due(s) and λ(s/S) · risk_s > τ.

    Steps beyond S (granted to re-masked rows) belong to a window that reaches S.

    Args:
        config: Settings.
        setting: Supplies S and the scorer.

    Raises:
        ConfigError: The window lies outside the steps, or the scorer needs logits and cannot score a canvas.
    """

    def __init__(self, config: TriggerConfig, setting: Setting) -> None:
        check_window(config.window, setting.planned_steps)
        if setting.scorer(config.scorer).needs_logits:
            raise ConfigError(
                f"Scorer `{config.scorer.name}` reads logits and cannot score a canvas after the commits. Allowed: "
                "toy_lexicon, ngram, classifier."
            )
        self.config, self.steps = config, setting.planned_steps
        self.weighting = WEIGHTINGS.build(config.weighting.name, config.weighting.params)
        self.first, self.last = _bounds(config.window, self.steps)

    def due(self, log: StepLog) -> Tensor:
        """Where the rule looks at all, bool ``[S, B]``."""
        step_SB = log.step_SB
        inside_SB = (step_SB >= self.first) & ((step_SB <= self.last) | (self.last >= self.steps))
        due_SB = inside_SB & ((step_SB - self.first) % self.config.every == 0)
        if self.config.window == "end":
            due_SB = torch.zeros_like(due_SB)
        if self.config.final_check or self.config.window == "end":
            due_SB = due_SB | log.complete_SB
        return due_SB & log.valid_SB

    def weighted(self, log: StepLog) -> Tensor:
        """λ(s/S) · risk_s, float32 ``[S, B]``."""
        u_SB = (log.step_SB.float() / self.steps).clamp_max(1.0)
        return self.weighting.weight(u_SB) * log.risk(self.config.signal)

    def fires(self, log: StepLog, interventions_B: Tensor) -> Tensor:
        """Where the guardrail intervenes, bool ``[S, B]``."""
        allowed_B = interventions_B < self.config.max_interventions
        return self.due(log) & (self.weighted(log) > self.config.threshold) & allowed_B


def _bounds(window: Phase | tuple[int, int], steps: int) -> tuple[int, int]:
    """First and last step of a window."""
    if not isinstance(window, str):
        return window
    if window == "end":
        return steps, steps
    low, high = PHASES[window]
    return int(low * steps) + 1, max(int(high * steps), int(low * steps) + 1)
