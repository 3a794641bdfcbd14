from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest

from dsprobe.config import Spec
from dsprobe.errors import ConfigError, StorageError
from dsprobe.sweeps.study import ExhaustedSpace, Study

SAMPLERS = {
    "random": {"name": "random"},
    "grid": {"name": "grid"},
    "tpe": {"name": "tpe", "startup": 4},
    "nsga2": {"name": "nsga2", "population": 4},
    "gp": {"name": "gp", "startup": 2},
}
TRIALS = {"random": 10, "grid": 10, "tpe": 12, "nsga2": 14, "gp": 6}
KILLS = ["suggesting", "asked", "telling", "enqueueing", "attributes"]
OBJECTIVES = ("asr", "loss")


def kills(sampler):
    return KILLS[:2] if sampler == "gp" else KILLS


def run_jobs(jobs):
    """Signals that ended the jobs' processes."""
    worker = Path(__file__).with_name("proposals.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(worker)], input=json.dumps(jobs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def open_study(tmp_path, make_space, conditional_stack):
    opened = []

    def open_(storage=None, *, name="run", objectives=OBJECTIVES, space=None, sampler="random", **options):
        study = Study.open(
            str(storage or tmp_path / "study.journal"),
            name,
            objectives,
            space or make_space(*conditional_stack),
            Spec.model_validate(sampler),
            options.pop("seed", 0),
            **options,
        )
        opened.append(study)
        return study

    yield open_
    for study in opened:
        study.close()


@pytest.fixture(scope="module")
def killed_and_not(tmp_path_factory, conditional_stack):
    """For every sampler: the journal of an undisturbed sweep, and of one that was killed at every point and resumed."""
    folder = tmp_path_factory.mktemp("kills")
    jobs = []
    for name, sampler in SAMPLERS.items():
        common = {"stack": conditional_stack, "sampler": sampler, "trials": TRIALS[name]}
        jobs.append({**common, "storage": str(folder / f"{name}-whole.journal")})
        jobs += [{**common, "storage": str(folder / f"{name}-killed.journal"), "point": point} for point in kills(name)]
        jobs.append({**common, "storage": str(folder / f"{name}-killed.journal")})
    signals = run_jobs(jobs)
    assert signals == [signal for name in SAMPLERS for signal in (0, *[9] * len(kills(name)), 0)]
    return folder


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_killed_and_resumed_sweep_proposes_what_an_undisturbed_one_does(killed_and_not, open_study, name):
    whole = open_study(killed_and_not / f"{name}-whole.journal", sampler=SAMPLERS[name], constraints=["utility"])
    killed = open_study(killed_and_not / f"{name}-killed.journal", sampler=SAMPLERS[name], constraints=["utility"])
    expected = [(t.parameters, t.state, t.values, t.constraints, t.attributes, t.reason) for t in whole.finished()]
    found = [(t.parameters, t.state, t.values, t.constraints, t.attributes, t.reason) for t in killed.finished()]
    assert found == expected
    assert len(expected) == TRIALS[name]
    assert {state for _, state, *_ in expected} == {"complete", "stopped", "failed"}
    assert len({json.dumps(parameters) for parameters, *_ in expected}) > TRIALS[name] // 2
    states = [trial.state for trial in killed.optuna_study.get_trials()]
    assert not {optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING} & set(states)
    assert len(states) > TRIALS[name]


def test_kills_at_any_moment_lose_no_finished_trial(tmp_path, conditional_stack, open_study):
    common = {"stack": conditional_stack, "sampler": SAMPLERS["nsga2"], "trials": 30}
    whole, killed = str(tmp_path / "whole.journal"), str(tmp_path / "killed.journal")
    kills = [{**common, "storage": killed, "delay": 0.05 + 0.023 * place} for place in range(6)]
    signals = run_jobs([{**common, "storage": whole}, *kills, {**common, "storage": killed}])
    assert 9 in signals
    options = {"sampler": SAMPLERS["nsga2"], "constraints": ["utility"]}
    expected = [(t.parameters, t.state, t.values) for t in open_study(whole, **options).finished()]
    assert [(t.parameters, t.state, t.values) for t in open_study(killed, **options).finished()] == expected
    assert len(expected) == 30


def test_interrupted_trials_are_queued_exactly_once(open_study):
    study = open_study()
    first, second = study.ask(), study.ask()
    study.close()
    for _ in range(3):
        study = open_study()
        study.close()
    study = open_study()
    again = [study.ask(), study.ask(), study.ask()]
    assert [proposal.parameters for proposal in again[:2]] == [first.parameters, second.parameters]
    assert again[2].parameters not in (first.parameters, second.parameters)
    assert study.finished() == []
    failed = [trial for trial in study.optuna_study.get_trials() if trial.state == optuna.trial.TrialState.FAIL]
    assert [(trial.number, trial.user_attrs["reason"]) for trial in failed] == [(0, "interrupted"), (1, "interrupted")]


def test_a_generation_whose_first_proposal_was_interrupted_goes_on_alike(open_study, tmp_path, make_space, monkeypatch):
    unit = {"low": 0.0, "high": 1.0}
    space = make_space({"choices": [{"name": name, "threshold": unit} for name in ("renoise", "refuse")]})
    options = {"space": space, "sampler": {"name": "nsga2", "population": 6, "mutation": 0.0}}

    def seventh(seed, broken):
        place = tmp_path / f"{seed}-{broken}"
        study = open_study(place, seed=seed, **options)
        for number in range(6):
            study.complete(study.ask().number, [-number, -number])
        if broken:
            with monkeypatch.context() as patched:
                patched.setattr(optuna.Trial, "suggest_float", lambda *_, **__: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    study.ask()
            study.close()
            study = open_study(place, seed=seed, **options)
        return study.ask().parameters

    assert [seventh(seed, True) for seed in range(4)] == [seventh(seed, False) for seed in range(4)]


def test_another_seed_proposes_something_else(open_study, tmp_path):
    one = open_study(tmp_path / "one", seed=1).ask().parameters
    assert one == open_study(tmp_path / "same", seed=1).ask().parameters
    assert one != open_study(tmp_path / "other", seed=2).ask().parameters


@pytest.mark.parametrize("storage", ["study.journal", "sqlite:///{}/study.db"])
def test_what_is_told_can_be_read_again(open_study, tmp_path, storage):
    place = storage.format(tmp_path) if "://" in storage else tmp_path / "new" / "folder" / storage
    study = open_study(place, constraints=["utility"])
    a, b, c, d, running = (study.ask() for _ in range(5))
    study.complete(a.number, [0.5, 1], constraints={"utility": -0.25}, attributes={"wall": 1.5, "cached": True})
    study.stop(b.number, [0.25, 2.0], "dominated by 0", {"rung": 0.5}, constraints={"utility": 0.5})
    study.stop(c.number, None, "dominated by 0")
    study.fail(d.number, "window [3, 2]", {"guardrail": None})
    study.close()
    study = open_study(place, constraints=["utility"])
    one, two, three, four = study.finished()
    assert (one.number, one.state, one.parameters, one.values) == (a.number, "complete", a.parameters, (0.5, 1.0))
    assert (one.constraints, one.attributes) == ({"utility": -0.25}, {"wall": 1.5, "cached": True})
    assert (two.state, two.parameters, two.values, two.reason) == (
        "stopped",
        b.parameters,
        (0.25, 2.0),
        "dominated by 0",
    )
    assert (two.constraints, two.attributes) == ({"utility": 0.5}, {"rung": 0.5})
    assert (three.state, three.values, three.constraints) == ("stopped", None, {})
    assert (four.state, four.values, four.reason) == ("failed", None, "window [3, 2]")
    assert four.attributes == {"guardrail": None}
    assert study.ask().parameters == running.parameters


@pytest.mark.parametrize("measured", [True, False])
def test_stopped_trials_stay_off_optunas_front(open_study, measured):
    study = open_study()
    good, bad = study.ask(), study.ask()
    study.complete(good.number, [0.5, 0.5])
    study.stop(bad.number, [0.1, 0.1] if measured else None, "dominated")
    assert [trial.number for trial in study.optuna_study.best_trials] == [good.number]


def test_infeasible_trials_stay_off_optunas_front(open_study):
    study = open_study(constraints=["utility"])
    for values, bound in [([0.5, 0.5], 0.0), ([0.1, 0.1], 0.01)]:
        study.complete(study.ask().number, values, constraints={"utility": bound})
    assert [trial.number for trial in study.optuna_study.best_trials] == [0]


def test_bad_values_are_refused_and_the_trial_goes_on(open_study):
    study = open_study(constraints=["utility"])
    number = study.ask().number
    fine = {"constraints": {"utility": 0.0}}
    for call, message in [
        (lambda: study.complete(number, [0.1, float("nan")], **fine), r"not finite; use fail\(\)"),
        (lambda: study.stop(number, [float("inf"), 0.1], "dominated"), r"not finite; use fail\(\)"),
        (lambda: study.complete(number, [0.1], **fine), "1 values for 2 objectives"),
        (lambda: study.complete(number, [0.1, 0.2]), r"constraints \[\] given; the study has \['utility'\]"),
        (lambda: study.complete(number, [0.1, 0.2], constraints={"utility": float("nan")}), "not finite"),
        (lambda: study.complete(number, [0.1, 0.2], attributes={"x": float("nan")}, **fine), "must be JSON"),
        (lambda: study.complete(number, [0.1, 0.2], attributes={"x": object()}, **fine), "must be JSON"),
        (lambda: study.complete(number, [0.1, 0.2], attributes={"reason": "x"}, **fine), "the study's own"),
        (lambda: study.fail(number, "interrupted"), "kept for trials of killed processes"),
        (lambda: study.complete(number + 1, [0.1, 0.2], **fine), rf"not running; running are \[{number}\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert study.finished() == []
    study.complete(number, [0.1, 0.2], **fine)
    with pytest.raises(ValueError, match="not running"):
        study.fail(number, "late")
    assert [trial.state for trial in study.finished()] == ["complete"]


def test_a_study_that_searches_for_something_else_is_not_joined(open_study, make_space):
    open_study(constraints=["utility"]).close()
    other = make_space({"name": "renoise", "threshold": {"low": 0.1, "high": 0.2}})
    for options, message in [
        ({"objectives": ("asr", "cost"), "constraints": ["utility"]}, r"'asr', 'loss'\](.|\n)*'asr', 'cost'\]"),
        ({"objectives": ("loss", "asr"), "constraints": ["utility"]}, r"'asr', 'loss'\](.|\n)*'loss', 'asr'\]"),
        ({"objectives": ("asr",), "constraints": ["utility"]}, r"'minimize', 'minimize'\](.|\n)*'minimize'\]"),
        ({"constraints": []}, r"constraints \['utility'\](.|\n)*constraints \[\]"),
        ({"constraints": ["utility"], "space": other}, rf"space (.|\n)*{other.digest}"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_study(**options)
    assert open_study(name="another", objectives=("cost",)).finished() == []


def test_a_study_of_another_program_is_not_joined(open_study, tmp_path):
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    optuna.create_study(storage=storage, study_name="run", directions=["minimize", "maximize"])
    with pytest.raises(ConfigError, match=r"'minimize', 'maximize'\], not written by a sweep"):
        open_study()
    study = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "minimize"])
    study.ask()
    with pytest.raises(ConfigError, match="not written by a sweep"):
        open_study(name="two")


@pytest.mark.parametrize("storage", ["study.journal", "sqlite:///{}/study.db"])
def test_one_process_owns_a_storage(open_study, tmp_path, storage):
    place = storage.format(tmp_path) if "://" in storage else tmp_path / storage
    study = open_study(place)
    with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}: one process owns a study"):
        open_study(place)
    study.close()
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()

    def hold():
        open_study(place)
        ready.set()
        leave.wait(60)

    holder = context.Process(target=hold)
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
        open_study(place)
    holder.kill()
    holder.join()
    assert open_study(place).ask().number == 0


def test_an_unusable_study_lets_go_of_the_storage(open_study, make_space):
    open_study().close()
    with pytest.raises(ConfigError, match="something else"):
        open_study(objectives=("asr",))
    unit = {"low": 0.0, "high": 1.0, "points": 400}
    huge = make_space({"name": "renoise", "threshold": unit, "penalty": unit})
    with pytest.raises(ConfigError, match="more than 100000"):
        open_study(name="huge", space=huge, sampler="grid")
    assert open_study().ask()


def test_the_grid_is_proposed_in_order_and_ends(open_study, make_space):
    stack = {"choices": ["none", {"name": "renoise", "threshold": {"low": 0.0, "high": 1.0, "points": 3}}]}
    space = make_space(stack)
    study = open_study(space=space, sampler="grid")
    proposed = [study.ask(), study.ask()]
    study.complete(proposed[1].number, [0.1, 0.2])
    study.close()
    study = open_study(space=space, sampler="grid")
    seen = [proposed[1].parameters, *(study.ask().parameters for _ in range(3))]
    assert sorted(map(json.dumps, seen)) == sorted(map(json.dumps, space.grid()))
    with pytest.raises(ExhaustedSpace, match="All 4 points of the grid have been proposed"):
        study.ask()


def test_a_journal_whose_last_line_was_torn_can_be_continued(open_study, tmp_path):
    journal = tmp_path / "study.journal"
    study = open_study()
    study.complete(study.ask().number, [0.1, 0.2])
    study.close()
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:-5])
    study = open_study()
    assert [trial.values for trial in study.finished()] == [(0.1, 0.2)]
    study.complete(study.ask().number, [0.3, 0.4])
    study.close()
    assert [trial.values for trial in open_study().finished()] == [(0.1, 0.2), (0.3, 0.4)]


def test_optunas_lock_of_a_killed_writer_is_taken_over(open_study, tmp_path):
    open_study().close()
    journal = tmp_path / "study.journal"
    journal.with_name("study.journal.lock").symlink_to(journal)
    assert open_study().ask().number == 0


def test_a_damaged_journal_is_named(open_study, tmp_path):
    open_study().close()
    journal = tmp_path / "study.journal"
    journal.write_bytes(b"no json\n" + journal.read_bytes())
    with pytest.raises(StorageError, match=r"study\.journal` is damaged"):
        open_study()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "nsga"}, "Unknown sampler `nsga`. Did you mean `nsga2`"),
        ({"objectives": ()}, "at least one"),
        ({"objectives": ("asr", "asr")}, "has a name twice"),
        ({"constraints": ["stopped"]}, "the study's own"),
        ({"storage": "sqlight:///x.db"}, "a journal file's path, or a URL"),
    ],
)
def test_bad_requests_are_refused(open_study, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        open_study(**options)
    assert not list(tmp_path.iterdir())


def test_optuna_is_quiet_here_and_as_before_elsewhere(open_study, capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            study = open_study(sampler={"name": "tpe", "startup": 1})
            for _ in range(3):
                study.complete(study.ask().number, [0.1, 0.2])
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert capfd.readouterr().err == ""
