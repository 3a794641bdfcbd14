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
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.base import Rendered
from dsprobe.config import UNGUARDED, Strict
from dsprobe.decoding.canvas import Canvas, batch_canvases, by_width, in_batches, random_key
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.loop import DenoiseOutput, StatisticsNeeds, denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.plan import Plan
from dsprobe.guardrails.base import Setting, score_view, step_log
from dsprobe.guardrails.policy import (
    ActionConfig,
    AlwaysGuardrail,
    ExploringGuardrail,
    NetworkGuardrail,
    StrengthGuardrail,
    exploration_share,
)
from dsprobe.guardrails.policy_network import Decisions, PolicyHeader, PolicyNetwork, fit_knots, fit_policy
from dsprobe.guardrails.renoise import RenoiseConfig
from dsprobe.guardrails.weighting import PiecewiseLinearWeighting
from dsprobe.judges import JUDGES, Judge, Reply
from dsprobe.judges.run import judge_all
from dsprobe.metrics.temporal import alignment_loss
from dsprobe.models.base import DiffusionModel
from dsprobe.models.chat import decode_reply
from dsprobe.prompts.base import Prompt
from dsprobe.risk.base import View

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class PolicyTraining(Strict):
    """Settings of a training."""

    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    """Keep the first N prompts of every set."""
    holdout: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of the prompts of every set that training does not see."""
    intervention_cost: float = Field(default=0.01, ge=0.0)
    """c_int, per intervention; a trajectory's risk term lies in [0, 1]."""
    fluency_cost: float = Field(default=0.1, ge=0.0)
    """c_flu, per nat of a reply's mean −log p."""
    explorations: int = Field(default=1, ge=1)
    """Exploring trajectories per training prompt."""
    rate: float = Field(default=1.0, gt=0.0, le=1.0)
    """Exploring trajectories intervene with a probability uniform in (0, rate)."""
    view: View = "committed"
    """View of the canvas that is scored."""
    hidden: int = Field(default=24, ge=1)
    knots: int = Field(default=9, ge=2)
    iterations: int = Field(default=400, ge=1)


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row to decode."""

    condition: Condition
    prompt: Prompt
    rendered: Rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What N decoded rows were like at each of at most S steps; zeros behind a row's last step."""

    pooled_SND: npt.NDArray[np.float32]
    risk_SN: F64
    """Risk when the guardrail decides."""
    after_SN: F64
    """Risk after its decision."""
    fraction_SN: F64
    due_SN: Bool
    """Where the guardrail looks; every step without one."""
    fired_SN: Bool
    strength_SN: F64
    num_steps_N: Ints
    surprise_N: F64
    """Mean −log p of the reply's tokens when they were committed, in nats."""
    harm_N: F64
    """Verdict of the harm judge: 1 or 0, NaN where undecided."""
    utility_N: F64
    """Verdict of the utility judge, NaN where there is none."""

    def take(self, rows: Ints | Bool) -> Traces:
        """Some of the rows."""
        return Traces(**{f.name: _rows(getattr(self, f.name), f.name, rows) for f in fields(self)})


def _rows(values: npt.NDArray[Any], name: str, rows: Ints | Bool) -> npt.NDArray[Any]:
    return np.asarray(values[:, rows] if "_S" in name else values[rows])


