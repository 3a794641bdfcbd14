from __future__ import annotations

import numpy as np
import optuna
import pytest

from dsprobe.config import Spec
from dsprobe.errors import ConfigError
from dsprobe.sweeps.samplers import SAMPLERS, build_sampler
from dsprobe.sweeps.study import Study


def renoise(**parameters):
    return {"name": "renoise", **parameters}


def proposals(space, sampler, tmp_path, trials, outcome, constraints=()):
    """Parameters that a sequential sweep proposes; the outcome tells each trial's end."""
    spec = Spec.model_validate(sampler)
    name = f"{spec.name}.journal"
    with Study.open(str(tmp_path / name), "run", ["x", "y"], space, spec, 3, constraints=constraints) as study:
        for _ in range(trials):
            proposal = study.ask()
            outcome(study, proposal)
        return [trial.parameters for trial in study.finished()]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"name": "nsgaii"}, "Unknown sampler `nsgaii`. Did you mean `nsga2`"),
        ({"name": "nsga2", "popsize": 4}, "Unknown parameter of sampler `nsga2` `popsize`"),
        ({"name": "nsga2", "population": 1}, "greater than or equal to 2"),
        ({"name": "nsga2", "mutation": 1.5}, "less than or equal to 1"),
        ({"name": "tpe", "startup": 0}, "greater than or equal to 1"),
        ({"name": "gp", "candidates": 3}, "Unknown parameter of sampler `gp` `candidates`"),
        ({"name": "random", "seed": 3}, "Unknown parameter of sampler `random` `seed`"),
    ],
)
def test_unknown_samplers_and_parameters_are_refused(make_space, sampler, message):
    with pytest.raises(ConfigError, match=message):
        build_sampler(Spec.model_validate(sampler), 0, make_space(renoise()), constraints=False)


def test_every_sampler_is_listed_with_a_summary():
    assert [name for name, _ in SAMPLERS] == ["gp", "grid", "nsga2", "random", "tpe"]
    assert all(entry.summary for _, entry in SAMPLERS)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "random"},
        {"name": "grid"},
        {"name": "tpe", "startup": 4},
        {"name": "nsga2", "population": 4, "polynomial": 5.0},
        {"name": "gp", "startup": 3},
    ],
    ids=lambda sampler: sampler["name"],
)
def test_conditional_spaces_several_objectives_and_constraints(
    make_space, conditional_stack, tmp_path, sampler, constrained
):
    space = make_space(*conditional_stack)

    def outcome(study, proposal):
        space.guardrail(proposal.parameters)
        level = proposal.parameters["filter.threshold"]
        values = [level, 1 - level + proposal.parameters.get("renoise.threshold", 0.5)]
        bounds = {"utility": level - 0.8} if constrained else {}
        if proposal.number % 5 == 4:
            study.stop(proposal.number, values, "dominated", constraints=bounds)
        elif proposal.number == 2:
            study.stop(proposal.number, None, "dominated")
        elif proposal.number == 3:
            study.fail(proposal.number, "no")
        else:
            study.complete(proposal.number, values, constraints=bounds)

    trials = 6 if sampler["name"] == "gp" else 20
    constraints = ["utility"] if constrained else []
    seen = proposals(space, sampler, tmp_path, trials, outcome, constraints)
    assert [space.active(parameters) for parameters in seen] == seen
    assert len(seen) == trials


@pytest.mark.parametrize("sampler", [{"name": "tpe"}, {"name": "nsga2"}], ids=lambda sampler: sampler["name"])
def test_learning_samplers_find_the_good_branch(make_space, tmp_path, sampler):
    unit = {"low": 0.0, "high": 1.0}
    space = make_space({"choices": [renoise(alias=letter, threshold=unit) for letter in "abcdefgh"]})

    def outcome(study, proposal):
        letter = proposal.parameters["guardrail"]
        value = abs(proposal.parameters[f"{letter}.threshold"] - 0.7) + (letter != "e")
        study.complete(proposal.number, [value, value])

    seen = proposals(space, sampler, tmp_path, 72, outcome)
    late = [parameters for parameters in seen[36:] if parameters["guardrail"] == "e"]
    assert len(late) > 18
    spread = [abs(parameters["e.threshold"] - 0.7) for parameters in late]
    assert float(np.median(spread)) < 0.15


def test_nsga2_children_inherit_parameters_below_choices(make_space, tmp_path):
    unit = {"low": 0.0, "high": 1.0}
    space = make_space({"choices": [renoise(threshold=unit), {"name": "refuse", "threshold": unit}]})

    def outcome(study, proposal):
        study.complete(proposal.number, [proposal.number, -proposal.number])

    sampler = {"name": "nsga2", "population": 6, "mutation": 0.0}
    seen = proposals(space, sampler, tmp_path, 18, outcome)
    parents = {tuple(parameters.items()) for parameters in seen[:6]}
    assert len(parents) == 6
    values = {value for parent in parents for value in parent[1:]}
    assert {tuple(parameters.items())[1] for parameters in seen[6:]} <= values
    mutating = proposals(space, {**sampler, "mutation": 1.0}, tmp_path / "mutating", 18, outcome)
    assert not {tuple(parameters.items())[1] for parameters in mutating[6:]} & values


def test_nsga2_draws_mutated_values_from_the_whole_range(make_space, tmp_path):
    space = make_space(renoise(threshold={"low": 0.0, "high": 1.0}))

    def outcome(study, proposal):
        study.complete(proposal.number, [0.5, 0.5])

    sampler = {"name": "nsga2", "population": 2, "mutation": 1.0, "crossover": 0.5}
    drawn = np.array([p["renoise.threshold"] for p in proposals(space, sampler, tmp_path, 80, outcome)])
    assert np.histogram(drawn, bins=4, range=(0, 1))[0].min() > 8


def test_seeds_decide_and_neighbouring_seeds_differ(make_space):
    space = make_space(renoise(threshold={"low": 0.0, "high": 1.0}))

    def first(seed):
        study = optuna.create_study(sampler=build_sampler(Spec(name="random"), seed, space, constraints=False))
        return space.suggest(study.ask())["renoise.threshold"]

    drawn = [first(seed) for seed in range(200)]
    assert drawn == [first(seed) for seed in range(200)]
    assert np.histogram(drawn, bins=5, range=(0, 1))[0].min() > 20
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.25


def test_gp_models_conditional_parameters(make_space, tmp_path):
    unit = {"low": 0.0, "high": 1.0}
    space = make_space({"choices": ["none", renoise(threshold=unit)]})

    def outcome(study, proposal):
        value = abs(proposal.parameters.get("renoise.threshold", 3.0) - 0.7)
        study.complete(proposal.number, [value, value])

    seen = proposals(space, {"name": "gp", "startup": 6}, tmp_path, 10, outcome)
    near = [parameters for parameters in seen[6:] if abs(parameters.get("renoise.threshold", 3.0) - 0.7) < 0.1]
    assert len(near) >= 2
    assert all(set(p) == {"guardrail"} for p in seen if p["guardrail"] == "none")
