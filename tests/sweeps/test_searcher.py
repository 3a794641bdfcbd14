from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from tests.sweeps.search_world import BASELINE, COARSE, OBJECTIVES, World, sweep_config
from tests.sweeps.sweep_outcomes import EXPERIMENT, UTILITY, objective_set, outcomes

from dsprobe.config import Spec
from dsprobe.errors import ConfigError, DSProbeError, StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.sweeps.archive import Archive, increments
from dsprobe.sweeps.racing import Racing
from dsprobe.sweeps.searcher import RecordedOptunaSearch, StudySearcher
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import Study
from dsprobe.sweeps.trial import Setup, rungs

SPACE = SearchSpace(sweep_config(COARSE).space, EXPERIMENT.decodings[0])
WINDOWS = {"name": "renoise", "window": [{"low": 1, "high": 30}, {"low": 3, "high": 32}]}


@pytest.fixture
def make(tmp_path: Path):
    """A searcher over a fresh study, with the list of trials that it told of."""
    opened = []

    def build(space=SPACE, budget=3, sampler="random", reasons=None):
        study = Study.open(str(tmp_path / "study.journal"), "s", OBJECTIVES.names, space, Spec(name=sampler), 0)
        opened.append(study)
        told = []
        searcher = StudySearcher(
            study, space, OBJECTIVES, budget=budget, last_rung=1.0, reasons={} if reasons is None else reasons,
            observer=told.append,
        )  # fmt: skip
        return searcher, study, told

    yield build
    for study in opened:
        study.close()


def result(rung=1.0, values=(0.1, 0.2, 1.0), **more):
    known = {f"objectives/{name}": value for name, value in zip(OBJECTIVES.names, values, strict=True)}
    attributes = {"digest": "d", "cached": [], "passes_used": 5, "passes_from_scratch": 9, "wall_seconds": 0.5}
    return {**known, **attributes, "rung": rung, "done": True, "trial_id": "t", **more}


def test_it_asks_until_the_budget_is_spent(make):
    searcher, _, _ = make(budget=2)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert [first["number"], second["number"]] == [0, 1]
    guardrail = SPACE.guardrail(first["parameters"])
    assert first["guardrail"] == guardrail.model_dump_json()
    assert searcher.suggest("c") == Searcher.FINISHED
    assert not searcher.exhausted


def test_an_exhausted_space_ends_it(make):
    searcher, study, _ = make(budget=50, sampler="grid")
    for n in range(len(SPACE.grid())):
        assert searcher.suggest(str(n))["number"] == n
    assert searcher.suggest("next") == Searcher.FINISHED
    assert searcher.exhausted
    assert study.finished() == []


def test_a_result_on_all_prompts_completes_the_trial(make):
    searcher, study, told = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", result())
    (trial,) = study.finished()
    assert (trial.state, trial.values, trial.reason) == ("complete", (0.1, 0.2, 1.0), "")
    assert trial.attributes == {
        "digest": "d", "rung": 1.0, "cached": [], "passes_used": 5, "passes_from_scratch": 9, "wall_seconds": 0.5,
    }  # fmt: skip
    assert [t.number for t in told] == [0]


@pytest.mark.parametrize(("values", "kept"), [((0.1, 0.2, 1.0), (0.1, 0.2, 1.0)), ((0.1, float("nan"), 1.0), None)])
def test_a_result_on_a_rung_is_a_stopped_trial(make, values, kept):
    searcher, study, _ = make(reasons={"a": "dominated"})
    searcher.suggest("a")
    searcher.on_trial_complete("a", result(0.5, values))
    (trial,) = study.finished()
    assert (trial.state, trial.values, trial.reason, trial.attributes["rung"]) == ("stopped", kept, "dominated", 0.5)


@pytest.mark.parametrize(
    ("reasons", "given", "reason"),
    [
        ({"a": "ZeroDivisionError: x"}, (None, True), "ZeroDivisionError: x"),
        ({"a": "no reply"}, ({"failure": "no reply"}, False), "no reply"),
        ({}, (None, False), "the trial ended without a result"),
        ({"a": "lost"}, (result(0.5), True), "lost"),
    ],
)
def test_what_ends_without_values_fails_with_its_reason(make, reasons, given, reason):
    searcher, study, told = make(reasons=reasons)
    config = searcher.suggest("a")
    searcher.on_trial_complete("a", *given)
    (trial,) = study.finished()
    assert (trial.state, trial.reason, trial.attributes) == ("failed", reason, {"digest": config["digest"]})
    assert told == [trial]


def test_parameters_that_make_no_guardrail_fail_at_once(make):
    searcher, study, told = make(SearchSpace(sweep_config(WINDOWS).space, EXPERIMENT.decodings[0]), budget=12)
    started = []
    while (config := searcher.suggest(str(len(started)))) != Searcher.FINISHED:
        started.append(config["number"])
    failed = study.finished()
    assert failed
    assert all(t.state == "failed" and "window" in t.reason and t.attributes == {"digest": ""} for t in failed)
    assert sorted(started + [t.number for t in failed]) == list(range(12))
    assert told == failed


