from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.config import DecodingConfig, GuardrailConfig
from dsprobe.errors import ConfigError
from dsprobe.guardrails.build import check_guardrail
from dsprobe.sweeps.space import guardrail_digest


def renoise(**parameters):
    return {"name": "renoise", **parameters}


def test_domains_have_dotted_paths_kinds_and_parents(make_space, conditional_stack):
    domains = {domain.path: domain for domain in make_space(*conditional_stack).domains}
    assert {path: (domain.kind, domain.parent) for path, domain in domains.items()} == {
        "guardrail": ("categorical", None),
        "renoise.threshold": ("float", ("guardrail", "renoise")),
        "renoise.every": ("int", ("guardrail", "renoise")),
        "renoise.weighting": ("categorical", ("guardrail", "renoise")),
        "renoise.weighting.linear.end": ("float", ("renoise.weighting", "linear")),
        "refuse.window": ("categorical", ("guardrail", "refuse")),
        "filter.threshold": ("float", None),
    }
    assert domains["guardrail"].choices == ("none", "renoise", "refuse")
    assert domains["refuse.window"].choices == ("late", "end", "2")


def test_only_parameters_below_the_choices_made_are_suggested(make_space, conditional_stack):
    space = make_space(*conditional_stack)
    given_values = {
        "guardrail": "renoise",
        "renoise.threshold": 0.25,
        "renoise.every": 3,
        "renoise.weighting": "constant",
        "renoise.weighting.linear.end": 0.5,
        "refuse.window": "end",
        "filter.threshold": 0.75,
    }
    parameters = space.suggest(optuna.trial.FixedTrial(given_values))
    assert parameters == {
        "guardrail": "renoise",
        "renoise.threshold": 0.25,
        "renoise.every": 3,
        "renoise.weighting": "constant",
        "filter.threshold": 0.75,
    }
    assert space.active(given_values) == parameters
    built = space.guardrail(parameters, "r1")
    assert built.name == "r1"
    assert [(spec.key, spec.params) for spec in built.stack] == [
        ("renoise", {"threshold": 0.25, "every": 3, "weighting": "constant"}),
        ("filter", {"threshold": 0.75, "window": "end"}),
    ]


def test_a_choice_between_guardrails_can_leave_everything_out(make_space):
    space = make_space({"choices": ["none", "refuse"]}, {"alias": "second", "choices": ["none", renoise()]})
    assert space.guardrail({"guardrail_1": "none", "second": "none"}) == GuardrailConfig()
    assert [s.name for s in space.guardrail({"guardrail_1": "refuse", "second": "none"}).stack] == ["refuse"]


def test_domains_may_stand_in_lists_and_in_specs_of_components(make_space):
    space = make_space(
        renoise(
            window=[1, {"low": 4, "high": 32}],
            weighting={"name": "piecewise_linear", "knots": [{"low": 0.0, "high": 1.0}, 1.0]},
        )
    )
    parameters = {"renoise.window.1": 9, "renoise.weighting.knots.0": 0.5}
    params = space.guardrail(parameters).stack[0].params
    assert params == {"window": [1, 9], "weighting": {"name": "piecewise_linear", "knots": [0.5, 1.0]}}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_suggestion_is_a_valid_guardrail_and_survives_json(make_space, conditional_stack, seed):
    space = make_space(*conditional_stack)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    parameters = space.suggest(study.ask())
    check_guardrail(space.guardrail(parameters), space.decoding)
    by_path = {domain.path: domain for domain in space.domains}
    for path in parameters:
        parent = by_path[path].parent
        assert parent is None or parameters[parent[0]] == parent[1]
    shuffled = random.Random(seed).sample(sorted(parameters), len(parameters))
    assert space.guardrail({path: parameters[path] for path in shuffled}) == space.guardrail(parameters)


def test_grid_is_the_product_over_the_conditional_tree(make_space):
    space = make_space(
        {
            "choices": [
                "none",
                renoise(threshold={"low": 0.0, "high": 1.0, "points": 3}, every={"low": 1, "high": 2}),
            ]
        },
        {"name": "refuse", "threshold": {"choices": [0.5, 1.0]}},
    )
    grid = space.grid()
    assert len(grid) == (1 + 3 * 2) * 2
    assert grid[0] == {"guardrail": "none", "refuse.threshold": "0.5"}
    assert grid[1] == {"guardrail": "none", "refuse.threshold": "1.0"}
    assert grid[2] == {
        "guardrail": "renoise",
        "renoise.threshold": 0.0,
        "renoise.every": 1,
        "refuse.threshold": "0.5",
    }
    assert [point["renoise.threshold"] for point in grid[2::4]] == [0.0, 0.5, 1.0]
    assert len({guardrail_digest(space.guardrail(point)) for point in grid}) == len(grid)


