"""Training the temporal policy head on logged trajectories.

What is minimised, per trajectory (`losses`):

    J = ∫₀¹ λ(u) Risk(x_u) du  +  c_int · interventions  +  c_flu · fluency loss

with ∫λ = 1, Risk that of the canvas after each step (`dsprobe.metrics.temporal.alignment_loss`), and the fluency loss
max(0, mean −log p of the reply's tokens when they were committed − the same of the unguarded reply), in nats, plus 1
where a benign prompt that was answered correctly no longer is.

1. The run's unguarded prompts are decoded again, logging what a policy sees (`TraceLogger`): the *twins*.
2. Training prompts on which there is any risk are decoded once more with interventions at random steps and of random
   strength (`ExploringGuardrail`), so that the effect of intervening is not confounded with the reasons for it.
3. λ says how much the risk at u tells of final harm (`fit_knots`).
4. From every decision's cost G, relative to the twin's and from that step on, the effect Δ(x, q) = E[G | intervene with
   q] − E[G | leave alone] is fitted, and the policy minimises Σ_s p_s Δ(x_s, q_s) with an entropy term (`fit_policy`):
   the expected cost p Q₁ + (1 − p) Q₀ up to a constant. What follows a decision is exploration, so this is one step of
   policy improvement over intervening at random.
5. On held-out prompts the policy is run and compared with never and always intervening (`Outcome`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from dsprobe.decoding.canvas import random_key
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import Plan
from dsprobe.guardrails.base import Setting
from dsprobe.guardrails.policy import (
    AlwaysGuardrail,
    ExploringGuardrail,
    NetworkGuardrail,
    StrengthGuardrail,
    exploration_share,
)
from dsprobe.guardrails.policy_fit import fit_policy
from dsprobe.guardrails.policy_losses import Losses, decisions, density, fitted_knots, losses
from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork
from dsprobe.guardrails.policy_sampler import Sampler
from dsprobe.guardrails.policy_settings import PolicyTraining, default_action, split
from dsprobe.guardrails.policy_traces import F64, Bool, Case, Ints, Traces, concatenated
from dsprobe.guardrails.renoise import RenoiseConfig
from dsprobe.models.base import DiffusionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Means over the held-out rows of one way to intervene."""

    loss: float
    """J."""
    risk: float
    """∫ λ Risk du."""
    interventions: float
    """Interventions per row."""
    fluency: float
    """Fluency loss."""
    asr: float | None
    """Share of harmful prompts' replies that the judge calls harmful; `None` where there are none."""
    utility: float | None
    """Share of benign prompts answered correctly; `None` without a utility judge or benign prompts."""
    extra_steps: float
    """Steps per row beyond the unguarded ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A policy and how it does on prompts that training never saw."""

    network: PolicyNetwork
    outcomes: Mapping[str, Outcome]
    """`never`, `always` (full strength wherever there is risk) and `policy`."""
    rows: Mapping[str, int]
    """Rows in training and held out, and decisions trained on."""


def train(plan: Plan, model: DiffusionModel, config: PolicyTraining, action: RenoiseConfig | None = None) -> Trained:
    """Train a policy on a run's unguarded trajectories and compare it, held out, with never and always intervening.

    Deterministic in plan, model and settings.

    Args:
        plan: The resolved run, unguarded.
        model: One of its diffusion models, loaded.
        config: Settings.
        action: What an intervention does; the policy guardrail's defaults with the run's scorer unless given.

    Raises:
        ConfigError: No harm judge, too few prompts, or no unguarded reply that is harmful.
    """
    action = action or default_action(plan, config)
    sampler = Sampler(plan, model, action)
    cases = sampler.cases(config.limit)
    prompt_N, held_N = split(cases, config)
    twin = sampler.rollout(cases)
    _check_learnable(twin, ~held_N)
    rows_E, exploring, rate_E = _explore(sampler, cases, twin, ~held_N, config)
    knot_K = fitted_knots(concatenated([twin.take(~held_N), exploring]), config.knots)
    weight = density(knot_K)
    data = decisions(exploring, twin.take(rows_E), rate_E, prompt_N[rows_E], weight, config, action.max_interventions)
    header = _header(model, config, action, twin.pooled_SND.shape[-1], knot_K)
    network = fit_policy(header, data, seed=config.seed, iterations=config.iterations)
    held = np.flatnonzero(held_N)
    kept, before = [cases[index] for index in held.tolist()], twin.take(held)
    always = _guarded(sampler, kept, before, lambda setting: AlwaysGuardrail(action, setting))
    policy = _guarded(sampler, kept, before, lambda setting: NetworkGuardrail(action, setting, network))
    ways = {"never": before, "always": always, "policy": policy}
    outcomes = {n: _outcome(kept, traces, before, losses(traces, before, weight, config)) for n, traces in ways.items()}
    held_out = {name: asdict(outcome) for name, outcome in outcomes.items()}
    network.header = header.model_copy(update={"training": {**header.training, "held_out": held_out}})
    rows = {"training": int((~held_N).sum()), "held_out": len(held), "decisions": len(data.cost_N)}
    return Trained(network=network, outcomes=outcomes, rows=rows)


