import json
import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from dsprobe.metrics.anchoring import PUBLISHED_ANCHORING, anchoring_curve
from dsprobe.metrics.curves import clustered_trend, cochran_armitage, cue_amplification, dose_response, largest_drop
from dsprobe.metrics.intervals import wilson
from dsprobe.metrics.logistic import logistic_slopes

LOGISTIC = {"disp": 0, "tol": 1e-12}


def doses(rng, rates, prompts, spread=1.0):
    """Every prompt at every dose; prompts differ in how easily they succeed."""
    logit = np.log(np.array(rates) / (1 - np.array(rates)))[:, None] + rng.normal(0, spread, prompts)
    success = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    dose, prompt = (
        np.broadcast_to(np.arange(len(rates))[:, None], logit.shape),
        np.broadcast_to(np.arange(prompts), logit.shape),
    )
    return success.ravel(), dose.ravel().astype(float), prompt.ravel()


@pytest.mark.parametrize("seed", range(3))
def test_slope_equals_statsmodels(seed):
    rng = np.random.default_rng(seed)
    cues = rng.integers(0, 9, 120).astype(float)
    success = rng.random(120) < 1 / (1 + np.exp(2 - 0.5 * cues))
    fit = sm.Logit(success.astype(float), sm.add_constant(cues)).fit(disp=0, tol=1e-12)
    got = logistic_slopes(success, cues[:, None])[0]
    assert got.value == pytest.approx(fit.params[1], rel=1e-6)
    assert (got.low, got.high) == pytest.approx(tuple(fit.conf_int()[1]), rel=1e-4)


def test_cue_curve_and_undefined_slopes():
    got = cue_amplification([True, False, None, True, False], [1, 1, 5, 2, 2])
    assert [(p.at, p.rate) for p in got.curve] == [((1,), wilson(1, 2)), ((2,), wilson(1, 2))]
    assert got.slope.value == pytest.approx(0)
    assert got.slope.n == 4
    separated = cue_amplification([False, False, True, True], [0, 1, 2, 3])
    touching = cue_amplification([False, False, True, True], [0, 1, 1, 3])
    all_equal = cue_amplification([True, True], [0, 1])
    same_cues = cue_amplification([True, False], [3, 3])
    assert all(math.isnan(x.slope.value) for x in (separated, touching, all_equal, same_cues))
    assert cue_amplification([], []).curve == ()


@pytest.mark.parametrize("seed", range(3))
def test_slopes_of_cues_and_spread_equal_statsmodels(seed):
    rng = np.random.default_rng(seed)
    cues, spread = rng.integers(0, 9, 200).astype(float), rng.random(200)
    success = rng.random(200) < 1 / (1 + np.exp(1.5 - 0.4 * cues + spread))
    fit = sm.Logit(success.astype(float), sm.add_constant(np.stack([cues, spread], axis=1))).fit(**LOGISTIC)
    got = cue_amplification(success, cues, spread)
    assert [s.value for s in got.slopes] == pytest.approx(fit.params[1:], rel=1e-6)
    assert [(s.low, s.high) for s in got.slopes] == [pytest.approx(tuple(b), rel=1e-4) for b in fit.conf_int()[1:]]
    assert got.variables == ("cues", "spacing")
    assert got.trend is got.monotone is got.largest_drop is None
    assert not got.rises()
    assert all(len(point.at) == 2 for point in got.curve)


def test_slopes_over_prompts_equal_the_cluster_sandwich_of_statsmodels():
    rng = np.random.default_rng(5)
    success, dose, prompt = doses(rng, [0.2, 0.4, 0.5, 0.7], 50, spread=1.5)
    model = sm.Logit(success.astype(float), sm.add_constant(dose))
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": prompt, "use_correction": False}, **LOGISTIC)
    got = logistic_slopes(success, dose[:, None], prompt)[0]
    half = 1.959964 * fit.bse[1] * math.sqrt(50 / 49)
    assert (got.low, got.high) == pytest.approx((fit.params[1] - half, fit.params[1] + half), rel=1e-5)
    assert got.n == 50
    assert "cluster-robust" in got.method


def test_two_covariates_that_separate_together_or_are_collinear_have_no_slopes():
    x = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [1, 1]], float)
    together = np.array([False, False, False, True, False, True])  # neither covariate alone separates
    assert all(math.isnan(s.value) for s in logistic_slopes(together, x))
    mixed = np.array([True, False, False, True, False, False])
    assert all(math.isfinite(s.value) for s in logistic_slopes(mixed, x))
    collinear = np.stack([x[:, 0], 2 * x[:, 0] + 1], axis=1)
    assert all(math.isnan(s.value) for s in logistic_slopes(mixed, collinear))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=25))
@settings(max_examples=60, deadline=None)
def test_one_covariate_has_a_slope_exactly_where_outcomes_overlap(rows):
    x, y = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], bool)
    yes, no = x[y], x[~y]
    overlap = len(rows) > 2 and bool(len(yes) and len(no) and no.min() < yes.max() and yes.min() < no.max())
    assert math.isfinite(logistic_slopes(y, x[:, None])[0].value) == overlap


