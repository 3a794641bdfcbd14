"""How far the judges of a question agree: Cohen's kappa of every two, Krippendorff's alpha of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dsprobe.metrics.agreement import AgreementTable, PairAgreement
from dsprobe.reports.data import ReportData
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL: Final = (1.55, 0.62)
"""Width and height of a cell in inches; fewer fit where there are many judges."""
_LABEL: Final = 2.1


@dataclass(frozen=True, slots=True)
class AgreementPanel:
    """One question."""

    question: str
    table: AgreementTable

    def pair(self, first: int, second: int) -> PairAgreement:
        """Agreement of two judges by their places, ``first < second``."""
        names = self.table.judges[first], self.table.judges[second]
        return next(pair for pair in self.table.pairs if (pair.first, pair.second) == names)


@dataclass(frozen=True, slots=True)
class AgreementData:
    """One panel per question that has several judges."""

    panels: list[AgreementPanel]
    left_out: str = ""

    def finding(self) -> str:
        """Alpha of each question, and the two judges that agree least."""
        sentences = []
        for panel in self.panels:
            alpha = f"{panel.table.alpha:.2f}" if not math.isnan(panel.table.alpha.value) else "undefined"
            sentence = f"Judges of {panel.question}: Krippendorff α {alpha}, n = {panel.table.n}"
            known = [pair for pair in panel.table.pairs if not math.isnan(pair.kappa.value)]
            if len(known) > 1:
                least = min(known, key=lambda pair: pair.kappa.value)
                names = f"{visible(least.first)} and {visible(least.second)}"
                sentence += f"; least between {names}, κ {least.kappa:.2f}"
            sentences.append(f"{sentence}.")
        return " ".join(sentences) or "No question has several judges."


def agreement_data(data: ReportData) -> AgreementData:
    """Collect the agreement tables of the study."""
    found = data.study.agreement if data.study else {}
    return AgreementData([AgreementPanel(question, table) for question, table in found.items()])


def draw_agreement(info: AgreementData) -> Figure:
    """A triangle of cells per question, one below the other; each cell says κ, its interval and n."""
    from matplotlib.figure import Figure

    from dsprobe.reports.figures.multiples import fitted
    from dsprobe.reports.figures.style import INK, SOFT, WIDTH

    heights = [0.42 + _CELL[1] * (len(panel.table.judges) - 1) + 0.42 for panel in info.panels]
    tall = sum(heights)
    figure = Figure(figsize=(WIDTH, tall))
    top = 0.0
    for panel, height in zip(info.panels, heights, strict=True):
        judges = [visible(judge) for judge in panel.table.judges]
        count = len(judges) - 1
        wide = min(_CELL[0], (WIDTH - _LABEL - 0.1) / count)
        alpha = "undefined" if math.isnan(panel.table.alpha.value) else f"{panel.table.alpha:.2f}"
        title = f"{panel.question}: Krippendorff α {alpha}, n = {panel.table.n}"
        figure.text(0.04 / WIDTH, 1 - (top + 0.2) / tall, title, fontsize=9.5, weight="bold", va="center", color=INK)
        deep = _CELL[1] * count
        box = (_LABEL / WIDTH, 1 - (top + 0.42 + deep) / tall, wide * count / WIDTH, deep / tall)
        _draw_cells(figure.add_axes(box), panel)
        for place, name in enumerate(judges):
            if place:
                y = 1 - (top + 0.42 + _CELL[1] * (place - 0.5)) / tall
                text = "".join(fitted(name, _LABEL - 0.2, 8.5, lines=1))
                figure.text((_LABEL - 0.1) / WIDTH, y, text, fontsize=8.5, ha="right", va="center", color=SOFT)
            if place < count:
                x = (_LABEL + wide * (place + 0.5)) / WIDTH
                y = 1 - (top + 0.42 + deep + 0.15) / tall
                text = "".join(fitted(name, wide - 0.1, 8.5, lines=1))
                figure.text(x, y, text, fontsize=8.5, ha="center", va="center", color=SOFT)
        top += height
    return figure


def _draw_cells(axes: Axes, panel: AgreementPanel) -> None:
    from matplotlib.patches import Rectangle

    from dsprobe.reports.figures.style import INK, SERIES

    count = len(panel.table.judges) - 1
    for row in range(count):
        for column in range(row + 1):
            pair = panel.pair(column, row + 1)
            known = not math.isnan(pair.kappa.value)
            strength = 0.06 + 0.5 * max(pair.kappa.value, 0.0) if known else 0.0
            axes.add_patch(
                Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, facecolor=SERIES[0], alpha=strength, linewidth=0)
            )
            value, _, bounds = f"{pair.kappa:.2f}".partition(" ")
            style: dict[str, Any] = {"ha": "center", "va": "center"}
            axes.text(column + 0.5, row + 0.36, f"κ {value}" if known else "κ undefined", fontsize=9.5,
                      weight="bold", color=INK, **style)  # fmt: skip
            axes.text(column + 0.5, row + 0.7, f"{bounds} n = {pair.n}" if known else f"n = {pair.n}", fontsize=7.5,
                      color=INK, **style)  # fmt: skip
    axes.set_xlim(0, count)
    axes.set_ylim(count, 0)
    axes.set_axis_off()
