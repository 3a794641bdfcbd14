"""From a guardrail to row outcomes: what a trial asks for, whoever computes it."""

from __future__ import annotations

from typing import Protocol

from dsprobe.config import GuardrailConfig
from dsprobe.experiment.outcomes import RowOutcomes


class Evaluator(Protocol):
    """Runs guardrails on the sweep's experiment. Picklable; holds no GPU: the work is done by a replica pool."""

    def evaluate(self, guardrail: GuardrailConfig, start: float, stop: float) -> RowOutcomes:
        """Outcomes of a share of every prompt set.

        Args:
            guardrail: The stack; ``GuardrailConfig()`` is the unguarded baseline.
            start: Rows whose prompt index is at least ``ceil(start · n)`` of a set's n prompts …
            stop: … and below ``ceil(stop · n)``.

        Raises:
            DSProbeError: The setting cannot run (a trial fails with this as its reason).
        """
        ...
