"""The front of a sweep: which settings nothing else beats, how sure that is, and how the search got there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsprobe.config import GuardrailConfig
from dsprobe.errors import unknown_name
from dsprobe.experiment.outcomes import F64, RowOutcomes
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.pareto import Direction, attainment, contributions, hypervolume, hypervolumes, knee, non_dominated
from dsprobe.metrics.resampling import percentile_interval
from dsprobe.sweeps.comparison import METHOD, beats, differences, intervals
from dsprobe.sweeps.config import FrontConfig
from dsprobe.sweeps.front_records import AttainmentStep, Estimates, Front, FrontPoint, TrialMeasures
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.records import TrialRecord
from dsprobe.sweeps.units import UnitSums, prompt_weights, resampled_values

__all__ = [
    "AttainmentStep",
    "Estimates",
    "Front",
    "FrontPoint",
    "TrialMeasures",
    "chosen",
    "compute_front",
    "passes_used",
    "with_validation",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """Feasible complete trials, one per digest, with the unguarded model in front where values are listed."""

    trials: list[TrialRecord]
    values_PD: F64
    """Unguarded first."""
    values_PRD: F64
    """The same in R resamples."""

    def members(self) -> list[int]:
        """Places of the front in `trials`, the lowest number of those with equal objectives, by the objectives."""
        rows: dict[tuple[float, ...], int] = {}
        on_front_P = non_dominated(self.values_PD, ["minimize"] * self.values_PD.shape[1])
        for place in (np.flatnonzero(on_front_P[1:])).tolist():
            rows.setdefault(tuple(self.values_PD[place + 1].tolist()), place)
        rows.pop(tuple(self.values_PD[0].tolist()), None)  # no better than leaving the model alone
        return [rows[values] for values in sorted(rows)]

    def equivalent(self, member: int) -> tuple[int, ...]:
        """Numbers of other trials with a member's objectives."""
        same_P = (self.values_PD[1:] == self.values_PD[member + 1]).all(axis=1)
        return tuple(self.trials[place].number for place in np.flatnonzero(same_P).tolist() if place != member)

    def attained(self, member: int) -> float:
        """Share of the resamples in which nothing beats a member."""
        return float(1 - beats(self.values_PRD, self.values_PRD[member + 1]).any(axis=0).mean())


