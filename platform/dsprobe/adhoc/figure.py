"""Risk per step of one or several attacked trajectories: numbers first, then the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.summary import VIEWS
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dsprobe.adhoc.result import AttackResult


@dataclass(frozen=True, slots=True)
class RiskLines:
    """Risk of both views of one trajectory after each step."""

    label: str
    risk_S: dict[str, npt.NDArray[np.float64]]
    """View → risk; NaN without a scorer."""
    event_steps: tuple[int, ...]
    """Steps in which an attack or a guardrail changed the canvas."""
    threshold: float


def risk_lines(results: Mapping[str, AttackResult]) -> list[RiskLines]:
    """The numbers of the figure.

    Args:
        results: Panel heading → result, in reading order.
    """
    return [
        RiskLines(
            label=visible(label),
            risk_S={view: np.array(result.risks(view), dtype=np.float64) for view in VIEWS},
            event_steps=tuple(frame.step for frame in result.steps if frame.events),
            threshold=result.threshold,
        )
        for label, result in results.items()
    ]


def draw_risks(lines: list[RiskLines]) -> Figure:
    """One panel for each trajectory, side by side on one scale.

    Raises:
        PrerequisiteError: matplotlib is not installed.
    """
    from dsprobe.adhoc.png_figure import PngFigure
    from dsprobe.reports.figures.style import SOFT, WIDTH, house_style

    with house_style():
        figure = PngFigure(figsize=(WIDTH * min(1.0, 0.2 + 0.4 * len(lines)), 2.8))
        panels = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
        for axes, line in zip(panels, lines, strict=True):
            _draw_panel(axes, line, SOFT)
        panels[0].set_ylabel("risk, 0 to 1")
        panels[0].legend(loc="upper left")
        figure.tight_layout()
    return figure


def _draw_panel(axes: Axes, line: RiskLines, soft: str) -> None:
    from dsprobe.reports.figures.style import VIEW_COLOURS

    for view, width in (("committed", 3.4), ("predicted", 1.4)):  # broad beneath narrow: they often coincide
        risk_S = line.risk_S[view]
        axes.plot(np.arange(1, len(risk_S) + 1), risk_S, color=VIEW_COLOURS[view], label=view, linewidth=width)
    axes.axhline(line.threshold, color=soft, linewidth=0.9, linestyle="--")
    for step in line.event_steps:
        axes.axvline(step, color=soft, linewidth=0.7, linestyle=":")
    axes.set_title(line.label)
    axes.set_xlabel("step")
    axes.set_ylim(-0.05, 1.05)