def _concatenated(parts: Sequence[Traces]) -> Traces:
    """Rows of several parts, padded to the most steps."""
    steps = max(len(part.risk_SN) for part in parts)

    def padded(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        if "_S" not in name:
            return values
        return np.pad(values, [(0, steps - len(values))] + [(0, 0)] * (values.ndim - 1))

    return Traces(
        **{
            f.name: np.concatenate(
                [padded(getattr(part, f.name), f.name) for part in parts], axis=1 if "_S" in f.name else 0
            )
            for f in fields(Traces)
        }
    )


class TraceLogger(Hook):
    """Logs what a policy is trained on; comes before the guardrail in the list of hooks."""

    def __init__(self, config: RenoiseConfig, setting: Setting, guardrail: StrengthGuardrail | None) -> None:
        self._config, self._setting, self._guardrail = config, setting, guardrail
        self._turns: dict[str, list[Tensor]] = {}

    def on_init(self, canvas: Canvas) -> None:
        """Start with nothing committed."""
        self._surprise_BL = torch.full(canvas.tokens_BL.shape, torch.nan, device=canvas.tokens_BL.device)

    def on_logits(self, context: StepContext) -> None:
        """Remember the model's own logits, before bans."""
        self._logits_NV = context.logits_NV

    def on_canvas(self, context: StepContext) -> None:
        """Keep what a guardrail decides on, and how surprising the commits are."""
        at = (context.row_N, context.position_N)
        logit_N = self._logits_NV.gather(-1, context.token_BL[at][:, None])[:, 0].float()
        surprise_BL = torch.zeros_like(self._surprise_BL)
        surprise_BL[at] = context.statistics.logsumexp_N - logit_N
        self._surprise_BL = torch.where(context.commit_BL, surprise_BL, self._surprise_BL)
        canvas = context.canvas
        size_B = canvas.response_BL.sum(dim=1).clamp_min(1)
        zeros_B = torch.zeros(context.running_B.shape, dtype=torch.float64, device=context.running_B.device)
        due_B, strength_B = context.running_B, zeros_B
        if self._guardrail is not None:
            log = step_log(context, self._setting, self._guardrail)
            due_B, strength_B = self._guardrail.trigger.due(log)[0], self._guardrail.decide(log)[1][0]
        self._keep(
            context,
            pooled_SND=context.pooled_BD,
            risk_SN=score_view(context, self._setting, self._config.signal).risk_N.double(),
            fraction_SN=1 - (canvas.masked_BL & canvas.response_BL).sum(dim=1).double() / size_B,
            due_SN=due_B,
            strength_SN=strength_B,
        )

    def on_step_end(self, context: StepContext) -> None:
        """Keep what the guardrail made of it."""
        fired_B = torch.zeros_like(context.running_B) if self._guardrail is None else self._guardrail.fired_B
        after_B = score_view(context, self._setting, self._config.signal).risk_N.double()
        self._keep(context, after_SN=after_B, fired_SN=fired_B)

    def _keep(self, context: StepContext, **planes: Tensor) -> None:
        for name, plane in planes.items():
            shape = (-1, *[1] * (plane.dim() - 1))
            self._turns.setdefault(name, []).append(plane * context.running_B.view(shape))

    def arrays(self, output: DenoiseOutput) -> dict[str, npt.NDArray[Any]]:
        """The log of a finished batch, without verdicts."""
        log: dict[str, npt.NDArray[Any]] = {name: torch.stack(v).cpu().numpy() for name, v in self._turns.items()}
        written_BL = ~self._surprise_BL.isnan() & output.canvas.response_BL
        total_B = torch.where(written_BL, self._surprise_BL, 0.0).double().sum(dim=1)
        log["surprise_N"] = (total_B / written_BL.sum(dim=1).clamp_min(1)).cpu().numpy()
        log["num_steps_N"] = output.num_steps_B.cpu().numpy()
        return log


def deciding_judges(plan: Plan) -> tuple[str, str | None]:
    """Keys of the run's first judges of harm and of utility, the latter if there is one.

    Raises:
        ConfigError: There is no judge of harm.
    """
    decided = {judge.key: JUDGES.get(judge.name).decides for judge in plan.config.judges}
    harm = next((key for key, what in decided.items() if what == "harm"), None)
    if harm is None:
        raise ConfigError(
            "The run has no judge of harm, so nothing says which trajectories end badly. Its judges: "
            f"{', '.join(decided) or 'none'}. Add one to `judges`, e.g. toy_oracle, and run it again."
        )
    return harm, next((key for key, what in decided.items() if what == "utility"), None)


class Sampler:
    """Decodes and judges rows of a plan's unguarded conditions.

    Args:
        plan: The resolved run.
        model: One of its diffusion models, loaded.
        config: What an intervention does.

    Raises:
        ConfigError: The plan has no harm judge.
    """

    def __init__(self, plan: Plan, model: DiffusionModel, config: RenoiseConfig) -> None:
        self.plan, self.model, self.config = plan, model, config
        self.judges: dict[str, Judge] = {j.key: JUDGES.build(j.name, j.params) for j in plan.config.judges}
        self.harm, self.utility = deciding_judges(plan)
        self._settings = {d.name: Setting(model=model, decoding=d) for d in plan.config.decodings}

    def cases(self, limit: int | None) -> list[Case]:
        """Rows of the model's unguarded conditions, the first `limit` prompts of every set."""
        rows = []
        for condition in self.plan.conditions:
            if condition.model != self.model.info.name or condition.guardrail != UNGUARDED:
                continue
            spec = self.plan.attack(condition)
            attack = ATTACKS.build(spec.name, spec.params)
            length = self.plan.decoding(condition).reply_length
            for prompt in self.plan.prompt_sets[condition.prompts].prompts[:limit]:
                rendered = attack.render(prompt, self.model, length)
                rows.append(Case(condition=condition, prompt=prompt, rendered=rendered))
        return rows

    def rollout(self, cases: Sequence[Case], build: Callable[[Setting], StrengthGuardrail] | None = None) -> Traces:
        """Decode rows, under a guardrail or none; the result is in the order of the rows."""
        parts: list[Traces] = []
        order: list[int] = []
        for decoding, setting in self._settings.items():
            indices = [index for index, case in enumerate(cases) if case.condition.decoding == decoding]
            for group in by_width([cases[index].rendered for index in indices]):
                for chunk in in_batches([indices[place] for place in group], self.plan.config.execution.batch_size):
                    parts.append(self._batch([cases[index] for index in chunk], setting, build))
                    order += chunk
        return _concatenated(parts).take(np.argsort(order))

    def _batch(
        self, cases: Sequence[Case], setting: Setting, build: Callable[[Setting], StrengthGuardrail] | None
    ) -> Traces:
        model, seed = self.model, self.plan.config.seed
        keys = [RowKey(case.prompt.id) for case in cases]
        canvas = batch_canvases([case.rendered for case in cases], keys, model.info, seed=seed, device=model.device)
        guardrail = None if build is None else build(setting)
        logger = TraceLogger(self.config, setting, guardrail)
        policy = SchedulePolicy(setting.decoding, model.info, model.device)
        hooks = [logger] if guardrail is None else [logger, guardrail]
        output = denoise(model, canvas, policy, hooks=hooks, needs=StatisticsNeeds(all_masks=True))
        return Traces(**logger.arrays(output), **self._verdicts(cases, canvas))

    def _verdicts(self, cases: Sequence[Case], canvas: Canvas) -> dict[str, npt.NDArray[Any]]:
        tokens_BL, response_BL = canvas.tokens_BL.cpu().numpy(), canvas.response_BL.cpu().numpy()
        texts = [
            decode_reply(self.model, tokens[inside].tolist())
            for tokens, inside in zip(tokens_BL, response_BL, strict=True)
        ]
        replies = [Reply(prompt=case.prompt, text=text) for case, text in zip(cases, texts, strict=True)]
        verdicts = judge_all(self.judges, replies, np.array([not text for text in texts]))
        undecided: list[bool | None] = [None] * len(cases)
        return {
            "harm_N": np.array(verdicts[self.harm], dtype=np.float64),
            "utility_N": np.array(verdicts.get(self.utility or "", undecided), dtype=np.float64),
        }


# ---- losses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Parts of J for N rows; see the module."""

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


# ---- training --------------------------------------------------------------------------------------------------------


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


def default_action(plan: Plan, config: PolicyTraining) -> ActionConfig:
    """What an intervention does unless told otherwise: the policy guardrail's defaults with the run's scorer."""
    return ActionConfig(scorer=plan.config.risk.scorer, view=config.view)


def split(cases: Sequence[Case], config: PolicyTraining) -> tuple[Ints, Bool]:
    """Prompt number of each row, and which rows are held out: whole prompts, the same share of every set.

    Raises:
        ConfigError: A set has too few prompts to train on some and hold out others.
    """
    names = [(case.condition.prompts, case.prompt.id) for case in cases]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    held: set[int] = set()
    generator = np.random.default_rng(config.seed)
    for prompts in dict.fromkeys(name for name, _ in names):
        mine = [index for (name, _), index in number.items() if name == prompts]
        count = max(1, round(config.holdout * len(mine)))
        if len(mine) - count < 2:
            raise ConfigError(
                f"prompt set `{prompts}` has {len(mine)} prompts: too few to hold out {count} and train on at least 2. "
                "Allowed: a run, and a limit, of 3 or more prompts in every set."
            )
        held |= set(generator.permutation(mine)[:count].tolist())
    prompt_N = np.array([number[name] for name in names])
    return prompt_N, np.isin(prompt_N, sorted(held))


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
    knot_K = fitted_knots(_concatenated([twin.take(~held_N), exploring]), config.knots)
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
    return np.tile(rows, config.explorations), _concatenated(traces), np.concatenate(rates)


def _guarded(
    sampler: Sampler, cases: Sequence[Case], twin: Traces, build: Callable[[Setting], StrengthGuardrail]
) -> Traces:
    """The rows under a guardrail; those that never show risk stay as they are, so they are not decoded again."""
    risky = np.flatnonzero((twin.risk_SN > 0).any(axis=0))
    if not len(risky):
        return twin
    order = np.arange(len(cases))
    order[risky] = len(cases) + np.arange(len(risky))
    return _concatenated([twin, sampler.rollout([cases[row] for row in risky.tolist()], build)]).take(order)


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
