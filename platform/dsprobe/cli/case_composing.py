"""The cases of a configuration's attack, for `dsprobe attacks save`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dsprobe.attacks import ATTACKS, Attack
from dsprobe.attacks.case import AttackCase
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.experiment.plan import resolve
from dsprobe.experiment.preflight import stand_in
from dsprobe.models.load import load_model

if TYPE_CHECKING:
    from dsprobe.config import RunConfig, Spec
    from dsprobe.experiment.plan import Plan
    from dsprobe.models.base import LanguageModel
    from dsprobe.prompts.base import Prompt


def composed(
    config: RunConfig, attack: str, model: str, prompts: str | None = None, decoding: str | None = None
) -> list[AttackCase]:
    """The cases of an attack on the prompt sets that it runs on; an attack that searches is run.

    Args:
        config: A run's configuration.
        attack: Key of one of its attacks.
        model: Name of one of its models.
        prompts: Key of the one prompt set to take; `None` takes all that the attack runs on.
        decoding: Name of a decoding; needed where their reply lengths differ.

    Raises:
        ConfigError: A name is unknown, the reply length is undecided, or a prompt stands in several sets.
    """
    reply_length = _reply_length(config, decoding)
    plan = resolve(config)
    spec = next((spec for spec in config.attacks if spec.key == attack), None)
    if spec is None:
        raise unknown_name("attack of the configuration", attack, [spec.key for spec in config.attacks])
    if model not in plan.models:
        raise unknown_name("model of the configuration", model, plan.models)
    built = ATTACKS.build(spec.name, spec.params)
    return built.compose_all(_prompts(plan, attack, prompts), _model(plan, built, spec, model), reply_length)


def _prompts(plan: Plan, attack: str, only: str | None) -> list[Prompt]:
    keys = [p.key for p in plan.config.prompts if p.attacks is None or attack in p.attacks]
    if only is not None and only not in keys:
        raise unknown_name(f"prompt set of attack `{attack}`", only, keys)
    prompts = [prompt for key in keys if only in (None, key) for prompt in plan.prompt_sets[key].prompts]
    twice = [key for key, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} prompts stand in several sets, e.g. `{twice[0]}`, and a file holds one case for each. "
            f"Choose a set with --prompts: {', '.join(keys)}."
        )
    return prompts


def _reply_length(config: RunConfig, decoding: str | None) -> int:
    names = [d.name for d in config.decodings]
    if decoding is not None and decoding not in names:
        raise unknown_name("decoding of the configuration", decoding, names)
    lengths = {d.reply_length for d in config.decodings if decoding in (None, d.name)}
    if len(lengths) > 1:
        raise ConfigError(f"The decodings have replies of several lengths; choose with --decoding: {', '.join(names)}.")
    return lengths.pop()


def _model(plan: Plan, attack: Attack, spec: Spec, name: str) -> LanguageModel:
    """The model, without its weights where the attack does not run it."""
    configs = {model.name: model for model in plan.config.models}
    if not attack.searches and (found := stand_in(plan.models[name])) is not None:
        return found
    label = attack.needs_model(ATTACKS.config(spec.name, spec.params))
    if label is not None:
        attack.surrogates = {label: load_model(configs[label])}
    return load_model(configs[name])
