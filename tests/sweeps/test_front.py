from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sweeps.sweep_outcomes import UTILITY, objective_set, outcomes, trial

from dsprobe.errors import ConfigError
from dsprobe.metrics.pareto import hypervolume
from dsprobe.sweeps.config import FrontConfig
from dsprobe.sweeps.front import chosen, compute_front, with_validation
from dsprobe.sweeps.importance import MIN_TRIALS, importances, importances_note

QUICK = FrontConfig(resamples=200)
TWO = objective_set("asr", "fluency_loss")
few = settings(max_examples=25, deadline=None)
N = 20
BASELINE = outcomes([1] * N, [1.0] * N)


def setting(harmful, loss, **kwargs):
    """Outcomes with `harmful` of `N` successful attacks and one loss for all benign prompts."""
    return outcomes([1] * harmful + [0] * (N - harmful), [1.0 + loss] * N, **kwargs)


def values(point):
    return tuple(point.objectives[name].value for name in TWO.names)


CASES = [
    trial(0, setting(16, 0.1)),
    trial(1, setting(10, 0.2)),
    trial(2, setting(4, 0.3)),
    trial(3, setting(2, 1.2)),
    trial(4, setting(12, 0.9)),  # beaten by 1 and 2
    trial(5, setting(20, 0.0)),  # changes nothing
    trial(6, setting(20, 0.5)),  # worse than leaving the model alone
    trial(7, setting(10, 0.2)),  # as good as 1
    trial(8, setting(4, 0.3), digest="d2"),  # the setting of 2 again
]


def test_front_by_hand():
    front = compute_front(CASES, BASELINE, TWO, QUICK)
    assert [(p.label, p.trial, values(p)) for p in front.points] == [
        ("p01", 3, (0.1, pytest.approx(1.2))),
        ("knee", 2, (0.2, pytest.approx(0.3))),
        ("p02", 1, (0.5, pytest.approx(0.2))),
        ("p03", 0, (0.8, pytest.approx(0.1))),
    ]
    assert [p.equivalent for p in front.points] == [(), (), (7,), ()]
    assert front.points[1].guardrail.name == "knee"
    assert front.points[1].guardrail.stack == CASES[2].guardrail.stack
    assert front.knee == "knee"
    assert front.baseline["asr"].value == 1.0
    assert front.baseline["fluency_loss"].value == 0.0
    assert front.reference == {"asr": 1.0, "fluency_loss": 2.0}
    volume = 0.1 * 0.8 + 0.3 * 1.7 + 0.3 * 1.8 + 0.2 * 1.9
    assert front.hypervolume.value == pytest.approx(volume)
    assert front.hypervolume.low < volume < front.hypervolume.high
    alone = {p.trial: p.contribution for p in front.points}
    assert alone == pytest.approx({3: 0.1 * 0.8, 2: 0.3 * 0.9, 1: 0.3 * 0.1, 0: 0.2 * 0.1})


def test_the_unguarded_model_is_an_end_of_the_scales_of_the_knee():
    trials = [trial(0, setting(8, 0.1)), trial(1, setting(2, 0.5))]
    labels = {p.trial: p.label for p in compute_front(trials, BASELINE, TWO, QUICK).points}
    assert labels == {0: "knee", 1: "p01"}
    beaten = outcomes([1] * N, [1.0] * N)
    better = [*trials, trial(2, setting(18, -0.1)), trial(3, setting(20, -0.11))]
    labels = {p.trial: p.label for p in compute_front(better, beaten, TWO, QUICK).points}
    assert labels == {0: "knee", 1: "p01", 2: "p02", 3: "p03"}


def test_chosen_points_are_the_knee_the_ends_and_then_what_adds_most():
    front = compute_front(CASES, BASELINE, TWO, QUICK)
    assert [p.trial for p in chosen(front, 1)] == [2]
    assert [p.trial for p in chosen(front, 3)] == [2, 3, 0]
    assert [p.trial for p in chosen(front, 9)] == [2, 3, 0, 1]
    assert chosen(compute_front([], BASELINE, TWO, QUICK), 3) == ()
    longer = [trial(n, setting(*cell)) for n, cell in enumerate([(2, 1.2), (4, 0.3), (8, 0.28), (12, 0.1), (16, 0.05)])]
    assert [p.trial for p in chosen(compute_front(longer, BASELINE, TWO, QUICK), 5)] == [1, 0, 4, 3, 2]


