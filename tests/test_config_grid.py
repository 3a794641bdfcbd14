"""Grids of attacks in a configuration: what they expand to, and what names them."""

from __future__ import annotations

import pytest

from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import resolve

CONFIG = """
models: [toy-diffusion]
prompts:
  - {source: toy, name: all}
  - {source: toy, name: some, attacks: [dose, direct], decodings: [slow]}
attacks:
  - direct
  - {name: anchoring, alias: dose, grid: {step: [2, 4]}}
  - {name: pad, anchors: ["step 1 :", "step 2 :"], grid: {cues: [1, 2], spacing: [8, 9]}}
decodings: [{name: fast, steps: 8}, {name: slow, steps: 16}]
"""


def loaded(tmp_path, text=CONFIG, overrides=()):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return load_config(str(file), overrides, schema=RunConfig)


def test_a_grid_becomes_one_attack_for_each_combination(tmp_path):
    config = loaded(tmp_path).config
    assert [attack.key for attack in config.attacks] == [
        "direct", "dose-step2", "dose-step4",
        "pad-cues1-spacing8", "pad-cues1-spacing9", "pad-cues2-spacing8", "pad-cues2-spacing9",
    ]  # fmt: skip
    assert [attack.family for attack in config.attacks] == ["", "dose", "dose", "pad", "pad", "pad", "pad"]
    assert config.attacks[4].params == {"anchors": ["step 1 :", "step 2 :"], "cues": 1, "spacing": 9}


def test_a_prompt_set_gets_all_members_of_a_grid_and_its_own_decodings(tmp_path):
    plan = resolve(loaded(tmp_path).config)
    some = {(c.attack, c.decoding) for c in plan.conditions if c.prompts == "some"}
    assert some == {(attack, "slow") for attack in ("direct", "dose-step2", "dose-step4")}
    assert len([c for c in plan.conditions if c.prompts == "all"]) == 7 * 2


def test_values_know_where_they_came_from(tmp_path):
    found = loaded(tmp_path, overrides=["attacks.1.grid.step=[1, 3, 5]"])
    assert [attack.params["step"] for attack in found.config.attacks[1:4]] == [1, 3, 5]
    assert found.sources["attacks.2.step"] == "--set"
    assert found.sources["attacks.2.name"].startswith("file ")


def test_values_that_are_no_numbers_are_numbered_in_the_alias(tmp_path):
    text = CONFIG.replace("{step: [2, 4]}", "{replies: [a/b.csv, c.csv]}")
    keys = [attack.key for attack in loaded(tmp_path, text).config.attacks]
    assert keys[1:3] == ["dose-replies1", "dose-replies2"]


def test_a_grid_without_a_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"attacks\.1: a grid needs the `name`"):
        loaded(tmp_path, CONFIG.replace("name: anchoring, ", ""))


@pytest.mark.parametrize("grid", ["3", "{}", "{step: 4}", "{step: []}"])
def test_a_grid_without_values_is_refused(tmp_path, grid):
    with pytest.raises(ConfigError, match=r"attacks\.1\.grid: .* is not a mapping of parameters to lists of values"):
        loaded(tmp_path, CONFIG.replace("{step: [2, 4]}", grid))


def test_an_unknown_decoding_of_a_prompt_set_is_named(tmp_path):
    config = loaded(tmp_path, CONFIG.replace("[slow]", "[slwo]")).config
    with pytest.raises(ConfigError, match=r"decoding of prompts `some` `slwo`.*Did you mean `slow`"):
        resolve(config)
