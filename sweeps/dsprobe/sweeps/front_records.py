"""The front of a sweep as records: its points, how the search got there, and what every trial measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsprobe.config import GuardrailConfig
from dsprobe.metrics.intervals import Interval

Estimates = Mapping[str, Interval]
"""Objective → estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialMeasures:
    """What a trial's rows say, on the share of the prompts that it ran."""

    objectives: Estimates
    constraints: Mapping[str, float]
    """Feasible at or below 0."""
    feasible: bool
    empty_shares: Mapping[str, float]
    """Objective → share of empty replies among its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A setting of the front."""

    label: str
    """``knee``, or ``p01`` … by the first objective."""
    trial: int
    equivalent: tuple[int, ...]
    """Other trials with the same objectives, to the last bit; one stands for all."""
    parameters: Mapping[str, Any]
    guardrail: GuardrailConfig
    """The setting, named by the label."""
    objectives: Estimates
    change: Estimates
    """Difference from the unguarded run on the same resampled prompts."""
    empty_shares: Mapping[str, float]
    validation: Estimates | None = None
    """The objectives on prompts that the search never saw."""
    attained: float
    """Share of the resamples in which no feasible complete trial, nor the unguarded model, beats the point."""
    contribution: float
    """Hypervolume that the point alone adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttainmentStep:
    """The front after some of the trials."""

    trials: int
    """Trials finished; 0 is the unguarded run."""
    hypervolume: float
    passes_used: int
    """Forward passes computed so far, the unguarded run included."""
    passes_from_scratch: int
    """Forward passes that the same trials take without forking and without a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Everything that ``front.json`` holds. All objectives are minimised."""

    objectives: tuple[str, ...]
    reference: Mapping[str, float]
    confidence: float
    hypervolume: Interval
    """Of the points, up to the reference point; the interval is that of these points, not of the search."""
    points: tuple[FrontPoint, ...]
    """By the first objective."""
    baseline: Estimates
    baseline_validation: Estimates | None = None
    attainment: tuple[AttainmentStep, ...]
    measures: Mapping[int, TrialMeasures]
    """Trial number → measures; trials without outcomes are left out."""
    sweep_id: str = ""
    validation_run: str | None = None
    """Run in which chosen settings were recorded."""
    importances: Mapping[str, Mapping[str, float]] | None = None
    """Objective → parameter → share; `None` until computed."""
    importances_note: str = ""
    """Why there are no importances."""

    @property
    def knee(self) -> str | None:
        """Label of the knee; `None` for an empty front."""
        return "knee" if self.points else None
