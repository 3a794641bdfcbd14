"""Statistics of settings on the same prompts: intervals, differences, and whether a trial is beaten for certain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from dsprobe.experiment.outcomes import F64, Bool, RowOutcomes
from dsprobe.metrics.intervals import Interval, wilson_bounds
from dsprobe.metrics.resampling import DEFAULT_RESAMPLES, percentile_interval
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.units import UnitSums, aligned, prompt_weights, resampled_values

METHOD: Final = "paired prompt bootstrap"
"""Prompts are drawn within their sets, the same ones for every setting; percentile bounds."""

_EXCEPTIONS: Final = 10
"""Resamples that may speak against a decision at its level: fewer would make the level a matter of luck."""


def intervals(sums: UnitSums, distribution_RD: F64, objectives: ObjectiveSet, confidence: float) -> dict[str, Interval]:
    """Each objective with its bootstrap percentile interval.

    A rate of exactly 0 or 1 has no spread to resample, and its bootstrap interval would be a point; Wilson's interval
    with n the number of prompts stands in for it.

    Args:
        sums: A setting's sums per prompt.
        distribution_RD: Its objectives in the resamples.
        objectives: The objectives.
        confidence: Two-sided level.
    """
    found = {}
    for d, objective in enumerate(objectives.objectives):
        value, n = float(sums.values_D[d]), int(sums.counted_D[d])
        if objective.is_rate and value in (0.0, 1.0):
            low, high = wilson_bounds(value * n, n, confidence)
            found[objective.name] = Interval(value, float(low), float(high), n, "Wilson over prompts", confidence)
        else:
            found[objective.name] = percentile_interval(value, distribution_RD[:, d], n, METHOD, confidence)
    return found


def differences(
    sums: UnitSums,
    other: UnitSums,
    distribution_RD: F64,
    other_RD: F64,
    objectives: ObjectiveSet,
    confidence: float,
) -> dict[str, Interval]:
    """Each objective of one setting minus that of another, on the same resampled prompts.

    Args:
        sums: Sums per prompt of the first setting.
        other: The same of the second, over the same prompts.
        distribution_RD: Objectives of the first in the resamples.
        other_RD: Objectives of the second in the same resamples.
        objectives: The objectives.
        confidence: Two-sided level.
    """
    value_D, distribution_RD = sums.values_D - other.values_D, distribution_RD - other_RD
    return {
        name: percentile_interval(
            float(value_D[d]), distribution_RD[:, d], int(sums.counted_D[d]), f"{METHOD} of the difference", confidence
        )
        for d, name in enumerate(objectives.names)
    }


def dominated(
    challenger: RowOutcomes,
    rivals: Sequence[RowOutcomes],
    baseline: RowOutcomes,
    objectives: ObjectiveSet,
    *,
    confidence: float,
    seed: int = 0,
) -> bool:
    """Whether some rival is better than a trial on the trial's own prompts, beyond what the choice of prompts explains.

    A rival beats the challenger in a resample of the prompts if it is at least as good in every objective and better
    in one. Equal values tie exactly, so identical outcomes never beat each other. Two rules keep errors near
    1 − confidence for the whole comparison (measured on noise with 12 prompts a set and 20 rivals: 0.01 with two
    objectives, where both must agree, and 0.15 with a single one, for which percentile bootstraps are too narrow):

    * Multiplicity: any of K different rivals may end the trial, so each must win in a share of at least
      1 − (1 − confidence) / K of the resamples (Bonferroni, which is Holm's first step, under any dependence). Rivals
      with equal outcomes, or equal to the challenger's, are one test or none. Repeated looks on growing rungs are not
      corrected for.
    * Few prompts: a bootstrap is too sure of itself on a handful. As in a sign test, whose smallest p-value with m
      prompts that differ is 2⁻ᵐ, a rival must differ from the challenger on at least log₂(K / (1 − confidence))
      prompts.

    Args:
        challenger: Rows of the trial so far.
        rivals: Outcomes of settings that have at least these rows.
        baseline: Unguarded outcomes, at least of these rows.
        objectives: What is compared.
        confidence: In (0.5, 1).
        seed: Seed of the resampling.

    Returns:
        True when the trial can be stopped. Objectives without a row that counts decide for nobody.

    Raises:
        ValueError: A rival or the baseline lacks a row.

    Source: paired racing after Maron & Moore (1994), NeurIPS 6, with a bootstrap over prompts as the test.
    """
    sums = objectives.unit_sums(challenger, baseline)
    others = _different([objectives.unit_sums(aligned(rival, challenger), baseline) for rival in rivals], sums)
    if not others:
        return False
    level = (1 - confidence) / len(others)
    enough = [other for other in others if _prompts_that_differ(sums, other) >= math.log2(1 / level)]
    if not enough:
        return False
    resamples = max(DEFAULT_RESAMPLES, math.ceil(_EXCEPTIONS / level))
    values_PRD = resampled_values([sums, *enough], prompt_weights(sums.prompts_U, resamples, seed))
    return bool(np.any(beats(values_PRD[1:], values_PRD[0]).mean(axis=1) >= 1 - level))


def beats(first: F64, second: F64) -> Bool:
    """Whether points dominate others, objectives on the last axis: nowhere larger, somewhere smaller; NaN never."""
    no_larger = np.ones(np.broadcast_shapes(first.shape, second.shape)[:-1], np.bool_)
    smaller = np.zeros_like(no_larger)
    for d in range(first.shape[-1]):  # many times faster than reductions over so short an axis
        no_larger &= first[..., d] <= second[..., d]
        smaller |= first[..., d] < second[..., d]
    return no_larger & smaller


def _different(rivals: Sequence[UnitSums], challenger: UnitSums) -> list[UnitSums]:
    """Rivals that are equal neither to the challenger nor to one another."""
    seen: Mapping[bytes, UnitSums] = {_content(sums): sums for sums in reversed(rivals)}
    own = _content(challenger)
    return [seen[content] for content in sorted(seen) if content != own]


def _content(sums: UnitSums) -> bytes:
    # Adding 0 turns −0 into 0, which is equal but has other bytes.
    return (sums.numerator_DU + 0.0).tobytes() + (sums.denominator_DU + 0.0).tobytes()


def _prompts_that_differ(sums: UnitSums, other: UnitSums) -> int:
    differs = (sums.numerator_DU != other.numerator_DU) | (sums.denominator_DU != other.denominator_DU)
    return int(np.count_nonzero(differs.any(axis=0)))
