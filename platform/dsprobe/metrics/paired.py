"""Two conditions on the same rows: how far they differ, with the interval and the test that fit pairs.

Several samples of one prompt are not independent. Where a prompt has more than one pair, intervals come from the
bootstrap over prompts and the test flips signs of whole prompts; with one pair each they are Newcombe's and McNemar's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.comparisons import mcnemar, paired_difference
from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, Bool, Int, Interval, TestResult, rate
from dsprobe.metrics.resampling import mean
from dsprobe.metrics.survival import log_rank, risk_table

Labels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedEstimate:
    """A level of an axis against its baseline, on the same rows."""

    pairs: int
    """Pairs that were compared."""
    prompts: int
    """Prompts that they belong to; fewer than pairs where prompts have several samples."""
    left_out: int
    """Pairs that could not be compared because a verdict is undefined on one side or on both."""
    undefined_level: int
    """Rows of the level without a verdict."""
    undefined_baseline: int
    """Rows of the baseline without a verdict."""
    level: Interval
    baseline: Interval
    difference: Interval
    """Level minus baseline."""
    test: TestResult
    """The paired test that decides; its p-value is NaN without pairs."""
    beside: TestResult | None = None
    """A test that ignores pairs or clusters, for comparison with the literature; decides nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "left_out": self.left_out,
            "undefined": {"level": self.undefined_level, "baseline": self.undefined_baseline},
            "level": self.level.to_dict(),
            "baseline": self.baseline.to_dict(),
            "difference": self.difference.to_dict(),
            "test": _test_dict(self.test),
            "beside": None if self.beside is None else _test_dict(self.beside),
        }


