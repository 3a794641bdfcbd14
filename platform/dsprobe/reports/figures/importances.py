"""Which parameters moved which objective during the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsprobe.reports.sweep_data import SweepData, objective_label, short_names
from dsprobe.reports.text import listing, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABEL, _ROW, _TOP, _BOTTOM = 2.4, 0.24, 0.4, 0.55


@dataclass(frozen=True, slots=True)
class ImportancePanel:
    """Shares of one objective, in the order of `ImportanceData.parameters`."""

    objective: str
    shares: list[float | None]
    """`None` where the parameter was not assessed for this objective."""


@dataclass(frozen=True, slots=True)
class ImportanceData:
    """One panel per objective, sharing the list of parameters (the most important on average first)."""

    parameters: list[str]
    """Short names."""
    panels: list[ImportancePanel]
    caveat: str
    unassessed: list[str]
    """Parameters of the search without a share in any objective."""

    @property
    def left_out(self) -> str:
        """Too few trials, and parameters without a share."""
        missing = f"Not assessed: {listing(self.unassessed)}." if self.panels and self.unassessed else ""
        return " ".join(filter(None, (self.caveat, missing)))

    def finding(self) -> str:
        """The leading parameter of every objective."""
        leaders = []
        for panel in self.panels:
            known = [
                (share, name) for share, name in zip(panel.shares, self.parameters, strict=True) if share is not None
            ]
            if known:
                share, name = max(known, key=lambda entry: entry[0])
                leaders.append(f"{objective_label(panel.objective)}: {name} ({percent(share)})")
        if not leaders:
            return "No importances were computed; they need several complete trials that differ."
        return f"Most important for {'; '.join(leaders)}."


def importance_data(data: SweepData) -> ImportanceData:
    """Order the parameters by their mean share over the objectives."""
    found = {name: data.front["importances"].get(name) or {} for name in data.objectives}
    short = short_names(data.parameters)
    names = {parameter for shares in found.values() for parameter in shares}
    short |= {name: name for name in names if name not in short}
    ordered = sorted(names, key=lambda p: (-sum(shares.get(p) or 0.0 for shares in found.values()), p))
    panels = [
        ImportancePanel(name, [shares.get(parameter) for parameter in ordered])
        for name, shares in found.items()
        if shares
    ]
    rest = [short[name] for name in data.parameters if name not in names]
    return ImportanceData([short[name] for name in ordered], panels, data.caveat, rest)


def draw_importances(info: ImportanceData) -> Figure:
    """Horizontal bars, one row per parameter, one panel per objective."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    from dsprobe.reports.figures.multiples import fitted
    from dsprobe.reports.figures.style import INK, SERIES, SOFT, WIDTH

    rows = range(len(info.parameters))
    tall = _TOP + _BOTTOM + _ROW * len(rows)
    drawing = Figure(figsize=(WIDTH, tall))
    wide = (WIDTH - _LABEL - 0.1) / len(info.panels)
    for place, panel in enumerate(info.panels):
        left = _LABEL + place * wide
        axes = drawing.add_axes((left / WIDTH, _BOTTOM / tall, (wide - 0.3) / WIDTH, _ROW * len(rows) / tall))
        axes.barh(rows, [share or 0.0 for share in panel.shares], height=0.62, color=SERIES[0], alpha=0.85)
        for row, share in enumerate(panel.shares):
            text = "not assessed" if share is None else percent(share)
            axes.text((share or 0.0) + 0.02, row, text, va="center", fontsize=7.5, color=SOFT)
        axes.set_xlim(0, 1.25)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MultipleLocator(0.5))
        title = fitted(objective_label(panel.objective), wide - 0.2, 9.5, bold=True, lines=1)[0]
        drawing.text(left / WIDTH, 1 - 0.24 / tall, title, fontsize=9.5, weight="bold", color=INK)
    for row, name in enumerate(info.parameters):
        y = 1 - (_TOP + _ROW * (row + 0.5)) / tall
        drawing.text(0.04 / WIDTH, y, fitted(name, _LABEL - 0.2, 8.5, lines=1)[0], fontsize=8.5, va="center", color=INK)
    centre = (_LABEL + 0.5 * (WIDTH - _LABEL)) / WIDTH
    drawing.text(centre, 0.14 / tall, "share of the explained variation", ha="center", color=SOFT, fontsize=8.5)
    return drawing