def _check_learnable(twin: Traces, training_N: Bool) -> None:
    """Refuse a run in which there is nothing to prevent, or nothing that tells of it."""
    harmful = int((twin.harm_N[training_N] == 1).sum())
    if not harmful:
        raise ConfigError(
            f"None of the {int(training_N.sum())} unguarded training replies was judged harmful: there is nothing "
            "to prevent. Train on a run with an attack that works on this model."
        )


def _explore(
    sampler: Sampler, cases: Sequence[Case], twin: Traces, training_N: Bool, config: PolicyTraining
) -> tuple[Ints, Traces, F64]:
    """Row indices, traces and rates of the exploring rows; rows that never show risk have nothing to decide.

    Raises:
        ConfigError: Fewer than two rows show risk.
    """
    rows = np.flatnonzero(training_N & (twin.risk_SN > 0).any(axis=0))
    if len({cases[row].prompt.id for row in rows.tolist()}) < 2:
        raise ConfigError(
            f"Scorer `{sampler.config.scorer.name}` sees risk on {len(rows)} of {int(training_N.sum())} training rows: "
            "too few to learn from. Train on more prompts, or with another scorer."
        )
    chosen = [cases[row] for row in rows.tolist()]
    keys = torch.tensor([random_key(sampler.plan.config.seed, RowKey(case.prompt.id)) for case in chosen])
    traces, rates = [], []
    for number in range(config.explorations):
        seed = config.seed * 1000 + number
        build = partial(ExploringGuardrail, sampler.config, rate=config.rate, seed=seed)
        traces.append(sampler.rollout(chosen, build))
        rates.append(config.rate * exploration_share(keys, seed).numpy())
    return np.tile(rows, config.explorations), concatenated(traces), np.concatenate(rates)


def _guarded(
    sampler: Sampler, cases: Sequence[Case], twin: Traces, build: Callable[[Setting], StrengthGuardrail]
) -> Traces:
    """The rows under a guardrail; those that never show risk stay as they are, so they are not decoded again."""
    risky = np.flatnonzero((twin.risk_SN > 0).any(axis=0))
    if not len(risky):
        return twin
    order = np.arange(len(cases))
    order[risky] = len(cases) + np.arange(len(risky))
    return concatenated([twin, sampler.rollout([cases[row] for row in risky.tolist()], build)]).take(order)


def _outcome(cases: Sequence[Case], traces: Traces, twin: Traces, loss: Losses) -> Outcome:
    harmful_N = np.array([case.prompt.harmful for case in cases])
    utility_N = traces.utility_N[~harmful_N & ~np.isnan(traces.utility_N)]
    return Outcome(
        loss=float(loss.total_N.mean()),
        risk=float(loss.risk_N.mean()),
        interventions=float(loss.interventions_N.mean()),
        fluency=float(loss.fluency_N.mean()),
        asr=float((traces.harm_N[harmful_N] == 1).mean()) if harmful_N.any() else None,
        utility=float(utility_N.mean()) if len(utility_N) else None,
        extra_steps=float((traces.num_steps_N - twin.num_steps_N).mean()),
    )


def _header(
    model: DiffusionModel, config: PolicyTraining, action: RenoiseConfig, width: int, knot_K: F64
) -> PolicyHeader:
    return PolicyHeader(
        width=width,
        hidden=config.hidden,
        model=model.info.name,
        model_digest=model.info.digest,
        scorer=action.scorer,
        view=action.view,
        knots=tuple(knot_K.tolist()),
        training={"settings": config.model_dump(mode="json"), "action": action.model_dump(mode="json")},
    )
