"""The front of harm against fluency and cost: what the search found, with intervals, and what unseen prompts say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from dsprobe.reports.data import F64
from dsprobe.reports.sweep_data import Estimate, Estimates, FrontPoint, SweepData, decimal, objective_label

_BEYOND: Final = 1.0
"""Axes end at the front's and the baseline's extent plus so much of it; trials beyond are counted, not drawn."""


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
