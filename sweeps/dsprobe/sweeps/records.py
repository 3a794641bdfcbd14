"""What a sweep knows of each trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dsprobe.config import GuardrailConfig
from dsprobe.experiment.outcomes import RowOutcomes

TrialState = Literal["complete", "stopped", "failed"]
"""Ran on all prompts; stopped on a rung because it was dominated; failed with a reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One finished trial."""

    number: int
    """Number in the Optuna study."""
    state: TrialState
    parameters: Mapping[str, Any]
    """Dotted path → value; only parameters that exist under the trial's choices."""
    guardrail: GuardrailConfig | None
    """What it ran; `None` where the parameters did not make one."""
    digest: str
    """Identity of the guardrail: equal settings have equal digests, and share outcomes."""
    outcomes: RowOutcomes | None
    """Rows of all rungs that it ran; `None` for failed trials."""
    rung: float
    """Share of the prompts that it ran, 0 for failed trials."""
    reason: str = ""
    """Why it was stopped or failed."""
    wall_seconds: float = 0.0
    cached: bool = False
    """True where an earlier trial with the same digest had run the same rows."""
