"""Settings of a policy's training, and what follows from them before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from dsprobe.config import Strict
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import Plan
from dsprobe.guardrails.policy import ActionConfig
from dsprobe.guardrails.policy_traces import Bool, Case, Ints
from dsprobe.risk.base import View


class PolicyTraining(Strict):
    """Settings of a training."""

    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    """Keep the first N prompts of every set."""
    holdout: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of the prompts of every set that training does not see."""
    intervention_cost: float = Field(default=0.01, ge=0.0)
    """c_int, per intervention; a trajectory's risk term lies in [0, 1]."""
    fluency_cost: float = Field(default=0.1, ge=0.0)
    """c_flu, per nat of a reply's mean −log p."""
    explorations: int = Field(default=1, ge=1)
    """Exploring trajectories per training prompt."""
    rate: float = Field(default=1.0, gt=0.0, le=1.0)
    """Exploring trajectories intervene with a probability uniform in (0, rate)."""
    view: View = "committed"
    """View of the canvas that is scored."""
    hidden: int = Field(default=24, ge=1)
    knots: int = Field(default=9, ge=2)
    iterations: int = Field(default=400, ge=1)


def default_action(plan: Plan, config: PolicyTraining) -> ActionConfig:
    """What an intervention does unless told otherwise: the policy guardrail's defaults with the run's scorer."""
    return ActionConfig(scorer=plan.config.risk.scorer, view=config.view)


def split(cases: Sequence[Case], config: PolicyTraining) -> tuple[Ints, Bool]:
    """Prompt number of each row, and which rows are held out: whole prompts, the same share of every set.

    Raises:
        ConfigError: A set has too few prompts to train on some and hold out others.
    """
    names = [(case.condition.prompts, case.prompt.id) for case in cases]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    held: set[int] = set()
    generator = np.random.default_rng(config.seed)
    for prompts in dict.fromkeys(name for name, _ in names):
        mine = [index for (name, _), index in number.items() if name == prompts]
        count = max(1, round(config.holdout * len(mine)))
        if len(mine) - count < 2:
            raise ConfigError(
                f"prompt set `{prompts}` has {len(mine)} prompts: too few to hold out {count} and train on at least 2. "
                "Allowed: a run, and a limit, of 3 or more prompts in every set."
            )
        held |= set(generator.permutation(mine)[:count].tolist())
    prompt_N = np.array([number[name] for name in names])
    return prompt_N, np.isin(prompt_N, sorted(held))
