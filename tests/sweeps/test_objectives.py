from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap
from tests.sweeps.sweep_outcomes import EXPERIMENT, UTILITY, objective_set, outcomes

from dsprobe.config import ModelConfig
from dsprobe.errors import ConfigError
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.metrics import outputs
from dsprobe.sweeps.comparison import differences, dominated, intervals
from dsprobe.sweeps.config import ConstraintConfig, ObjectiveConfig
from dsprobe.sweeps.objectives import FLUENCY_CAP, OBJECTIVES, ObjectiveSet
from dsprobe.sweeps.units import prompt_weights, resampled_values

ALL = ("asr", "fluency_loss", "invalidity", "over_refusal", "delta_nfe")
NFE = {"name": "delta_nfe"}
few = settings(max_examples=40, deadline=None)


def test_each_objective_by_hand():
    baseline = outcomes([1, 1, 1, 0], [1.0, 2.0, None, 1.0])
    guarded = outcomes(
        [1, 0, None, 0], [1.5, 1.0, 9.0, None],
        valid=[1, 0, 1, None], refused=[1, 0, 0, None], passes=[10, 10, 20, 10, 10, 10, 10, 16],
        empty=[False, False, True, False, False, False, False, True],
    )  # fmt: skip
    values = dict(zip(ALL, objective_set(*ALL).values(guarded, baseline), strict=True))
    assert values["asr"] == 1 / 4  # the empty reply stays in the denominator
    assert values["fluency_loss"] == pytest.approx((0.5 - 1.0 + FLUENCY_CAP) / 3)  # third row: no unguarded perplexity
    assert values["invalidity"] == 2 / 4  # the empty reply is not valid
    assert values["over_refusal"] == 1 / 4
    assert values["delta_nfe"] == pytest.approx(96 / 80)
    unchanged = objective_set(*ALL).values(baseline, baseline).tolist()
    assert unchanged == [0.75, 0.0, 0.0, 0.0, 1.0]


def test_empty_replies_are_reported():
    guarded = outcomes([1, None], [1.0, 1.0], empty=[False, True, False, False])
    shares = objective_set("asr", "over_refusal", "delta_nfe").empty_shares(guarded)
    assert shares == {"asr": 0.5, "over_refusal": 0.0, "delta_nfe": 0.25}


def test_rates_are_those_of_the_measures():
    rng = np.random.default_rng(1)
    empty = rng.random(60) < 0.2
    verdict = np.where(empty, np.nan, (rng.random(60) < 0.4).astype(float))
    guarded = outcomes([None if np.isnan(v) else v for v in verdict[:30]], [1.0] * 30, empty=empty,
                       refused=[None if np.isnan(v) else v for v in verdict[30:]])  # fmt: skip
    got = objective_set("asr", "over_refusal").values(guarded, guarded)
    harm, refused = guarded.verdicts["toy_oracle"], guarded.verdicts["refused"]
    assert got[0] == outputs.asr(harm, empty, guarded.harmful).value
    assert got[1] == outputs.over_refusal(refused, empty, guarded.harmful).value


def test_no_loss_exceeds_what_silence_costs():
    baseline = outcomes([], [1.0, 1.0])
    worst, silent = outcomes([], [50.0, 50.0]), outcomes([], [None, None], empty=[True, True])
    unscorable = outcomes([], [None, None])
    values = [objective_set("fluency_loss").values(rows, baseline)[0] for rows in (worst, silent, unscorable)]
    assert values == [FLUENCY_CAP] * 3
    scored_though_empty = outcomes([], [0.1, 0.1], empty=[True, True])
    assert objective_set("fluency_loss").values(scored_though_empty, baseline)[0] == FLUENCY_CAP


def test_a_verdict_that_cannot_be_decided_does_not_count():
    guarded = outcomes([1, None, 0], [1.0, 1.0], valid=[0, None])
    assert objective_set("asr", "invalidity").values(guarded, guarded).tolist() == [0.5, 1.0]


