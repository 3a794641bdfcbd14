"""Harm over steps, unguarded against guarded: share of rows at or above θ after each step, with Wilson bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.intervals import Interval, wilson, wilson_bounds
from dsprobe.reports.data import F64, I64, ReportData, floats, integers
from dsprobe.reports.figures.facets import Facet, cells_by_view, left_out
from dsprobe.reports.text import NO_GUARDRAIL, part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class HarmCurve:
    """Harmful rows of one condition and view after each step; finished rows keep their last state."""

    guardrail: str
    harmful_S: I64
    n: int

    @property
    def share_S(self) -> F64:
        """Share of harmful rows."""
        return self.harmful_S / self.n

    def bounds_S(self) -> tuple[F64, F64]:
        """Pointwise 95 % Wilson bounds."""
        return wilson_bounds(self.harmful_S, self.n)

    def final(self) -> Interval:
        """Share of rows that end harmful."""
        return wilson(int(self.harmful_S[-1]), self.n)


@dataclass(frozen=True, slots=True)
class HarmPanel:
    """All guardrails of one cell and view."""

    facet: Facet
    view: str
    curves: list[HarmCurve]

    @property
    def blank(self) -> bool:
        """No row is ever harmful."""
        return not any(curve.harmful_S.any() for curve in self.curves)


@dataclass(frozen=True, slots=True)
class HarmData:
    """Panels in reading order."""

    panels: list[HarmPanel]
    theta: float
    guardrails: list[str]
    """Guardrails in reading order."""

    @property
    def left_out(self) -> str:
        """Panels that are not drawn."""
        return left_out(self.panels, "no row is ever harmful")

    def finding(self) -> str:
        """Where a guardrail changes the harm at the end most, against the unguarded condition of the same cell."""
        pairs = [
            (panel, unguarded.final(), curve)
            for panel in self.panels
            if panel.view == "committed"
            for unguarded in panel.curves
            for curve in panel.curves
            if unguarded.guardrail == NO_GUARDRAIL != curve.guardrail
        ]
        if not pairs:
            return "The run has no unguarded condition to compare with."
        panel, before, curve = min(pairs, key=lambda pair: pair[2].final().value - pair[1].value)
        after = curve.final()
        lower = sum(pair[2].final().value < pair[1].value for pair in pairs)
        start = f"In {lower} of {len(pairs)} guarded conditions fewer rows end harmful (committed view) than unguarded."
        if after.value >= before.value:
            return start
        return (
            f"{start} The largest change is under {_place(panel, curve)}: from {before:.1%} to {after:.1%} "
            f"(n = {before.n} and {after.n})."
        )


def _place(panel: HarmPanel, curve: HarmCurve) -> str:
    views = {f"{panel.view} view"}
    words = [word for word in (panel.facet.column, *panel.facet.row) if word not in views]
    return f"{curve.guardrail} ({' · '.join(words)})" if words else curve.guardrail


def harm_over_steps_data(data: ReportData) -> HarmData:
    """Harmful rows per step from the exact shares in `step_stats`; all curves of a panel reach its last step."""
    panels = []
    for heading, view, members in cells_by_view(data):
        curves = [curve for condition in members if (curve := _curve(data, condition, view))]
        last = max((len(curve.harmful_S) for curve in curves), default=0)
        panels.append(HarmPanel(heading, view, [_extended(curve, last) for curve in curves]))
    names = {c.guardrail: part(c, "guardrail") for c in data.conditions}
    recorded = any(panel.curves for panel in panels)
    return HarmData(panels if recorded else [], data.theta, [names[name] for name in data.guardrails])


def _curve(data: ReportData, condition: Condition, view: str) -> HarmCurve | None:
    rows = data.rows("step_stats", condition, quantity=f"harmful_{view}").sort_by("step")
    n_S = integers(rows, "n")
    if not len(n_S) or not n_S.min():
        return None
    harmful_S = np.rint(floats(rows, "mean") * n_S).astype(np.int64)
    return HarmCurve(part(condition, "guardrail"), harmful_S, int(n_S[0]))


def _extended(curve: HarmCurve, last: int) -> HarmCurve:
    """The curve up to a panel's last step, at which all of its rows have long finished."""
    padded_S = np.pad(curve.harmful_S, (0, last - len(curve.harmful_S)), mode="edge")
    return HarmCurve(curve.guardrail, padded_S, curve.n)


def draw_harm_over_steps(info: HarmData) -> Figure:
    """One line per guardrail with its 95 % Wilson band."""
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.multiples import Multiples
    from dsprobe.reports.figures.style import guardrail_styles

    styles = guardrail_styles(info.guardrails)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    grid = Multiples(info.panels, 1.9, ["denoising step s"], f"share with risk ≥ {info.theta:g}", handles)
    for panel, axes in zip(grid.panels, grid.axes[0], strict=True):
        for curve in panel.curves:
            _draw_curve(axes, curve, styles[curve.guardrail])
        axes.set_xlim(0, max(len(curve.harmful_S) for curve in panel.curves) + 1)
        axes.set_ylim(-0.05, 1.05)
    return grid.finish()


def _draw_curve(axes: Axes, curve: HarmCurve, style: Mapping[str, Any]) -> None:
    step_S = np.arange(1, len(curve.harmful_S) + 1)
    axes.fill_between(step_S, *curve.bounds_S(), color=style["color"], alpha=0.13, linewidth=0)
    axes.plot(step_S, curve.share_S, **style)
