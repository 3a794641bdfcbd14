import json
import math
import warnings

import krippendorff
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from dsprobe.metrics.agreement import agreement_table, cohen_kappa, krippendorff_alpha, raw_agreement
from dsprobe.metrics.intervals import wilson

few = settings(max_examples=50, deadline=None)
verdicts = st.sampled_from([True, False, None])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@few
def test_kappa_equals_scikit_learn(rows):
    first, second = (np.array(column) for column in zip(*rows, strict=True))
    got = cohen_kappa(first, second)
    if len(set(first) | set(second)) == 1:
        assert math.isnan(got.value)
    else:
        assert got.value == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
        assert -1 <= got.low <= got.value <= got.high <= 1


@given(st.lists(st.tuples(verdicts, verdicts, verdicts), min_size=2, max_size=30))
@few
def test_alpha_equals_krippendorff(rows):
    rating = np.array(rows, dtype=float).T
    paired = rating[:, (~np.isnan(rating)).sum(axis=0) >= 2]
    got = krippendorff_alpha(rating)
    if len(np.unique(paired[~np.isnan(paired)])) < 2:
        assert math.isnan(got.value)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = krippendorff.alpha(rating, level_of_measurement="nominal")
    assert got.value == pytest.approx(expected, abs=1e-12)


def test_alpha_of_more_than_two_categories():
    rating = np.array(
        [[1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5], [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5]]
    )
    expected = krippendorff.alpha(rating, level_of_measurement="nominal")
    assert krippendorff_alpha(rating).value == pytest.approx(expected)


def test_kappa_interval_agrees_with_the_asymptotic_one():
    rng = np.random.default_rng(0)
    first = rng.random(600) < 0.4
    second = np.where(rng.random(600) < 0.8, first, rng.random(600) < 0.4)
    table = [[np.sum((first == a) & (second == b)) for b in (False, True)] for a in (False, True)]
    expected = cohens_kappa(table)
    got = cohen_kappa(first, second)
    assert got.value == pytest.approx(expected.kappa)
    width = expected.kappa_upp - expected.kappa_low
    assert (got.low, got.high) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=0.1 * width)


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(1)
    first, second = (np.repeat(rng.random(40) < 0.5, 5) for _ in range(2))
    prompt = np.repeat(np.arange(40), 5)
    alone, clustered = cohen_kappa(first, second), cohen_kappa(first, second, prompt)
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)
    assert clustered.n == 40
    assert raw_agreement(first, second, prompt).n == 40
    assert raw_agreement(first, second).method == "wilson"


def test_table_counts_and_leaves_missing_verdicts_out():
    columns = {
        "person": [True, True, False, False, None, True],
        "keyword": [True, False, False, True, True, None],
        "classifier": [True, True, None, False, None, None],
    }
    table = agreement_table(columns, np.arange(6))
    pair = table.pairs[0]
    assert (pair.both_yes, pair.only_first, pair.only_second, pair.both_no, pair.n) == (1, 1, 1, 1, 4)
    assert pair.raw == wilson(2, 4)
    assert pair.kappa.value == 0
    assert [(p.first, p.second, p.n) for p in table.pairs] == [
        ("person", "keyword", 4),
        ("person", "classifier", 3),
        ("keyword", "classifier", 3),
    ]
    assert table.n == 4
    json.dumps(table.to_dict(), allow_nan=False)


def test_edges():
    all_yes = agreement_table({"a": [True] * 3, "b": [True] * 3}, np.arange(3))
    assert all_yes.pairs[0].raw.value == 1
    assert math.isnan(all_yes.pairs[0].kappa.value)
    assert math.isnan(all_yes.alpha.value)
    nobody = agreement_table({}, np.arange(2))
    assert (nobody.n, nobody.pairs) == (0, ())
    nothing = cohen_kappa([None, True], [True, None])
    assert (math.isnan(nothing.value), nothing.n) == (True, 0)
    with pytest.raises(ValueError, match="equally long"):
        agreement_table({"a": [True]}, np.arange(2))
    with pytest.raises(ValueError, match="same rows"):
        cohen_kappa([True], [True, False])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=20))
@few
def test_agreement_is_symmetric_and_does_not_depend_on_the_names_of_the_answers(rows):
    first, second = (np.array(column) for column in zip(*rows, strict=True))
    assume(len(set(first) | set(second)) == 2)
    value = cohen_kappa(first, second).value
    assert cohen_kappa(second, first).value == pytest.approx(value)
    assert cohen_kappa(~first, ~second).value == pytest.approx(value)
    assert krippendorff_alpha([first, second]).value == pytest.approx(krippendorff_alpha([~second, ~first]).value)
