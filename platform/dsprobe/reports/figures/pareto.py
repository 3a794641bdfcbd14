"""The front of harm against fluency and cost: what the search found, with intervals, and what unseen prompts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dsprobe.reports.data import F64
from dsprobe.reports.sweep_data import Estimate, Estimates, FrontPoint, SweepData, decimal, objective_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MAIN, _SMALL = 4.3, 2.5
"""Heights of the first panel and of the others in inches."""
_PER_ROW: Final = 3
_LEGEND, _ABSCISSA, _LEFT, _GAP, _KEY = 0.5, 0.72, 0.72, 0.75, 1.15
_BEYOND: Final = 1.0
"""Axes end at the front's and the baseline's extent plus so much of it; trials beyond are counted, not drawn."""
_SIZES: Final = (34.0, 190.0)
"""Smallest and largest marker area in points²."""
_CHARACTER: Final = 7.5
"""Width of a character of a point's name in pixels, on the safe side."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A setting in one panel."""

    label: str
    x: Estimate
    y: Estimate
    unseen: tuple[Estimate, Estimate] | None
    """The same on the validation prompts."""


@dataclass(frozen=True, slots=True)
class ParetoPanel:
    """One pair of objectives."""

    x: str
    """Objective on the abscissa; a name, as in the data."""
    y: str
    bars: bool
    """Whether the intervals are drawn, and so belong to the axes' range."""
    front: list[Mark]
    baseline: Mark
    complete_T2: F64
    """x and y of trials off the front that ran on all prompts."""
    stopped_T2: F64
    """The same of trials that were stopped on fewer prompts."""

    @property
    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Ends of both axes: everything about the front and the baseline, and trials not far beyond."""
        return self._ends("x"), self._ends("y")

    @property
    def beyond(self) -> int:
        """Trials outside the axes."""
        (left, right), (bottom, top) = self.limits
        points = np.vstack([self.complete_T2, self.stopped_T2])
        inside = (points[:, 0] >= left) & (points[:, 0] <= right) & (points[:, 1] >= bottom) & (points[:, 1] <= top)
        return int((~inside).sum())

    def _ends(self, axis: str) -> tuple[float, float]:
        place = 0 if axis == "x" else 1
        marks = [*self.front, self.baseline]
        found = [getattr(mark, axis) for mark in marks]
        known = [e.value for e in found] + [mark.unseen[place].value for mark in marks if mark.unseen]
        values = np.array(known + [end for e in found for end in (e.low, e.high) if self.bars])
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        span = high - low or 1.0
        others = np.concatenate([self.complete_T2[:, place], self.stopped_T2[:, place]])
        others = others[(others >= low - _BEYOND * span) & (others <= high + _BEYOND * span)]
        low, high = min([low, *others.tolist()]), max([high, *others.tolist()])
        return low - 0.06 * (high - low or 1.0), high + 0.06 * (high - low or 1.0)


@dataclass(frozen=True, slots=True)
class ParetoData:
    """The first pair of objectives, then every other pair."""

    panels: list[ParetoPanel]
    objectives: tuple[str, ...]
    third_N: F64
    """Third objective of the front's points in order (their colour); empty where there is none."""
    fourth_N: F64
    """Fourth objective (their size); empty where there is none."""
    knee: FrontPoint | None
    confidence: str
    """Of the intervals, for print."""
    trials: int
    inside: int
    """Front points whose validation lies within the search's interval in every objective."""

    @property
    def left_out(self) -> str:
        """Trials beyond the axes, and what colour and size stand for."""
        parts = []
        for how, values in (("colour", self.third_N), ("size", self.fourth_N)):
            if values.size:
                name = objective_label(self.objectives[2 if how == "colour" else 3])
                spread = f"{decimal(float(np.nanmin(values)))} to {decimal(float(np.nanmax(values)))}"
                parts.append(f"{how} is {name} ({spread})")
        if parts:
            parts = [f"In the static figure's first panel, {' and '.join(parts)}."]
        beyond = max((panel.beyond for panel in self.panels), default=0)
        if beyond:
            parts.append(f"Up to {beyond} trials of a panel lie beyond its axes and are not drawn.")
        return " ".join(parts)

    def finding(self) -> str:
        """The knee against the unguarded model, and how the front fares on unseen prompts."""
        if not self.panels:
            return "A single objective has no front to draw."
        if self.knee is None:
            return f"None of the {self.trials} trials gave a point of the front."
        panel = self.panels[0]
        knee = next(mark for mark in panel.front if mark.label == self.knee.label)
        harm, fluency = objective_label(panel.y), objective_label(panel.x)
        sentence = (
            f"{len(panel.front)} non-dominated settings from {self.trials} trials. The knee (trial "
            f"{self.knee.trial}) takes {harm} from {panel.baseline.y} to {knee.y}, at {fluency} {knee.x} against "
            f"{panel.baseline.x} unguarded."
        )
        seen = sum(mark.unseen is not None for mark in panel.front)
        if not seen:
            return f"{sentence} No validation on unseen prompts was run."
        return f"{sentence} On unseen prompts {self.inside} of {seen} points stay within all of their intervals."