def test_cochran_armitage_equals_the_example_of_the_sas_manual():
    """PROC FREQ, "Cochran-Armitage trend test": 161 patients, |Z| = 4.7918."""
    yes, size = [6, 7, 9, 14, 23], [32, 33, 32, 32, 32]
    success = np.concatenate([np.arange(n) < k for k, n in zip(yes, size, strict=True)])
    got = cochran_armitage(success, np.repeat(range(5), size))
    assert got.statistic == pytest.approx(4.7918, abs=5e-5)
    assert got.p_value < 1e-4
    assert got.n == 161


def test_cochran_armitage_of_two_doses_is_the_chi_square_test():
    success = np.arange(70) % 10 < np.where(np.arange(70) < 30, 3, 6)
    dose = np.repeat([0, 1], [30, 40])
    table = [[np.sum(success & (dose == d)), np.sum(~success & (dose == d))] for d in (0, 1)]
    chi2, p_value, *_ = chi2_contingency(table, correction=False)
    got = cochran_armitage(success, dose)
    assert (got.statistic**2, got.p_value) == pytest.approx((chi2, p_value))


def test_trend_edges():
    assert (cochran_armitage(np.ones(4, bool), [0, 1, 2, 3]).statistic, 1.0) == (0.0, 1.0)
    assert cochran_armitage(np.ones(4, bool), [0, 1, 2, 3]).p_value == 1
    assert math.isnan(cochran_armitage(np.ones(4, bool), [1, 1, 1, 1]).p_value)
    one_row_each = clustered_trend(np.array([0, 0, 1, 1], bool), [0, 1, 2, 3], np.arange(4))
    assert one_row_each.statistic == pytest.approx(2 / math.sqrt(2 * 0.75**2 + 2 * 0.25**2))


def test_trend_and_monotone_test_hold_their_level_on_dependent_rows_and_find_effects():
    rng = np.random.default_rng(6)
    flat, rising, falling = [0.5] * 4, [0.2, 0.4, 0.6, 0.8], [0.3, 0.7, 0.4, 0.5]
    found = {"flat": [], "falling": []}
    for seed in range(60):
        for name, rates in (("flat", flat), ("falling", falling)):
            success, dose, prompt = doses(rng, rates, 60)
            trend = clustered_trend(success, dose, prompt).p_value < 0.05
            found[name].append((trend, largest_drop(success, dose, prompt, seed)[1].p_value < 0.05))
    flat_trend, flat_drop = np.mean(found["flat"], axis=0)
    assert flat_trend < 0.17  # 0.05 and three standard errors
    assert flat_drop < 0.17
    assert np.mean(found["falling"], axis=0)[1] > 0.8
    success, dose, prompt = doses(rng, rising, 80)
    got = dose_response(success, {"dose": dose}, prompt)
    assert got.rises()
    assert got.beside.method == "Cochran-Armitage"
    assert got.trend.n == 80
    json.dumps(got.to_dict(), allow_nan=False)


def test_largest_drop_by_hand():
    success = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    dose = np.repeat([0, 1, 2, 3], 2)
    drop, test = largest_drop(success, dose)
    assert drop.value == 1.0
    assert 0 <= drop.low <= drop.high <= 1
    assert 0 < test.p_value < 0.3
    never, test = largest_drop(np.repeat([0, 1], 4).astype(bool), np.repeat([0, 1], 4))
    assert (never.value, test.p_value) == (0, 1)
    assert math.isnan(largest_drop(success, np.zeros(8))[0].value)


def test_dose_response_needs_variables_of_one_length():
    with pytest.raises(ValueError, match="one or more"):
        dose_response([True], {})
    with pytest.raises(ValueError, match="equally long"):
        dose_response([True, False], {"x": [1.0]})


def test_anchoring_rises_like_the_published_curve_and_not_when_flat():
    published = PUBLISHED_ANCHORING[0]
    rng = np.random.default_rng(7)
    step = np.repeat(published.step, 100) // 2 + 1  # T = 64
    prompt = np.tile(np.arange(100), 5)
    success = rng.random(500) < np.repeat(published.rate, 100)
    got = anchoring_curve(success, np.repeat(published.step, 100), 128, prompt)
    assert got.rises
    assert got.as_steep
    assert len(got.difference) == 5
    assert all(point.rate.low <= 0 <= point.rate.high for point in got.difference)
    assert got.difference[0].rate.value == pytest.approx(got.response.curve[0].rate.value - 0.173)
    assert published.slope_per_doubling == pytest.approx(0.98, abs=0.02)
    flat = anchoring_curve(rng.random(500) < 0.5, step, 64, prompt)
    assert not flat.rises
    assert not flat.as_steep
    json.dumps(flat.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match=r"1\.\.8"):
        anchoring_curve([True], [9], 8)
