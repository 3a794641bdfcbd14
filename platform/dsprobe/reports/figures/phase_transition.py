"""Does harm arrive gradually or at a critical step? The harmful fraction and its logistic fit, both views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.phase_transition import PhaseTransition
from dsprobe.metrics.summary import VIEWS
from dsprobe.reports.arrays import transition
from dsprobe.reports.data import F64, ReportData
from dsprobe.reports.figures.facets import Facet, cells_by_view, facet, left_out, parts_of, shown_guardrails
from dsprobe.reports.text import part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS: Final = 200


@dataclass(frozen=True, slots=True)
class PhaseTransitionPanel:
    """One condition; one cell and view where guardrails are compared."""

    facet: Facet
    fits: dict[str, PhaseTransition]
    """View, or guardrail where they are compared → fit; `fraction_S` holds the points."""

    def curve(self, series: str) -> tuple[F64, F64]:
        """The fitted logistic curve as abscissa (steps) and ordinate; empty without a transition."""
        fit = self.fits[series]
        if not fit.transition:
            return np.empty(0), np.empty(0)
        step = np.linspace(1, len(fit.fraction_S), _POINTS)
        return step, fit.fit.at(step)

    @property
    def blank(self) -> bool:
        """No trajectory is ever harmful."""
        return not any(np.nan_to_num(fit.fraction_S).any() for fit in self.fits.values())


@dataclass(frozen=True, slots=True)
class PhaseTransitionData:
    """Panels in reading order."""

    panels: list[PhaseTransitionPanel]
    theta: float
    guardrails: list[str]
    """Guardrails that the curves stand for; empty where they stand for views."""

    @property
    def left_out(self) -> str:
        """Conditions that are not drawn."""
        return left_out(self.panels, "no trajectory is ever harmful")

    def finding(self) -> str:
        """One sentence on the sharpest transition, and how many curves have one."""
        fits = [(panel, series, fit) for panel in self.panels for series, fit in panel.fits.items()]
        found = [entry for entry in fits if entry[2].transition]
        if not found:
            return f"None of the {len(fits)} curves of the harmful fraction shows a transition."
        count = f"{len(found)} of {len(fits)} curves rise like a transition rather than a line (AIC)"
        inside = [entry for entry in found if entry[2].step.value >= 1]
        if not inside:
            return f"{count}; all of them are past half height at the first step."
        panel, series, fit = min(inside, key=lambda entry: entry[2].width.value)
        where = f"{panel.facet.name}, {series}" if self.guardrails else f"the {series} view of {panel.facet.name}"
        return (
            f"{count}; the sharpest that can be watched is {where}: half height at "
            f"step {fit.step:.1f}, 10–90 % width {fit.width:.1f} steps (n = {fit.step.n})."
        )


def phase_transition_data(data: ReportData) -> PhaseTransitionData:
    """Fit the harmful fraction of every condition and view from the per-trajectory risk."""
    compared = shown_guardrails(data)
    if compared:
        return PhaseTransitionData(_overlaid(data), data.theta, compared)
    panels = []
    among = [parts_of(c) for c in data.conditions]
    for condition, parts in zip(data.conditions, among, strict=True):
        fits = {view: _fit(data, condition, view) for view in VIEWS}
        panels.append(PhaseTransitionPanel(facet(parts, among, data.summaries[condition].n), fits))
    return PhaseTransitionData(panels, data.theta, compared)


def _overlaid(data: ReportData) -> list[PhaseTransitionPanel]:
    """One panel per cell and view, holding the fits of all guardrails."""
    panels = []
    for heading, view, members in cells_by_view(data):
        fits = {part(condition, "guardrail"): _fit(data, condition, view) for condition in members}
        panels.append(PhaseTransitionPanel(heading, fits))
    return panels


def _fit(data: ReportData, condition: Condition, view: str) -> PhaseTransition:
    return transition(data.rows("steps", condition), view, data.theta)


def draw_phase_transition(info: PhaseTransitionData) -> Figure:
    """Points are the observed fraction, lines the fit; a vertical line with its 95 % band marks s_c."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from dsprobe.reports.figures.multiples import Multiples
    from dsprobe.reports.figures.style import SOFT, VIEW_COLOURS, guardrail_styles

    styles: dict[str, dict[str, Any]] = guardrail_styles(info.guardrails) or {
        view: {"color": colour} for view, colour in VIEW_COLOURS.items()
    }
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker="o", markersize=4, label=name if info.guardrails else f"{name} view", **style)
        for name, style in styles.items()
    ]
    interval = "critical step, 95 % interval"
    overlaid = bool(info.guardrails)
    handles.append(Line2D([], [], color=SOFT, alpha=0.4, linewidth=5, label=interval) if overlaid else
                   Patch(color=SOFT, alpha=0.25, label=interval))  # fmt: skip
    grid = Multiples(info.panels, 1.8, ["denoising step s"], f"share with risk ≥ {info.theta:g}", handles)
    for panel, axes in zip(grid.panels, grid.axes[0], strict=True):
        for series in panel.fits:
            _draw_series(axes, panel, series, styles[series], overlaid)
        axes.set_xlim(0, max(len(fit.fraction_S) for fit in panel.fits.values()) + 1)
        axes.set_ylim(-0.05, 1.05)
    return grid.finish()


def _draw_series(
    axes: Axes, panel: PhaseTransitionPanel, series: str, style: Mapping[str, Any], overlaid: bool
) -> None:
    fit, colour = panel.fits[series], style["color"]
    steps = np.arange(1, len(fit.fraction_S) + 1)
    size = style.get("linewidth", 1.7) + 0.9
    axes.plot(steps, fit.fraction_S, "o", color=colour, markersize=size, alpha=0.75, zorder=style.get("zorder", 2))
    if fit.transition:
        axes.plot(*panel.curve(series), **style)
        last = len(fit.fraction_S)
        low, high = max(0.0, fit.step.low), min(last, fit.step.high)
        if overlaid:
            axes.plot([low, high], [fit.plateau.value / 2] * 2, color=colour, alpha=0.35, linewidth=5)
        else:
            axes.axvspan(low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axvline(fit.step.value, color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
