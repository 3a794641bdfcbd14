"""Attack success of every attack and model, by each judge: do the judges tell the same story?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dsprobe.experiment.transfer import AttackRow
from dsprobe.metrics.intervals import Interval
from dsprobe.reports.data import ReportData
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE: Final = 2.0
"""Width of the models' names in inches."""


@dataclass(frozen=True, slots=True)
class SuccessPanel:
    """One judge."""

    judge: str
    rates: list[Interval | None]
    """In the order of `AttackSuccessData.rows`."""


@dataclass(frozen=True, slots=True)
class AttackSuccessData:
    """One panel per judge of harm, one line per attack and model."""

    rows: list[AttackRow]
    """By prompt set, attack, model; points of grids are left out."""
    sides: list[str]
    """Models, with their decoding where decodings differ, in order; colours stand for them."""
    kinds: dict[str, str]
    """Model as shown → kind."""
    panels: list[SuccessPanel]
    left_out: str = ""

    def finding(self) -> str:
        """Per model the most successful attack, and where the judges are furthest apart."""
        sentences = []
        for model in dict.fromkeys(row.condition.model for row in self.rows):
            rated = [
                (rate, row, panel.judge)
                for panel in self.panels[:1]
                for row, rate in zip(self.rows, panel.rates, strict=True)
                if rate is not None and row.condition.model == model
            ]
            if rated:
                rate, row, judge = max(rated, key=lambda found: found[0].value)
                attack = visible(row.condition.attack)
                sentences.append(f"{side(row, self.rows)}: highest under {attack}, {rate:.1%} by {judge}.")
        gap = self._widest_gap()
        return " ".join([*sentences, *([gap] if gap else [])]) or "No harm verdicts were recorded."

    def _widest_gap(self) -> str:
        """The row in which two judges differ most."""
        widest, sentence = 0.0, ""
        for place, row in enumerate(self.rows):
            rates = [(rate.value, panel.judge) for panel in self.panels if (rate := panel.rates[place]) is not None]
            if len(rates) > 1 and max(rates)[0] - min(rates)[0] > widest:
                (low, strict), (high, lax) = min(rates), max(rates)
                widest = high - low
                where = f"{visible(row.condition.attack)} on {side(row, self.rows)}"
                sentence = f"Judges differ most for {where}: {high:.1%} by {lax}, {low:.1%} by {strict}."
        return sentence


def attack_success_data(data: ReportData) -> AttackSuccessData:
    """Collect the rates of every attack of its own."""
    found = [row for row in data.study.attacks if not row.family] if data.study else []
    order = list(dict.fromkeys((row.condition.prompts, row.condition.attack) for row in found))
    rows = sorted(found, key=lambda row: order.index((row.condition.prompts, row.condition.attack)))
    judges = dict.fromkeys(judge for row in rows for judge, rate in row.summary.asr.items() if rate.n)
    panels = [
        SuccessPanel(visible(j), [rate if (rate := row.summary.asr.get(j)) and rate.n else None for row in rows])
        for j in judges
    ]
    kinds = {visible(name): facts["kind"] for name, facts in data.manifest["models"].items()} if rows else {}
    return AttackSuccessData(rows, list(dict.fromkeys(side(row, rows) for row in rows)), kinds, panels)


def side(row: AttackRow, among: Iterable[AttackRow]) -> str:
    """Model of a row, with the decoding where the model's decodings differ."""
    mine = row.condition
    several = len({r.condition.decoding for r in among if r.condition.model == mine.model}) > 1
    return visible(mine.model) + (f" · {visible(mine.decoding)}" if several else "")


def draw_attack_success(info: AttackSuccessData) -> Figure:
    """Dots with 95 % whiskers; circles are diffusion models, squares autoregressive ones."""
    from dsprobe.reports.figures.forest import ForestPanel, Line, draw_forest
    from dsprobe.reports.figures.style import SERIES

    colours = {name: SERIES[place % len(SERIES)] for place, name in enumerate(info.sides)}
    several = len({row.condition.prompts for row in info.rows}) > 1
    lines: list[Line] = []
    places: list[int | None] = []
    above = ("", "")
    for place, row in enumerate(info.rows):
        here = (row.condition.prompts, row.condition.attack)
        if several and here[0] != above[0]:
            lines.append(Line(visible(here[0]), heading=True))
            places.append(None)
        name = side(row, info.rows)
        marker = "s" if info.kinds[visible(row.condition.model)] == "autoregressive" else "o"
        lines.append(Line("" if here == above else visible(here[1]), False, name, colours[name], marker))
        places.append(place)
        above = here
    panels = [ForestPanel("ASR", p.judge, [None if i is None else p.rates[i] for i in places]) for p in info.panels]
    return draw_forest(panels, lines, second=SIDE, snug=True)
