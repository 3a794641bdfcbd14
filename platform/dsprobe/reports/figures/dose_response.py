"""Dose and response: attack success against what a grid of attacks varies, one panel per grid and judge.

A grid of several variables has one panel for each setting of all variables but the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dsprobe.experiment.sensitivity import Curve
from dsprobe.metrics.anchoring import PUBLISHED_ANCHORING, AnchoringCurve, PublishedCurve
from dsprobe.metrics.curves import DoseResponse
from dsprobe.metrics.intervals import Interval, RatePoint
from dsprobe.reports.attack_data import anchoring_curves
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.facets import Facet
from dsprobe.reports.sheets import p_value
from dsprobe.reports.text import listing
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICKS: Final = 7
"""Most labelled doses of a panel."""


@dataclass(frozen=True, slots=True)
class DoseSeries:
    """One curve."""

    name: str
    """Model, with the decoding where decodings differ."""
    points: tuple[RatePoint, ...]
    """Ascending; `at` has the dose alone."""


@dataclass(frozen=True, slots=True)
class DosePanel:
    """One grid, at one setting of its further variables, by one judge."""

    facet: Facet
    variable: str
    """What the abscissa is."""
    series: list[DoseSeries]
    published: PublishedCurve | None = None
    """A published curve of the same kind; the abscissa is logarithmic then."""

    @property
    def blank(self) -> bool:
        """Never: a curve at 0 says something."""
        return False


@dataclass(frozen=True, slots=True)
class DoseData:
    """Panels in reading order, and what the curves say."""

    panels: list[DosePanel]
    sentences: list[str]
    left_out: str = ""

    def finding(self) -> str:
        """Which curves rise, and how steeply."""
        return " ".join(self.sentences) or "No attack was run at several settings."


def dose_data(data: ReportData) -> DoseData:
    """Collect the grids of one variable; anchoring against t/T, with the published curve."""
    curves = _curves(data, several=False)
    anchored = dict(_by_place(anchoring_curves(data)))
    panels: dict[tuple[str, str, str], DosePanel] = {}
    for curve in curves:
        found = anchored.get(_place(curve))
        response, variable = (found.response, "t/T") if found else (curve.response, curve.response.variables[0])
        panel = panels.setdefault(
            (curve.family, curve.prompts, curve.judge),
            DosePanel(
                _facet(curve, variable, response, (), curves), visible(variable), [],
                PUBLISHED_ANCHORING[0] if found else None,
            ),
        )  # fmt: skip
        panel.series.append(DoseSeries(_name(curve, curves), response.curve))
    first = [curve for curve in curves if curve.judge == curves[0].judge]
    return DoseData(list(panels.values()), [*_trends(first), *_anchoring(first, anchored)])


def dose_grid_data(data: ReportData) -> DoseData:
    """Collect the grids of several variables, cut at every setting of all variables but the first."""
    curves = _curves(data, several=True)
    panels: dict[tuple[Any, ...], DosePanel] = {}
    for curve in curves:
        names = curve.response.variables
        for fixed in sorted({point.at[1:] for point in curve.response.curve}):
            points = [replace(p, at=p.at[:1]) for p in curve.response.curve if p.at[1:] == fixed]
            settings = tuple(f"{visible(n)} {value:g}" for n, value in zip(names[1:], fixed, strict=True))
            panel = panels.setdefault(
                (curve.family, curve.prompts, fixed, curve.judge),
                DosePanel(_facet(curve, names[0], curve.response, settings, curves), visible(names[0]), []),
            )
            panel.series.append(DoseSeries(_name(curve, curves), tuple(points)))
    first = [curve for curve in curves if curve.judge == curves[0].judge]
    return DoseData(list(panels.values()), [sentence for curve in first if (sentence := _adjusted(curve, curves))])


def _curves(data: ReportData, *, several: bool) -> list[Curve]:
    found = data.study.curves if data.study else ()
    return [curve for curve in found if (len(curve.response.variables) > 1) == several]


def _facet(
    curve: Curve, variable: str, response: DoseResponse, fixed: tuple[str, ...], among: Sequence[Curve]
) -> Facet:
    """Attack (the grid where an attack has several) and settings name the column, judge and prompt set the row."""
    alone = len({c.family for c in among if c.attack == curve.attack}) == 1
    heading = f"{visible(curve.attack if alone else curve.family)}: {visible(variable)}"
    row: tuple[str, ...] = (visible(curve.judge),) if len({c.judge for c in among}) > 1 else ()
    row += (visible(curve.prompts),) if len({c.prompts for c in among}) > 1 else ()
    return Facet(", ".join((heading, *fixed)), row, max((p.rate.n for p in response.curve), default=0))


def _name(curve: Curve, among: Sequence[Curve]) -> str:
    several = len({c.decoding for c in among if c.model == curve.model}) > 1
    return visible(curve.model) + (f" · {visible(curve.decoding)}" if several else "")


def _place(curve: Curve) -> tuple[str, ...]:
    return curve.family, curve.model, curve.prompts, curve.decoding, curve.judge


def _by_place(found: Sequence[tuple[Curve, AnchoringCurve]]) -> list[tuple[tuple[str, ...], AnchoringCurve]]:
    return [(_place(curve), anchored) for curve, anchored in found]


def _trends(curves: Sequence[Curve]) -> list[str]:
    """One sentence on the curves that rise and those that do not, by the first judge."""
    if not curves:
        return []
    rising = [curve for curve in curves if curve.response.rises()]
    named = listing(f"{visible(c.family)} on {_name(c, curves)} (p {_p(c)})" for c in rising) if rising else ""
    judge = visible(curves[0].judge)
    start = f"By {judge}, success rises with the setting in {len(rising)} of {len(curves)} curves"
    return [f"{start}: {named}." if named else f"{start}."]


def _p(curve: Curve) -> str:
    shown = p_value(curve.response.trend.p_value) if curve.response.trend else "–"
    return shown if shown.startswith("<") else f"= {shown}"


def _anchoring(curves: Sequence[Curve], anchored: dict[tuple[str, ...], AnchoringCurve]) -> list[str]:
    """What a doubling of t adds, against the published curve."""
    found = [(curve, anchored[_place(curve)]) for curve in curves if _place(curve) in anchored]
    known = [(c, a) for c, a in found if not math.isnan(a.slope_per_doubling.value)]
    if not known:
        return []
    slopes = listing(f"{_slope(a.slope_per_doubling)} on {_name(c, curves)}" for c, a in known)
    published = known[0][1].published
    return [
        f"Anchoring: a doubling of t adds {slopes} to the log-odds; published for {published.model} "
        f"{published.slope_per_doubling:.2f}. Judges and requests differ: compare the shape, not the height."
    ]


def _slope(interval: Interval) -> str:
    return f"{interval:+.2f}".replace("inf", "∞")


def _adjusted(curve: Curve, among: Sequence[Curve]) -> str:
    """Slopes of a grid of several variables, each adjusted for the others; empty where none is defined."""
    parts = [
        f"{_slope(slope)} log-odds per unit of {visible(name)}"
        for name, slope in zip(curve.response.variables, curve.response.slopes, strict=True)
        if not math.isnan(slope.value)
    ]
    if not parts:
        return ""
    where = f"{visible(curve.family)} on {_name(curve, among)}, by {visible(curve.judge)}"
    adjusted = ", each adjusted for the other" if len(parts) > 1 else ""
    return f"{where}: {listing(parts)}{adjusted}."


def draw_doses(info: DoseData) -> Figure:
    """Points and lines with Wilson bands, one colour per model; a published curve in grey."""
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.multiples import Multiples
    from dsprobe.reports.figures.style import SOFT, series_style

    names = dict.fromkeys(series.name for panel in info.panels for series in panel.series)
    styles = {name: {**series_style(place), "marker": "os^Dv"[place % 5]} for place, name in enumerate(names)}
    handles = [Line2D([], [], label=name, markersize=4.5, **style) for name, style in styles.items()]
    published = next((panel.published for panel in info.panels if panel.published), None)
    if published:
        label = f"{published.model}, published ({published.source.split(',')[0]})"
        handles.append(Line2D([], [], label=label, color=SOFT, linestyle="--", marker="x", markersize=4.5))
    grid = Multiples(info.panels, 1.8, ["setting named above the panel"], "ASR", handles)
    for panel, axes in zip(grid.panels, grid.axes[0], strict=True):
        if panel.published:
            axes.plot(panel.published.fraction, panel.published.rate, "x--", color=SOFT, markersize=4, linewidth=1.2)
        for series in panel.series:
            _draw_series(axes, series, styles[series.name])
        _draw_abscissa(axes, panel)
        axes.set_ylim(-0.05, 1.05)
    return grid.finish()


def _draw_series(axes: Axes, series: DoseSeries, style: dict[str, Any]) -> None:
    known = [point for point in series.points if point.rate.n]
    dose = [point.at[0] for point in known]
    low, value, high = ([getattr(point.rate, name) for point in known] for name in ("low", "value", "high"))
    axes.fill_between(dose, low, high, color=style["color"], alpha=0.14, linewidth=0)
    axes.plot(dose, value, markersize=4, **style)


def _draw_abscissa(axes: Axes, panel: DosePanel) -> None:
    """Ticks at the doses; logarithmic, as shares of T, beside a published curve."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    doses = sorted({point.at[0] for series in panel.series for point in series.points})
    if panel.published:
        axes.set_xscale("log", base=2)
        lowest = min(min(doses), float(panel.published.fraction.min()))
        doses = [2.0**-power for power in range(0, math.ceil(-math.log2(lowest)) + 1, 2)]
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "1" if x == 1 else f"1/{1 / x:.0f}"))
        axes.set_xlim(lowest / 1.3, 1.3)
    else:
        margin = 0.06 * (doses[-1] - doses[0]) or 0.5
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlim(doses[0] - margin, doses[-1] + margin)
    axes.xaxis.set_major_locator(FixedLocator(doses[:: math.ceil(len(doses) / _TICKS)]))
