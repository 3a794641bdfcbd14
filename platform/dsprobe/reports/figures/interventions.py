"""When guardrails intervene: share of rows per step, and how many positions they take back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsprobe.config import UNGUARDED
from dsprobe.experiment.evaluated import Condition
from dsprobe.reports.data import F64, I64, ReportData, integers
from dsprobe.reports.figures.facets import Facet, facet, left_out, parts_of
from dsprobe.reports.text import number, part, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class InterventionsPanel:
    """One guarded condition; arrays hold one entry per step, from 1 to the condition's last."""

    facet: Facet
    guardrail: str
    share_S: F64
    """Share of all rows that the step intervened on; rows that have finished count as left alone."""
    remasked_S: F64
    """Positions taken back in the step, mean over all rows."""
    running_S: I64
    """Rows that took the step."""

    @property
    def blank(self) -> bool:
        """The guardrail never intervenes."""
        return not self.share_S.any()


@dataclass(frozen=True, slots=True)
class InterventionsData:
    """Panels in reading order."""

    panels: list[InterventionsPanel]
    guardrails: list[str]
    """Guardrails of the panels, in reading order."""

    @property
    def left_out(self) -> str:
        """Conditions that are not drawn."""
        return left_out(self.panels, "the guardrail never intervenes")

    def finding(self) -> str:
        """One sentence on the guardrail that intervenes most and on its busiest step."""
        acting = [panel for panel in self.panels if not panel.blank]
        if not acting:
            return "No guardrail intervened on any row."
        most = max(acting, key=lambda panel: float(panel.share_S.sum()))
        busiest = int(most.share_S.argmax())
        name = most.facet.name
        return (
            f"{len(acting)} of {len(self.panels)} guarded conditions see interventions. Most are under "
            f"{name if most.guardrail in name else f'{name}, {most.guardrail}'}: "
            f"{number(float(most.share_S.sum()))} a row, most often at step {busiest + 1} "
            f"({percent(float(most.share_S[busiest]))} of n = {most.facet.n} rows), taking back "
            f"{number(float(most.remasked_S.sum()))} positions a row over all steps."
        )


def interventions_data(data: ReportData) -> InterventionsData:
    """Count actions and positions taken back per step of every guarded condition."""
    conditions = [condition for condition in data.conditions if condition.guardrail != UNGUARDED]
    among = [parts_of(condition) for condition in conditions]
    panels = [
        _panel(data, c, facet(parts, among, data.summaries[c].n)) for c, parts in zip(conditions, among, strict=True)
    ]
    return InterventionsData(panels, list(dict.fromkeys(panel.guardrail for panel in panels)))


def _panel(data: ReportData, condition: Condition, heading: Facet) -> InterventionsPanel:
    rows = data.rows("steps", condition)
    place_N = integers(rows, "step") - 1
    return InterventionsPanel(
        heading,
        part(condition, "guardrail"),
        np.bincount(place_N, weights=integers(rows, "action") != 0) / heading.n,
        np.bincount(place_N, weights=integers(rows, "remasked")) / heading.n,
        np.bincount(place_N),
    )


def draw_interventions(info: InterventionsData) -> Figure:
    """Bars per step: above the share of rows intervened on, with those still running; below positions taken back."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from dsprobe.reports.figures.multiples import Multiples
    from dsprobe.reports.figures.style import SOFT, guardrail_styles

    colours = {name: style["color"] for name, style in guardrail_styles(info.guardrails).items()}
    handles: list[Patch | Line2D] = [Patch(color=colour, alpha=0.75, label=name) for name, colour in colours.items()]
    handles.append(Line2D([], [], color=SOFT, linewidth=1, label="share of rows still running"))
    ordinates = ["share of rows intervened on", "positions taken back a row"]
    grid = Multiples(info.panels, 1.5, ["denoising step s"] * 2, ordinates, handles)
    last = max((len(panel.share_S) for panel in grid.panels), default=1)
    top = max((float(panel.remasked_S.max(initial=0)) for panel in grid.panels), default=0) or 1.0
    for panel, share, taken in zip(grid.panels, *grid.axes, strict=True):
        step_S, colour = np.arange(1, len(panel.share_S) + 1), colours[panel.guardrail]
        share.bar(step_S, panel.share_S, width=0.8, color=colour, alpha=0.75, linewidth=0)
        share.step(step_S, panel.running_S / panel.facet.n, where="mid", color=SOFT, linewidth=1)
        taken.bar(step_S, panel.remasked_S, width=0.8, color=colour, alpha=0.75, linewidth=0)
        share.set_ylim(0, 1.05)
        taken.set_ylim(0, 1.08 * top)
        for axes in (share, taken):
            axes.set_xlim(0, last + 1)
    return grid.finish()