def pareto_data(data: SweepData) -> ParetoData:
    """Collect every pair of objectives, harm on the ordinate of the first."""
    names = data.objectives
    base, base_unseen = data.baseline
    marks = [(p.label, p.objectives, p.validation) for p in data.points]
    panels: list[ParetoPanel] = []
    for y, x in combinations(names, 2) if len(names) > 1 else ():
        front = [_mark(label, found, unseen, x, y) for label, found, unseen in marks]
        baseline = _mark("unguarded", base, base_unseen, x, y)
        off = {
            state: np.array(
                [
                    [t.objectives[x].value, t.objectives[y].value]
                    for t in data.off_front
                    if t.objectives and t.state == state
                ]
            ).reshape(-1, 2)
            for state in ("complete", "stopped")
        }
        off = {state: points[np.isfinite(points).all(axis=1)] for state, points in off.items()}
        panels.append(ParetoPanel(x, y, not panels, front, baseline, off["complete"], off["stopped"]))
    further = [np.array([p.objectives[name].value for p in data.points]) for name in names[2:4]]
    further += [np.empty(0)] * (2 - len(further))
    inside = sum(_inside(p.objectives, p.validation) for p in data.points if p.validation)
    return ParetoData(panels, names, further[0], further[1], data.knee, data.confidence, len(data.finished), inside)


def _mark(label: str, found: Estimates, unseen: Estimates | None, x: str, y: str) -> Mark:
    return Mark(label, found[x], found[y], (unseen[x], unseen[y]) if unseen else None)


def _inside(found: Estimates, unseen: Estimates) -> bool:
    return all(found[name].low <= unseen[name].value <= found[name].high for name in found)