def test_tunes_snapshots_are_refused(make, tmp_path):
    searcher, _, _ = make()
    with pytest.raises(NotImplementedError, match="The study keeps what the searcher knows"):
        searcher.save(str(tmp_path / "x"))
    with pytest.raises(StorageError, match=r"is not resumed from Ray Tune's snapshots\. Run the same sweep again"):
        searcher.restore(str(tmp_path / "x"))


def optuna_search(sampler="random", **reasons):
    told = []
    searcher = RecordedOptunaSearch(
        SPACE, OBJECTIVES, sampler=Spec(name=sampler), seed=0, study_name="mine", reasons=reasons, observer=told.append
    )
    return searcher, told


def test_rays_searcher_marks_failures():
    searcher, told = optuna_search(b="lost")
    for trial_id in "abc":
        searcher.suggest(trial_id)
    searcher.on_trial_complete("a", result())
    searcher.on_trial_complete("b", None, error=True)
    nothing = {f"objectives/{name}": float("nan") for name in OBJECTIVES.names}
    searcher.on_trial_complete("c", {**nothing, "failure": "undefined"})
    states = [trial.state for trial in searcher._ot_study.trials]
    fail = optuna.trial.TrialState.FAIL
    assert states == [optuna.trial.TrialState.COMPLETE, fail, fail]
    assert searcher._ot_study.study_name == "mine"
    assert [(t.number, t.state, t.values, t.reason) for t in told] == [
        (0, "complete", (0.1, 0.2, 1.0), ""), (1, "failed", None, "lost"), (2, "failed", None, "no result"),
    ]  # fmt: skip


def test_rays_searcher_proposes_the_same_again():
    proposals = []
    for _ in range(2):
        searcher, _ = optuna_search("tpe")
        proposals.append([searcher.suggest(str(n))["parameters"] for n in range(5)])
    assert proposals[0] == proposals[1]
    assert all(SPACE.guardrail(parameters) for parameters in proposals[0])
    with pytest.raises(ConfigError, match="has no grid"):
        optuna_search("grid")


def racing_over(folder, objectives=OBJECTIVES, shares=(0.5, 1.0), baseline=BASELINE):
    archive = Archive(ObjectStore(str(folder)))
    return archive, Racing(
        archive=archive, objectives=objectives, baseline=baseline, rungs=shares, confidence=0.95, seed=0
    )  # fmt: skip


def halves(archive, digest, rows):
    """Keep 16 harmful and 16 benign rows as two rungs of half the prompts each."""
    for start, stop in increments((0.5, 1.0)):
        archive.put(
            digest, start, stop, rows.select((rows.prompt_index >= 16 * start) & (rows.prompt_index < 16 * stop))
        )


def reported(racing, trial_id, digest, rung):
    trial = SimpleNamespace(trial_id=trial_id)
    return racing.on_trial_result(None, trial, {"digest": digest, "rung": rung})


GOOD = outcomes([0] * 16, [1.0] * 16)
HARMFUL = outcomes([1] * 16, [1.0] * 16)
DULL = outcomes([0] * 16, [2.0] * 16)
OTHER = outcomes([1] * 16, [0.5] * 16)
PAIR = objective_set("asr", "fluency_loss")


@pytest.fixture
def hand_made(tmp_path):
    archive, racing = racing_over(tmp_path, PAIR, baseline=outcomes([1] * 16, [1.0] * 16))
    for digest, rows in {"good": GOOD, "harmful": HARMFUL, "dull": DULL, "other": OTHER, "twin": GOOD}.items():
        halves(archive, digest, rows)
    return racing


def test_what_the_front_beats_is_stopped(hand_made):
    assert reported(hand_made, "1", "harmful", 0.5) == TrialScheduler.CONTINUE  # nobody to compare with
    hand_made.enter("good")
    assert reported(hand_made, "2", "harmful", 0.5) == TrialScheduler.STOP
    assert reported(hand_made, "3", "dull", 0.5) == TrialScheduler.STOP
    assert reported(hand_made, "4", "other", 0.5) == TrialScheduler.CONTINUE  # a trade-off
    assert reported(hand_made, "5", "twin", 0.5) == TrialScheduler.CONTINUE  # a tie
    assert hand_made.reasons == dict.fromkeys("23", "dominated at 50% of the prompts, confidence 0.95")


def test_what_is_complete_goes_on_and_competes(hand_made):
    for trial_id, digest in enumerate(("harmful", "good", "other", "dull", "twin")):
        assert reported(hand_made, str(trial_id), digest, 1.0) == TrialScheduler.CONTINUE
    assert hand_made.front == ("good", "other", "twin")


