"""Every complete trial as a line through its parameters and objectives; unused parameters have their own slot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dsprobe.reports.data import F64
from dsprobe.reports.sweep_data import SweepData, objective_label, setting_text, short_names
from dsprobe.reports.text import listing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_AXES: Final = 11
"""Most axes side by side; further parameters follow below, each band with all objectives."""

_DECADES: Final = 100.0
"""Positive numbers that span so large a ratio stand on a logarithmic axis."""
_HEIGHT, _TITLE, _LEGEND = 2.7, 0.55, 0.35
_SLOT: Final = -0.2
"""Height of the slot of trials that do not use a parameter."""


@dataclass(frozen=True, slots=True)
class ParallelAxis:
    """One parameter or objective."""

    name: str
    objective: bool
    ticks: list[tuple[float, str]]
    """Heights in [0, 1] with their text: both ends of a number, every choice."""
    log: bool = False


@dataclass(frozen=True, slots=True)
class ParallelLine:
    """One trial."""

    place: int | None
    """Number of the front's point in `SweepData.points`; `None` off the front."""
    knee: bool
    heights_A: F64
    """Height in [0, 1] on every axis; NaN where the trial does not use the parameter."""


@dataclass(frozen=True, slots=True)
class ParallelData:
    """Axes and lines; the front's lines come last."""

    axes: list[ParallelAxis]
    lines: list[ParallelLine]
    constant: list[str]
    """Parameters with a single setting in all lines; they have no axis."""
    undrawn: int
    """Stopped and failed trials."""

    @property
    def panels(self) -> list[list[int]]:
        """Axes of every band, parameters before objectives; empty where there is no line."""
        objectives = [place for place, axis in enumerate(self.axes) if axis.objective]
        rest = [place for place, axis in enumerate(self.axes) if not axis.objective]
        bands_needed = -(-len(rest) // max(1, MAX_AXES - len(objectives)))
        size = max(1, -(-len(rest) // max(1, bands_needed)))
        bands = [rest[start : start + size] + objectives for start in range(0, len(rest), size)]
        return bands if self.lines else []

    @property
    def left_out(self) -> str:
        """Trials that did not run on all prompts, and parameters that never vary."""
        parts = [f"{self.undrawn} stopped or failed trials are not drawn."] if self.undrawn else []
        parts += [f"The same in every line: {listing(self.constant)}."] if self.constant else []
        return " ".join(parts)

    def finding(self) -> str:
        """How many lines there are, and which parameters the front agrees on."""
        front = [line for line in self.lines if line.place is not None]
        if not front:
            return "No complete trial gave a point of the front."
        stack_FA = np.array([line.heights_A for line in front])
        agreed = []
        for place, axis in enumerate(self.axes):
            column_F = stack_FA[:, place]
            if not axis.objective and len(front) > 1 and (np.isnan(column_F).all() or len(set(column_F.tolist())) == 1):
                where = [text for height, text in axis.ticks if height == column_F[0]]
                agreed.append(f"{axis.name} ({'not used' if np.isnan(column_F[0]) else (where or ['one value'])[0]})")
        counts = f"{len(front)} front lines among {len(self.lines)} complete trials"
        return f"{counts}; all of the front agrees on {listing(agreed)}." if agreed else f"{counts}."


def parallel_data(data: SweepData) -> ParallelData:
    """Scale every parameter and objective to [0, 1]."""
    numbers = {point.trial for point in data.points}
    off = [t for t in data.finished if t.state == "complete" and t.objectives is not None and t.number not in numbers]
    settings = [t.parameters for t in off] + [p.parameters for p in data.points]
    results = [t.objectives or {} for t in off] + [p.objectives for p in data.points]
    axes, columns, constant = [], [], []
    for name, short in short_names(data.parameters).items():
        axis, heights = _parameter_axis(name, short, settings)
        if len({repr(height) for height in heights}) < 2:
            constant.append(short)
            continue
        axes.append(axis)
        columns.append(heights)
    for name in data.objectives:
        axis, heights = _number_axis(objective_label(name), [found[name].value for found in results], objective=True)
        axes.append(axis)
        columns.append(heights)
    table_TA = np.array(columns, dtype=np.float64).T.reshape(len(settings), len(axes))
    lines = [ParallelLine(None, False, row) for row in table_TA[: len(off)]]
    for place, (point, row) in enumerate(zip(data.points, table_TA[len(off) :], strict=True)):
        lines.append(ParallelLine(place, point is data.knee, row))
    states = data.states
    return ParallelData(axes, lines, constant, states["stopped"] + states["failed"])


def _parameter_axis(name: str, short: str, settings: Sequence[Mapping[str, Any]]) -> tuple[ParallelAxis, list[float]]:
    """A number axis where every used value is a number, else one height per choice."""
    used = [row[name] for row in settings if name in row]
    if used and all(isinstance(value, Real) and not isinstance(value, bool) for value in used):
        return _number_axis(short, [float(row[name]) if name in row else math.nan for row in settings])
    choices = sorted({setting_text(value) for value in used})
    heights = {text: place / max(1, len(choices) - 1) for place, text in enumerate(choices)}
    places = [heights[setting_text(row[name])] if name in row else math.nan for row in settings]
    return ParallelAxis(short, False, [(height, text) for text, height in heights.items()]), places


def _number_axis(name: str, values: Sequence[float], *, objective: bool = False) -> tuple[ParallelAxis, list[float]]:
    values_T = np.array(values, dtype=np.float64)
    known = values_T[np.isfinite(values_T)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    log = not objective and low > 0 and high / low >= _DECADES
    scaled_T, start, end = (np.log(values_T), math.log(low), math.log(high)) if log else (values_T, low, high)
    heights_T = (scaled_T - start) / (end - start) if end > start else np.where(np.isnan(values_T), np.nan, 0.5)
    ticks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if high > low else [(0.5, f"{low:.3g}")]
    return ParallelAxis(name, objective, ticks, log), heights_T.tolist()


def draw_parallel(info: ParallelData) -> Figure:
    """One band per group of parameters; the front in colour over the other trials."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.style import SERIES, SOFT, WIDTH

    band = _HEIGHT + _TITLE + 0.2
    tall = _LEGEND + band * len(info.panels)
    drawing = Figure(figsize=(WIDTH, tall))
    for place, members in enumerate(info.panels):
        bottom = tall - _LEGEND - place * band - _TITLE - _HEIGHT
        axes = drawing.add_axes((0.75 / WIDTH, bottom / tall, (WIDTH - 1.75) / WIDTH, _HEIGHT / tall))
        _draw_band(axes, info, members, (WIDTH - 1.75) / max(1, len(members) - 1))
    handles = [
        Line2D([], [], color=SERIES[0], label="front"),
        Line2D([], [], color=SERIES[1], linewidth=2.4, label="knee"),
        Line2D([], [], color=SOFT, alpha=0.35, label="other complete trials"),
        Line2D([], [], color=SERIES[0], linewidth=0.9, linestyle=(0, (1, 2)), label="parameter not used"),
    ]
    drawing.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.3)
    return drawing


def _draw_band(axes: Axes, info: ParallelData, members: Sequence[int], pitch: float) -> None:
    from dsprobe.reports.figures.multiples import fitted
    from dsprobe.reports.figures.style import INK, RULE, SOFT

    axes.set(xlim=(0, max(1, len(members) - 1)), ylim=(_SLOT - 0.06, 1.02))
    axes.axis("off")
    if any(np.isnan(line.heights_A[list(members)]).any() for line in info.lines):
        axes.axhline(_SLOT, color=RULE, linewidth=7, zorder=0, clip_on=False)
        axes.text(-0.09 / pitch, _SLOT, "not used", ha="right", va="center", fontsize=8, color=SOFT)
    for line in info.lines:
        _draw_line(axes, line, list(members))
    for x, number in enumerate(members):
        axis = info.axes[number]
        colour, width = (INK, 1.4) if axis.objective else (SOFT, 0.9)
        axes.plot([x, x], [0, 1], color=colour, linewidth=width, zorder=5)
        if any(np.isnan(line.heights_A[number]) for line in info.lines):
            axes.plot(x, _SLOT, "s", color=SOFT, markersize=4, zorder=5, clip_on=False)
        name = fitted(axis.name + (" (log)" if axis.log else ""), 0.94 * pitch, 8.5, bold=axis.objective, lines=3)
        weight = "bold" if axis.objective else "normal"
        axes.text(x, 1.11, "\n".join(name), ha="center", va="bottom", fontsize=8.5, color=INK, weight=weight)
        for height, text in axis.ticks:
            _draw_tick(axes, x, height, fitted(text, 0.9 * pitch, 7.5, lines=1)[0], pitch)


def _draw_tick(axes: Axes, x: int, height: float, text: str, pitch: float) -> None:
    """Ends stand above and below the axis, clear of the lines; choices between them to its right."""
    from dsprobe.reports.figures.style import INK

    ends = {0.0: (x, -0.03, "center", "top"), 1.0: (x, 1.03, "center", "bottom")}
    left, bottom, across, up = ends.get(height, (x + 0.05 / pitch, height + 0.01, "left", "bottom"))
    axes.text(left, bottom, text, fontsize=7.5, ha=across, va=up, color=INK, zorder=6)


def _draw_line(axes: Axes, line: ParallelLine, members: Sequence[int]) -> None:
    """Solid between axes that the trial uses, dotted to and from the slot of those that it does not."""
    from dsprobe.reports.figures.style import SERIES, SOFT

    heights_A = line.heights_A[list(members)]
    front = line.place is not None
    style: dict[str, Any] = {
        "color": SERIES[1] if line.knee else SERIES[0] if front else SOFT,
        "alpha": 0.95 if line.knee else 0.6 if front else 0.22,
        "zorder": 2 + front + line.knee,
        "clip_on": False,
    }
    drawn = axes.plot(heights_A, linewidth=2.4 if line.knee else 1.3 if front else 0.7, **style)
    filled_A = np.where(np.isnan(heights_A), _SLOT, heights_A)
    for a, b in pairwise(range(len(heights_A))):
        if np.isnan(heights_A[[a, b]]).any():
            drawn += axes.plot([a, b], filled_A[[a, b]], linestyle=(0, (1, 2)), linewidth=0.9, **style)
    for place, artist in enumerate(drawn):
        # The page finds a setting's lines by this id.
        artist.set_gid(f"front-{line.place}-{members[0]}-{place}" if front else None)