def test_attainment_counts_all_work_and_only_useful_trials():
    trials = [
        trial(0, setting(6, 0.9), cached=False),
        trial(1, outcomes([1] * 5, [1.5] * 5), state="stopped", rung=0.25),
        trial(2, None, state="failed", rung=0.0, reason="no such scorer"),
        trial(3, setting(4, 0.3, passes=30, used=3)),
        trial(4, setting(4, 0.3, passes=30, used=3), digest="d3", cached=True),
        trial(5, setting(20, 0.0, used=0)),
    ]
    front = compute_front(trials, BASELINE, TWO, QUICK)
    steps = [(s.trials, s.passes_used, s.passes_from_scratch) for s in front.attainment]
    assert steps == [
        (0, 400, 400),
        (1, 800, 800),
        (2, 900, 900),
        (3, 900, 900),
        (4, 1020, 2100),
        (5, 1020, 3300),
        (6, 1020, 3700),
    ]
    first, best = 0.7 * 1.1, 0.8 * 1.7
    assert [s.hypervolume for s in front.attainment] == pytest.approx([0, first, first, first, best, best, best])
    assert front.attainment[-1].hypervolume == pytest.approx(front.hypervolume.value)


def test_what_is_no_better_than_leaving_the_model_alone_attains_nothing():
    baseline = setting(16, 0.0)
    trials = [trial(0, setting(18, 0.5)), trial(1, setting(16, 0.0)), trial(2, setting(10, 0.5))]
    front = compute_front(trials, baseline, TWO, QUICK)
    assert [s.hypervolume for s in front.attainment] == pytest.approx([0, 0, 0, 0.5 * 1.5])


def test_stopped_and_failed_trials_are_measured_but_never_on_the_front():
    stopped = trial(1, outcomes([0] * 5, [1.0] * 5), state="stopped", rung=0.25)
    failed = trial(2, None, state="failed", rung=0.0)
    front = compute_front([stopped, failed, CASES[0]], BASELINE, TWO, QUICK)
    assert [p.trial for p in front.points] == [0]
    assert set(front.measures) == {0, 1}
    assert front.measures[1].objectives["asr"].value == 0.0
    assert front.measures[1].objectives["asr"].n == 5


def test_constraints_decide_who_may_be_on_the_front():
    objectives = objective_set("asr", "fluency_loss", constraints=(UTILITY,))
    useless = setting(0, 0.1, useful=[1] * 17 + [0] * 3)
    kept = setting(4, 0.3, useful=[1] * 18 + [0] * 2)
    front = compute_front([trial(0, useless), trial(1, kept)], BASELINE, objectives, QUICK)
    assert [p.trial for p in front.points] == [1]
    assert front.measures[0].constraints == {"utility": pytest.approx(0.05)}
    assert (front.measures[0].feasible, front.measures[1].feasible) == (False, True)


def test_a_sweep_without_a_useful_trial_has_an_empty_front():
    front = compute_front([trial(5, setting(20, 0.4))], BASELINE, TWO, QUICK)
    assert front.points == ()
    assert front.knee is None
    assert (front.hypervolume.value, front.hypervolume.low, front.hypervolume.high) == (0, 0, 0)


def test_attained_tells_a_clear_point_from_a_lucky_one():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.4, N)
    clear = trial(0, setting(0, 1.0))
    lucky = trial(1, outcomes([1] * 10 + [0] * 10, 1.3 + noise - noise.mean()))
    rival = trial(2, outcomes([0] * 10 + [1] * 10, 1.31 + noise[::-1] - noise.mean()))
    front = compute_front([clear, lucky, rival], BASELINE, TWO, FrontConfig(resamples=1000))
    attained = {p.trial: p.attained for p in front.points}
    assert set(attained) == {0, 1}
    assert attained[0] == 1.0
    assert 0.5 < attained[1] < 0.95


def test_change_is_paired_with_the_unguarded_run():
    noisy = np.random.default_rng(2).normal(1.0, 2.0, N)
    baseline = outcomes([1] * N, noisy)
    front = compute_front([trial(0, outcomes([0] * 12 + [1] * 8, noisy + 0.25))], baseline, TWO, QUICK)
    change = front.points[0].change
    assert change["asr"].value == pytest.approx(-0.6)
    assert change["asr"].high < 0
    loss = change["fluency_loss"]
    assert (loss.low, loss.value, loss.high) == pytest.approx((0.25, 0.25, 0.25))


def test_equal_seeds_give_equal_fronts_in_any_order_of_trials():
    first = compute_front(CASES, BASELINE, TWO, QUICK, seed=3)
    second = compute_front(CASES[::-1], BASELINE, TWO, QUICK, seed=3)
    assert first == second
    assert first.hypervolume != compute_front(CASES, BASELINE, TWO, QUICK, seed=4).hypervolume


def test_validation_stands_beside_the_searchs_own_figures():
    front = compute_front(CASES, BASELINE, TWO, QUICK)
    unseen = outcomes([1] * 10, [2.0] * 10, ids=[f"v{i}" for i in range(20)])
    rows = outcomes([1] * 5 + [0] * 5, [2.8] * 10, ids=[f"v{i}" for i in range(20)])
    both = with_validation(front, {"knee": rows}, unseen, TWO, QUICK)
    knee = next(p for p in both.points if p.label == "knee")
    assert values(knee) == (0.2, pytest.approx(0.3))
    assert knee.validation["asr"].value == 0.5
    assert knee.validation["asr"].low < 0.5 < knee.validation["asr"].high
    assert knee.validation["fluency_loss"].value == pytest.approx(0.8)
    assert both.baseline_validation["asr"].value == 1.0
    assert [p.validation is None for p in both.points] == [p.label != "knee" for p in both.points]
    with pytest.raises(ConfigError, match="Unknown label of a front's point `kne`"):
        with_validation(front, {"kne": rows}, unseen, TWO, QUICK)
    with pytest.raises(ValueError, match="Validation of `knee` has rows of 10 prompts, the baseline of 20"):
        with_validation(front, {"knee": rows.select(np.arange(10))}, unseen, TWO, QUICK)


