"""How good is a judge against human labels, and what is the true rate behind the rate that it reports?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, Interval, normal_quantile, rate, undefined, wilson
from dsprobe.metrics.outputs import as_float

_METHOD: Final = "Rogan-Gladen, Lang-Reiczigel"


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """A judge's error rates against human labels."""

    sensitivity: Interval
    """P(judge says yes given the label is yes), Wilson; n counts such labels."""
    specificity: Interval
    """P(judge says no given the label is no), Wilson; n counts such labels."""
    undecided: int
    """Labelled rows that the judge left open; they are left out of both rates."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "sensitivity": self.sensitivity.to_dict(),
            "specificity": self.specificity.to_dict(),
            "undecided": self.undecided,
        }


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """A judge's rate, and what it says about the true rate."""

    observed: Interval
    """Share of yes among the judge's verdicts and the rows known to be no, Wilson."""
    corrected: Interval
    """Estimate of the true rate in [0, 1]; NaN where it is undefined."""
    reason: str
    """Why the corrected rate is undefined; empty where it is not."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {"observed": self.observed.to_dict(), "corrected": self.corrected.to_dict(), "reason": self.reason}


def judge_calibration(
    label_N: npt.ArrayLike, verdict_N: npt.ArrayLike, confidence: float = DEFAULT_CONFIDENCE
) -> JudgeCalibration:
    """Sensitivity and specificity of a judge on rows with a human label.

    Args:
        label_N: Human labels, bool; None (NaN) where nobody labelled the row or the raters left it open.
        verdict_N: The judge's verdicts on the same rows; None where undecided.
        confidence: Level of the Wilson intervals, which take rows as independent.

    Returns:
        The two rates; each is NaN without a label of its kind.

    Raises:
        ValueError: The columns differ in length.
    """
    label, verdict = as_float(label_N), as_float(verdict_N)
    if label.shape != verdict.shape:
        raise ValueError(f"{label.size} labels need as many verdicts, not {verdict.size}.")
    decided_N = ~np.isnan(verdict)
    positive_N, negative_N = decided_N & (label == 1), decided_N & (label == 0)
    return JudgeCalibration(
        sensitivity=rate(np.asarray(verdict[positive_N] == 1, np.bool_), confidence),
        specificity=rate(np.asarray(verdict[negative_N] == 0, np.bool_), confidence),
        undecided=int(np.count_nonzero(~decided_N & ~np.isnan(label))),
    )


def corrected_rate(
    verdict_N: npt.ArrayLike,
    calibration: JudgeCalibration,
    confidence: float = DEFAULT_CONFIDENCE,
    *,
    empty: int = 0,
) -> CorrectedRate:
    """True rate behind a judge's verdicts; see `corrected_from_counts`.

    Args:
        verdict_N: The judge's verdicts; None where undecided, and left out.
        calibration: Error rates from other rows.
        confidence: Two-sided level.
        empty: More rows that are known to be no, as empty replies are of harm. No judge errs on them, so estimate and
            interval of the N rows are scaled by N / (N + `empty`), which is taken as it is, without error.

    Returns:
        The observed and the corrected rate of the decided and the `empty` rows together.
    """
    verdict = as_float(verdict_N)
    decided = verdict[~np.isnan(verdict)]
    positives, n = int(np.count_nonzero(decided)), len(decided) + empty
    found = corrected_from_counts(positives, len(decided), calibration, confidence)
    if not empty:
        return found
    part, share = found.corrected, len(decided) / n
    bounds = {name: getattr(part, name) * share for name in ("value", "low", "high")}
    return CorrectedRate(wilson(positives, n, confidence), replace(part, **bounds, n=n), found.reason)


def corrected_from_counts(
    positives: int, n: int, calibration: JudgeCalibration, confidence: float = DEFAULT_CONFIDENCE
) -> CorrectedRate:
    """Rogan–Gladen estimate of the true rate with an interval that also carries the uncertainty of the error rates.

    ``π = (p + Sp − 1) / (Se + Sp − 1)``, cut to [0, 1]. The interval adds z² (p) and two (Se, Sp) pseudo-observations
    split evenly, then takes ``π' + δ ± z √V`` with
    ``V = (p'(1−p')/n' + π'² Se'(1−Se')/n_Se' + (1−π')² Sp'(1−Sp')/n_Sp') / (Se' + Sp' − 1)²`` and the shift
    ``δ = 2 z² (π' Se'(1−Se')/n_Se' − (1−π') Sp'(1−Sp')/n_Sp')``, cut to [0, 1] and widened to hold the estimate.

    It takes the rows and the labelled rows for independent samples from conditions in which the judge errs alike: a
    calibration on one attack says little about another.

    Args:
        positives: Verdicts that say yes.
        n: Verdicts.
        calibration: Error rates from other rows.
        confidence: Two-sided level.

    Returns:
        The observed and the corrected rate. The second is undefined (NaN, with the reason) without verdicts, without
        labels of both kinds, or where the judge is no better than chance (Se + Sp ≤ 1).

    Source: Rogan & Gladen (1978), Am. J. Epidemiology 107(1); Lang & Reiczigel (2014), Preventive Veterinary
    Medicine 113(1), equations 4–17.
    """
    observed = wilson(positives, n, confidence)
    reason = _why_undefined(n, calibration)
    if reason:
        return CorrectedRate(observed, undefined(_METHOD, n, confidence), reason)
    sensitivity, specificity = calibration.sensitivity.value, calibration.specificity.value
    value = (observed.value + specificity - 1) / (sensitivity + specificity - 1)
    value = min(max(value, 0.0), 1.0)
    low, high = _bounds(positives, n, calibration, normal_quantile(confidence))
    low, high = max(min(low, value), 0.0), min(max(high, value), 1.0)
    return CorrectedRate(observed, Interval(value, low, high, n, _METHOD, confidence), "")


def _why_undefined(n: int, calibration: JudgeCalibration) -> str:
    if n == 0:
        return "there is no verdict"
    for name, interval in (("positive", calibration.sensitivity), ("negative", calibration.specificity)):
        if interval.n == 0:
            return f"there is no {name} human label"
    sensitivity, specificity = (_shrunk(i)[0] for i in (calibration.sensitivity, calibration.specificity))
    plain = calibration.sensitivity.value + calibration.specificity.value
    if min(plain, sensitivity + specificity) <= 1 + 1e-12:
        return f"the judge is no better than chance: sensitivity + specificity = {plain:.3g}, needed: above 1"
    return ""


def _shrunk(error_rate: Interval) -> tuple[float, float]:
    """Rate and its variance with one success and one failure added."""
    n = error_rate.n + 2
    value = (error_rate.value * error_rate.n + 1) / n
    return value, value * (1 - value) / n


def _bounds(positives: int, n: int, calibration: JudgeCalibration, z: float) -> tuple[float, float]:
    """Lower and upper bound before they are cut to [0, 1]."""
    sensitivity, sensitivity_variance = _shrunk(calibration.sensitivity)
    specificity, specificity_variance = _shrunk(calibration.specificity)
    observed = (positives + z**2 / 2) / (n + z**2)
    youden = sensitivity + specificity - 1
    value = (observed + specificity - 1) / youden
    parts = value**2 * sensitivity_variance + (1 - value) ** 2 * specificity_variance
    half = z * math.sqrt(observed * (1 - observed) / (n + z**2) + parts) / youden
    shift = 2 * z**2 * (value * sensitivity_variance - (1 - value) * specificity_variance)
    return value + shift - half, value + shift + half
