import math

import numpy as np
import pytest
from scipy import stats

from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.resampling import bootstrap, bootstrap_sums, clipped, mean, median, resampled_sums


def test_same_seed_same_bounds_other_seed_other_bounds():
    x = np.random.default_rng(0).normal(size=50)
    assert mean(x, seed=3) == mean(x, seed=3)
    assert mean(x, seed=3).low != mean(x, seed=4).low
    assert mean(x).value == pytest.approx(x.mean())


def test_mean_bounds_agree_with_the_normal_theory():
    x = np.random.default_rng(1).normal(size=400)
    got = mean(x)
    half = 1.96 * x.std(ddof=1) / math.sqrt(len(x))
    assert got.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert got.high == pytest.approx(x.mean() + half, abs=0.15 * half)
    assert got.n == 400


def test_unpaired_difference_agrees_with_welch():
    rng = np.random.default_rng(2)
    x, y = rng.normal(1, 1, 200), rng.normal(0, 2, 100)
    got = bootstrap(lambda a, b: a.mean() - b.mean(), x, y, paired=False)
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.06)
    assert got.n == 100


def test_pairing_is_kept():
    x = np.random.default_rng(3).normal(size=80)
    got = bootstrap(lambda a, b: float((a - b).mean()), x + 1, x)
    assert (got.low, got.high) == pytest.approx((1.0, 1.0))


def test_clusters_widen_the_interval_of_copied_rows():
    x = np.random.default_rng(4).normal(size=40)
    copies, prompt = np.repeat(x, 10), np.repeat(np.arange(40), 10)
    alone, clustered, honest = mean(copies), mean(copies, prompt), mean(x)
    assert clustered.n == 40
    assert clustered.method == "cluster bootstrap"
    assert (clustered.low, clustered.high) == pytest.approx((honest.low, honest.high), abs=1e-9)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_cluster_labels_may_be_strings_and_uneven():
    x, prompt = np.array([1.0, 1, 1, 5]), np.array(["b", "b", "b", "a"])
    got = mean(x, prompt)
    assert (got.value, got.low, got.high) == (2.0, 1.0, 5.0)


def test_undefined_values_are_left_out_and_counted():
    got = median(np.array([np.nan, 1, 2, 9, np.nan]), np.array([0, 1, 2, 3, 4]))
    assert got.value == 2
    assert got.n == 3


def test_undefined_resamples_widen_instead_of_vanishing():
    def one_over_first(x):
        return math.nan if x.min() > 0 else float(x.mean())

    x = np.array([0.0, 1, 1, 1])
    got = bootstrap(one_over_first, x)
    assert got.value == 0.75
    assert (got.low, got.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("x", "expected"),
    [([], (math.nan,) * 3), ([2.5], (2.5,) * 3), ([4.0, 4.0, 4.0], (4.0,) * 3)],
    ids=["nothing", "one row", "constant"],
)
def test_degenerate_data(x, expected):
    got: Interval = mean(np.array(x))
    assert (got.value, got.low, got.high) == pytest.approx(expected, nan_ok=True)
    assert got.n == len(x)


def test_one_row_beside_many_in_unpaired_data():
    got = bootstrap(lambda a, b: a.mean() - b.mean(), np.array([1.0]), np.array([0.0, 0.0, 0.0]), paired=False)
    assert (got.value, got.low, got.high) == (1, 1, 1)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="equal lengths"):
        bootstrap(lambda a, b: 0.0, np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="paired"):
        bootstrap(lambda a: 0.0, np.zeros(3), paired=False, cluster=np.zeros(3))


@pytest.mark.parametrize(("fast", "plain"), [(mean, np.mean), (median, np.median)])
def test_means_and_medians_of_all_resamples_at_once_equal_one_by_one(fast, plain):
    rng = np.random.default_rng(3)
    values, prompts = rng.normal(size=23).round(1), rng.integers(0, 7, 23)
    for cluster in (None, prompts):
        slow = bootstrap(lambda x: float(plain(x)), values, cluster=cluster)
        quick = fast(values, cluster)
        assert (quick.value, quick.low, quick.high) == pytest.approx((slow.value, slow.low, slow.high))
        assert (quick.n, quick.method) == (slow.n, slow.method)


@pytest.mark.parametrize("clustered", [False, True])
def test_statistics_of_sums_equal_the_general_bootstrap(clustered):
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 9, 60), rng.integers(1, 9, 60)
    cluster = np.repeat(np.arange(20), 3) if clustered else None
    general = bootstrap(lambda a, b: a.sum() / b.sum(), x, y, cluster=cluster, seed=2)
    assert bootstrap_sums(lambda s: s[:, 0] / s[:, 1], np.stack([x, y], axis=1), cluster, seed=2) == general


def test_every_resample_keeps_the_size_of_each_stratum():
    strata = np.repeat(["a", "b", "c"], [5, 9, 1])
    one_hot = (strata[:, None] == np.array(["a", "b", "c"])).astype(float)
    units, total = resampled_sums(one_hot, None, strata, resamples=50)
    assert units == 15
    assert (total == [5, 9, 1]).all()
    value = np.arange(15.0)[:, None]
    assert len(np.unique(resampled_sums(value, None, strata, resamples=50)[1])) > 10
    with pytest.raises(ValueError, match="two strata"):
        resampled_sums(value, np.zeros(15), strata)
    with pytest.raises(ValueError, match="as many clusters"):
        resampled_sums(value, np.zeros(3))


def test_clipping_closes_open_bounds_and_leaves_the_undefined_alone():
    got = clipped(Interval(0.5, -math.inf, math.inf, 3, "x"), 0, 1)
    assert (got.low, got.high) == (0, 1)
    assert math.isnan(clipped(Interval(math.nan, math.nan, math.nan, 0, "x"), 0, 1).low)
    assert bootstrap_sums(lambda s: s[:, 0], np.empty((0, 1))).n == 0
