"""The report's section on the programme's hypotheses: verdicts first, each with its rule and findings below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dsprobe.metrics.hypotheses import Verdict
from dsprobe.reports.hypothesis_sheets import decided_sheets, rules_name
from dsprobe.reports.sheets import Sheet
from dsprobe.visible_text import visible

ICONS: Final[dict[Verdict, str]] = {"supported": "✓", "not supported": "✗", "undecided": "?"}
"""Sign of a verdict; it stands beside the word, never alone."""


@dataclass(frozen=True, slots=True)
class VerdictCard:
    """One hypothesis in brief."""

    id: str
    statement: str
    verdict: str
    icon: str
    style: str
    """CSS class of the verdict."""
    estimate: str
    """What was estimated, and its value with its interval; empty where there is none."""
    n: str
    reason: str
    details: Sheet
    """Rule and findings."""


@dataclass(frozen=True, slots=True)
class HypothesisSection:
    """Everything that the templates print about the hypotheses."""

    cards: list[VerdictCard]
    overview: Sheet
    stop: str
    """What the programme's rule for stopping says."""
    rules: str
    """What identifies the rules."""
    summary: Mapping[str, Any]
    """The section's part of ``summary.json``: the document as it was decided."""
    name: str = "hypotheses"
    title: str = "What the run says about the hypotheses"

    @property
    def finding(self) -> str:
        """How many hypotheses have which verdict."""
        found = {verdict: [c.id for c in self.cards if c.verdict == verdict] for verdict in ICONS}
        text = "; ".join(f"{verdict}: {', '.join(ids)}" for verdict, ids in found.items() if ids)
        return f"{text[:1].upper()}{text[1:]}."


def hypothesis_section(document: Mapping[str, Any]) -> HypothesisSection:
    """Collect the section's words.

    Args:
        document: What `dsprobe hypotheses` keeps in a run, see `dsprobe.storage.decided.read_decided`.
    """
    overview, *details = decided_sheets(document)
    return HypothesisSection(
        cards=[
            _card(decision, row, sheet)
            for decision, row, sheet in zip(document["decisions"], overview.rows, details, strict=True)
        ],
        overview=overview,
        stop=visible(document["stop"]["sentence"]),
        rules=rules_name(document),
        summary=document,
    )


def _card(decision: Mapping[str, Any], row: list[str], details: Sheet) -> VerdictCard:
    """A card from a decision and its row of the overview, whose numbers are written the same way."""
    _, statement, verdict, unit, value, p, n = row
    estimate = f"{unit}: {value}" if value != "–" else ""
    if p != "–":
        estimate += f", p {p}"
    return VerdictCard(
        id=visible(decision["hypothesis"]),
        statement=visible(statement),
        verdict=visible(verdict),
        icon=ICONS[decision["verdict"]],
        style=decision["verdict"].replace(" ", "-"),
        estimate=visible(estimate) if estimate else "",
        n=n,
        reason=visible(decision["reason"]) if decision["reason"] else "",
        details=details,
    )
