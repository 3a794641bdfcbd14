"""Drift curves: risk of both views and step-to-step KL, against s/S and against the fraction committed φ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.summary import VIEWS
from dsprobe.reports.data import F64, ReportData, floats, integers
from dsprobe.reports.figures.facets import CELL, PARTS, Facet, facet, left_out, parts_of, shown_guardrails
from dsprobe.reports.text import number, part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Axis = Literal["schedule", "fraction"]

AXES: Final[tuple[Axis, ...]] = ("schedule", "fraction")
RISK: Final = ("risk_committed", "risk_predicted")
KL: Final = ("kl_mean",)
_X_NAMES: Final[dict[Axis, str]] = {"schedule": "share of steps s/S", "fraction": "fraction committed φ"}


@dataclass(frozen=True, slots=True)
class DriftCurve:
    """One quantity of one condition over the steps at which it is defined (arrays of equal length)."""

    quantity: str
    decoding: str
    guardrail: str
    x: dict[Axis, F64]
    """Abscissa under both schedules: s/S, and the mean fraction committed after the step."""
    mean: F64
    bands: dict[str, F64]
    """Quantiles ``q05``, ``q25``, ``q50``, ``q75``, ``q95`` over trajectories."""
    n: int
    """Most trajectories at any step."""


@dataclass(frozen=True, slots=True)
class DriftPanel:
    """Curves drawn together."""

    facet: Facet
    curves: list[DriftCurve]

    @property
    def blank(self) -> bool:
        """Nothing is defined, or everything is 0."""
        return not any(curve.bands[name].any() for curve in self.curves for name in ("q05", "q95"))


@dataclass(frozen=True, slots=True)
class DriftData:
    """Panels, and what the ordinate means."""

    panels: list[DriftPanel]
    ordinate: str
    guardrails: list[str]
    """Guardrails that the curves stand for; empty where the run compares none."""

    @property
    def left_out(self) -> str:
        """Conditions that are not drawn."""
        return left_out(self.panels, f"{self.ordinate.split(',')[0]} is undefined or stays at 0")

    def finding(self) -> str:
        """One sentence on the curve that rises most from its first to its last step."""
        curves = [(panel, curve) for panel in self.panels for curve in panel.curves]
        if not curves:
            return "No step statistics were recorded."
        panel, curve = max(curves, key=lambda pair: abs(float(pair[1].mean[-1] - pair[1].mean[0])))
        change = float(curve.mean[-1] - curve.mean[0])
        verb = "rises" if change > 0 else "falls"
        return (
            f"The largest change is under {_place(panel, curve, self)}: mean {self.ordinate.split(',')[0]}"
            f"{_view_phrase(panel, curve.quantity)} {verb} from {number(curve.mean[0])} to {number(curve.mean[-1])} "
            f"over the schedule (n = {curve.n})."
        )


def _place(panel: DriftPanel, curve: DriftCurve, info: DriftData) -> str:
    name, series = panel.facet.name, curve.guardrail if info.guardrails else curve.decoding
    return name if series in _shown(panel) else f"{name}, {series}"


def _view_phrase(panel: DriftPanel, quantity: str) -> str:
    view = quantity.removeprefix("risk_")
    return f" of the {view} view" if view in VIEWS and f"{view} view" not in _shown(panel) else ""


def _shown(panel: DriftPanel) -> tuple[str, ...]:
    return (*panel.facet.row, panel.facet.column)


def drift_data(data: ReportData, quantities: tuple[str, ...], ordinate: str, *, overlay: bool = False) -> DriftData:
    """Collect the curves of some quantities.

    Where guardrails are compared, those of a cell are drawn into one panel, and every quantity has panels of its own.

    Args:
        data: Supplies `step_stats`.
        quantities: Names in its ``quantity`` column, e.g. `RISK` or `KL`.
        ordinate: Label of the ordinate with its unit.
        overlay: Draw all decodings of a model × prompt set × attack into one panel instead of one panel each.
    """
    compared = shown_guardrails(data)
    keys = CELL if compared else [key for key in PARTS if not (overlay and key == "decoding")]
    apart = [[quantity] for quantity in quantities] if compared and len(quantities) > 1 else [list(quantities)]
    drawn = [(condition, group) for condition in data.conditions for group in apart]
    among = [parts_of(condition, keys) | _view_part(group, apart) for condition, group in drawn]
    panels: dict[tuple[str, ...], DriftPanel] = {}
    for (condition, group), parts in zip(drawn, among, strict=True):
        curves = [curve for quantity in group if (curve := _curve(data, condition, quantity))]
        heading = facet(parts, among, data.summaries[condition].n)
        panels.setdefault(tuple(parts.values()), DriftPanel(heading, [])).curves.extend(curves)
    recorded = any(panel.curves for panel in panels.values())
    return DriftData(list(panels.values()) if recorded else [], ordinate, compared)


def _view_part(group: Sequence[str], apart: Sequence[Sequence[str]]) -> dict[str, str]:
    return {"view": _view_name(group[0])} if len(apart) > 1 else {}


def _view_name(quantity: str) -> str:
    return f"{quantity.removeprefix('risk_')} view"


def _curve(data: ReportData, condition: Condition, quantity: str) -> DriftCurve | None:
    rows = data.rows("step_stats", condition, quantity=quantity).sort_by("step")
    committed = data.rows("step_stats", condition, quantity="fraction_committed").sort_by("step")
    mean = floats(rows, "mean")
    defined = ~np.isnan(mean)
    if not defined.any():
        return None
    step = integers(rows, "step")
    fraction = np.interp(step, integers(committed, "step"), floats(committed, "mean"))
    last = int(integers(committed, "step").max())
    return DriftCurve(
        quantity=quantity,
        decoding=part(condition, "decoding"),
        guardrail=part(condition, "guardrail"),
        x={"schedule": step[defined] / last, "fraction": fraction[defined]},
        mean=mean[defined],
        bands={name: floats(rows, name)[defined] for name in ("q05", "q25", "q50", "q75", "q95")},
        n=int(integers(rows, "n").max()),
    )


def draw_drift(info: DriftData) -> Figure:
    """All panels against s/S, and below them all against φ; bands are the 25–75 % and 5–95 % ranges.

    Colour tells the guardrails apart where they are compared, else the quantities where there are several, else the
    decodings.
    """
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.multiples import Multiples

    styles = _styles(info)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    grid = Multiples(info.panels, 1.6, [_X_NAMES[axis] for axis in AXES], info.ordinate, handles)
    top = max((float(curve.bands["q95"].max()) for panel in grid.panels for curve in panel.curves), default=1.0) or 1.0
    for axis, band in zip(AXES, grid.axes, strict=True):
        for panel, axes in zip(grid.panels, band, strict=True):
            for curve in panel.curves:
                _draw_curve(axes, curve, axis, styles[_series(curve, info)])
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.set_ylim(-0.04 * top, 1.06 * top)
    return grid.finish()


def _series(curve: DriftCurve, info: DriftData) -> str:
    """Name under which a curve stands in the legend."""
    if info.guardrails:
        return curve.guardrail
    quantities = {c.quantity for panel in info.panels for c in panel.curves}
    return _view_name(curve.quantity) if len(quantities) > 1 else curve.decoding


def _styles(info: DriftData) -> dict[str, dict[str, Any]]:
    from dsprobe.reports.figures.style import SERIES, guardrail_styles

    names = dict.fromkeys(_series(c, info) for panel in info.panels for c in panel.curves)
    plain = {name: {"color": SERIES[place % len(SERIES)]} for place, name in enumerate(names)}
    return guardrail_styles(info.guardrails) or plain


def _draw_curve(axes: Axes, curve: DriftCurve, axis: Axis, style: Mapping[str, Any]) -> None:
    x = curve.x[axis]
    turns_back = bool((np.diff(x) < 0).any())  # re-masking lowers φ
    for low, high, alpha in () if turns_back else (("q05", "q95", 0.10), ("q25", "q75", 0.20)):
        axes.fill_between(x, curve.bands[low], curve.bands[high], color=style["color"], alpha=alpha, linewidth=0)
    axes.plot(x, curve.mean, **style)
