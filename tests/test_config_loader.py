"""Loading configurations: precedence, sources, and errors that name the value, the place and the nearest match."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.config import RunConfig
from dsprobe.config_loader import LoadedConfig, load_config
from dsprobe.errors import ConfigError
from dsprobe.strict_yaml import parse_yaml

BASE = "models: [toy-diffusion]\nprompts: [{source: toy}]\n"


def load(text, *overrides, **environ):
    return load_config("x", overrides, environ, schema=RunConfig, recipes={"x": text})


def test_precedence_and_sources():
    loaded = load(
        BASE + "execution: {replicas: 2}\nseed: 1\n",
        "seed=7",
        DSPROBE_SEED="3",
        DSPROBE_SAMPLES="4",
        DSPROBE_EXECUTION__THREADS="2",
        DSPROBE_EXECUTION__REPLICAS="9",
        DSPROBE_HOME="/x",
        PATH="/bin",
    )
    execution = loaded.config.execution
    assert (loaded.config.seed, loaded.config.samples, execution.threads, execution.replicas) == (7, 4, 2, 2)
    assert loaded.sources["seed"] == "--set"
    assert loaded.sources["samples"] == "environment DSPROBE_SAMPLES"
    assert loaded.sources["execution.threads"] == "environment DSPROBE_EXECUTION__THREADS"
    assert loaded.sources["execution.replicas"] == "recipe x"
    assert loaded.sources["execution.retries"] == "default"


def test_every_leaf_of_the_configuration_has_a_source():
    text = BASE + "attacks: [direct, {name: pad, anchors: [a, b]}]\njudges: []\nrisk: {scorer: ngram}\n"
    sources = load(text, "attacks.1.positions=[3, 9]").sources
    given = {path for path, source in sources.items() if source != "default"}
    assert given == {
        "models.0.name", "prompts.0.source", "attacks.0.name", "attacks.1.name", "attacks.1.anchors",
        "attacks.1.positions", "judges", "risk.scorer.name",
    }  # fmt: skip
    assert {"name", "risk.threshold", "decodings.0.steps", "decodings.0.schedule.name", "output.root"} < set(sources)


def test_a_file_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text(BASE)
    assert load_config("demo.yaml", schema=RunConfig).sources["models.0.name"] == "file demo.yaml"
    # A file of that very name comes before the recipe.
    (tmp_path / "demo").write_text(BASE + "seed: 5\n")
    assert load_config("demo", schema=RunConfig, recipes={"demo": BASE}).config.seed == 5


def test_the_environment_fills_only_what_the_file_leaves_open():
    environ = {
        "DSPROBE_EXECUTION": "{replicas: 8, threads: 3}",
        "DSPROBE_JUDGES": "[keyword_refusal]",
        "DSPROBE_DECODINGS__0__STEPS": "4",
    }
    config = load(BASE + "execution: {replicas: 2}\njudges: []\n", **environ).config
    assert (config.execution.replicas, config.execution.threads) == (2, 3)
    assert config.judges == ()
    assert config.decodings[0].steps == 4
    config = load(BASE + "decodings: [{steps: null}]\n", **environ).config
    assert config.decodings[0].steps is None
    assert config.judges[0].name == "keyword_refusal"


def test_list_items_and_component_parameters_can_be_set():
    text = BASE + "attacks: [direct, dija]\ndecodings: [{name: a, steps: 4}, {name: b}]\n"
    config = load(text, "decodings.1.steps=8", "attacks.1.spans=3", "decodings.0.schedule.name=dilated").config
    assert [d.steps for d in config.decodings] == [4, 8]
    assert config.attacks[1].params == {"spans": 3}
    assert config.decodings[0].schedule.name == "dilated"


def test_lists_with_defaults_can_be_set_without_being_written_out():
    config = load(BASE, "decodings.0.steps=8", "attacks.0.alias=plain").config
    assert config.decodings[0].steps == 8
    assert (config.attacks[0].name, config.attacks[0].key) == ("direct", "plain")


def test_overrides_replace_whole_branches_and_apply_in_order():
    text = BASE + "attacks: [direct, {name: pad, anchors: [a]}]\n"
    loaded = load(text, "attacks=[dija]", "attacks.0.spans=2", "attacks.0.spans=3", "risk.scorer=ngram")
    assert [(a.name, a.params) for a in loaded.config.attacks] == [("dija", {"spans": 3})]
    assert not any(path.startswith("attacks.1") for path in loaded.sources)
    assert loaded.sources["attacks.0.name"] == loaded.sources["risk.scorer.name"] == "--set"
    assert load(BASE + "decodings: [{steps: 4}]\n", "decodings.0.steps=null").config.decodings[0].steps is None


def test_what_an_alias_repeats_is_not_shared():
    text = BASE + "decodings:\n  - &d {name: a, schedule: &s {name: uniform}}\n  - {<<: *d, name: b}\n"
    config = load(text, "decodings.0.schedule.name=dilated").config
    assert [d.schedule.name for d in config.decodings] == ["dilated", "uniform"]


def test_words_that_old_yaml_takes_for_booleans_and_dates_are_text():
    config = load(BASE + "name: 2026-11-21\nrecording: {kl: off, enabled: false}\n").config
    assert (config.name, config.recording.kl, config.recording.enabled) == ("2026-11-21", "off", False)
    assert parse_yaml("[yes, no, on, true, True, 1e3, 0x10]", "x") == ["yes", "no", "on", True, True, "1e3", 16]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (BASE + "sed: 1\n", (), "Unknown key in recipe x `sed`. Did you mean `seed`"),
        (BASE + "decodings: [{stepz: 1}]\n", (), r"key in decodings\[0\] of recipe x `stepz`. Did you mean `steps`"),
        (BASE + "execution: {replica: 1}\n", (), "execution of recipe x `replica`. Did you mean `replicas`"),
        (BASE + "seed: minus one\n", (), "seed: .*valid integer.*given: 'minus one', from recipe x"),
        (BASE + "seed: 1\n", ("seed=-1",), r"seed: .*greater than or equal to 0 \(given: -1, from --set\)"),
        (BASE + "risk: {threshold: 1.5}\n", (), r"risk\.threshold: .*less than or equal to 1 \(given: 1\.5"),
        (BASE + "recording: {kl: of}\n", (), r"recording\.kl: .*'auto', 'logits', 'hidden' or 'off'.*'of'"),
        (BASE + "risk: 3\n", (), r"risk: .*given: 3"),
        (BASE + "seed: 1\nseed: 2\n", (), "line 4, column 1: key `seed` is given twice"),
        (BASE + "risk:\n  scorer: {name: a, x: 1, x: 2}\n", (), "line 4, column 27: key `x` is given twice"),
        (BASE + "risk: {1: 2}\n", (), "line 3, column 8: a key must be text"),
        (BASE + "attacks: [pad, pad]\n", (), "^attacks: `pad` is used twice"),
        ("[1, 2]", (), "recipe x must hold a mapping"),
        ("", (), "recipe x must hold a mapping"),
        ("a: [", (), r"recipe x, line 1, column 5: expected"),
        ("a: 1\n\tb: 2", (), r"line 2, column 1: found character"),
        ("a: \x01", (), "line 1: a character that YAML does not allow"),
        ("a: !!python/name:os.system x", (), "line 1, column 4: could not determine a constructor"),
        ("a: !!int x", (), "line 1, column 4: `x` is no int"),
        ("a: &a [*a]", (), "nested too deeply, or within itself"),
        ("a: " + "[" * 4000, (), "nested too deeply"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n"
         for a, b in zip("abcdef", "bcdefg", strict=True)), (), "more than 20000 values"),
        (BASE, ("seed",), "key.path=value"),
        (BASE, ("=1",), "key.path=value"),
        (BASE, ("sead=1",), "key in --set `sead`. Did you mean `seed`"),
        (BASE, ("decodings.0.stepz=1",), "Did you mean `steps`"),
        (BASE, ("seed=[",), r"--set seed=\[, line 1"),
        (BASE, ("models.4.name=x",), "`4` is not an index of `models`. Allowed: 0 to 0"),
        (BASE, ("models.-1.name=x",), "`-1` is not an index of `models`"),
        (BASE, ("judges.0.name=x",), "`0` is not an index of `judges`. It has no items"),
        (BASE + "seed: 1\n", ("seed.x=1",), "`seed` is `1` and has no `x`"),
        ("prompts: [{source: toy}]\n", (), "^models: a value is needed"),
        (BASE + "models: []\n", (), "given twice"),
        ("models: []\nprompts: [{source: toy}]\n", (), "models: .*at least 1 item"),
    ],
)  # fmt: skip
def test_errors_name_place_value_and_nearest(text, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(text, *overrides)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "DSPROBE_EXECUTION__REPLICA",
            "2",
            "of environment DSPROBE_EXECUTION__REPLICA `replica`. Did you mean `replicas`",
        ),
        ("DSPROBE_EXECUTON__REPLICAS", "2", "Did you mean `execution`"),
        ("DSPROBE_SAMPLES", "none", "samples: .*from environment DSPROBE_SAMPLES"),
        ("DSPROBE_SAMPLES", "[", "environment DSPROBE_SAMPLES, line 1"),
        ("DSPROBE_DECODINGS__3__STEPS", "2", "environment DSPROBE_DECODINGS__3__STEPS: `3` is not an index"),
    ],
)
def test_errors_from_the_environment_name_the_variable(variable, value, message):
    with pytest.raises(ConfigError, match=message):
        load(BASE, **{variable: value})


def test_an_unknown_recipe_and_an_unreadable_file(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean `demo`"):
        load_config("dmeo", schema=RunConfig, recipes={"demo": BASE})
    for source in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(ConfigError, match="Cannot read configuration"):
            load_config(str(source), schema=RunConfig)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml` is not UTF-8"):
        load_config(str(tmp_path / "latin.yaml"), schema=RunConfig)


def outcome(call):
    """What the user gets: a configuration, or a message. Anything else is a bug and fails the test."""
    try:
        return call()
    except ConfigError as error:
        return str(error)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from([*RunConfig.model_fields, "source", "steps", "scorer", "threshold", "x", ""])
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(KEYS, t, max_size=5), max_leaves=15)
PARTS = st.sampled_from([*RunConfig.model_fields, "0", "1", "scorer", "name", "steps", "x", "", "-1", "٣", "params"])
PATHS = st.lists(PARTS, min_size=1, max_size=4)
VALUES = st.text(st.sampled_from("0123abcxe!&*{}[]:,.'\"\\|>-_ \n\t#%@`~<?"), max_size=12) | SCALARS.map(str)
SNIPPETS = st.sampled_from(
    ["a: ", "- ", "{", "}", "[", "]", "&a ", "*a", "!!int ", "!!bool ", "!!timestamp ", "!!binary ", "<<: ", "? ", ": ",
     "0b_", "\n", '"\\ud800"', '"\\U99999999"', "seed", "models", "1:30", "\x85", "'", "|\n ", "---\n", "%YAML 9\n"]
)  # fmt: skip


@given(TREES)
@settings(max_examples=200, deadline=None)
def test_any_tree_is_a_configuration_or_a_clear_error(tree):
    assert outcome(lambda: load(yaml.safe_dump(tree)))


@given(st.lists(SNIPPETS, max_size=12).map("".join) | st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_configuration_or_a_clear_error(text):
    assert outcome(lambda: load(text))
    assert outcome(lambda: load(BASE + text))


@given(st.lists(st.tuples(PATHS, VALUES), max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_override_or_variable_is_a_configuration_or_a_clear_error(items, from_environment):
    text = BASE + "attacks: [direct, {name: dija, spans: 2}]\n"
    if from_environment:
        environ = {"DSPROBE_" + "__".join(path).upper(): value for path, value in items}
        result = outcome(lambda: load_config("x", (), environ, schema=RunConfig, recipes={"x": text}))
    else:
        result = outcome(lambda: load(text, *(f"{'.'.join(path)}={value}" for path, value in items)))
    assert result
    if isinstance(result, LoadedConfig):
        assert set(result.sources.values()) <= {"default", "recipe x", "--set"} | {
            source for source in result.sources.values() if source.startswith("environment DSPROBE_")
        }


@given(st.integers(0, 99), st.integers(1, 99), st.sampled_from(["file", "set", "environment"]))
@settings(max_examples=30, deadline=None)
def test_a_value_means_the_same_from_every_source(seed, steps, how):
    values = {"seed": seed, "decodings.0.steps": steps, "attacks": "[{name: pad, anchors: [a, b]}]"}
    if how == "set":
        loaded = load(BASE, *(f"{path}={value}" for path, value in values.items()))
    elif how == "environment":
        loaded = load(
            BASE, **{f"DSPROBE_{path.upper().replace('.', '__')}": str(value) for path, value in values.items()}
        )
    else:
        loaded = load(BASE + f"seed: {seed}\ndecodings: [{{steps: {steps}}}]\nattacks: {values['attacks']}\n")
    assert (loaded.config.seed, loaded.config.decodings[0].steps) == (seed, steps)
    assert loaded.config.attacks[0].params == {"anchors": ["a", "b"]}
    assert loaded.sources["seed"] != "default"
