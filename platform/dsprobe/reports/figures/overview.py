"""Outcome rates of every condition with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.intervals import Interval
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.facets import shown_guardrails
from dsprobe.reports.numbers import Measures, measures
from dsprobe.reports.text import by_group, label, member_label, part
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GUARDRAIL: Final = 1.25
"""Width of the guardrail names in inches, where guardrails are compared."""

_NAMES: Final = {
    "asr": "ASR",
    "refusal": "refusal",
    "over_refusal": "over-refusal",
    "utility": "utility",
    "validity": "well-formed",
    "empty": "empty reply",
}


@dataclass(frozen=True, slots=True)
class OverviewPanel:
    """One rate of every condition."""

    measure: str
    title: str
    judge: str
    """Who gave the verdict; empty for a count."""
    rates: list[Interval | None]
    """In the order of `OverviewData.conditions`; `None` where the rate is not defined for a condition."""


@dataclass(frozen=True, slots=True)
class OverviewData:
    """One panel per rate, sharing the list of conditions."""

    conditions: list[Condition]
    panels: list[OverviewPanel]
    guardrails: list[str]
    """Guardrails that colours stand for; empty where the run compares none."""
    left_out: str = ""
    """Every condition is drawn."""

    def finding(self) -> str:
        """Per model: the attack that succeeds most and least often, and how the direct request ends."""
        success = next((p.rates for p in self.panels if p.measure == "asr"), None)
        if success is None or not any(success):
            return "No harm verdicts were recorded."
        refusal = next((p.rates for p in self.panels if p.measure == "refusal"), [None] * len(self.conditions))
        models = dict.fromkeys(c.model for c in self.conditions)
        sentences = []
        for model in models:
            places = [i for i, c in enumerate(self.conditions) if c.model == model]
            known = [(rate, self.conditions[i]) for i in places if (rate := success[i]) is not None]
            if known:
                start = f"{visible(model)}: attack" if len(models) > 1 else "Attack"
                sentences.append(f"{start} success is {_extremes(known)}")
            refused = [r for i in places if self.conditions[i].attack == "direct" and (r := refusal[i]) is not None]
            if refused:
                least = min(refused, key=lambda rate: rate.value)
                amount = "at least " if len({rate.value for rate in refused}) > 1 else ""
                sentences.append(f"Asked directly, the model refuses {amount}{least:.1%} of harmful requests.")
        return " ".join(sentences)


def _extremes(known: list[tuple[Interval, Condition]]) -> str:
    """Highest and lowest rate with their attacks; the first of equals."""
    among = [condition for _, condition in known]
    high, low = max(known, key=lambda e: e[0].value), min(known, key=lambda e: e[0].value)
    top = f"{high[0]:.1%} under {_named(high[1], among)}"
    if high[0].value == low[0].value:
        return f"{top} (n = {high[0].n})." if len(known) == 1 else f"{high[0]:.1%} under every attack."
    first, last = (f"under {_named(condition, among)}, {rate:.1%}" for rate, condition in (high, low))
    return f"highest {first}, and lowest {last}."


def _named(condition: Condition, among: list[Condition]) -> str:
    """The attack, and in brackets what else tells the condition from the others of its model."""
    rest = [k for k in ("prompts", "decoding", "guardrail") if len({getattr(c, k) for c in among}) > 1]
    return visible(condition.attack) + (f" ({label(condition, among, rest)})" if rest else "")


def overview_data(data: ReportData) -> OverviewData:
    """Collect every verdict rate, and the share of empty replies, of every condition."""
    found = [measures(data, c) for c in data.conditions]
    names = dict.fromkeys(name for values in found for name in values if name.partition(":")[0] in _NAMES)
    panels = []
    for name in sorted(names, key=lambda n: list(_NAMES).index(n.partition(":")[0])):
        measure, _, judge = name.partition(":")
        panels.append(OverviewPanel(measure, _NAMES[measure], visible(judge) if judge else "", _rates(found, name)))
    return OverviewData(list(data.conditions), panels, shown_guardrails(data))


def _rates(found: list[Measures], name: str) -> list[Interval | None]:
    return [values.get(name) for values in found]


def draw_overview(info: OverviewData) -> Figure:
    """Dots with 95 % whiskers, one row per condition under its sub-heading, one panel per rate."""
    from dsprobe.reports.figures.forest import ForestPanel, Line, draw_forest
    from dsprobe.reports.figures.style import guardrail_styles

    rows = _rows(info)
    colours = {name: str(style["color"]) for name, style in guardrail_styles(info.guardrails).items()}
    lines = [
        Line(row.text, row.number is None, row.guardrail if colours else "", colours.get(row.guardrail, ""))
        for row in rows
    ]
    panels = [
        ForestPanel(p.title, p.judge, [None if row.number is None else p.rates[row.number] for row in rows])
        for p in info.panels
    ]
    return draw_forest(panels, lines, second=_GUARDRAIL if colours else 0.0)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the figure: a sub-heading, or a condition with its number."""

    text: str
    """Empty under another condition of the same cell."""
    number: int | None
    guardrail: str = ""


def _rows(info: OverviewData) -> list[_Line]:
    """Lines of the figure; the name of a cell stands once, before its first guardrail."""
    number = {condition: place for place, condition in enumerate(info.conditions)}
    rows: list[_Line] = []
    for title, members in by_group(info.conditions):
        rows += [_Line(title, None)] if title else []
        above = ""
        for condition in members:
            name = member_label(condition, info.conditions)
            repeated = bool(info.guardrails) and name == above
            rows.append(_Line("" if repeated else name, number[condition], part(condition, "guardrail")))
            above = name
    return rows
