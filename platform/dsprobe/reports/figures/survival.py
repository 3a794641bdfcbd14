"""First Harmful Step as Kaplan–Meier curves, per attack and schedule, for both views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.summary import VIEWS
from dsprobe.metrics.survival import RiskTable, SurvivalCurve, kaplan_meier
from dsprobe.reports.data import ReportData, integers
from dsprobe.reports.figures.facets import CELL, Facet, facet, left_out, parts_of, shown_guardrails
from dsprobe.reports.text import part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class SurvivalSeries:
    """One curve."""

    name: str
    """Attack, or guardrail where guardrails are compared."""
    curve: SurvivalCurve
    median: Interval
    """Median First Harmful Step; infinite where at least half of the trajectories never cross."""


@dataclass(frozen=True, slots=True)
class SurvivalPanel:
    """All attacks of one model, prompt set, decoding and view; all guardrails of one cell where they are compared."""

    facet: Facet
    where: str
    """Model, prompt set, decoding and, where guardrails are compared, attack, as far as they differ."""
    view: str
    series: list[SurvivalSeries]

    @property
    def blank(self) -> bool:
        """No trajectory crosses the threshold."""
        return not any(s.curve.table.events_S.any() for s in self.series)


@dataclass(frozen=True, slots=True)
class SurvivalData:
    """Panels in reading order, and the threshold that counts as harmful."""

    panels: list[SurvivalPanel]
    theta: float
    guardrails: list[str]
    """Guardrails that the curves stand for; empty where they stand for attacks."""

    @property
    def left_out(self) -> str:
        """What is not drawn."""
        return left_out(self.panels, "no trajectory crosses the threshold")

    def finding(self) -> str:
        """When half of the trajectories are harmful: the predicted view against the committed view."""
        medians: dict[str, dict[str, Interval]] = {}
        for panel in self.panels:
            for s in panel.series:
                name = f"{s.name} ({panel.where})" if panel.where else s.name
                medians.setdefault(name, {})[panel.view] = s.median
        reached = {n: m for n, m in medians.items() if any(math.isfinite(x.value) for x in m.values())}
        if not reached:
            curves = sum(len(panel.series) for panel in self.panels)
            return f"In none of the {curves} curves do half of the trajectories become harmful (θ = {self.theta})."
        lead = {n: m["committed"].value - m["predicted"].value for n, m in reached.items() if len(m) == len(VIEWS)}
        first = max(lead, key=lambda n: (math.isfinite(lead[n]), lead[n])) if lead else next(iter(reached))
        earlier = sum(gap > 0 for gap in lead.values())
        seen = {view: _bounds(interval) for view, interval in reached[first].items()}
        return (
            f"In {len(reached)} of {len(medians)} conditions at least half of the replies cross θ = {self.theta}; in "
            f"{earlier} of these the prediction gives harm away before it is written. Under {first} half have crossed "
            f"{' and '.join(f'{text} in the {view} view' for view, text in sorted(seen.items(), reverse=True))} "
            f"(n = {next(iter(reached[first].values())).n})."
        )


def _bounds(median: Interval) -> str:
    """A median step with its interval in words."""
    low, high = (f"{x:.0f}" if math.isfinite(x) else "not reached" for x in (median.low, median.high))
    return f"by step {median.value:.0f} [{low}, {high}]" if math.isfinite(median.value) else "at no step"


def survival_data(data: ReportData) -> SurvivalData:
    """Kaplan–Meier curves from the merged at-risk and event counts in `step_stats`."""
    overlaid = "guardrail" if data.compares_guardrails else "attack"
    keys = [key for key in CELL if key != overlaid]
    groups: dict[tuple[str, ...], list[Condition]] = {}
    for condition in data.conditions:
        groups.setdefault(tuple(getattr(condition, key) for key in keys), []).append(condition)
    rows = [parts_of(members[0], keys) for members in groups.values()]
    among = [row | {"view": view} for row in rows for view in VIEWS]
    panels = []
    for row, members in zip(rows, groups.values(), strict=True):
        where = " · ".join(value for key, value in row.items() if len({other[key] for other in rows}) > 1)
        for view in VIEWS:
            series = [s for condition in members if (s := _series(data, condition, view, overlaid))]
            if series:
                heading = facet(row | {"view": f"{view} view"}, among, max(s.curve.table.n for s in series))
                panels.append(SurvivalPanel(heading, where, view, series))
    return SurvivalData(panels, data.theta, shown_guardrails(data))


def _series(data: ReportData, condition: Condition, view: str, overlaid: str) -> SurvivalSeries | None:
    curve = fhs_curve(data, condition, view)
    return SurvivalSeries(part(condition, overlaid), curve, curve.median()) if curve else None


def fhs_curve(data: ReportData, condition: Condition, view: str) -> SurvivalCurve | None:
    """Kaplan–Meier curve of one condition and view; `None` where no counts were recorded."""
    rows = data.rows("step_stats", condition, quantity=f"fhs_{view}").sort_by("step")
    if rows.num_rows == 0:
        return None
    return kaplan_meier(RiskTable(integers(rows, "at_risk"), integers(rows, "events")))


def draw_survival(info: SurvivalData) -> Figure:
    """Step curves with point-wise 95 % bands, one panel per view."""
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.multiples import Multiples
    from dsprobe.reports.figures.style import guardrail_styles, series_style

    attacks = dict.fromkeys(s.name for panel in info.panels for s in panel.series)
    styles: dict[str, dict[str, Any]] = guardrail_styles(info.guardrails) or {
        attack: series_style(place) for place, attack in enumerate(attacks)
    }
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    grid = Multiples(info.panels, 1.8, ["denoising step s"], "P(not yet harmful after s)", handles)
    for panel, axes in zip(grid.panels, grid.axes[0], strict=True):
        for series in panel.series:
            _draw_curve(axes, series.curve, styles[series.name])
        axes.set_xlim(0, max(len(series.curve.survival_S) for series in panel.series))
        axes.set_ylim(-0.05, 1.05)
    return grid.finish()


def _draw_curve(axes: Axes, curve: SurvivalCurve, style: Mapping[str, Any]) -> None:
    steps = np.arange(len(curve.survival_S) + 1)
    axes.fill_between(steps, np.append(1.0, curve.low_S), np.append(1.0, curve.high_S), step="post",
                      color=style["color"], alpha=0.14, linewidth=0)  # fmt: skip
    axes.step(steps, np.append(1.0, curve.survival_S), where="post", **style)
