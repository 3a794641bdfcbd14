"""Judges with a model or a network of their own stay out of generation, and nothing there waits for them."""

from __future__ import annotations

import pytest

from dsprobe.config import RunConfig, Spec
from dsprobe.errors import ConfigError
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.guardrails.policy_sampler import deciding_judges
from dsprobe.sweeps.config import ObjectiveConfig
from dsprobe.sweeps.objectives import ObjectiveSet

LATER = Spec(
    name="jailbreakbench", alias="later", backend={"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
)
NOW = (Spec(name="toy_oracle"), Spec(name="toy_utility"))


def config(*judges):
    return RunConfig(
        models=("toy-diffusion",), prompts=({"source": "toy", "limit": 2},), judges=judges, decodings=({"steps": 4},)
    )


def test_a_deferred_judge_changes_neither_shards_nor_the_judges_of_the_manifest():
    plain, more = resolve(config(*NOW)), resolve(config(LATER, *NOW))
    assert [shard.id for shard in more.shards] == [shard.id for shard in plain.shards]
    assert more.run_id == plain.run_id != resolve(config(NOW[0])).run_id
    manifest = build_manifest(more, {})
    assert manifest["judges"] == {"toy_oracle": "harm", "toy_utility": "utility"}
    assert [judge["name"] for judge in manifest["config"]["judges"]] == ["jailbreakbench", "toy_oracle", "toy_utility"]


def test_the_settings_of_a_deferred_judge_are_checked_with_the_plan():
    wrong = Spec(name="jailbreakbench", backend={"kind": "local"})
    with pytest.raises(ConfigError, match=r"jailbreakbench.*path"):
        resolve(config(*NOW, wrong))


def test_a_policy_and_a_sweep_take_judges_of_the_run_only():
    assert deciding_judges(resolve(config(LATER, *NOW))) == ("toy_oracle", "toy_utility")
    with pytest.raises(ConfigError, match="no judge of harm"):
        deciding_judges(resolve(config(LATER, NOW[1])))
    asr = ObjectiveConfig(name="asr", judge="later")
    with pytest.raises(ConfigError, match=r"judge `later` needs a model .* after generation only.*: toy_oracle\."):
        ObjectiveSet([asr], (), config(LATER, *NOW))