def test_a_setting_never_competes_with_itself(hand_made):
    hand_made.enter("harmful")
    assert not hand_made.beaten("harmful", 0.5)


def test_trials_further_on_are_rivals(hand_made):
    hand_made._rungs = (0.5, 0.75, 1.0)
    archive = hand_made._archive
    archive.put("good", 0.5, 0.75, archive.get("good", 0.5, 1.0))
    assert reported(hand_made, "1", "good", 0.5) == TrialScheduler.CONTINUE
    assert reported(hand_made, "2", "harmful", 0.5) == TrialScheduler.CONTINUE  # no further than itself
    assert reported(hand_made, "1", "good", 0.75) == TrialScheduler.CONTINUE
    assert reported(hand_made, "2", "harmful", 0.5) == TrialScheduler.STOP
    hand_made.on_trial_error(None, SimpleNamespace(trial_id="1", error_file=None))
    assert hand_made.reasons["1"] == "the trial ended without an error message"
    assert reported(hand_made, "3", "harmful", 0.5) == TrialScheduler.CONTINUE


def test_settings_that_break_a_constraint_beat_nobody(tmp_path):
    baseline = outcomes([1] * 16, [1.0] * 16)
    archive, racing = racing_over(
        tmp_path, objective_set("asr", "fluency_loss", constraints=[UTILITY]), baseline=baseline
    )
    halves(archive, "useless", outcomes([0] * 16, [1.0] * 16, useful=[0] * 16))
    halves(archive, "harmful", HARMFUL)
    racing.enter("useless")
    assert racing.front == ()
    assert reported(racing, "1", "harmful", 0.5) == TrialScheduler.CONTINUE


def test_one_rung_needs_no_racing(tmp_path):
    _, racing = racing_over(tmp_path, shares=(1.0,))
    assert reported(racing, "1", "never written", 1.0) == TrialScheduler.CONTINUE


def test_a_lost_process_is_told_in_rays_words(tmp_path):
    path = tmp_path / "error.txt"
    path.write_text("Failure # 1 (occurred at 2026)\n\n The actor died unexpectedly.\n\tclass_name: ImplicitFunc\n")
    _, racing = racing_over(tmp_path)
    racing.on_trial_error(None, SimpleNamespace(trial_id="1", error_file=str(path)))
    racing.on_trial_result(None, SimpleNamespace(trial_id="2"), {"failure": "ZeroDivisionError: x"})
    racing.on_trial_error(None, SimpleNamespace(trial_id="2", error_file=str(path)))
    assert racing.reasons == {"1": "The actor died unexpectedly.", "2": "ZeroDivisionError: x"}


def config(parameters):
    guardrail = SPACE.guardrail(parameters)
    return {"guardrail": guardrail.model_dump_json(), "digest": "d"}


@pytest.mark.parametrize("reuse", [True, False])
def test_a_trial_takes_what_is_archived(tmp_path, reuse):
    archive = Archive(ObjectStore(str(tmp_path)))
    point = SPACE.grid()[0]
    guardrail = SPACE.guardrail(point)
    archive.put("d", 0.0, 0.5, World().evaluate(guardrail, 0.0, 0.5))
    setup = Setup(
        evaluator=World(str(tmp_path / "log")), archive=archive, objectives=OBJECTIVES, baseline=BASELINE,
        rungs=(0.5, 1.0), reuse=reuse,
    )  # fmt: skip
    half, whole = rungs(config(point), setup)
    passes = int(World().evaluate(guardrail, 0.0, 1.0).passes.sum())
    assert (half["rung"], half["cached"]) == (0.5, [0.5] if reuse else [])
    assert (whole["rung"], whole["cached"]) == (1.0, half["cached"])
    assert (whole["passes_used"], whole["passes_from_scratch"]) == (passes // 2 if reuse else passes, passes)
    assert whole["objectives"] == dict(
        zip(OBJECTIVES.names, OBJECTIVES.values(archive.through("d", (0.5, 1.0)), BASELINE).tolist(), strict=True)
    )
    assert len((tmp_path / "log").read_text().splitlines()) == (1 if reuse else 2)


def test_an_objective_may_be_undefined_on_a_rung_but_not_at_the_end(tmp_path):
    setup = Setup(
        evaluator=World(undefined_above=0.0), archive=Archive(ObjectStore(str(tmp_path))), objectives=OBJECTIVES,
        baseline=BASELINE, rungs=(0.5, 1.0),
    )  # fmt: skip
    reports = rungs(config(SPACE.grid()[0]), setup)
    assert math.isnan(next(reports)["objectives"]["asr"])
    with pytest.raises(DSProbeError, match="objective `asr` is nan: no row of the trial counts"):
        next(reports)
    with pytest.raises(ConfigError, match="window 5 to 3"):
        next(rungs({"failure": "window 5 to 3"}, setup))
