from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle
from tests.sweeps import search_world, sweep_outcomes
from tests.sweeps.search_world import BASELINE, COARSE, OBJECTIVES, World, open_study, run, sweep_config
from tests.sweeps.sweep_outcomes import UTILITY, objective_set

from dsprobe.actors.session import Session, ray_session
from dsprobe.config import ExecutionConfig, GuardrailConfig
from dsprobe.errors import ConfigError, StorageError
from dsprobe.metrics.pareto import non_dominated
from dsprobe.sweeps.archive import increments
from dsprobe.sweeps.replay import replay
from dsprobe.sweeps.space import guardrail_digest

ROOT = Path(__file__).parents[2]
RUNGS = (0.25, 0.5, 1.0)
SEQUENTIAL = {"trials": 16, "seed": 3, "sampler": {"name": "nsga2", "population": 4}}


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Session]:
    for module in (search_world, sweep_outcomes):
        cloudpickle.register_pickle_by_value(module)
    with ray_session(ExecutionConfig(), include_dashboard=False) as session:
        yield session
    for module in (search_world, sweep_outcomes):
        cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def uninterrupted(ray_here, tmp_path_factory):
    """The trials of a sequential search, and the folder they are in."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, run(folder, sweep_config(COARSE, **SEQUENTIAL))


def content(trials):
    """What must be repeated exactly: all but numbers, which interrupted trials shift, and clocks."""
    return [
        (trial.state, dict(trial.parameters), trial.digest, trial.rung, trial.cached, trial.reason, values(trial))
        for trial in trials
    ]


def values(trial):
    if trial.outcomes is None:
        return None
    return [*OBJECTIVES.values(trial.outcomes, BASELINE).tolist(), int(trial.outcomes.passes_used.sum())]


def evaluations(folder):
    lines = (Path(folder) / "evaluations").read_text().splitlines()
    told = [line.rsplit(maxsplit=3) for line in lines]
    return [(guardrail_digest(GuardrailConfig.model_validate_json(text)), *share) for text, *share, _ in told]


def states(folder, config):
    with open_study(folder, config) as study:
        return [trial.state.name for trial in study.optuna_study.trials]


def test_trials_run_through_all_rungs(uninterrupted):
    folder, trials = uninterrupted
    assert [trial.number for trial in trials] == list(range(16))
    for trial in trials:
        assert trial.state in ("complete", "stopped")
        size = {0.25: 24, 0.5: 48, 1.0: 96}[trial.rung]
        assert len(trial.outcomes) == size
        again = np.concatenate([World().evaluate(trial.guardrail, *share).prompt_id for share in increments(RUNGS)])
        assert trial.outcomes.prompt_id.tolist() == again[:size].tolist()
        assert (trial.rung == 1.0) == (trial.state == "complete")
        assert trial.wall_seconds > 0
    wanted = [(t.digest, str(start), str(stop)) for t in trials for start, stop in increments(RUNGS) if stop <= t.rung]
    assert evaluations(folder) == list(dict.fromkeys(wanted))


def test_the_study_keeps_what_happened(uninterrupted):
    folder, trials = uninterrupted
    with open_study(folder, sweep_config(COARSE, **SEQUENTIAL)) as study:
        for known, trial in zip(study.finished(), trials, strict=True):
            assert known.parameters == trial.parameters
            assert list(known.values) == values(trial)[:-1]
            assert known.attributes["digest"] == trial.digest
            assert known.attributes["rung"] == trial.rung
            assert known.attributes["passes_from_scratch"] == trial.outcomes.passes.sum()
            assert known.attributes["passes_used"] == trial.outcomes.passes_used.sum()


def test_racing_stops_only_what_is_beaten(uninterrupted):
    _, trials = uninterrupted
    stopped = [trial for trial in trials if trial.state == "stopped"]
    assert stopped
    whole = np.array([OBJECTIVES.values(World().evaluate(t.guardrail, 0, 1), BASELINE) for t in trials])
    front = non_dominated(whole, ["minimize"] * 3)
    assert not any(front[trial.number] for trial in stopped)
    assert all(trial.reason == f"dominated at {trial.rung:.0%} of the prompts, confidence 0.95" for trial in stopped)


@pytest.mark.slow
def test_a_sequential_search_is_repeated_exactly(uninterrupted, tmp_path):
    _, trials = uninterrupted
    assert content(run(tmp_path, sweep_config(COARSE, **SEQUENTIAL))) == content(trials)


def test_killed_searches_go_on_where_they_were(uninterrupted, ray_here, tmp_path):
    _, trials = uninterrupted
    job = {"folder": str(tmp_path), "address": ray_here.address, "search": SEQUENTIAL, "delay": 0.15}
    for evaluated in (4, 12):
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.sweeps.search_world", json.dumps(job)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed driver leaves Tune's folder behind
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 200
        log = tmp_path / "evaluations"
        while not log.exists() or len(log.read_text().splitlines()) < evaluated:
            if driver.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, driver.stderr.read()
    with open_study(tmp_path, sweep_config(COARSE, **SEQUENTIAL)) as study:
        finished = {trial.number: trial for trial in study.finished()}
    assert finished
    resumed = run(tmp_path, sweep_config(COARSE, **SEQUENTIAL))
    assert content(resumed) == content(trials)
    by_number = {trial.number: trial for trial in resumed}
    for number, trial in finished.items():
        assert by_number[number].parameters == trial.parameters
    found = states(tmp_path, sweep_config(COARSE, **SEQUENTIAL))
    assert "RUNNING" not in found
    assert "WAITING" not in found
    assert found.count("FAIL") == len(found) - 16  # the interrupted ones


def test_a_finished_search_runs_nothing(uninterrupted):
    folder, trials = uninterrupted
    before = evaluations(folder)
    seen = []
    again = run(folder, sweep_config(COARSE, **SEQUENTIAL), on_progress=seen.append)
    assert content(again) == content(trials)
    assert evaluations(folder) == before
    assert [(p.finished, p.earlier, p.trials_total) for p in seen] == [(16, 16, 16)]


def test_failures_have_reasons_and_the_others_go_on_silently(ray_here, tmp_path, capfd):
    folders = set(Path("/tmp").glob("dsp-tune-*"))
    config = sweep_config(trials=9, seed=1, sampler="random", rungs=(0.5, 1.0))
    seen = []
    world = World(raises_above=0.8, undefined_above=0.55, dies_above=0.7)
    trials = run(tmp_path, config, world, on_progress=seen.append)
    reasons = {}
    for trial in trials:
        threshold = trial.parameters["renoise.threshold"]
        assert (trial.state == "failed") == (threshold > 0.55), threshold
        if trial.state == "failed":
            assert (trial.outcomes, trial.rung) == (None, 0.0)
            kind = "raised" if threshold > 0.8 else "bug" if threshold > 0.7 else "undefined"
            reasons[kind] = trial.reason.replace(f"{threshold:.1f}", "#")
    assert reasons == {
        "raised": "no scorer reaches # on this world",
        "bug": "ZeroDivisionError: a bug",
        "undefined": "objective `asr` is nan: no row of the trial counts.",
    }
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert set(Path("/tmp").glob("dsp-tune-*")) <= folders
    assert set(states(tmp_path, config)) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert [progress.finished for progress in seen] == list(range(10))
    last = seen[-1]
    assert (last.failed, last.earlier) == (sum(trial.state == "failed" for trial in trials), 0)
    assert last.passes_used == sum(t.outcomes.passes_used.sum() for t in trials if t.outcomes is not None)


@pytest.mark.slow
def test_settings_that_do_not_fit_together_fail_without_a_process(ray_here, tmp_path):
    stack = {"name": "renoise", "window": [{"low": 1, "high": 30}, {"low": 3, "high": 32}]}
    config = sweep_config(stack, trials=8, sampler="random")
    trials = run(tmp_path, config)
    wrong = [trial for trial in trials if trial.state == "failed"]
    assert 0 < len(wrong) < 8
    for trial in wrong:
        assert (trial.guardrail, trial.digest) == (None, "")
        assert "window" in trial.reason
    assert {digest for digest, _, _ in evaluations(tmp_path)} <= {t.digest for t in trials if t.state != "failed"}


def test_a_repeated_setting_costs_nothing(uninterrupted):
    folder, trials = uninterrupted
    assert len(evaluations(folder)) == len(set(evaluations(folder)))
    first = {}
    repeated = [trial for trial in trials if trial.digest in first or first.update({trial.digest: trial})]
    assert repeated
    for trial in repeated:
        assert trial.cached == (trial.rung <= first[trial.digest].rung)
        if trial.cached:
            assert trial.outcomes.passes_used.sum() == 0
    assert not any(trial.cached for trial in first.values())


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_fails(ray_here, tmp_path):
    trials = run(tmp_path, sweep_config(COARSE, trials=5, sampler="random"), World(killed_above=0.6))
    lost = [trial for trial in trials if trial.parameters["renoise.threshold"] > 0.6]
    assert 0 < len(lost) < 5
    assert all(trial.reason.startswith("The actor died unexpectedly") for trial in lost)
    assert [trial for trial in trials if trial.state == "failed"] == lost


@pytest.mark.slow
def test_a_grid_ends_the_search(ray_here, tmp_path):
    trials = run(tmp_path, sweep_config(COARSE, trials=50, sampler="grid", rungs=(1.0,)))
    assert len(trials) == 12
    assert len({trial.digest for trial in trials}) == 12


def test_parallel_trials_overlap_and_replay(ray_here, tmp_path):
    config = sweep_config(trials=10, sampler="random", concurrency=2)
    objectives = objective_set("asr", "fluency_loss", constraints=[UTILITY])
    trials = run(tmp_path, config, World(delay=0.1), objectives=objectives)
    assert len(trials) == 10
    with open_study(tmp_path, config, objectives.names, objectives.told_constraints) as study:
        assert {trial.state.name for trial in study.optuna_study.trials} <= {"COMPLETE", "PRUNED"}
        for known, trial in zip(study.finished(), trials, strict=True):
            assert known.constraints == objectives.told_constraint_values(trial.outcomes, BASELINE)
    processes = {line.split()[-1] for line in (tmp_path / "evaluations").read_text().splitlines()}
    assert len(processes) == 2
    report = replay(trials, World(), rungs=RUNGS)
    assert (report.replayed, report.skipped, report.identical) == (10, 0, True)


@pytest.mark.slow
def test_missing_outcomes_are_named(ray_here, tmp_path):
    config = sweep_config(COARSE, trials=2, rungs=(0.5, 1.0))
    trials = run(tmp_path, config)
    lost = tmp_path / "sweep" / "trials" / f"{trials[0].digest}-0.5-1.0.parquet"
    lost.unlink()
    with pytest.raises(StorageError, match=f"{lost.name} is missing"):
        run(tmp_path, config.model_copy(update={"search": config.search.model_copy(update={"trials": 3})}))


@pytest.mark.slow
def test_ctrl_c_passes_through(ray_here, tmp_path, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    environment, level = dict(os.environ), logging.getLogger("ray.tune").level
    config = sweep_config(trials=6, sampler="random")

    def interrupt(progress):
        if progress.finished == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, World(delay=0.2), on_progress=interrupt)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == handlers
    assert (dict(os.environ), logging.getLogger("ray.tune").level) == (environment, level)
    trials = run(tmp_path, config)
    assert len(trials) == 6
    assert "RUNNING" not in states(tmp_path, config)


def test_rays_own_searcher_runs_the_same_space(ray_here, tmp_path):
    config = sweep_config(trials=8, sampler="random", searcher="optuna_search", rungs=(1.0,))
    world = World(raises_above=0.7, undefined_above=0.5)
    trials = run(tmp_path, config, world)
    assert [trial.number for trial in trials] == list(range(8))
    for trial in trials:
        threshold = trial.parameters["renoise.threshold"]
        assert (trial.state == "failed") == (threshold > 0.5)
    assert {trial.state for trial in trials} == {"complete", "failed"}
    assert len(evaluations(tmp_path)) == 8


def test_what_rays_own_searcher_cannot_do_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"search.rungs \[0.25, 0.5, 1.0\]: .*give \[1.0\]"):
        run(tmp_path, sweep_config(searcher="optuna_search"))
    config = sweep_config(searcher="optuna_search", rungs=(1.0,))
    with pytest.raises(ConfigError, match="knows no constraints"):
        run(tmp_path, config.model_copy(update={"constraints": (UTILITY,)}))
    with pytest.raises(ConfigError, match="has no grid"):
        run(tmp_path, sweep_config(searcher="optuna_search", rungs=(1.0,), sampler="grid"))
