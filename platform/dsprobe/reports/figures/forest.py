"""Dots with whiskers: a line for each name, a panel for each estimate, placed in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dsprobe.metrics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL: Final = 2.5
"""Width of the names in inches."""
_ROW: Final = 0.235
_TOP, _BOTTOM = 0.6, 0.5
_GAP: Final = 0.25


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the figure."""

    text: str
    """Name; empty under another line of the same name."""
    heading: bool = False
    """A sub-heading, which has no estimates."""
    second: str = ""
    """Name beside the first, in the colour of the line's dots."""
    colour: str = ""
    """Colour of the dots; empty where the panels' own are meant."""
    marker: str = "o"


@dataclass(frozen=True, slots=True)
class ForestPanel:
    """One estimate of every line."""

    title: str
    judge: str
    """Small print below the title."""
    marks: Sequence[Interval | str | None]
    """One of each line: an estimate, a word in its place, or nothing."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Abscissa of all panels."""

    label: str
    low: float
    high: float
    ratio: bool = False
    """Logarithmic with base 2 and a rule at 1; otherwise linear."""
    step: float = 0.5
    """Distance of the ticks of a linear axis."""

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the axis, with a margin."""
        if self.ratio:
            margin = (self.high / self.low) ** 0.04
            return self.low / margin, self.high * margin
        margin = 0.04 * (self.high - self.low)
        return self.low - margin, self.high + margin


SHARES: Final = Scale("share", 0.0, 1.0)


def ratio_scale(label: str, found: Sequence[Interval]) -> Scale:
    """A logarithmic scale that is symmetric around 1, from ½–2 to at most 1/16–16, as the estimates need it."""
    ends = [x for i in found for x in (i.value, i.low, i.high) if math.isfinite(x) and x > 0]
    widest = max((abs(math.log2(x)) for x in ends), default=1.0)
    power = min(max(math.ceil(widest), 1), 4)
    return Scale(label, 2.0**-power, 2.0**power, ratio=True)


def draw_forest(
    panels: Sequence[ForestPanel],
    lines: Sequence[Line],
    scale: Scale = SHARES,
    second: float = 0.0,
    *,
    snug: bool = False,
) -> Figure:
    """Draw the panels side by side.

    Args:
        panels: At least one.
        lines: What the marks of each panel belong to.
        scale: Abscissa.
        second: Width of the second names in inches; 0 where there are none.
        snug: Give both kinds of names no more width than they need.
    """
    from matplotlib.figure import Figure

    from dsprobe.reports.figures.multiples import fitted
    from dsprobe.reports.figures.style import INK, SERIES, SOFT, WIDTH

    label = _snug([line.text for line in lines if not line.heading], _LABEL, 0.35) if snug else _LABEL
    second = _snug([line.second for line in lines], second, 0.25) if snug else second
    left = label + second
    tall = _TOP + _BOTTOM + _ROW * len(lines)
    figure = Figure(figsize=(WIDTH, tall))
    wide = (WIDTH - left - 0.1) / len(panels)
    for place, panel in enumerate(panels):
        x, y, width = left + place * wide, _BOTTOM, wide - _GAP
        axes = figure.add_axes((x / WIDTH, y / tall, width / WIDTH, _ROW * len(lines) / tall))
        _draw_panel(axes, panel, lines, scale, SERIES[place % len(SERIES)])
        for text, below, size, bold in ((panel.title, 0.28, 9.5, True), (panel.judge, 0.45, 8.0, False)):
            line = "".join(fitted(text, width + 0.1, size, bold=bold, lines=1))
            weight, colour = ("bold", INK) if bold else ("normal", SOFT)
            figure.text(x / WIDTH, 1 - below / tall, line, fontsize=size, weight=weight, color=colour)
    for place, row in enumerate(lines):
        y = 1 - (_TOP + _ROW * (place + 0.5)) / tall
        room = label - 0.2 + (second if row.heading else 0.0)
        text = "".join(fitted(row.text, room, 8.5, bold=row.heading, lines=1))
        weight, colour = ("bold", INK) if row.heading else ("normal", SOFT)
        x = (0.04 if row.heading else 0.14) / WIDTH
        figure.text(x, y, text, fontsize=8.5, va="center", weight=weight, color=colour)
        if row.second:
            text = "".join(fitted(row.second, second - 0.15, 8.5, lines=1))
            figure.text(label / WIDTH, y, text, fontsize=8.5, va="center", color=row.colour or SOFT)
    figure.text((left + 0.5 * (WIDTH - left)) / WIDTH, 0.14 / tall, scale.label, ha="center", color=SOFT, fontsize=8.5)
    return figure


def _snug(names: Sequence[str], widest: float, margin: float) -> float:
    """Width of the longest name with a margin, in inches."""
    from dsprobe.reports.figures.multiples import text_inches

    return min(widest, margin + max((text_inches(name, 8.5, False) for name in names), default=0.0))


def _draw_panel(axes: Axes, panel: ForestPanel, lines: Sequence[Line], scale: Scale, own_colour: str) -> None:
    from dsprobe.reports.figures.style import SOFT

    for row, (line, mark) in enumerate(zip(lines, panel.marks, strict=True)):
        if isinstance(mark, Interval) and not math.isnan(mark.value):
            _draw_mark(axes, row, mark, scale, line.colour or own_colour, line.marker)
        elif isinstance(mark, str):
            x = 1.0 if scale.ratio else scale.low
            axes.text(x, row, f" {mark}", fontsize=7.5, va="center", color=SOFT)
    _draw_axis(axes, scale)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks([row for row, line in enumerate(lines) if not line.heading], labels=[])
    axes.spines["left"].set_visible(False)


def _draw_mark(axes: Axes, row: int, mark: Interval, scale: Scale, colour: str, marker: str) -> None:
    """Dot and whisker; what lies beyond the axis ends there with an arrow head."""
    low, high = max(mark.low, scale.low), min(mark.high, scale.high)
    axes.plot([low, high], [row, row], color=colour, alpha=0.45, linewidth=2.6)
    for beyond, at, head in ((mark.low < scale.low, low, "<"), (mark.high > scale.high, high, ">")):
        if beyond:
            axes.plot(at, row, head, color=colour, alpha=0.7, markersize=5, clip_on=False)
    if scale.low <= mark.value <= scale.high:
        axes.plot(mark.value, row, marker, color=colour, markersize=5)
    else:
        at = scale.low if mark.value < scale.low else scale.high
        axes.plot(at, row, marker, color=colour, markersize=5, markerfacecolor="none")


def _draw_axis(axes: Axes, scale: Scale) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

    from dsprobe.reports.figures.style import SOFT

    if scale.ratio:
        axes.set_xscale("log", base=2)
        powers = range(round(math.log2(scale.low)), round(math.log2(scale.high)) + 1)
        axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}"))
        axes.axvline(1.0, color=SOFT, linewidth=1.1, zorder=1)
    else:
        axes.xaxis.set_major_locator(MultipleLocator(scale.step))
        if scale.low < 0:
            axes.axvline(0.0, color=SOFT, linewidth=1.1, zorder=1)
    axes.set_xlim(*scale.ends)