@pytest.mark.parametrize(
    ("domain", "points"),
    [
        ({"low": 0.0, "high": 1.0}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"low": 0.0, "high": 1.0, "points": 1}, [0.0]),
        ({"low": 0.01, "high": 1.0, "log": True, "points": 3}, [0.01, 0.1, 1.0]),
        ({"low": 0.0, "high": 0.4, "step": 0.2}, [0.0, 0.2, 0.4]),
    ],
)
def test_grid_points_of_float_domains(make_space, domain, points):
    space = make_space(renoise(threshold=domain))
    assert [point["renoise.threshold"] for point in space.grid()] == pytest.approx(points)


@pytest.mark.parametrize(
    ("domain", "points"),
    [
        ({"low": 1, "high": 4}, [1, 2, 3, 4]),
        ({"low": 1, "high": 17}, [1, 5, 9, 13, 17]),
        ({"low": 1, "high": 16, "log": True}, [1, 2, 4, 8, 16]),
        ({"low": 1, "high": 9, "step": 4}, [1, 5, 9]),
        ({"low": 1, "high": 3, "points": 9}, [1, 2, 3]),
        ({"low": 2, "high": 2}, [2]),
    ],
)
def test_grid_points_of_integer_domains(make_space, domain, points):
    assert [point["renoise.every"] for point in make_space(renoise(every=domain)).grid()] == points


def test_a_huge_grid_is_refused(make_space):
    unit = {"low": 0.0, "high": 1.0, "points": 400}
    space = make_space(renoise(threshold=unit, span_share={"low": 0.1, "high": 1.0, "points": 400}))
    with pytest.raises(ConfigError, match="more than 100000 settings"):
        space.grid()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": {"low": 0.1, "high": 1.5}}, r"renoise\.threshold = 1\.5: .*less than or equal to 1"),
        ({"threshold": {"low": 1.2, "high": 1.5}}, r"renoise\.threshold = 1\.2"),
        ({"threshold": {"choices": [0.5, 7]}}, r"renoise\.threshold = '7'"),
        ({"treshold": 0.5}, r"space: renoise: .*Did you mean `threshold`"),
        ({"treshold": {"low": 0.1, "high": 0.5}}, "Did you mean `threshold`"),
        ({"scorer": {"choices": ["toy_lexicon", "toy_lexikon"]}}, r"renoise\.scorer = 'toy_lexikon'.*`toy_lexicon`"),
        (
            {"weighting": {"choices": ["constant", {"name": "linear", "ende": {"low": 0.1, "high": 0.2}}]}},
            r"renoise\.weighting.*Unknown parameter of weighting `linear` `ende`",
        ),
        (
            {"weighting": {"choices": ["constant", {"name": "linear", "end": {"low": 0.5, "high": 2.0}}]}},
            r"renoise\.weighting\.linear\.end = 2\.0",
        ),
        ({"window": [1, {"low": 8, "high": 40}]}, r"renoise\.window\.1 = 40: .*32 steps"),
        ({"window": {"choices": ["late", [1, 33]]}}, r"renoise\.window = '1': .*32 steps"),
        ({"threshold": {"low": 0.9, "high": 0.1}}, r"renoise\.threshold: .*low 0.9 lies above high 0.1"),
        ({"penalty": {"low": 0.0, "high": 1.0, "log": True}}, "starts above 0"),
        ({"penalty": {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}}, "takes no step"),
        ({"penalty": {"low": 0.0, "high": 1.0, "step": 0.3}}, "not a whole number of steps"),
        ({"penalty": {"low": 0.0, "high": 1.0, "points": 0}}, "points"),
        ({"penalty": {"low": 0.0}}, r"renoise\.penalty: high"),
        ({"penalty": {"low": 0.0, "high": float("inf")}}, "finite"),
        ({"penalty": {"low": 0.0, "high": 1.0, "steps": 3}}, "Did you mean `step`"),
        ({"include_given": {"low": False, "high": True}}, "write {choices"),
        ({"removal": {"choices": []}}, "at least one entry"),
        ({"removal": {"choices": ["ban", "ban"]}}, "two choices are called `ban`"),
        ({"every": {"choices": [1, "1"]}}, "two choices are called `1`"),
        ({"removal": {"choices": ["ban"], "log": True}}, "Unknown key in the domain `renoise.removal` `log`"),
    ],
)
def test_what_a_setting_could_get_wrong_is_found_at_once(make_space, parameters, message):
    with pytest.raises(ConfigError, match=message):
        make_space(renoise(**parameters))


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ([{"name": "renoice"}], "Unknown guardrail `renoice`. Did you mean `renoise`"),
        ([{"choices": ["none", {"name": "renoice"}]}], "Did you mean `renoise`"),
        ([{"threshold": 0.5}], "stack entry 1: a guardrail's `name` is missing"),
        ([{"choices": [3]}], "`name` is missing"),
        ([{"choices": ["refuse", {"name": "refuse", "every": 2}]}], "two choices are called `refuse`"),
        ([{"choices": ["none", "refuse"], "names": "x"}], "Unknown key in a choice between guardrails `names`"),
        (
            [renoise(threshold={"low": 0.1, "high": 0.2}), renoise(threshold={"low": 0.1, "high": 0.2})],
            "two parameters are called `renoise.threshold`",
        ),
    ],
)
def test_wrong_stacks_are_refused(make_space, stack, message):
    with pytest.raises(ConfigError, match=message):
        make_space(*stack)


