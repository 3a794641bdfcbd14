"""Capability beside safety: utility on benign requests, and attack success, of every model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dsprobe.config import UNGUARDED
from dsprobe.experiment.transfer import AttackRow
from dsprobe.metrics.intervals import Interval
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.attack_success import SIDE, side
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIRECT: Final = "direct"
"""Name of the attack that asks plainly."""
_JUDGES: Final = 3
"""Most judges of harm that are drawn; each takes two panels."""


@dataclass(frozen=True, slots=True)
class CapabilityLine:
    """One model on one harmful prompt set."""

    prompts: str
    side: str
    """Model, with the decoding where decodings differ."""


@dataclass(frozen=True, slots=True)
class CapabilityPanel:
    """One rate of every line."""

    title: str
    judge: str
    rates: list[Interval | None]


@dataclass(frozen=True, slots=True)
class CapabilityData:
    """Utility first, then per judge of harm the plain request and the most successful attack."""

    lines: list[CapabilityLine]
    panels: list[CapabilityPanel]
    benign: str
    """Prompt set behind the utility."""
    further: tuple[str, ...] = ()
    """Judges of harm that are not drawn."""

    @property
    def left_out(self) -> str:
        """What utility was measured on, and which judges are missing."""
        if not self.panels:
            return ""
        missing = f" Not drawn for want of room: {', '.join(self.further)}." if self.further else ""
        return f"Utility is that of unattacked requests of {self.benign}.{missing}"

    def finding(self) -> str:
        """Utility and highest attack success of the first prompt set's models."""
        if not self.panels:
            return "No model was run on benign and on harmful requests."
        parts = []
        for place, line in enumerate(self.lines):
            useful, worst = self.panels[0].rates[place], self.panels[2].rates[place]
            if line.prompts == self.lines[0].prompts and useful is not None and worst is not None:
                parts.append(f"{line.side} answers {useful:.1%} usefully and falls to its worst attack in {worst:.1%}")
        return "; ".join(parts) + f" (by {self.panels[2].judge})." if parts else "No utility was recorded."


def capability_data(data: ReportData) -> CapabilityData:
    """Collect utility on the first benign set that has it, and attack success on every harmful set."""
    rows = [row for row in data.study.attacks if not row.family] if data.study else []
    benign, judge, utility = _utility(data)
    keys: dict[tuple[str, str], list[AttackRow]] = {}
    for row in rows:
        if (row.condition.model, row.condition.decoding) in utility:
            keys.setdefault((row.condition.prompts, side(row, rows)), []).append(row)
    if not keys:
        return CapabilityData([], [], "")
    sets = list(dict.fromkeys(prompts for prompts, _ in keys))
    groups = sorted(keys.items(), key=lambda item: sets.index(item[0][0]))
    lines = [CapabilityLine(visible(prompts), name) for (prompts, name), _ in groups]
    conditions = [members[0].condition for _, members in groups]
    panels = [CapabilityPanel("utility ↑", visible(judge), [utility[c.model, c.decoding] for c in conditions])]
    judges = list(dict.fromkeys(key for row in rows for key in row.summary.asr))
    for harm in judges[:_JUDGES]:
        direct = [[r for r in members if r.condition.attack == DIRECT] for _, members in groups]
        panels.append(CapabilityPanel("ASR direct ↓", visible(harm), [_highest(found, harm) for found in direct]))
        panels.append(CapabilityPanel("ASR worst ↓", visible(harm), [_highest(members, harm) for _, members in groups]))
    return CapabilityData(lines, panels, visible(benign), tuple(visible(name) for name in judges[_JUDGES:]))


def _utility(data: ReportData) -> tuple[str, str, dict[tuple[str, str], Interval]]:
    """Benign prompt set, judge, and utility by model and decoding; of the first set and judge that have any."""
    found: dict[tuple[str, str], Interval] = {}
    chosen = ("", "")
    for condition in data.conditions:
        if condition.attack != DIRECT or condition.guardrail != UNGUARDED:
            continue
        for judge, rate in data.summaries[condition].utility.items():
            if rate.n and chosen in (("", ""), (condition.prompts, judge)):
                chosen = (condition.prompts, judge)
                found[condition.model, condition.decoding] = rate
    return *chosen, found


def _highest(rows: list[AttackRow], judge: str) -> Interval | None:
    rates = [rate for row in rows if (rate := row.summary.asr.get(judge)) and not math.isnan(rate.value)]
    return max(rates, key=lambda rate: rate.value, default=None)


def draw_capability(info: CapabilityData) -> Figure:
    """Dots with 95 % whiskers, one line per model under its prompt set."""
    from dsprobe.reports.figures.forest import ForestPanel, Line, draw_forest
    from dsprobe.reports.figures.style import SERIES

    sides = list(dict.fromkeys(line.side for line in info.lines))
    lines: list[Line] = []
    above = ""
    for line in info.lines:
        name = "" if line.prompts == above else line.prompts
        lines.append(Line(name, False, line.side, SERIES[sides.index(line.side) % len(SERIES)]))
        above = line.prompts
    panels = [ForestPanel(panel.title, panel.judge, panel.rates) for panel in info.panels]
    return draw_forest(panels, lines, second=SIDE, snug=True)
