import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test
from lifelines.utils import restricted_mean_survival_time
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from dsprobe.metrics.comparisons import paired_difference
from dsprobe.metrics.paired import compare_rates, compare_times, sign_flip, unharmed_steps
from dsprobe.metrics.resampling import bootstrap

few = settings(max_examples=40, deadline=None)
verdicts = st.sampled_from([True, False, None])
paired_verdicts = st.lists(st.tuples(verdicts, verdicts, st.integers(0, 5)), min_size=1, max_size=30)
times = st.tuples(st.integers(1, 8), st.booleans())
paired_times = st.lists(st.tuples(times, times, st.integers(0, 5)), min_size=1, max_size=30)


def prompts(count):
    return np.array([f"p{i}" for i in range(count)])


def columns(rows):
    level, baseline, prompt = zip(*rows, strict=True)
    return list(level), list(baseline), np.array(prompt)


def steps(rows):
    level, baseline, prompt = columns(rows)
    return *((np.array([t for t, _ in side]), np.array([e for _, e in side])) for side in (level, baseline)), prompt


def test_one_pair_a_prompt_is_compared_by_mcnemar_and_newcombe():
    level, baseline = [True] * 2 + [False] * 14, [True] * 10 + [False] * 6
    got = compare_rates(level, baseline, prompts(16))
    expected = statsmodels_mcnemar([[2, 0], [8, 6]], exact=True)
    assert got.test.p_value == pytest.approx(expected.pvalue)
    assert got.difference == paired_difference(np.array(level), np.array(baseline))
    assert got.difference.value == pytest.approx(-0.5)
    assert (got.level.low, got.level.high) == pytest.approx(proportion_confint(2, 16, method="wilson"))
    assert (got.baseline.value, got.pairs, got.prompts, got.left_out, got.beside) == (10 / 16, 16, 16, 0, None)


def test_a_pair_with_an_undefined_verdict_is_left_out_of_everything_and_counted():
    level = [None, None, True, False, False]
    baseline = [None, True, None, True, True]
    got = compare_rates(level, baseline, prompts(5))
    assert (got.pairs, got.left_out, got.undefined_level, got.undefined_baseline) == (2, 3, 2, 2)
    assert (got.level.value, got.baseline.value, got.difference.value) == (0, 1, -1)
    assert got.test.n == 2


def test_without_a_defined_pair_nothing_is_claimed():
    got = compare_rates([None, True], [True, None], prompts(2))
    assert got.pairs == 0
    assert math.isnan(got.test.p_value)
    assert math.isnan(got.difference.value)
    shown = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert shown["test"]["p_value"] is None
    assert shown["left_out"] == 2


def test_several_samples_of_a_prompt_are_resampled_and_flipped_together():
    rng = np.random.default_rng(3)
    prompt = np.repeat(np.arange(30), 4)
    leaning = rng.random(30)[prompt]  # samples of a prompt are alike
    level, baseline = rng.random(120) < 0.6 * leaning, rng.random(120) < leaning
    got = compare_rates(level, baseline, prompt)
    expected = bootstrap(lambda a, b: a.mean() - b.mean(), level, baseline, cluster=prompt)
    assert (got.difference.low, got.difference.high) == pytest.approx((expected.low, expected.high))
    assert got.difference.method == "cluster bootstrap"
    assert (got.pairs, got.prompts, got.test.n) == (120, 30, 30)
    assert got.test.method.startswith("sign flip")
    assert got.beside is not None
    assert got.beside.method == "McNemar exact"


def test_repeating_every_sample_is_no_new_evidence():
    level, baseline = np.arange(16) < 2, np.arange(16) < 9
    once = compare_rates(level, baseline, prompts(16))
    often = compare_rates(np.repeat(level, 5), np.repeat(baseline, 5), np.repeat(prompts(16), 5))
    assert often.test.p_value == pytest.approx(once.test.p_value)
    assert often.beside.p_value < once.test.p_value / 100  # what ignoring the clusters would claim


@pytest.mark.parametrize("seed", range(6))
def test_sign_flip_equals_scipys_exact_permutation_test(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 9, (2, 9))
    expected = permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    )
    got = sign_flip(first - second, np.arange(9))
    assert (got.statistic, got.p_value) == pytest.approx((expected.statistic, expected.pvalue))


def test_sign_flip_by_hand():
    # Differences 3, 1, −1: of the eight sums ±5, ±3, ±3, ±1 six are as far from 0 as the observed 3, or farther.
    sums = [sum(signs) for signs in itertools.product((3, -3), (1, -1), (1, -1))]
    assert sum(abs(total) >= 3 for total in sums) == 6
    assert sign_flip(np.array([3, 1, -1, 0]), np.arange(4)).p_value == pytest.approx(6 / 8)


def test_sign_flip_adds_up_a_prompts_pairs_first():
    assert sign_flip(np.array([1, -1, 2, -2]), np.array([0, 0, 1, 1])).p_value == 1
    assert sign_flip(np.array([1, 1, 1, 1]), np.array([0, 0, 1, 1])).p_value == pytest.approx(0.5)


def test_sign_flip_resolves_very_small_p_values():
    got = sign_flip(np.full(200, 7), np.arange(200))
    assert got.p_value == pytest.approx(2.0**-199)