def draw_pareto(info: ParetoData) -> Figure:
    """The first pair large, with intervals, names and validation; the other pairs small below."""
    from matplotlib.figure import Figure

    from dsprobe.reports.figures.style import WIDTH

    main, *others = info.panels
    rows = -(-len(others) // _PER_ROW)
    tall = _LEGEND + _MAIN + rows * (_SMALL + _ABSCISSA) + 0.55
    drawing = Figure(figsize=(WIDTH, tall))

    def axes_at(x: float, y: float, wide: float, high: float) -> Axes:
        return drawing.add_axes((x / WIDTH, 1 - (y + high) / tall, wide / WIDTH, high / tall))

    key = _KEY if info.third_N.size else 0.2
    axes = axes_at(_LEFT, _LEGEND, WIDTH - _LEFT - key, _MAIN)
    _draw_panel(axes, main, info, large=True)
    if info.third_N.size:
        bar = axes_at(WIDTH - key + 0.3, _LEGEND + 0.35, 0.14, _MAIN - 0.7)
        _draw_key(bar, info)
    wide = (WIDTH - _LEFT - 0.2 - (_PER_ROW - 1) * _GAP) / _PER_ROW
    for place, panel in enumerate(others):
        row, column = divmod(place, _PER_ROW)
        top = _LEGEND + _MAIN + _ABSCISSA + row * (_SMALL + _ABSCISSA)
        _draw_panel(axes_at(_LEFT + column * (wide + _GAP), top, wide, _SMALL), panel, info, large=False)
    drawing.legend(handles=_handles(info), loc="upper left", bbox_to_anchor=(0, 1), ncols=7, borderaxespad=0.3,
                   columnspacing=1.4, handletextpad=0.5)  # fmt: skip
    return drawing


def _draw_panel(axes: Axes, panel: ParetoPanel, info: ParetoData, *, large: bool) -> None:
    from dsprobe.reports.figures.style import INK, SERIES, SOFT

    small = 1.0 if large else 0.55
    axes.plot(*panel.complete_T2.T, "o", color=SOFT, alpha=0.3, markersize=4 * small, markeredgewidth=0)
    axes.plot(*panel.stopped_T2.T, "x", color=SOFT, alpha=0.35, markersize=4 * small, markeredgewidth=0.8)
    if len(info.objectives) == 2:
        axes.step(*_staircase(panel.front), where="post", color=SERIES[0], alpha=0.45, linewidth=1.1)
    for mark in [*panel.front, panel.baseline]:
        if panel.bars:
            axes.plot([mark.x.low, mark.x.high], [mark.y.value] * 2, color=SOFT, alpha=0.55, linewidth=1)
            axes.plot([mark.x.value] * 2, [mark.y.low, mark.y.high], color=SOFT, alpha=0.55, linewidth=1)
        if mark.unseen:
            x, y = (e.value for e in mark.unseen)
            axes.plot([mark.x.value, x], [mark.y.value, y], color=INK, alpha=0.6, linewidth=0.7 * small)
            shape = "D" if mark is panel.baseline else "o"
            axes.plot(
                x, y, shape, markerfacecolor="none", markeredgecolor=INK, markersize=6 * small, markeredgewidth=0.9
            )
    axes.plot(panel.baseline.x.value, panel.baseline.y.value, "D", color=INK, markersize=7.5 * small, zorder=3)
    _draw_front(axes, panel, info, small)
    axes.set(xlabel=objective_label(panel.x), ylabel=objective_label(panel.y))
    axes.set_xlim(*panel.limits[0])
    axes.set_ylim(*panel.limits[1])
    if large:
        _name_points(axes, panel, info.knee.label if info.knee else "")


def _draw_front(axes: Axes, panel: ParetoPanel, info: ParetoData, small: float) -> None:
    from dsprobe.reports.figures.style import INK, SERIES

    xs, ys = ([getattr(mark, axis).value for mark in panel.front] for axis in ("x", "y"))
    area = _areas(info.fourth_N) if small == 1.0 and info.fourth_N.size else np.full(len(xs), 60.0 * small)
    style: dict[str, Any] = {"s": area, "edgecolors": INK, "linewidths": 0.8 * small, "zorder": 4}
    if small == 1.0 and info.third_N.size:
        axes.scatter(xs, ys, c=info.third_N, cmap=_scale(), **style)
    else:
        axes.scatter(xs, ys, color=SERIES[0], **style)
    for mark in panel.front:
        if info.knee is not None and mark.label == info.knee.label:
            axes.plot(mark.x.value, mark.y.value, "o", markersize=19 * small, markerfacecolor="none",
                      markeredgecolor=SERIES[1], markeredgewidth=1.8, zorder=5)  # fmt: skip


def _areas(values_N: F64) -> F64:
    """Marker areas that grow with a value from the smallest to the largest."""
    low, span = np.nanmin(values_N), np.nanmax(values_N) - np.nanmin(values_N)
    share_N = (values_N - low) / span if span else np.zeros_like(values_N)
    return np.asarray(_SIZES[0] + share_N * (_SIZES[1] - _SIZES[0]))


def _scale() -> Colormap:
    """Colours of the third objective, all of them readable on light and on dark ground."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("third", ["#3b6fd4", "#4fb0a5", "#e6c84f"])


def _staircase(front: Sequence[Mark]) -> tuple[list[float], list[float]]:
    """Points by x, as the border of what they dominate."""
    ordered = sorted((mark.x.value, mark.y.value) for mark in front)
    return [x for x, _ in ordered], [y for _, y in ordered]


def _draw_key(axes: Axes, info: ParetoData) -> None:
    """Colour bar of the third objective."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    from dsprobe.reports.figures.style import SOFT

    low, high = float(np.nanmin(info.third_N)), float(np.nanmax(info.third_N))
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1.0), _scale())
    axes.figure.colorbar(scale, cax=axes, drawedges=False)
    axes.spines[:].set_visible(False)
    axes.set_title(objective_label(info.objectives[2]), fontsize=8.5, weight="normal", color=SOFT, loc="center")