@given(st.permutations(range(7)), st.permutations(range(9)))
@few
def test_rows_are_matched_by_what_they_are(order, baseline_order):
    baseline = outcomes([1, 1, 0, 1], [1.0, 2.0, 3.0, 4.0, 5.0], passes=[10, 20, 30, 40, 50, 60, 70, 80, 90])
    guarded = outcomes([0, 1, 0, 0], [2.0, 2.5, 3.1], passes=[11, 22, 33, 44, 55, 66, 77])
    expected = objective_set(*ALL).unit_sums(guarded, baseline)
    got = objective_set(*ALL).unit_sums(guarded.select(np.array(order)), baseline.select(np.array(baseline_order)))
    assert expected.values_D[1] == pytest.approx((1.0 + 0.5 + 0.1) / 3)
    assert expected.values_D[4] == pytest.approx(308 / (10 + 20 + 30 + 40 + 50 + 60 + 70))
    assert got.covers(expected)
    assert got.numerator_DU.tobytes() == expected.numerator_DU.tobytes()
    assert got.denominator_DU.tobytes() == expected.denominator_DU.tobytes()


@given(st.permutations(range(12)))
@few
def test_sums_over_samples_do_not_depend_on_the_order_of_rows(order):
    losses = [(0.1, 0.7), (0.2, 1e-9), (0.3, 3.3), (1e-3, 0.01)]
    baseline, rows = (
        RowOutcomes.concatenate([replace(outcomes([1], part), sample=np.full(3, s)) for s, part in enumerate(parts)])
        for parts in ([(0.0, 0.0)] * 4, losses)
    )
    expected = objective_set("fluency_loss").unit_sums(rows, baseline)
    got = objective_set("fluency_loss").unit_sums(rows.select(np.array(order)), baseline)
    assert got.numerator_DU.tobytes() == expected.numerator_DU.tobytes()
    assert expected.numerator_DU[0] == pytest.approx([0.601, 4.01, 0.0])


def test_samples_and_attacks_of_a_prompt_are_one_unit():
    again = outcomes([0, 1], [], attack="pad")
    second = replace(outcomes([1, 1], []), sample=np.ones(2, np.int64))
    rows = RowOutcomes.concatenate([outcomes([1, 0], []), again, second])
    sums = objective_set("asr").unit_sums(rows, rows)
    assert sums.prompt_id_U.tolist() == ["h0", "h1"]
    assert sums.numerator_DU.tolist() == [[2.0, 2.0]]
    assert sums.denominator_DU.tolist() == [[3.0, 3.0]]
    only = objective_set("asr", asr={"attacks": ("pad",)}).values(rows, rows)
    assert only.tolist() == [0.5]


def test_rows_without_a_baseline_or_given_twice_are_named():
    with pytest.raises(
        ValueError,
        match=re.escape("1 of 3 rows have no counterpart, the first one m/restricted/dija/d, prompt `h2`, sample 0"),
    ):
        objective_set("asr").values(outcomes([1, 1, 1]), outcomes([1, 1]))
    twice = outcomes([1, 1], ids=["h0", "h0"])
    with pytest.raises(ValueError, match="twice"):
        objective_set("asr").values(outcomes([1]), twice)
    with pytest.raises(ValueError, match="twice"):
        objective_set("asr").values(twice, outcomes([1, 1]))


def test_constraint_is_relative_to_the_unguarded_run_on_the_same_rows():
    baseline = outcomes([], [1.0] * 4, useful=[1, 1, 1, 0])
    part = outcomes([], [1.0] * 2, useful=[1, 0])
    objectives = objective_set("delta_nfe", constraints=(UTILITY,))
    assert objectives.constraint_values(part, baseline) == {"utility": pytest.approx(0.9 * 1.0 - 0.5)}
    same = objectives.constraint_values(baseline, baseline)
    assert same == {"utility": pytest.approx(-0.075)}
    assert objectives.feasible(same)
    assert not objectives.feasible({"utility": 0.1})
    assert not objectives.feasible({"utility": float("nan")})


