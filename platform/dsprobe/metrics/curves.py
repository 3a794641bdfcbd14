"""Dose and response: how a success rate depends on a setting, whether it rises, and whether it rises throughout.

Rows that belong to one prompt are dependent. Where a prompt has several rows, slopes and trend tests use variances
over prompts, and the bootstrap draws prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

from dsprobe.metrics.intervals import (
    DEFAULT_CONFIDENCE,
    F64,
    Bool,
    Interval,
    RatePoint,
    TestResult,
    rates_by,
    undefined,
)
from dsprobe.metrics.logistic import logistic_slopes
from dsprobe.metrics.outputs import Labels, as_float
from dsprobe.metrics.resampling import clipped, has_repeats, percentile_interval, resampled_sums

_DROP: Final = "largest drop, bootstrap"
_MONOTONE: Final = "largest drop against the isotonic fit, bootstrap"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseResponse:
    """A success rate against one or more explanatory variables."""

    variables: tuple[str, ...]
    """Names of the explanatory variables, as in `RatePoint.at`."""
    curve: tuple[RatePoint, ...]
    """One point per observed setting, ascending; Wilson intervals."""
    slopes: tuple[Interval, ...]
    """Change of log-odds per unit of each variable, adjusted for the others; see `logistic_slopes`."""
    trend: TestResult | None
    """Test that the rate does not depend on the dose; None with several variables."""
    beside: TestResult | None
    """Cochran–Armitage, which ignores prompts, where `trend` does not; decides nothing."""
    largest_drop: Interval | None
    """See `largest_drop`; None with several variables."""
    monotone: TestResult | None
    """Test that the rate never falls as the dose rises; None with several variables."""

    @property
    def slope(self) -> Interval:
        """Slope of the first variable."""
        return self.slopes[0]

    def rises(self, alpha: float = 0.05) -> bool:
        """Whether one variable raises the rate: a positive trend, and no significant fall on the way."""
        if self.trend is None or self.monotone is None:
            return False
        return self.trend.statistic > 0 and self.trend.p_value < alpha <= self.monotone.p_value

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        tests = {"trend": self.trend, "beside": self.beside, "monotone": self.monotone}
        return {
            "variables": list(self.variables),
            "curve": [point.to_dict() for point in self.curve],
            "slopes": [slope.to_dict() for slope in self.slopes],
            "largest_drop": None if self.largest_drop is None else self.largest_drop.to_dict(),
            "rises": self.rises(),
        } | {name: None if test is None else test.to_dict() for name, test in tests.items()}


def dose_response(
    success_N: npt.ArrayLike,
    doses: Mapping[str, npt.ArrayLike],
    prompt_N: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> DoseResponse:
    """Curve, slopes, and for one variable the tests of a trend and of a monotone rise.

    Args:
        success_N: Verdicts; rows left undecided (None) are left out.
        doses: Name of each explanatory variable → its value in every row.
        prompt_N: Prompt of each row.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.

    Raises:
        ValueError: No variable is given, or columns differ in length.
    """
    value_N = as_float(success_N)
    columns = [np.asarray(dose, np.float64) for dose in doses.values()]
    lengths = {len(column) for column in (value_N, *columns, value_N if prompt_N is None else prompt_N)}
    if not columns or len(lengths) > 1:
        raise ValueError(f"A dose–response curve needs one or more equally long variables, not {sorted(lengths)}.")
    kept_N = ~np.isnan(value_N)
    success, x_NK = np.asarray(value_N[kept_N] > 0, np.bool_), np.stack(columns, axis=-1)[kept_N]
    prompt = None if prompt_N is None else np.asarray(prompt_N)[kept_N]
    single = x_NK.shape[1] == 1
    trend, beside = _trend(success, x_NK[:, 0], prompt) if single else (None, None)
    drop, monotone = largest_drop(success, x_NK[:, 0], prompt, seed, confidence) if single else (None, None)
    return DoseResponse(
        variables=tuple(doses),
        curve=rates_by(success, *x_NK.T, confidence=confidence),
        slopes=logistic_slopes(success, x_NK, prompt, confidence),
        trend=trend,
        beside=beside,
        largest_drop=drop,
        monotone=monotone,
    )


def cue_amplification(
    success_N: npt.ArrayLike,
    cues_N: npt.ArrayLike,
    spacing_N: npt.ArrayLike | None = None,
    prompt_N: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> DoseResponse:
    """ASR against the number of distributed cues and, where given, their spacing.

    Args:
        success_N: Verdicts (None where undecided, left out).
        cues_N: Number of cues of row n, ≥ 0.
        spacing_N: Positions from one cue's start to the next one's.
        prompt_N: Prompt of each row.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.

    Returns:
        `slope` is the change of log-odds per cue, adjusted for the spacing where given.
    """
    doses = {"cues": cues_N} if spacing_N is None else {"cues": cues_N, "spacing": spacing_N}
    return dose_response(success_N, doses, prompt_N, seed, confidence)


def cochran_armitage(success_N: Bool, dose_N: npt.ArrayLike) -> TestResult:
    """Cochran–Armitage test that a rate has no linear trend in the dose; independent rows.

    ``Z = Σ (y_i − p̄)(x_i − x̄) / √(p̄ (1 − p̄) Σ (x_i − x̄)²)``, two-sided normal p-value; Z > 0 for a rise.

    Returns:
        Z and p; 0 and 1 where all outcomes are equal, NaN with fewer than two doses.

    Source: Cochran (1954), Biometrics 10(4); Armitage (1955), Biometrics 11(3).
    """
    y, x = np.asarray(success_N, np.float64), np.asarray(dose_N, np.float64)
    if len(np.unique(x)) < 2:
        return TestResult(math.nan, math.nan, len(y), "Cochran-Armitage")
    variance = float(y.mean() * (1 - y.mean()) * np.sum((x - x.mean()) ** 2))
    score = float(np.sum((y - y.mean()) * (x - x.mean())))
    return _normal_test(score, variance, len(y), "Cochran-Armitage")


def clustered_trend(success_N: Bool, dose_N: npt.ArrayLike, prompt_N: Labels) -> TestResult:
    """Cochran–Armitage score with its variance over prompts, for prompts that have several rows.

    ``Z = Σ_u U_u / √(Σ_u U_u²)`` with U_u the sum of ``(y − p̄)(x − x̄)`` over the rows of prompt u.

    Returns:
        Z and p, n counts prompts; 0 and 1 where the score does not vary, NaN with fewer than two doses.

    Source: Boos (1992), The American Statistician 46(4), the robust score test.
    """
    method = "trend score, variance over prompts"
    y, x = np.asarray(success_N, np.float64), np.asarray(dose_N, np.float64)
    units, unit_N = np.unique(np.asarray(prompt_N), return_inverse=True)
    if len(np.unique(x)) < 2:
        return TestResult(math.nan, math.nan, len(units), method)
    score_U = np.bincount(unit_N, weights=(y - y.mean()) * (x - x.mean()), minlength=len(units))
    return _normal_test(float(score_U.sum()), float(np.sum(score_U**2)), len(units), method)


def largest_drop(
    success_N: Bool,
    dose_N: npt.ArrayLike,
    prompt_N: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> tuple[Interval, TestResult]:
    """Largest fall of the rate from a dose to any higher one, and the test that the rate never falls.

    ``D = max_{a < b} (p_a − p_b)``, 0 for a curve that never falls. Noise alone makes D positive, and a bootstrap of D
    more so; the test, not the interval, says whether the fall is real. Its null distribution is that of D when the
    resampled rates are moved to scatter around the isotonic fit of the data.

    Args:
        success_N: Outcomes.
        dose_N: Dose of each row.
        prompt_N: Prompt of each row: the bootstrap draws prompts; without, rows within their dose.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.

    Returns:
        D in [0, 1] with its percentile interval, and the one-sided test ``p = (1 + #{D* ≥ D}) / (1 + R)``; NaN with
        fewer than two doses. Resamples that miss a dose widen the interval and count against a rejection.

    Source: Robertson, Wright & Dykstra (1988), Order Restricted Statistical Inference, for the isotonic fit; Efron &
    Tibshirani (1993), section 16.4, for tests by moving the data to the null.
    """
    y, (dose_D, at_N) = np.asarray(success_N, np.float64), np.unique(np.asarray(dose_N), return_inverse=True)
    doses = len(dose_D)
    if doses < 2:
        return undefined(_DROP, 0, confidence), TestResult(math.nan, math.nan, 0, _MONOTONE)
    is_at_ND = (at_N[:, None] == np.arange(doses)).astype(np.float64)
    addend_NK = np.hstack([y[:, None] * is_at_ND, is_at_ND])
    units, sum_RK = resampled_sums(addend_NK, prompt_N, at_N if prompt_N is None else None, seed)
    rate_RD = np.divide(
        sum_RK[:, :doses], sum_RK[:, doses:], out=np.full((len(sum_RK), doses), np.nan), where=sum_RK[:, doses:] > 0
    )
    count_D = is_at_ND.sum(axis=0)
    rate_D = addend_NK[:, :doses].sum(axis=0) / count_D
    drop = float(_drop(rate_D[None])[0])
    fit_D = np.asarray(isotonic_regression(rate_D, weights=count_D).x, np.float64)
    null_R = _drop(rate_RD - rate_D + fit_D)
    # Rounding must not decide whether a resample's fall reaches the observed one.
    exceeding = int(np.count_nonzero(np.isnan(null_R) | (null_R >= drop - 1e-12)))
    interval = clipped(percentile_interval(drop, _drop(rate_RD), units, _DROP, confidence), 0.0, 1.0)
    return interval, TestResult(drop, (1 + exceeding) / (1 + len(null_R)), units, _MONOTONE)


def _trend(success_N: Bool, dose_N: F64, prompt_N: Labels | None) -> tuple[TestResult, TestResult | None]:
    """The test that decides, and the one beside it."""
    plain = cochran_armitage(success_N, dose_N)
    if prompt_N is None or not has_repeats(prompt_N):
        return plain, None
    return clustered_trend(success_N, dose_N, prompt_N), plain


def _normal_test(score: float, variance: float, n: int, method: str) -> TestResult:
    z = score / math.sqrt(variance) if variance > 0 else 0.0
    return TestResult(z, float(2 * ndtr(-abs(z))), n, method)


def _drop(rate_RD: F64) -> F64:
    """Largest fall of each curve; NaN where a rate is."""
    return np.asarray((np.maximum.accumulate(rate_RD, axis=1) - rate_RD).max(axis=1))
