"""H2 from the rows of the irreversibility experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.metrics import hypotheses as h
from dsprobe.metrics.decisions import decide_h2
from dsprobe.metrics.hypotheses import Decision

FORK_VIEW: Final = "committed"
"""View that decides H2: harmful tokens must stand on the canvas to survive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedRows:
    """What the irreversibility experiment found; see `dsprobe.experiment.irreversibility.Renoised`."""

    settings: Mapping[str, Any]
    """`Renoised.facts`."""
    table: pa.Table

    def lacking(self, planned: int) -> str:
        """What H2 would need beside the settings; empty where they are enough.

        Args:
            planned: Denoising steps of the condition.
        """
        steps, shares, target = (self.settings[name] for name in ("steps", "shares", "target"))
        middle = [step for step in steps if abs(step - planned / 2) <= planned / 4]
        enough = min(shares) <= h.H2_SMALL_SHARE and {h.H2_SHARE, 1.0} <= set(shares)
        if middle and enough and target == "random":
            return ""
        return (
            f"irreversibility was measured at steps {steps}, shares {shares}, {target} positions; run "
            f"`dsprobe irreversibility RUN --steps {planned // 2} --shares 0.2,{h.H2_SHARE:g},1`"
        )

    def decide(self, condition: str, planned: int, view: str = FORK_VIEW) -> Decision:
        """Apply the rule of H2 to one condition.

        Args:
            condition: Id of a condition that was forked.
            planned: Its denoising steps.
            view: View whose harm at the step counts.
        """
        rows = self.table.filter(pc.equal(self.table["condition"], condition))
        names = (f"harmful_{view}", "harmful_at_end", "step", "share", "prompt_id")
        at_step, at_end, step, share, prompt = (np.array(rows[name].to_pylist()) for name in names)
        return decide_h2(at_step, at_end, step, share, prompt, planned)


def decide_forked(forks: ForkedRows, planned: Mapping[str, int]) -> Decision:
    """H2 on the first of some conditions, with the predicted view and the other conditions beside.

    Args:
        forks: The experiment, with enough settings (`ForkedRows.lacking`).
        planned: Id of a condition that was forked → its denoising steps; the first is primary.
    """
    (primary, steps), *others = planned.items()
    decision = forks.decide(primary, steps)
    beside = [("predicted view", forks.decide(primary, steps, "predicted"))]
    beside += [(name, forks.decide(name, count)) for name, count in others]
    findings = [
        replace(other.findings[0], name=f"{name}, {other.findings[0].name}", evidence="beside")
        for name, other in beside
    ]
    reason = f"{decision.reason} ({FORK_VIEW} view of {primary})"
    return replace(decision, reason=reason, findings=(*decision.findings, *findings))