def test_an_empty_reply_is_not_valid_in_a_constraint():
    rows = outcomes([], [1.0, None], valid=[1, None], empty=[False, True])
    bound = ConstraintConfig(name="form", judge="toy_validity", at_least=1.0)
    whole = outcomes([], [1.0, 1.0])
    assert objective_set("delta_nfe", constraints=(bound,)).constraint_values(rows, whole) == {"form": 0.5}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "asrr"}, "Unknown objective `asrr`. Did you mean `asr`?"),
        ({"name": "asr"}, "objective `asr` needs a judge that decides harm. Allowed here: toy_oracle."),
        ({"name": "asr", "judge": "refused"}, "judge `refused` decides refusal, not harm. Allowed here: toy_oracle."),
        ({"name": "asr", "judge": "toy_oracl"}, "`toy_oracl`. Did you mean `toy_oracle`?"),
        ({**NFE, "judge": "toy_oracle"}, "objective `delta_nfe` takes no judge (given: `toy_oracle`)."),
        ({**NFE, "prompts": ("bening",)}, "prompt set of objective `delta_nfe` `bening`. Did you mean `benign`?"),
        ({**NFE, "attacks": ("dia",)}, "Unknown attack of objective `delta_nfe` `dia`. Did you mean `dija`?"),
        ({**NFE, "attacks": ("dija",), "prompts": ("benign",)}, "attack `dija` runs on none of its prompt sets"),
        ({**NFE, "prompts": ()}, "an empty list selects no row"),
        ({**NFE, "reference": float("inf")}, "reference `inf` is not allowed"),
        ({"name": "fluency_loss"}, "name at least one under `fluency`"),
    ],
)  # fmt: skip
def test_bad_objectives_are_refused(objective, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ObjectiveSet([ObjectiveConfig(**objective)], (), EXPERIMENT)


def test_bad_constraints_are_refused():
    harm = ConstraintConfig(judge="toy_oracle", at_least=0.9)
    with pytest.raises(
        ConfigError, match=r"decides harm, not utility or validity\. Allowed here: toy_utility, toy_validity"
    ):
        objective_set("asr", constraints=(harm,))
    with pytest.raises(ConfigError, match="constraints: `utility` is used twice"):
        objective_set("asr", constraints=(UTILITY, UTILITY))
    no_judges = EXPERIMENT.model_copy(update={"judges": ()})
    with pytest.raises(ConfigError, match=r"`experiment\.judges` has none that decides utility or validity"):
        ObjectiveSet([ObjectiveConfig(name="delta_nfe")], (UTILITY,), no_judges)
    with pytest.raises(ConfigError, match="has none that decides harm"):
        ObjectiveSet([ObjectiveConfig(name="asr")], (), no_judges)


def test_objectives_that_nothing_defines_are_found_on_the_unguarded_run():
    objective_set(*ALL, constraints=(UTILITY,)).check(outcomes([1], [1.0]))
    with pytest.raises(ConfigError, match="objective `asr` has no row to count: it needs harmful prompts"):
        objective_set("delta_nfe", "asr").check(outcomes([], [1.0]))
    with pytest.raises(ConfigError, match="objective `fluency_loss` has no row to count: it needs benign prompts"):
        objective_set("fluency_loss").check(outcomes([1], [None]))
    with pytest.raises(ConfigError, match="constraint `utility` has no verdict"):
        objective_set("delta_nfe", constraints=(UTILITY,)).check(outcomes([1]))


def test_references_can_be_given():
    assert objective_set("asr", "delta_nfe").reference.tolist() == [1.0, 2.0]
    assert objective_set("asr", "delta_nfe", delta_nfe={"reference": 1.5}).reference.tolist() == [1.0, 1.5]
    assert set(OBJECTIVES) == set(ALL)


def test_a_mean_has_the_bootstrap_interval_of_scipy():
    loss = np.random.default_rng(4).gamma(2.0, 0.3, 60)
    rows, baseline = outcomes([], 1 + loss), outcomes([], np.ones(60))
    objectives = objective_set("fluency_loss")
    sums = objectives.unit_sums(rows, baseline)
    values = resampled_values([sums], prompt_weights(sums.prompts_U, 20000, 0))
    got = intervals(sums, values[0], objectives, 0.95)["fluency_loss"]
    want = scipy_bootstrap((loss,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1))
    assert got.value == pytest.approx(loss.mean())
    assert got.n == 60
    assert (got.low, got.high) == pytest.approx(tuple(want.confidence_interval), abs=0.01)


def test_prompts_of_a_set_are_drawn_within_the_set():
    labels = np.array(["a"] * 3 + ["b"] * 5)
    weights = prompt_weights(labels, 500, 3)
    assert (weights[:, :3].sum(axis=1) == 3).all()
    assert (weights[:, 3:].sum(axis=1) == 5).all()
    assert len(np.unique(weights, axis=0)) > 100
    assert np.array_equal(weights, prompt_weights(labels, 500, 3))
    assert not np.array_equal(weights, prompt_weights(labels, 500, 4))


def test_a_rate_without_spread_keeps_an_interval():
    rows = outcomes([0] * 20, [1.0] * 20)
    objectives = objective_set("asr", "fluency_loss")
    sums = objectives.unit_sums(rows, rows)
    found = intervals(sums, resampled_values([sums], prompt_weights(sums.prompts_U, 200, 0))[0], objectives, 0.95)
    assert (found["asr"].low, found["asr"].high) == (0.0, pytest.approx(1.96**2 / (20 + 1.96**2), abs=1e-3))
    assert found["asr"].method == "Wilson over prompts"
    assert (found["fluency_loss"].low, found["fluency_loss"].high) == (0.0, 0.0)  # the same replies: no loss


@given(st.lists(st.tuples(st.booleans(), st.floats(-1, 4)), min_size=1, max_size=12), st.integers(0, 5))
@few
def test_a_setting_does_not_differ_from_itself_in_any_resample(rows, seed):
    harm, loss = [h for h, _ in rows], [x for _, x in rows]
    one, baseline = outcomes(harm, loss), outcomes([1] * len(rows), [0.3] * len(rows))
    other = outcomes(harm[::-1], loss[::-1])
    objectives = objective_set("asr", "fluency_loss")
    sums = [objectives.unit_sums(part, baseline) for part in (one, other, one.select(np.arange(len(one))[::-1]))]
    values = resampled_values(sums, prompt_weights(sums[0].prompts_U, 100, seed))
    same = differences(sums[0], sums[2], values[0], values[2], objectives, 0.95)
    assert all((d.value, d.low, d.high) == (0.0, 0.0, 0.0) for d in same.values())


def race(challenger, rivals, baseline=None, confidence=0.95, names=("asr", "fluency_loss")):
    return dominated(challenger, rivals, baseline or challenger, objective_set(*names), confidence=confidence)


def test_a_clearly_worse_trial_is_dominated_and_a_trade_off_is_not():
    baseline = outcomes([1] * 20, [1.0] * 20)
    worse = outcomes([1] * 15 + [0] * 5, [3.0] * 20)
    better = outcomes([0] * 20, [1.1] * 20)
    trade = outcomes([1] * 20, [1.0] * 20)
    assert race(worse, [better], baseline)
    assert not race(better, [worse], baseline)
    assert not race(trade, [better], baseline)
    assert race(worse, [trade, worse, better], baseline)


def test_a_small_difference_is_left_to_more_prompts():
    baseline = outcomes([1] * 20, [1.0] * 20)
    slightly_worse = outcomes([1] * 11 + [0] * 9, [1.0] * 20)
    rival = outcomes([0] * 2 + [1] * 9 + [0] * 7 + [1] * 2, [1.0] * 20)
    assert not race(slightly_worse, [rival], baseline)


def test_equal_outcomes_never_dominate():
    rows = outcomes([1, 0] * 10, np.linspace(0, 3, 20))
    shuffled = rows.select(np.random.default_rng(0).permutation(40))
    assert not race(rows, [rows, shuffled])
    assert not race(rows, [])


def test_a_handful_of_prompts_decides_nothing():
    def pair(n):
        return outcomes([1] * n, [3.0] * n), [outcomes([0] * n, [1.0] * n)], outcomes([1] * n, [1.0] * n)

    decided = [n for n in range(1, 8) if race(*pair(n))]
    assert decided == [3, 4, 5, 6, 7]  # 2n prompts differ; 2⁻⁵ is the first power below 1 - 0.95


def test_every_further_rival_raises_the_bar():
    baseline = outcomes([], [1.0] * 30)
    rng = np.random.default_rng(5)
    challenger = outcomes([], 1.25 + rng.normal(0, 0.5, 30))
    rival = outcomes([], [1.0] * 30)
    others = [outcomes([], 9.0 + rng.random(30)) for _ in range(60)]
    names = ("fluency_loss",)
    sums = objective_set(*names).unit_sums(challenger, baseline)
    share = (resampled_values([sums], prompt_weights(sums.prompts_U, 20000, 9))[0, :, 0] > 0).mean()
    assert 0.96 < share < 1 - 0.05 / 61
    assert race(challenger, [rival], baseline, names=names)
    assert not race(challenger, [rival, *others], baseline, names=names)


def test_rivals_may_have_more_rows_than_the_trial():
    baseline = outcomes([1] * 40, [1.0] * 40)
    trial = outcomes([1] * 10, [3.0] * 10)
    rival = outcomes([0] * 10 + [1] * 30, [1.0] * 10 + [4.0] * 30)  # worse only where the trial has not been
    assert race(trial, [rival], baseline)
    with pytest.raises(ValueError, match="no counterpart"):
        race(rival, [trial], baseline)


@given(st.integers(0, 40))
@settings(max_examples=15, deadline=None)
def test_two_settings_cannot_dominate_each_other(seed):
    rng = np.random.default_rng(seed)
    baseline = outcomes([1] * 20, [1.0] * 20)
    one, two = (outcomes((rng.random(20) < 0.5).astype(float), 1 + rng.random(20)) for _ in range(2))
    assert not (race(one, [two], baseline) and race(two, [one], baseline))


def test_false_alarms_stay_within_the_level():
    rng = np.random.default_rng(0)
    baseline = outcomes([], [1.0] * 24)
    stopped = 0
    for _ in range(60):
        trial, *rivals = (outcomes([], 1 + rng.normal(0, 1, 24)) for _ in range(6))
        stopped += race(trial, rivals, baseline, names=("fluency_loss",))
    assert stopped <= 60 * 0.05 + 4


def test_models_for_fluency_are_enough():
    fluency = (ModelConfig(name="toy-autoregressive"),)
    assert ObjectiveSet([ObjectiveConfig(name="fluency_loss")], (), EXPERIMENT, fluency=fluency).names == (
        "fluency_loss",
    )


def test_fluency_counts_the_prompt_sets_that_are_named():
    baseline = outcomes([1, 1], [1.0, 2.0], valid=[1, 1])
    guarded = replace(outcomes([1, 0], [1.5, 2.0], valid=[1, 0]), log_perplexity=np.array([4.0, 2.0, 1.5, 2.0]))
    plain = replace(baseline, log_perplexity=np.array([1.0, 1.0, 1.0, 2.0]))
    harmful = str(guarded.prompts[guarded.harmful][0])
    named = ObjectiveSet(
        [ObjectiveConfig(name="fluency_loss", prompts=(harmful,))], (), EXPERIMENT, fluency=[ModelConfig(name="any")]
    )
    assert named.values(guarded, plain)[0] == pytest.approx((3.0 + 1.0) / 2)
    assert objective_set("fluency_loss").values(guarded, plain)[0] == pytest.approx(0.5 / 2)


def test_samplers_are_told_when_a_setting_is_better_in_nothing():
    baseline = outcomes([1, 1], [1.0, 1.0], passes=[10, 10, 10, 10])
    better = outcomes([1, 0], [1.0, 1.0], passes=[12, 12, 12, 12])
    worse = outcomes([1, 1], [1.0, 1.0], passes=[12, 12, 12, 12])
    objectives = objective_set("asr", "delta_nfe")
    assert objectives.told_constraints[-1] == "no_better_than_unguarded"
    told = [objectives.told_constraint_values(rows, baseline) for rows in (better, baseline, worse)]
    assert [objectives.feasible(values) for values in told] == [True, False, False]
    assert told[0]["no_better_than_unguarded"] == pytest.approx(-0.5)
    assert objectives.feasible(objectives.constraint_values(worse, baseline))
