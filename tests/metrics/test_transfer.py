import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.metrics.intervals import wilson
from dsprobe.metrics.resampling import bootstrap
from dsprobe.metrics.transfer import MIN_STRATUM, _strata, transfer_index, transfer_table


def test_transfer_index_by_hand_and_against_the_delta_method():
    rng = np.random.default_rng(0)
    source = rng.random(800) < 0.6
    target = np.where(rng.random(800) < 0.5, source, rng.random(800) < 0.3)
    got = transfer_index(target, source)
    ratio = target.mean() / source.mean()
    assert got.value == pytest.approx(ratio)
    half = 1.96 * np.std(target - ratio * source) / math.sqrt(800) / source.mean()
    assert (got.low, got.high) == pytest.approx((ratio - half, ratio + half), abs=0.2 * half)
    assert transfer_index(target, source) == got


def test_transfer_index_is_null_without_a_success_on_the_source():
    got = transfer_index([True, False], [False, False])
    assert math.isnan(got.value)
    assert got.to_dict()["value"] is None
    rare = transfer_index([True, True, False, False], [True, False, False, False])
    assert (rare.value, rare.low, rare.high) == (2.0, 0.0, math.inf)
    assert transfer_index([True, None, True], [True, True, None]).n == 1


def test_identical_models_transfer_perfectly():
    same = np.random.default_rng(1).random(100) < 0.5
    got = transfer_index(same, same)
    assert (got.value, got.low, got.high) == (1, 1, 1)


def artefacts(rng, prompts, attacks, first, second):
    """Success rates of the attacks on two models, every attack on every prompt."""
    attack = np.repeat(attacks, prompts)
    prompt = np.tile(np.arange(prompts), len(attacks))
    return (
        attack,
        prompt,
        rng.random(len(attack)) < np.repeat(first, prompts),
        rng.random(len(attack)) < np.repeat(second, prompts),
    )


def test_table_by_hand():
    attack = ["m", "m", "m", "a", "a", "a", "x"]
    prompt = [0, 1, 2, 0, 1, 2, 0]
    first = [True, True, False, True, None, False, True]
    second = [True, False, False, True, True, True, True]
    table = transfer_table(attack, prompt, first, second, ["m"], ["a"])
    assert [row.attack for row in table.attacks] == ["a", "m", "x"]
    assert table.forward.index.value == 1 / 2
    assert table.backward.index.value == 1 / 2  # the undecided artefact is out: 1 of 2 against 2 of 2
    assert table.asymmetry.value == 0
    assert table.forward.conditional == wilson(1, 2)
    assert table.backward.conditional == wilson(1, 2)
    assert table.attacks[2].backward.index.value == 1
    json.dumps(table.to_dict(), allow_nan=False)


def test_pooled_index_is_a_ratio_of_sums_and_the_asymmetry_uses_the_same_resamples():
    rng = np.random.default_rng(3)
    names = ["m1", "m2", "a1", "a2"]
    attack, prompt, first, second = artefacts(rng, 80, names, [0.8, 0.4, 0.3, 0.4], [0.6, 0.3, 0.9, 0.7])
    table = transfer_table(attack, prompt, first, second, ["m1", "m2"], ["a1", "a2"])
    native = np.isin(attack, ["m1", "m2"])
    assert table.forward.index.value == pytest.approx(second[native].sum() / first[native].sum())
    assert table.asymmetry.value == pytest.approx(table.forward.index.value - table.backward.index.value)

    def difference(rows_f, rows_s, is_native):
        back = ~is_native
        return rows_s[is_native].sum() / rows_f[is_native].sum() - rows_f[back].sum() / rows_s[back].sum()

    slow = bootstrap(difference, first, second, native, cluster=prompt, resamples=2000)
    assert (table.asymmetry.low, table.asymmetry.high) == pytest.approx((slow.low, slow.high))
    assert table.asymmetry.n == 80
    assert table.asymmetry.method == "stratified cluster bootstrap"


def test_without_a_success_on_the_source_the_direction_and_the_asymmetry_are_null():
    rng = np.random.default_rng(4)
    attack, prompt, first, second = artefacts(rng, 20, ["m", "a"], [0.0, 0.5], [0.5, 0.5])
    table = transfer_table(attack, prompt, first, second, ["m"], ["a"])
    assert table.to_dict()["forward"]["index"]["value"] is None
    assert table.to_dict()["asymmetry"]["value"] is None
    assert table.backward.index.value > 0
    assert math.isnan(transfer_table(attack, prompt, first, second, [], ["a"]).forward.index.value)


def test_strata_are_the_sets_of_attacks_and_small_ones_are_drawn_together():
    attack = np.array(["m"] * 12 + ["a"] * 11)
    prompt = np.array([*range(12), *range(11)])
    assert set(_strata(attack, prompt)[prompt < 11]) == {2}
    assert set(_strata(attack, prompt)[prompt == 11]) == {0}
    assert set(_strata(attack[:5], prompt[:5])) == {0}
    assert MIN_STRATUM == 10


def test_an_attack_cannot_be_native_to_both():
    with pytest.raises(ValueError, match="native to both models: m"):
        transfer_table(["m"], [0], [True], [True], ["m"], ["m"])


@given(st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_swapping_the_models_turns_the_table_round(seed):
    rng = np.random.default_rng(seed)
    attack, prompt, first, second = artefacts(rng, 15, ["m", "a"], [0.7, 0.4], [0.5, 0.8])
    table = transfer_table(attack, prompt, first, second, ["m"], ["a"])
    turned = transfer_table(attack, prompt, second, first, ["a"], ["m"])
    assert turned.forward == table.backward
    assert turned.backward == table.forward
    assert (turned.asymmetry.value, turned.asymmetry.low, turned.asymmetry.high) == pytest.approx(
        (-table.asymmetry.value, -table.asymmetry.high, -table.asymmetry.low)
    )
