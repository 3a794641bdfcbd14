import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.metrics.calibration import JudgeCalibration, corrected_from_counts, corrected_rate, judge_calibration
from dsprobe.metrics.intervals import wilson


def calibrated(true_positives, positives, true_negatives, negatives):
    return JudgeCalibration(wilson(true_positives, positives), wilson(true_negatives, negatives), 0)


def test_error_rates_by_hand():
    label = [True, True, True, False, False, None, True]
    verdict = [True, False, True, False, True, True, None]
    got = judge_calibration(label, verdict)
    assert got.sensitivity == wilson(2, 3)
    assert got.specificity == wilson(1, 2)
    assert got.undecided == 1
    json.dumps(got.to_dict(), allow_nan=False)


def test_example_of_lang_and_reiczigel():
    """Their example 1, as in R's `asht::prevSeSp`: 4060 of 11 284, Se 178/179, Sp 358/359 gives [0.349, 0.372]."""
    got = corrected_from_counts(4060, 11284, calibrated(178, 179, 358, 359)).corrected
    assert got.value == pytest.approx((4060 / 11284 + 358 / 359 - 1) / (178 / 179 + 358 / 359 - 1))
    assert (round(got.low, 3), round(got.high, 3)) == (0.349, 0.372)


def test_interval_by_hand_with_few_labels():
    """The paper's equations in its own symbols: 60 of 200 positive, Se = 18/20, Sp = 23/25."""
    z = 1.959963984540054
    se, sp, ap = (18 + 1) / 22, (23 + 1) / 27, (60 + z * z / 2) / (200 + z * z)
    prevalence = (ap + sp - 1) / (se + sp - 1)
    v_se, v_sp = se * (1 - se) / 22, sp * (1 - sp) / 27
    shift = 2 * z * z * (prevalence * v_se - (1 - prevalence) * v_sp)
    variance = (ap * (1 - ap) / (200 + z * z) + prevalence**2 * v_se + (1 - prevalence) ** 2 * v_sp) / (
        se + sp - 1
    ) ** 2
    got = corrected_from_counts(60, 200, calibrated(18, 20, 23, 25)).corrected
    assert got.value == pytest.approx((0.3 + 0.92 - 1) / (0.9 + 0.92 - 1))
    centre, half = prevalence + shift, z * math.sqrt(variance)
    assert (got.low, got.high) == pytest.approx((centre - half, centre + half))
    assert got.n == 200


@pytest.mark.parametrize(("truth", "sensitivity", "specificity"), [(0.1, 0.8, 0.95), (0.5, 0.8, 0.9), (0.3, 0.9, 0.8)])
def test_coverage_when_the_error_rates_are_estimated(truth, sensitivity, specificity):
    rng = np.random.default_rng(0)
    positives = rng.binomial(200, truth * sensitivity + (1 - truth) * (1 - specificity), 600)
    hits = rng.binomial(50, sensitivity, 600), rng.binomial(50, specificity, 600)
    covered = [
        (interval := corrected_from_counts(k, 200, calibrated(a, 50, b, 50)).corrected).low <= truth <= interval.high
        for k, a, b in zip(positives, *hits, strict=True)
    ]
    assert 0.92 <= np.mean(covered) <= 0.99


def test_empty_replies_scale_the_rate_and_its_interval():
    judge, verdict = calibrated(18, 20, 23, 25), [True] * 60 + [False] * 140 + [None] * 7
    plain, got = corrected_rate(verdict, judge), corrected_rate(verdict, judge, empty=50)
    assert got.observed == wilson(60, 250)
    for name in ("value", "low", "high"):
        assert getattr(got.corrected, name) == pytest.approx(getattr(plain.corrected, name) * 200 / 250)
    assert (plain.corrected.n, got.corrected.n) == (200, 250)
    nothing = corrected_rate([None], judge, empty=1)
    assert (nothing.observed.value, nothing.reason) == (0.0, "there is no verdict")
    assert math.isnan(nothing.corrected.value)


def test_a_perfect_judge_changes_nothing():
    got = corrected_from_counts(30, 100, calibrated(10**6, 10**6, 10**6, 10**6))
    assert got.corrected.value == pytest.approx(got.observed.value)
    assert (got.corrected.low, got.corrected.high) == pytest.approx((got.observed.low, got.observed.high), abs=0.01)
    few_labels = corrected_from_counts(30, 100, calibrated(20, 20, 20, 20)).corrected
    assert few_labels.high - few_labels.low > got.corrected.high - got.corrected.low


def test_undefined_with_a_reason():
    chance = corrected_from_counts(5, 10, calibrated(10, 20, 10, 20))
    assert math.isnan(chance.corrected.value)
    assert "no better than chance" in chance.reason
    assert chance.observed == wilson(5, 10)
    assert "no positive human label" in corrected_from_counts(5, 10, calibrated(0, 0, 5, 5)).reason
    assert "no negative human label" in corrected_from_counts(5, 10, calibrated(5, 5, 0, 0)).reason
    nothing = corrected_rate([None, None], calibrated(9, 10, 9, 10))
    assert nothing.reason == "there is no verdict"
    assert nothing.to_dict()["corrected"]["value"] is None
    with pytest.raises(ValueError, match="as many verdicts"):
        judge_calibration([True], [True, False])


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=80, deadline=None)
def test_a_defined_rate_and_its_bounds_lie_in_order_within_0_and_1(positives, hits, rejections):
    got = corrected_from_counts(positives, 40, calibrated(hits, 20, rejections, 20))
    assert (got.reason == "") == (hits + rejections > 20)
    if not got.reason:
        assert 0 <= got.corrected.low <= got.corrected.value <= got.corrected.high <= 1