class _Resampler:
    """Objectives of settings in resamples of their prompts; settings on the same prompts share the resamples."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed
        self._weights: dict[tuple[str, ...], F64] = {}

    def __call__(self, sums: Sequence[UnitSums]) -> F64:
        labels = tuple(sums[0].prompts_U.tolist())
        if labels not in self._weights:
            self._weights[labels] = prompt_weights(sums[0].prompts_U, self.resamples, self.seed)
        return resampled_values(sums, self._weights[labels])


def compute_front(
    trials: Sequence[TrialRecord],
    baseline: RowOutcomes,
    objectives: ObjectiveSet,
    config: FrontConfig,
    *,
    seed: int = 0,
) -> Front:
    """The non-dominated set of a sweep's complete, feasible trials, with intervals.

    The unguarded model is a candidate that costs nothing: trials that it dominates, or that equal it in every
    objective, are not on the front. It is reported as `baseline`, is no point, and adds no hypervolume. Trials with
    equal digests are one, and so are trials with equal objectives; the lowest number stands for them.

    Intervals are over prompts, paired, and hold for a setting that was chosen before looking. The front's own points
    were chosen by looking, so theirs are optimistic; `with_validation` adds figures that are not.

    Args:
        trials: All trials, in any order.
        baseline: Unguarded outcomes of all rows.
        objectives: What is minimised, and what must be kept.
        config: Confidence and number of resamples.
        seed: Seed of the resampling.

    Returns:
        The front; without points where no trial qualifies.

    Raises:
        ConfigError: An objective or a constraint is undefined on the unguarded run.
        ValueError: A complete trial lacks rows of the baseline.
    """
    objectives.check(baseline)
    trials = sorted(trials, key=lambda trial: trial.number)
    resampler = _Resampler(config.resamples, seed)
    unguarded = objectives.unit_sums(baseline, baseline)
    sums = {t.number: objectives.unit_sums(t.outcomes, baseline) for t in trials if t.outcomes is not None}
    measures = {
        t.number: _measured(t.outcomes, sums[t.number], baseline, objectives, config, resampler)
        for t in trials
        if t.outcomes is not None
    }
    kept = _eligible(trials, sums, measures, unguarded)
    all_sums = [unguarded, *(sums[trial.number] for trial in kept)]
    candidates = _Candidates(
        trials=kept, values_PD=np.stack([s.values_D for s in all_sums]), values_PRD=resampler(all_sums)
    )
    return Front(
        objectives=objectives.names,
        reference=dict(zip(objectives.names, objectives.reference.tolist(), strict=True)),
        confidence=config.confidence,
        hypervolume=_volume(candidates, objectives, config, len(unguarded.prompts_U)),
        points=_points(candidates, all_sums, measures, objectives, config),
        baseline=intervals(unguarded, candidates.values_PRD[0], objectives, config.confidence),
        attainment=_attainment(trials, candidates, baseline, objectives),
        measures=measures,
    )


def with_validation(
    front: Front,
    outcomes: Mapping[str, RowOutcomes],
    baseline: RowOutcomes,
    objectives: ObjectiveSet,
    config: FrontConfig,
    *,
    seed: int = 0,
) -> Front:
    """Put the objectives on prompts that the search never saw beside the search's own.

    Args:
        front: From `compute_front`.
        outcomes: Label → rows of the validation prompts under the point's setting; points left out stay without.
        baseline: Unguarded outcomes of the same rows.
        objectives: The sweep's objectives.
        config: Confidence and number of resamples.
        seed: Seed of the resampling.

    Raises:
        ConfigError: A label is not on the front.
        ValueError: Rows differ from the baseline's.
    """
    labels = [point.label for point in front.points]
    for label in outcomes:
        if label not in labels:
            raise unknown_name("label of a front's point", label, labels)
    unguarded = objectives.unit_sums(baseline, baseline)
    sums = {label: objectives.unit_sums(rows, baseline) for label, rows in outcomes.items()}
    for label, found in sums.items():
        _same_prompts(found, unguarded, f"Validation of `{label}`")
    distribution_PRD = _Resampler(config.resamples, seed)([unguarded, *sums.values()])
    estimates = {
        label: intervals(found, distribution_PRD[place], objectives, config.confidence)
        for place, (label, found) in enumerate(sums.items(), start=1)
    }
    return replace(
        front,
        points=tuple(replace(p, validation=estimates.get(p.label, p.validation)) for p in front.points),
        baseline_validation=intervals(unguarded, distribution_PRD[0], objectives, config.confidence),
    )


def chosen(front: Front, n: int) -> tuple[FrontPoint, ...]:
    """Points that stand for the front: the knee, then its end in each objective, then what adds most hypervolume.

    Args:
        front: From `compute_front`.
        n: How many, at most.
    """
    knee_first = [point for point in front.points if point.label == front.knee]
    ends = [
        min(front.points, key=lambda p: (p.objectives[name].value, -p.contribution))
        for name in front.objectives
        if front.points
    ]
    rest = sorted(front.points, key=lambda p: -p.contribution)
    found = {point.label: point for point in (*knee_first, *ends, *rest)}
    return tuple(found.values())[:n]


def _measured(
    outcomes: RowOutcomes,
    sums: UnitSums,
    baseline: RowOutcomes,
    objectives: ObjectiveSet,
    config: FrontConfig,
    resampler: _Resampler,
) -> TrialMeasures:
    constraints = objectives.constraint_values(outcomes, baseline)
    return TrialMeasures(
        objectives=intervals(sums, resampler([sums])[0], objectives, config.confidence),
        constraints=constraints,
        feasible=objectives.feasible(constraints),
        empty_shares=objectives.empty_shares(outcomes),
    )


def _eligible(
    trials: Sequence[TrialRecord],
    sums: Mapping[int, UnitSums],
    measures: Mapping[int, TrialMeasures],
    unguarded: UnitSums,
) -> list[TrialRecord]:
    """Complete, feasible trials with defined objectives, one per digest."""
    found: dict[str, TrialRecord] = {}
    for trial in trials:
        if trial.state != "complete" or trial.number not in sums:
            continue
        _same_prompts(sums[trial.number], unguarded, f"Trial {trial.number}")
        if measures[trial.number].feasible and not np.isnan(sums[trial.number].values_D).any():
            found.setdefault(trial.digest, trial)
    return list(found.values())


def _same_prompts(sums: UnitSums, unguarded: UnitSums, where: str) -> None:
    if not sums.covers(unguarded):
        raise ValueError(
            f"{where} has rows of {len(sums.prompts_U)} prompts, the baseline of {len(unguarded.prompts_U)}."
        )


def _volume(candidates: _Candidates, objectives: ObjectiveSet, config: FrontConfig, prompts: int) -> Interval:
    members = [member + 1 for member in candidates.members()]
    directions = _minimize(objectives)
    value = hypervolume(candidates.values_PD[members], objectives.reference, directions)
    distribution_R = hypervolumes(candidates.values_PRD[members].transpose(1, 0, 2), objectives.reference, directions)
    return percentile_interval(value, distribution_R, prompts, METHOD, config.confidence)


def _points(
    candidates: _Candidates,
    sums: Sequence[UnitSums],
    measures: Mapping[int, TrialMeasures],
    objectives: ObjectiveSet,
    config: FrontConfig,
) -> tuple[FrontPoint, ...]:
    members = candidates.members()
    values_PD = candidates.values_PD[[member + 1 for member in members]]
    alone_P = contributions(values_PD, objectives.reference, _minimize(objectives))
    points = []
    for place, (member, label) in enumerate(zip(members, _labels(values_PD, candidates.values_PD[0]), strict=True)):
        trial = candidates.trials[member]
        if trial.guardrail is None:
            raise ValueError(f"Trial {trial.number} is complete and has no guardrail.")
        points.append(
            FrontPoint(
                label=label,
                trial=trial.number,
                equivalent=candidates.equivalent(member),
                parameters=trial.parameters,
                guardrail=GuardrailConfig(name=label, stack=trial.guardrail.stack),
                objectives=measures[trial.number].objectives,
                change=differences(
                    sums[member + 1], sums[0], candidates.values_PRD[member + 1], candidates.values_PRD[0],
                    objectives, config.confidence,
                ),
                empty_shares=measures[trial.number].empty_shares,
                attained=candidates.attained(member),
                contribution=float(alone_P[place]),
            )
        )  # fmt: skip
    return tuple(points)


def _labels(values_PD: F64, unguarded_D: F64) -> list[str]:
    """``knee`` for the knee, numbers for the rest. The unguarded model is an end of the scales unless it is beaten."""
    ends = values_PD if beats(values_PD, unguarded_D).any() else np.vstack([values_PD, unguarded_D])
    best = knee(values_PD, ["minimize"] * values_PD.shape[1], ends)
    others = iter(range(1, len(values_PD) + 1))
    return ["knee" if place == best else f"p{next(others):02d}" for place in range(len(values_PD))]


def _attainment(
    trials: Sequence[TrialRecord], candidates: _Candidates, baseline: RowOutcomes, objectives: ObjectiveSet
) -> tuple[AttainmentStep, ...]:
    """Hypervolume against the passes of all trials so far; a failed trial's passes are not known and count as none."""
    values = dict(zip((t.number for t in candidates.trials), candidates.values_PD[1:], strict=True))
    useful = {n: v for n, v in values.items() if not (candidates.values_PD[0] <= v).all()}
    points_PD = np.array([useful.get(t.number, np.full(len(objectives.names), math.nan)) for t in trials])
    volumes = [0.0, *attainment(points_PD, objectives.reference, _minimize(objectives)).tolist()]
    passes = [baseline.passes.sum(), *(0 if t.outcomes is None else t.outcomes.passes.sum() for t in trials)]
    used = [baseline.passes_used.sum(), *(passes_used(trial) for trial in trials)]
    return tuple(
        AttainmentStep(trials=n, hypervolume=volume, passes_used=int(u), passes_from_scratch=int(s))
        for n, (volume, u, s) in enumerate(zip(volumes, np.cumsum(used), np.cumsum(passes), strict=True))
    )


def passes_used(trial: TrialRecord) -> int:
    """Forward passes that a trial added to a sweep: none where its outcomes are those of an earlier one."""
    return 0 if trial.outcomes is None or trial.cached else int(trial.outcomes.passes_used.sum())


def _minimize(objectives: ObjectiveSet) -> list[Direction]:
    return ["minimize"] * len(objectives.names)
