"""In which order the reply was written: commit step against position, with Kendall's τ-b."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsprobe.decoding.records import NEVER
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.summary import commit_steps
from dsprobe.reports.data import F64, I64, ReportData, columns
from dsprobe.reports.figures.facets import Facet, facet, left_out, parts_of, shown_guardrails
from dsprobe.reports.text import part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class DecodeOrderPanel:
    """One condition."""

    facet: Facet
    position_P: I64
    """Response positions that at least one trajectory committed itself."""
    mean_P: F64
    """Mean commit step over the trajectories that committed the position."""
    quantiles_3P: F64
    """10 %, 50 % and 90 % quantile of the commit step."""
    tau: Interval
    """Mean Kendall τ-b between position and commit step, in [-1, 1]."""
    guardrail: str

    @property
    def blank(self) -> bool:
        """The model committed nothing."""
        return len(self.position_P) == 0


@dataclass(frozen=True, slots=True)
class DecodeOrderData:
    """One panel per condition."""

    panels: list[DecodeOrderPanel]
    guardrails: list[str]
    """Guardrails that colours stand for; empty where the run compares none."""

    @property
    def left_out(self) -> str:
        """Conditions that are not drawn."""
        return left_out(self.panels, "the model committed no position")

    def finding(self) -> str:
        """One sentence on the most and the least sequential condition."""
        known = [panel for panel in self.panels if not math.isnan(panel.tau.value)]
        if not known:
            return "No position was committed by the model."
        most = max(known, key=lambda panel: panel.tau.value)
        least = min(known, key=lambda panel: panel.tau.value)
        first = f"Order is closest to left-to-right under {most.facet.name}: τ-b {most.tau:.2f}"
        if most is least:
            return f"{first} (n = {most.tau.n})."
        return f"{first}; it is lowest under {least.facet.name}: {least.tau:.2f} (1 is left to right, 0 no order)."


def decode_order_data(data: ReportData) -> DecodeOrderData:
    """Collect commit steps by position; given positions (anchors, prefills) are left out."""
    panels = []
    among = [parts_of(c) for c in data.conditions]
    for condition, parts in zip(data.conditions, among, strict=True):
        commit_BP, _ = commit_steps(columns(data.rows("trajectories", condition)))
        written_BP = commit_BP != NEVER
        position_P = np.flatnonzero(written_BP.any(axis=0))
        step_BP = np.where(written_BP, commit_BP, np.nan)[:, position_P]
        panels.append(
            DecodeOrderPanel(
                facet(parts, among, len(commit_BP)),
                position_P,
                np.nanmean(step_BP, axis=0),
                np.nanquantile(step_BP, _QUANTILES, axis=0),
                data.summaries[condition].order_correlation,
                part(condition, "guardrail"),
            )
        )
    return DecodeOrderData(panels, shown_guardrails(data))


def draw_decode_order(info: DecodeOrderData) -> Figure:
    """Points are the mean commit step, bars the 10–90 % range; gaps are given positions."""
    from matplotlib.lines import Line2D

    from dsprobe.reports.figures.multiples import Multiples
    from dsprobe.reports.figures.style import SERIES, SOFT, guardrail_styles

    styles = guardrail_styles(info.guardrails)
    usual = SOFT if styles else SERIES[0]
    handles = [
        Line2D([], [], color=usual, marker="o", linestyle="none", markersize=4, label="mean"),
        Line2D([], [], color=usual, alpha=0.4, label="10–90 % of trajectories"),
        *(Line2D([], [], color=style["color"], label=name) for name, style in styles.items()),
    ]
    grid = Multiples(info.panels, 1.7, ["response position"], "commit step", handles, remarks=True)
    for panel, axes in zip(grid.panels, grid.axes[0], strict=True):
        low_P, _, high_P = panel.quantiles_3P
        colour = styles[panel.guardrail]["color"] if styles else SERIES[0]
        axes.vlines(panel.position_P, low_P, high_P, color=colour, alpha=0.3, linewidth=1.6)
        axes.plot(panel.position_P, panel.mean_P, "o", color=colour, markersize=2.4)
        axes.text(1, 1.02, f"τ-b {panel.tau:.2f}", transform=axes.transAxes, fontsize=7.5, color=SOFT, ha="right")
        axes.set_xlim(-1, 1 + max((p.position_P.max(initial=0) for p in grid.panels), default=0))
    for axes in grid.axes[0]:
        axes.set_ylim(0, None)
    return grid.finish()