def test_a_complete_trial_must_have_all_rows():
    with pytest.raises(ValueError, match="Trial 3 has rows of 10 prompts, the baseline of 40"):
        compute_front([trial(3, outcomes([1] * 5, [1.0] * 5))], BASELINE, TWO, QUICK)


def test_an_objective_without_rows_is_named_before_anything_else():
    with pytest.raises(ConfigError, match="objective `asr` has no row"):
        compute_front([], outcomes([], [1.0]), TWO, QUICK)


def random_trials(cells):
    return [trial(n, setting(harmful, loss / 4)) for n, (harmful, loss) in enumerate(cells)]


cells = st.lists(st.tuples(st.integers(0, N), st.integers(-2, 6)), max_size=8)


@given(cells)
@few
def test_members_of_the_front_do_not_dominate_each_other(found):
    front = compute_front(random_trials(found), BASELINE, TWO, FrontConfig(resamples=100))
    points = [values(p) for p in front.points]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(points))
    all_values = [(h / N, loss / 4) for h, loss in found]
    want = {
        v for v in all_values
        if not (v[0] >= 1.0 and v[1] >= 0.0)
        and not any(w[0] <= v[0] and w[1] <= v[1] and w != v for w in [*all_values, (1.0, 0.0)])
    }  # fmt: skip
    assert points == [(pytest.approx(a), pytest.approx(b)) for a, b in sorted(want)]
    assert [p.label for p in front.points].count("knee") == bool(points)
    assert front.hypervolume.value == pytest.approx(
        hypervolume(points or np.zeros((0, 2)), [1.0, 2.0], ["minimize"] * 2)
    )


@given(cells.filter(len), st.integers(0, 3), st.integers(1, 4))
@few
def test_a_dominated_trial_changes_nothing_but_the_count(found, more_harm, more_loss):
    config = FrontConfig(resamples=100)
    before = compute_front(random_trials(found), BASELINE, TWO, config)
    harmful, loss = found[0]
    worse = (min(N, harmful + more_harm), loss + more_loss)
    after = compute_front(random_trials([*found, worse]), BASELINE, TWO, config)
    assert [(p.label, p.trial, values(p), p.contribution) for p in before.points] == [
        (p.label, p.trial, values(p), p.contribution) for p in after.points
    ]
    assert after.hypervolume == before.hypervolume
    assert all(a.attained <= b.attained for a, b in zip(after.points, before.points, strict=True))
    curve = [s.hypervolume for s in after.attainment]
    assert curve[:-1] == [s.hypervolume for s in before.attainment]
    assert all(a <= b for a, b in pairwise(curve))


def test_importances_find_the_parameter_that_matters():
    rng = np.random.default_rng(7)
    trials = []
    for n in range(40):
        kind, tau, noise = ["late", "early"][n % 2], float(rng.random()), float(rng.random())
        given_ = {"kind": kind, "noise": noise} | ({"tau": tau} if kind == "late" else {})
        harmful = round(N * (0.2 + 0.7 * tau)) if kind == "late" else 18
        trials.append(trial(n, setting(harmful, 0.5), parameters=given_))
    front = compute_front(trials, BASELINE, TWO, QUICK)
    found = importances(trials, TWO.names, front.measures)
    assert set(found["asr"]) == {"kind", "tau", "noise"}
    assert sum(found["asr"].values()) == pytest.approx(1)
    assert list(found["asr"].values()) == sorted(found["asr"].values(), reverse=True)
    assert list(found["asr"])[-1] == "noise"
    assert found["fluency_loss"] == {}  # the same everywhere
    assert (
        importances_note(trials, front.measures, found)
        == "No parameter tells the best trials from the rest in: fluency_loss."
    )
    assert importances(trials[::-1], TWO.names, front.measures) == found


def test_importances_need_different_complete_trials(caplog):
    repeats = [trial(n, setting(n % 5, 0.1 * (n % 5)), digest=f"d{n % 5}") for n in range(MIN_TRIALS + 4)]
    stopped = [trial(20 + n, outcomes([1], [1.0]), state="stopped", rung=0.1) for n in range(9)]
    trials = [*repeats, *stopped]
    measures = compute_front(trials, BASELINE, TWO, QUICK).measures
    found = importances(trials, TWO.names, measures)
    assert found == {"asr": {}, "fluency_loss": {}}
    assert (
        importances_note(trials, measures, found)
        == f"5 different complete trials; importances need at least {MIN_TRIALS}."
    )
    assert not caplog.records