def test_ends_that_fit_only_some_other_ends_are_allowed_and_fail_where_they_do_not_fit(make_space):
    space = make_space(renoise(window=[{"low": 1, "high": 20}, {"low": 10, "high": 32}]))
    assert space.guardrail({"renoise.window.0": 20, "renoise.window.1": 21})
    with pytest.raises(ConfigError, match="the first may not follow the last"):
        space.guardrail({"renoise.window.0": 20, "renoise.window.1": 10})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"renoise.threshold": 0.96}, r"`renoise\.threshold` = 0\.96: allowed are 0\.05 to 0\.95"),
        ({"renoise.threshold": float("nan")}, "allowed are"),
        ({"renoise.threshold": True}, "allowed are"),
        ({"renoise.every": 2.5}, "in steps of 1"),
        ({"renoise.weighting": "linaer"}, "Did you mean `linear`"),
        ({"renoise.weighting": "linear"}, r"`renoise\.weighting\.linear\.end` is missing"),
        ({"refuse.window": "end"}, r"Unknown parameter of this setting `refuse\.window`"),
    ],
)
def test_wrong_parameters_are_refused(make_space, conditional_stack, change, message):
    good = {
        "guardrail": "renoise",
        "renoise.threshold": 0.5,
        "renoise.every": 2,
        "renoise.weighting": "constant",
        "filter.threshold": 1,
    }
    space = make_space(*conditional_stack)
    assert space.guardrail(good).stack[1].params["threshold"] == 1.0
    with pytest.raises(ConfigError, match=message):
        space.guardrail({**good, **change})


def digest(*stack, name="g"):
    return guardrail_digest(GuardrailConfig.model_validate({"name": name, "stack": list(stack)}))


def test_digest_forgets_labels_key_order_and_defaults_but_nothing_else():
    plain = digest(renoise(threshold=0.5, every=2))
    assert len(plain) == 16
    assert int(plain, 16) >= 0
    assert plain == digest({"every": 2, "threshold": 0.5, "name": "renoise", "alias": "late"}, name="other")
    assert plain == digest(renoise(every=2))
    assert plain == digest(renoise(every=2, weighting={"name": "constant"}, scorer="toy_lexicon", window="all"))
    assert plain != digest(renoise(every=3))
    assert plain != digest(renoise(every=2), "refuse")
    assert digest("refuse", renoise()) != digest(renoise(), "refuse")
    linear = digest(renoise(weighting="linear"))
    assert linear == digest(renoise(weighting={"name": "linear", "alias": "l", "end": 1, "start": 0}))
    assert linear != digest(renoise(weighting={"name": "linear", "end": 0.5}))
    assert digest(renoise(window=[1, 8])) == digest(renoise(window=(1, 8)))
    assert guardrail_digest(GuardrailConfig()) != plain
    with pytest.raises(ConfigError, match="Did you mean `threshold`"):
        digest(renoise(treshold=0.5))


def test_the_space_digest_changes_with_domains_and_fixed_values(make_space):
    one = make_space(renoise(threshold={"low": 0.1, "high": 0.2}, every=2))
    same = make_space({"every": 2, "threshold": {"high": 0.2, "low": 0.1}, "name": "renoise"})
    assert one.digest == same.digest
    assert one.digest != make_space(renoise(threshold={"low": 0.1, "high": 0.3}, every=2)).digest
    assert one.digest != make_space(renoise(threshold={"low": 0.1, "high": 0.2}, every=3)).digest


def test_windows_are_checked_against_the_decoding(make_space):
    stack = renoise(window=[1, {"low": 8, "high": 16}])
    assert make_space(stack, steps=16).decoding == DecodingConfig(steps=16)
    with pytest.raises(ConfigError, match=r"renoise\.window\.1 = 16: .*12 steps"):
        make_space(stack, steps=12)
