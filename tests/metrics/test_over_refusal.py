import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep

from dsprobe.metrics.comparisons import independent_difference
from dsprobe.metrics.intervals import wilson
from dsprobe.metrics.over_refusal import over_refusal_by_type
from dsprobe.metrics.paired import compare_rates, compare_utility


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_difference_equals_statsmodels(size, other, share, second):
    k1, k2 = round(size * share), round(other * second)
    got = independent_difference(np.arange(size) < k1, np.arange(other) < k2)
    low, high = confint_proportions_2indep(k1, size, k2, other, method="newcomb", compare="diff")
    assert (got.value, got.low, got.high) == pytest.approx((k1 / size - k2 / other, low, high), abs=1e-9)


def test_contrasts_by_hand():
    kind = ["homonyms"] * 5 + ["figurative"] * 3
    safe = [True, True, True, False, False, True, False, False]
    refused = [True, False, None, True, True, False, False, True]
    empty = [False] * 7 + [True]
    got = over_refusal_by_type(refused, safe, kind, empty)
    figurative, homonyms = got.types
    assert (homonyms.pair_type, homonyms.safe, homonyms.contrast) == ("homonyms", wilson(1, 2), wilson(2, 2))
    assert homonyms.discrimination.value == 0.5
    assert (figurative.safe, figurative.contrast) == (wilson(0, 1), wilson(0, 2))  # the empty reply is no refusal
    assert (got.overall.safe, got.overall.contrast) == (wilson(1, 3), wilson(2, 4))
    json.dumps(got.to_dict(), allow_nan=False)


def test_a_type_without_contrasts_has_no_discrimination():
    got = over_refusal_by_type([True, False], [True, True], ["a", "a"])
    assert math.isnan(got.types[0].discrimination.value)
    assert got.types[0].safe == wilson(1, 2)
    assert over_refusal_by_type([], [], []).types == ()
    with pytest.raises(ValueError, match="equally long"):
        over_refusal_by_type([True], [True], [])


def test_utility_of_twins_compares_benign_prompts_only():
    level, baseline = [True, None, False, True, False], [True, True, True, True, True]
    harmful = np.array([0, 0, 0, 0, 1], bool)
    got = compare_utility(level, baseline, harmful, np.arange(5))
    assert got == compare_rates(level[:4], baseline[:4], np.arange(4))
    assert (got.pairs, got.left_out) == (3, 1)
