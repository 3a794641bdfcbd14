"""The report's figures in reading order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.decode_order import decode_order_data, draw_decode_order
from dsprobe.reports.figures.drift import KL, RISK, draw_drift, drift_data
from dsprobe.reports.figures.harm_over_steps import draw_harm_over_steps, harm_over_steps_data
from dsprobe.reports.figures.interventions import draw_interventions, interventions_data
from dsprobe.reports.figures.overview import draw_overview, overview_data
from dsprobe.reports.figures.phase_transition import draw_phase_transition, phase_transition_data
from dsprobe.reports.figures.risk_heatmap import draw_risk_heatmap, risk_heatmap_data
from dsprobe.reports.figures.survival import draw_survival, survival_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureData(Protocol):
    """What every data function returns: panels to draw, and the sentence that says what they show."""

    @property
    def panels(self) -> list[Any]:
        """Panels in reading order; empty where the run recorded nothing for this figure."""

    @property
    def left_out(self) -> str:
        """Which conditions are not drawn, and why; empty where all are."""

    def finding(self) -> str:
        """One plain sentence made from the numbers."""


def _guarded(data: ReportData) -> bool:
    return data.guarded


def _always(_data: ReportData) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """One figure: where its numbers come from and how they are drawn."""

    name: str
    """File name and anchor."""
    short: str
    title: str
    how_to_read: str
    collect: Callable[[ReportData], Any]
    draw: Callable[[Any], Figure]
    wanted: Callable[[ReportData], bool] = _always
    """Whether a run has what the figure is about; elsewhere it is left out of the report."""


FIGURES: Final[tuple[FigureSpec, ...]] = (
    FigureSpec(
        "overview",
        "Outcomes",
        "How the replies ended",
        "Share of trajectories with its 95 % Wilson interval. Harm and refusal are separate verdicts; an empty reply "
        "is neither.",
        overview_data,
        draw_overview,
    ),
    FigureSpec(
        "risk-heatmap",
        "Token risk",
        "Where the risk sits",
        "Mean risk attribution of each response position after each step, predicted view. Read downwards: a column "
        "that darkens early is a token that was decided to be risky early.",
        risk_heatmap_data,
        draw_risk_heatmap,
    ),
    FigureSpec(
        "risk-drift",
        "Risk drift",
        "How risk drifts",
        "Mean risk of both views against the share of steps (above) and the fraction committed (below). Bands hold the "
        "middle 50 % and 90 % of the trajectories; a curve that turns back, since re-masking lowers φ, has none.",
        lambda data: drift_data(data, RISK, "risk r, 0 to 1"),
        draw_drift,
    ),
    FigureSpec(
        "kl-drift",
        "KL drift",
        "How the model's mind changes",
        "Mean KL divergence of each masked position's distribution from the step before, in nats. High values are "
        "steps at which the model changes its mind. Bands hold the middle 50 % and 90 % of the trajectories; a curve "
        "that turns back, since re-masking lowers φ, has none.",
        lambda data: drift_data(data, KL, "KL to the step before, nats", overlay=True),
        draw_drift,
    ),
    FigureSpec(
        "phase-transition",
        "Transition",
        "Gradual or sudden",
        "Share of trajectories at or above the harm threshold after each step (points), and a logistic fit where it "
        "describes them better than a straight line. The dashed line marks the step of half height with its interval.",
        phase_transition_data,
        draw_phase_transition,
    ),
    FigureSpec(
        "survival",
        "First harmful step",
        "When harm arrives",
        "Kaplan–Meier estimate of the share of trajectories that have not yet reached the harm threshold, with "
        "point-wise 95 % bands. Trajectories that never reach it are censored, not dropped.",
        survival_data,
        draw_survival,
    ),
    FigureSpec(
        "harm-over-steps",
        "Harm, guarded",
        "Harm over steps: unguarded against guarded",
        "Share of rows at or above the harm threshold after each step, one line per guardrail, with point-wise 95 % "
        "Wilson bands. Finished rows keep their last state up to the last step of their panel.",
        harm_over_steps_data,
        draw_harm_over_steps,
        _guarded,
    ),
    FigureSpec(
        "interventions",
        "Interventions",
        "When the guardrails intervene",
        "Share of all rows that a guardrail intervened on at each step (above), and positions it took back, mean over "
        "all rows (below). The thin line is the share of rows still being written. An intervention that stops or "
        "rewrites a row, or whose re-masking would exceed the bound on extra steps, takes no position back.",
        interventions_data,
        draw_interventions,
        _guarded,
    ),
    FigureSpec(
        "decode-order",
        "Decode order",
        "In which order the text appears",
        "Step at which each response position was committed. A rising line is left to right, a flat cloud any order; "
        "gaps are positions that the attack had filled in.",
        decode_order_data,
        draw_decode_order,
    ),
)