def _name_points(axes: Axes, panel: ParetoPanel, knee: str) -> None:
    """Write the points' names where they cover neither a point nor another name; the knee's first."""
    from dsprobe.reports.figures.style import INK, SOFT

    dots = axes.transData.transform([[m.x.value, m.y.value] for m in [*panel.front, panel.baseline]])
    unseen = axes.transData.transform(
        [[e.value for e in m.unseen] for m in [*panel.front, panel.baseline] if m.unseen] or np.empty((0, 2))
    )
    taken = [(x - 5, y - 6, x + 5, y + 6) for x, y in [*dots, *unseen]]
    area = axes.get_window_extent()
    order = sorted(range(len(panel.front)), key=lambda i: panel.front[i].label != knee)
    for i in [len(panel.front), *order]:
        name = "unguarded" if i == len(panel.front) else panel.front[i].label
        strong = name in (knee, "unguarded")
        wide, high = _CHARACTER * len(name), 12.0
        right = 12 if strong else 5
        left = -right - wide
        for dx, dy in ((right, 7), (left, 7), (right, -19), (left, -19), (right + 7, -6), (left - 7, -6)):
            x, y = dots[i][0] + dx, dots[i][1] + dy
            box = (x, y, x + wide, y + high)
            if _free(box, [t for n, t in enumerate(taken) if n != i]) and area.x0 < x and x + wide < area.x1:
                taken.append(box)
                at_x, at_y = axes.transData.inverted().transform((x, y + 1))
                axes.text(at_x, at_y, name, fontsize=8.5, zorder=6, weight="bold" if strong else "normal",
                          color=INK if strong else SOFT)  # fmt: skip
                break


def _free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    return all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)


def _handles(info: ParetoData) -> list[object]:
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.style import INK, SERIES, SOFT

    def mark(label: str, marker: str, **style: object) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, label=label, **style)  # type: ignore[arg-type]

    handles: list[object] = [
        mark(f"front, {info.confidence} interval", "o", markerfacecolor=SERIES[0], markeredgecolor=INK, markersize=7),
        mark("knee", "o", markerfacecolor="none", markeredgecolor=SERIES[1], markeredgewidth=1.8, markersize=10),
        mark("unguarded", "D", color=INK, markersize=6),
    ]
    if any(m.unseen for panel in info.panels for m in [*panel.front, panel.baseline]):
        handles.append(mark("on unseen prompts", "o", markerfacecolor="none", markeredgecolor=INK, markersize=6))
    if any(len(panel.complete_T2) for panel in info.panels):
        handles.append(mark("other trials", "o", color=SOFT, alpha=0.4, markersize=4, markeredgewidth=0))
    if any(len(panel.stopped_T2) for panel in info.panels):
        handles.append(mark("stopped on fewer prompts", "x", color=SOFT, alpha=0.5, markersize=4))
    return handles
