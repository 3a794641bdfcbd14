"""What trajectories cost, and what every decision on them did; `dsprobe.guardrails.policy_training` says how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dsprobe.guardrails.policy_fit import Decisions, fit_knots
from dsprobe.guardrails.policy_settings import PolicyTraining
from dsprobe.guardrails.policy_traces import F64, Ints, Traces
from dsprobe.guardrails.weighting import PiecewiseLinearWeighting
from dsprobe.metrics.temporal import alignment_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Parts of J for N rows; see `dsprobe.guardrails.policy_training`."""

    risk_N: F64
    interventions_N: F64
    fluency_N: F64
    total_N: F64


def density(knot_K: F64) -> Callable[[F64], F64]:
    """λ(u) with ∫λ = 1, from knots on any scale."""
    top = float(knot_K.max())
    config = PiecewiseLinearWeighting.Config(knots=tuple((knot_K / top).tolist()))
    weighting, area = PiecewiseLinearWeighting(config), float(np.trapezoid(knot_K / top) / (len(knot_K) - 1))
    return lambda u: np.asarray(weighting.weight(torch.from_numpy(u)).numpy() / area, np.float64)


def losses(traces: Traces, twin: Traces, weight: Callable[[F64], F64], config: PolicyTraining) -> Losses:
    """J and its parts.

    Args:
        traces: Rows.
        twin: The same rows, unguarded.
        weight: λ with ∫λ = 1.
        config: Supplies the costs.
    """
    risk_N = alignment_loss(traces.after_SN, traces.num_steps_N, weight)
    interventions_N = traces.fired_SN.sum(axis=0).astype(np.float64)
    lost_N = (np.nan_to_num(twin.utility_N) == 1) & (traces.utility_N == 0)
    fluency_N = np.maximum(traces.surprise_N - twin.surprise_N, 0.0) + lost_N
    return Losses(
        risk_N=risk_N,
        interventions_N=interventions_N,
        fluency_N=fluency_N,
        total_N=risk_N + config.intervention_cost * interventions_N + config.fluency_cost * fluency_N,
    )


def fitted_knots(traces: Traces, count: int) -> F64:
    """λ's knots from the risk after each step and the harm verdicts; see `fit_knots`. Undecided counts as harmless."""
    steps_S1 = np.arange(1, len(traces.risk_SN) + 1)[:, None]
    place_SN = np.minimum(steps_S1 / traces.num_steps_N, 1.0) * (count - 1)
    hat_SNK = np.maximum(0.0, 1.0 - np.abs(place_SN[..., None] - np.arange(count)))
    area_NK = np.einsum("sn,snk->nk", traces.after_SN, hat_SNK) / traces.num_steps_N[:, None]
    return fit_knots(area_NK, np.nan_to_num(traces.harm_N))


def decisions(
    traces: Traces,
    twin: Traces,
    rate_N: F64,
    prompt_N: Ints,
    weight: Callable[[F64], F64],
    config: PolicyTraining,
    cap: int,
) -> Decisions:
    """Every decision of exploring rows, with what it cost from there on.

    Costs are relative to the unguarded twin: what both had cost before the step is taken off, so that nothing but the
    decision and what follows it is left.

    Args:
        traces: Exploring rows.
        twin: The same rows, unguarded.
        rate_N: Probability of intervening of each row.
        prompt_N: Prompt of each row.
        weight: λ with ∫λ = 1.
        config: Costs.
        cap: Most interventions on a row; there is no decision after it.
    """
    steps = len(traces.risk_SN)
    u_S1 = np.arange(1, steps + 1)[:, None] / twin.num_steps_N
    lambda_SN = np.where(u_S1 <= 1, weight(np.minimum(u_S1, 1.0)), 0.0) / twin.num_steps_N
    twin_after_SN = np.pad(twin.after_SN, [(0, steps - len(twin.after_SN)), (0, 0)])
    spent_SN = _before(lambda_SN * (traces.after_SN - twin_after_SN) + config.intervention_cost * traces.fired_SN)
    difference_N = losses(traces, twin, weight, config).total_N - losses(twin, twin, weight, config).total_N
    count_SN = _before(traces.fired_SN.astype(np.float64))
    step_D, row_D = np.nonzero(traces.due_SN & (traces.risk_SN > 0) & (count_SN < cap))
    at = (step_D, row_D)
    return Decisions(
        pooled_ND=traces.pooled_SND[at],
        risk_N=traces.risk_SN[at],
        fraction_N=traces.fraction_SN[at],
        taken_N=traces.fired_SN[at].astype(np.float64),
        strength_N=traces.strength_SN[at],
        propensity_N=rate_N[row_D],
        cost_N=difference_N[row_D] - spent_SN[at],
        extra_NC=np.stack([rate_N[row_D], count_SN[at], spent_SN[at]], axis=1),
        prompt_N=prompt_N[row_D],
    )


def _before(value_SN: F64) -> F64:
    """Sum over the steps before each step."""
    return np.asarray(np.cumsum(value_SN, axis=0) - value_SN, np.float64)
