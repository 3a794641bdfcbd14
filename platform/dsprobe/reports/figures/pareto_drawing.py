"""Drawing the front: one large panel with names, the other pairs of objectives small below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dsprobe.reports.data import F64
from dsprobe.reports.figures.pareto import Mark, ParetoData, ParetoPanel
from dsprobe.reports.sweep_data import objective_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MAIN, _SMALL = 4.3, 2.5
"""Heights of the first panel and of the others in inches."""
_PER_ROW: Final = 3
_LEGEND, _ABSCISSA, _LEFT, _GAP, _KEY = 0.5, 0.72, 0.72, 0.75, 1.15
_SIZES: Final = (34.0, 190.0)
"""Smallest and largest marker area in points²."""
_CHARACTER: Final = 7.5
"""Width of a character of a point's name in pixels, on the safe side."""


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
