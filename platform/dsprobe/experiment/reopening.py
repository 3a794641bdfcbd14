"""A run made before, as a plan again: same configuration, same prompts, same models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsprobe.config import PromptsConfig, RunConfig
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import Plan, resolve
from dsprobe.prompts.base import PromptSet
from dsprobe.registry import validated


def reopen(manifest: Mapping[str, Any]) -> Plan:
    """Resolve a run's configuration again and check that prompts and models are those of the run.

    Args:
        manifest: The run's manifest.

    Raises:
        ConfigError: A prompt set or a model is another one by now, or a file is missing.
        CheckpointError: A model folder cannot be read.
    """
    plan = resolve(validated(RunConfig, manifest["config"], f"manifest of {manifest['run_id']}"))
    for source in plan.config.prompts:
        check_prompts(manifest, source, plan.prompt_sets[source.key])
    for name, facts in plan.models.items():
        used = manifest["models"][name]["digest"]
        if facts.digest != used:
            raise ConfigError(
                f"Model `{name}` has digest {facts.digest[:12]}…; the run was made with {used[:12]}…. Bring back the "
                "model of the run."
            )
    return plan


def check_prompts(manifest: Mapping[str, Any], source: PromptsConfig, found: PromptSet) -> None:
    """Refuse a prompt set that is not what the run used.

    Args:
        manifest: The run's manifest.
        source: Configuration of the set.
        found: The set as it is loaded now.

    Raises:
        ConfigError: Its digest differs.
    """
    used = manifest["prompt_sets"][source.key]["digest"]
    if found.digest != used:
        raise ConfigError(
            f"Prompt set `{source.key}` has digest {found.digest[:12]}…; the run was made with {used[:12]}…. Bring "
            f"back the set of the run ({source.path or source.source})."
        )
