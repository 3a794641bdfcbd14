"""Which parameters decide whether a trial is among the best in an objective."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from dsprobe.sweeps.front_records import TrialMeasures
from dsprobe.sweeps.records import TrialRecord

MIN_TRIALS: Final = 8
"""Different complete trials below which no importance is given."""

TOP_TRIALS: Final = 5
"""Trials that should be among the best ones, after Optuna's advice; never more than half of all."""


def importances(
    trials: Sequence[TrialRecord],
    names: Sequence[str],
    measures: Mapping[int, TrialMeasures],
    *,
    distributions: Mapping[str, BaseDistribution] | None = None,
) -> dict[str, dict[str, float]]:
    """Share of each parameter in telling an objective's best trials from all trials.

    PED-ANOVA on the complete trials, repeats of a setting counted once: the divergence between a parameter's
    distribution among the best trials (10 %, but at least 5 trials, at most half) and among all. A conditional
    parameter is compared over the trials that have it, weighted by how often the best trials have it at all
    (conditional PED-ANOVA); a parameter that only two or three trials have is mostly noise. Nothing is drawn at random.

    Args:
        trials: All trials.
        names: Objectives.
        measures: Trial number → measures, as in `Front.measures`.
        distributions: Parameter → domain; the range of the observed values where it is not given.

    Returns:
        Objective → parameter → share, largest first, summing to 1. Empty for an objective whose best trials are like
        the rest, and for all objectives below `MIN_TRIALS` trials; `importances_note` says so.

    Source: Watanabe, Bansal & Hutter (2023), arXiv 2304.10255; conditional: arXiv 2601.20800; as in Optuna 5.
    """
    different = _different(trials, measures)
    if len(different) < MIN_TRIALS:
        return {name: {} for name in names}
    domains = _observed(different) | dict(distributions or {})
    return {name: _shares(different, domains, [measures[t.number].objectives[name].value for t in different])
            for name in names}  # fmt: skip


def importances_note(
    trials: Sequence[TrialRecord],
    measures: Mapping[int, TrialMeasures],
    found: Mapping[str, Mapping[str, float]],
) -> str:
    """Why importances are missing; empty where none are.

    Args:
        trials: All trials.
        measures: As in `importances`.
        found: What `importances` returned.
    """
    different = len(_different(trials, measures))
    if different < MIN_TRIALS:
        return f"{different} different complete trials; importances need at least {MIN_TRIALS}."
    missing = [name for name, shares in found.items() if not shares]
    return f"No parameter tells the best trials from the rest in: {', '.join(missing)}." if missing else ""


def _different(trials: Sequence[TrialRecord], measures: Mapping[int, TrialMeasures]) -> list[TrialRecord]:
    found: dict[str, TrialRecord] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == "complete" and trial.number in measures:
            found.setdefault(trial.digest, trial)
    return list(found.values())


def _observed(trials: Sequence[TrialRecord]) -> dict[str, BaseDistribution]:
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.parameters.items():
            values.setdefault(name, []).append(value)
    return {name: _range(found) for name, found in sorted(values.items())}


def _range(values: list[Any]) -> BaseDistribution:
    numeric = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numeric) < len(values):
        return CategoricalDistribution(sorted(set(values), key=repr))
    low, high = min(numeric), max(numeric)
    if all(isinstance(value, int) for value in numeric):
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high)


def _shares(
    trials: Sequence[TrialRecord], domains: Mapping[str, BaseDistribution], values: Sequence[float]
) -> dict[str, float]:
    defined = [(trial, value) for trial, value in zip(trials, values, strict=True) if math.isfinite(value)]
    if len(defined) < MIN_TRIALS:
        return {}
    best = min(0.5, max(0.1, TOP_TRIALS / len(defined)))
    with _quietly():
        study = optuna.create_study(direction="minimize")
        for trial, value in defined:
            own = {name: domains[name] for name in trial.parameters}
            study.add_trial(
                optuna.trial.create_trial(params=dict(trial.parameters), distributions=own, value=float(value))
            )
        raw = PedAnovaImportanceEvaluator(target_quantile=best).evaluate(study)
    total = sum(raw.values())
    # Optuna's own normalisation makes equal shares of nothing.
    ranked = sorted(raw.items(), key=lambda item: (-item[1], item[0]))
    return {name: share / total for name, share in ranked} if total > 0 else {}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's line about a new study, and its warnings on rare choices and ties, which are expected here."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some regimes for parameter|Target and region quantiles")
            yield
    finally:
        optuna.logging.set_verbosity(level)
