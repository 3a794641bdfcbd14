"""Trials of a study: what is asked, what may be told, and what is handed out of the storage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study_opening import PARTIAL, REASON, RESERVED, STOPPED


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to run."""

    number: int
    """Its number in the Optuna study."""
    parameters: dict[str, Any]
    """Dotted path → number or label; only parameters that exist under the choices made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTrial:
    """A trial as the storage knows it."""

    number: int
    state: Literal["complete", "stopped", "failed"]
    parameters: dict[str, Any]
    values: tuple[float, ...] | None
    """Objectives; those on the prompts that it ran for a stopped trial, `None` for a failed one."""
    constraints: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def finite_values(number: int, values: Sequence[float], count: int) -> list[float]:
    """Values as they are told to the study.

    Args:
        number: Number of the trial, for the message.
        values: One per objective.
        count: Number of objectives.

    Raises:
        ValueError: Too many, too few, or not finite.
    """
    told = [float(value) for value in values]
    if len(told) != count:
        raise ValueError(f"trial {number}: {len(told)} values for {count} objectives.")
    if not all(math.isfinite(value) for value in told):
        raise ValueError(f"trial {number}: values {told} are not finite; use fail() with a reason instead.")
    return told


def finite_constraints(number: int, constraints: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Constraints as they are told to the study, in its order.

    Args:
        number: Number of the trial, for the message.
        constraints: Name → value.
        names: The study's constraints.

    Raises:
        ValueError: They are not those of the study, or not finite.
    """
    if set(constraints) != set(names):
        raise ValueError(f"trial {number}: constraints {sorted(constraints)} given; the study has {sorted(names)}.")
    bounds = {key: float(constraints[key]) for key in names}
    if not all(math.isfinite(value) for value in bounds.values()):
        raise ValueError(f"trial {number}: constraints {bounds} are not finite; use fail() with a reason instead.")
    return bounds


def note(trial: optuna.Trial, attributes: Mapping[str, Any], own: Mapping[str, Any] = {}) -> None:
    """Keep attributes with a trial.

    Args:
        trial: A running trial.
        attributes: The user's; anything JSON can say.
        own: The study's, see `RESERVED`.

    Raises:
        ValueError: One of the user's has a name of the study's own, or is not JSON.
    """
    taken = sorted(RESERVED & set(attributes))
    if taken:
        raise ValueError(f"trial {trial.number}: attribute `{taken[0]}` is the study's own; take another name.")
    try:
        json.dumps(dict(attributes), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"trial {trial.number}: attributes must be JSON: {error}.") from None
    for key, value in {**attributes, **own}.items():
        trial.set_user_attr(key, value)


def constrain(trial: optuna.Trial, bounds: Mapping[str, float]) -> None:
    """Set a running trial's constraints."""
    for key, value in bounds.items():
        trial.set_constraint(key, value)


def finished_trial(trial: FrozenTrial, space: SearchSpace, *, suggests_all: bool) -> FinishedTrial:
    """What a study hands out of a finished trial.

    Args:
        trial: As Optuna keeps it.
        space: What is searched.
        suggests_all: Whether the sampler also suggests parameters that do not exist under the choices made; they are
            left out.
    """
    own, bounds, parameters = trial.user_attrs, trial.constraints, dict(trial.params)
    stopped = bounds.pop(STOPPED, -1.0) > 0
    values = own.get(PARTIAL) if stopped else trial.values
    return FinishedTrial(
        number=trial.number,
        state="failed" if trial.state == TrialState.FAIL else "stopped" if stopped else "complete",
        parameters=space.active(parameters) if suggests_all else parameters,
        values=None if values is None else tuple(values),
        constraints=bounds,
        attributes={key: value for key, value in own.items() if key not in RESERVED},
        reason=own.get(REASON, ""),
    )