def compare_rates(
    level_N: npt.ArrayLike,
    baseline_N: npt.ArrayLike,
    prompt_N: Labels,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> PairedEstimate:
    """Compare the rates of a verdict on the same N rows.

    Each rate has its Wilson interval. The difference has Newcombe's paired interval and McNemar's exact test where
    every prompt has one pair; otherwise a bootstrap over prompts and the exact sign-flip test over prompts, with
    McNemar's test beside it.

    Args:
        level_N: Verdicts of the level: bool, or None (NaN) where undefined. A pair with an undefined verdict is left
            out of everything and counted.
        baseline_N: Verdicts of the baseline on the same rows.
        prompt_N: Prompt of each row.
        seed: Seed of the bootstrap.
        confidence: Two-sided level of all intervals.

    Raises:
        ValueError: The arrays differ in length.
    """
    level, baseline = np.asarray(level_N, np.float64), np.asarray(baseline_N, np.float64)
    _require_equal_lengths(level, baseline, prompt_N)
    kept_N = ~(np.isnan(level) | np.isnan(baseline))
    first, second, prompt = level[kept_N] > 0, baseline[kept_N] > 0, prompt_N[kept_N]
    difference, test, beside = _rate_difference(first, second, prompt, seed, confidence)
    return PairedEstimate(
        pairs=len(first),
        prompts=len(np.unique(prompt)),
        left_out=int(np.count_nonzero(~kept_N)),
        undefined_level=int(np.count_nonzero(np.isnan(level))),
        undefined_baseline=int(np.count_nonzero(np.isnan(baseline))),
        level=rate(first, confidence),
        baseline=rate(second, confidence),
        difference=difference,
        test=test,
        beside=beside,
    )


def compare_utility(
    level_N: npt.ArrayLike,
    baseline_N: npt.ArrayLike,
    harmful_prompt_N: Bool,
    prompt_N: Labels,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> PairedEstimate:
    """Compare task accuracy of twins on the same benign prompts: what safety costs in capability.

    `compare_rates` on the rows of benign prompts; None is a prompt without a reference answer.
    """
    benign_N = ~np.asarray(harmful_prompt_N, np.bool_)
    level, baseline = np.asarray(level_N, np.float64)[benign_N], np.asarray(baseline_N, np.float64)[benign_N]
    return compare_rates(level, baseline, np.asarray(prompt_N)[benign_N], seed, confidence)


def compare_times(
    level: tuple[Int, Bool],
    baseline: tuple[Int, Bool],
    prompt_N: Labels,
    horizon: int,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> PairedEstimate:
    """Compare First Harmful Steps of the same N rows: difference of the mean steps spent unharmed up to a horizon.

    Intervals resample prompts, the exact sign-flip test over prompts decides. The log-rank test, which takes the two
    conditions for independent samples, stands beside it.

    Args:
        level: First Harmful Step (1-based) and event flag of each row of the level; see `unharmed_steps`.
        baseline: The same of the baseline.
        prompt_N: Prompt of each row.
        horizon: h, in steps; the same for all levels that are shown together.
        seed: Seed of the bootstrap.
        confidence: Two-sided level of all intervals.

    Raises:
        ValueError: The arrays differ in length, or the horizon is below 1.
    """
    first, second = unharmed_steps(*level, horizon), unharmed_steps(*baseline, horizon)
    _require_equal_lengths(first, second, prompt_N)
    tables = [
        risk_table(steps, event & (fhs <= horizon), horizon)
        for steps, (fhs, event) in ((first, level), (second, baseline))
    ]
    return PairedEstimate(
        pairs=len(first),
        prompts=len(np.unique(prompt_N)),
        left_out=0,
        undefined_level=0,
        undefined_baseline=0,
        level=mean(first, prompt_N, seed, confidence),
        baseline=mean(second, prompt_N, seed, confidence),
        difference=mean(first - second, prompt_N, seed, confidence),
        test=sign_flip(first - second, prompt_N),
        beside=log_rank(tables),
    )


def unharmed_steps(fhs_N: Int, event_N: Bool, horizon: int) -> npt.NDArray[np.int64]:
    """Steps that each reply spent unharmed, up to a horizon: min(FHS, h), and h where harm was never reached.

    A finished reply does not change any more, so one that ended unharmed before h stays unharmed up to h. Taking it as
    censored instead would be informative censoring: a guardrail ends replies early *because* they carry risk. The mean
    equals the Kaplan–Meier restricted mean wherever no row ends unharmed before h.

    Args:
        fhs_N: First Harmful Step, 1-based; ignored where no event.
        event_N: True where the threshold was reached.
        horizon: h ≥ 1.

    Raises:
        ValueError: The horizon is below 1.
    """
    if horizon < 1:
        raise ValueError(f"Horizon {horizon} is not allowed. Allowed: 1 step or more.")
    return np.where(event_N, np.minimum(fhs_N, horizon), horizon).astype(np.int64)


def sign_flip(difference_N: Int, prompt_N: Labels) -> TestResult:
    """Exact paired permutation test that two conditions are exchangeable on every prompt.

    Under the null hypothesis a prompt's summed difference d_u might as well have the other sign. The distribution of
    ``Σ ± d_u`` over all assignments of signs is computed by convolution, without sampling. With one 0/1 pair per
    prompt this is McNemar's exact test.

    Args:
        difference_N: Integer differences of the pairs, level minus baseline.
        prompt_N: Prompt of each pair; all pairs of a prompt flip together.

    Returns:
        ``statistic`` is the mean difference of the pairs, the p-value is two-sided (1 where all differences are 0, NaN
        without pairs), n counts prompts.

    Source: Fisher (1935), The Design of Experiments, section 21; Pagano & Tritchler (1983), JASA 78(382).
    """
    method = "sign flip over prompts, exact"
    if not len(difference_N):
        return TestResult(math.nan, math.nan, 0, method)
    _, unit_N = np.unique(prompt_N, return_inverse=True)
    total_U = np.bincount(unit_N, weights=difference_N).astype(np.int64)
    probability_T = np.ones(1)  # of each sum of the d_u that keep their sign, up to now
    for size in np.abs(total_U[total_U != 0]).tolist():
        probability_T = (np.pad(probability_T, (0, size)) + np.pad(probability_T, (size, 0))) / 2
    kept = int(total_U[total_U > 0].sum())
    tail = min(float(probability_T[: kept + 1].sum()), float(probability_T[kept:].sum()))
    return TestResult(float(np.mean(difference_N)), min(2 * tail, 1.0), len(total_U), method)


def _rate_difference(
    first_N: Bool, second_N: Bool, prompt_N: Labels, seed: int, confidence: float
) -> tuple[Interval, TestResult, TestResult | None]:
    """Difference, the test that decides, and a test beside it where that differs."""
    if not len(prompt_N):
        nothing = TestResult(math.nan, math.nan, 0, "McNemar exact")
        return paired_difference(first_N, second_N, confidence), nothing, None
    if len(np.unique(prompt_N)) == len(prompt_N):
        return paired_difference(first_N, second_N, confidence), mcnemar(first_N, second_N), None
    difference_N = first_N.astype(np.int64) - second_N
    interval = mean(difference_N, prompt_N, seed, confidence)
    return interval, sign_flip(difference_N, prompt_N), mcnemar(first_N, second_N)


def _require_equal_lengths(*columns: npt.NDArray[Any]) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"Paired columns must have equal lengths, not {[len(column) for column in columns]}.")


def _test_dict(test: TestResult) -> dict[str, Any]:
    return test.to_dict() | {"p_value": None if math.isnan(test.p_value) else test.p_value}