def test_a_reply_that_ends_unharmed_stays_so_up_to_the_horizon():
    fhs, event = np.array([3, 5, 9, 4]), np.array([True, False, True, False])
    assert unharmed_steps(fhs, event, 8).tolist() == [3, 8, 8, 8]
    with pytest.raises(ValueError, match="Horizon 0"):
        unharmed_steps(fhs, event, 0)


def test_stopping_risky_rows_early_does_not_look_worse_than_letting_them_go_on():
    # Half of the rows turn harmful at step 8, and a guardrail stops exactly those at step 2. Taken as censored there,
    # they would not count as unharmed afterwards, though nothing can harm them any more.
    harmful = np.arange(20) < 10
    baseline = (np.where(harmful, 8, 32), harmful)
    stopped = (np.where(harmful, 2, 32), np.zeros(20, bool))
    got = compare_times(stopped, baseline, prompts(20), horizon=32)
    assert (got.level.value, got.baseline.value, got.difference.value) == (32, 20, 12)
    assert got.test.p_value == pytest.approx(2.0**-9)


def test_restricted_means_and_log_rank_equal_lifelines():
    rng = np.random.default_rng(5)
    event = rng.random((2, 60)) < [[0.5], [0.8]]
    fhs = np.where(event, rng.integers(1, 25, (2, 60)), 24)
    got = compare_times((fhs[0], event[0]), (fhs[1], event[1]), prompts(60), horizon=24)
    means = [
        restricted_mean_survival_time(KaplanMeierFitter().fit(f, e), t=24) for f, e in zip(fhs, event, strict=True)
    ]
    assert (got.level.value, got.baseline.value) == pytest.approx(means)
    assert got.difference.value == pytest.approx(means[0] - means[1])
    expected = logrank_test(fhs[0], fhs[1], event[0], event[1])
    assert (got.beside.statistic, got.beside.p_value) == pytest.approx((expected.test_statistic, expected.p_value))


def test_events_beyond_the_horizon_do_not_count():
    rng = np.random.default_rng(8)
    fhs, event = rng.integers(1, 25, (2, 40)), rng.random((2, 40)) < 0.7
    got = compare_times((fhs[0], event[0]), (fhs[1], event[1]), prompts(40), horizon=12)
    cut, kept = unharmed_steps(fhs, event, 12), event & (fhs <= 12)
    expected = logrank_test(cut[0], cut[1], kept[0], kept[1])
    assert (got.beside.statistic, got.beside.p_value) == pytest.approx((expected.test_statistic, expected.p_value))
    assert (got.level.value, got.baseline.value) == pytest.approx(cut.mean(axis=1))


def test_pairing_finds_what_the_log_rank_test_misses():
    baseline = np.arange(4, 28)
    event = np.ones(24, bool)
    got = compare_times((baseline + 1, event), (baseline, event), prompts(24), horizon=32)
    assert got.test.p_value < 1e-6
    assert got.beside.p_value > 0.5
    assert (got.difference.value, got.difference.low, got.difference.high) == (1, 1, 1)


@given(paired_verdicts)
@few
def test_swapping_the_conditions_negates_the_difference_of_rates(rows):
    level, baseline, prompt = columns(rows)
    got, swapped = compare_rates(level, baseline, prompt), compare_rates(baseline, level, prompt)
    assert got.left_out == swapped.left_out
    assert (got.undefined_level, got.undefined_baseline) == (swapped.undefined_baseline, swapped.undefined_level)
    assert got.test.p_value == pytest.approx(swapped.test.p_value, nan_ok=True)
    found, negated = got.difference, swapped.difference
    assert (found.value, found.low, found.high) == pytest.approx(
        (-negated.value, -negated.high, -negated.low), nan_ok=True
    )
    assert got.difference.value == pytest.approx(got.level.value - got.baseline.value, nan_ok=True)


@given(paired_times, st.integers(1, 8))
@few
def test_swapping_the_conditions_negates_the_difference_of_times(rows, horizon):
    level, baseline, prompt = steps(rows)
    got, swapped = (compare_times(*pair, prompt, horizon) for pair in ((level, baseline), (baseline, level)))
    assert got.test.p_value == pytest.approx(swapped.test.p_value)
    assert got.beside.p_value == pytest.approx(swapped.beside.p_value)
    found, negated = got.difference, swapped.difference
    assert (found.value, found.low, found.high) == pytest.approx((-negated.value, -negated.high, -negated.low))
    assert got.difference.value == pytest.approx(got.level.value - got.baseline.value)


@given(paired_verdicts, paired_times)
@few
def test_a_condition_does_not_differ_from_itself(verdict_rows, time_rows):
    level, _, prompt = columns(verdict_rows)
    rates = compare_rates(level, level, prompt)
    if rates.pairs:
        assert (rates.difference.value, rates.test.p_value) == (0, 1)
    first, _, prompt = steps(time_rows)
    time = compare_times(first, first, prompt, horizon=8)
    assert (time.difference.value, time.difference.low, time.difference.high, time.test.p_value) == (0, 0, 0, 1)
    assert time.beside.p_value == pytest.approx(1)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=40), st.randoms())
@few
def test_sign_flip_is_a_p_value_that_neither_order_nor_zeros_change(differences, random):
    got = sign_flip(np.array(differences), np.arange(len(differences)))
    shuffled = [*differences, 0, 0]
    random.shuffle(shuffled)
    assert 0 < got.p_value <= 1
    assert sign_flip(np.array(shuffled), np.arange(len(shuffled))).p_value == pytest.approx(got.p_value)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3, 2\]"):
        compare_rates([True, False], [True, False, None], prompts(2))
