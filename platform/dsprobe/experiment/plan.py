"""From a configuration to units of work.

A plan is a pure function of the configuration and the prompt files: resolving it validates every component and counts
every unit of work, and loads no model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dsprobe.attacks import ATTACKS
from dsprobe.config import DecodingConfig, GuardrailConfig, ModelConfig, PromptsConfig, RunConfig, Spec
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.preflight import check_rendering, stand_in
from dsprobe.experiment.raw_rows import check_raw
from dsprobe.guardrails import GUARDRAILS
from dsprobe.guardrails.build import check_guardrail
from dsprobe.judges import JUDGES, beside_generation
from dsprobe.models.checkpoint import CheckpointFacts, inspect_checkpoint
from dsprobe.prompts.base import PromptSet
from dsprobe.prompts.load import load_prompts
from dsprobe.risk import SCORERS
from dsprobe.telemetry.spans import span
from dsprobe.untrusted import local_path

SHARD_FORMAT = 3
"""Bumped when the meaning of a shard's output changes, so that old shards are not taken for new ones."""


MAX_CONDITIONS = 100_000
MAX_TRAJECTORIES = 20_000_000
"""Bounds of a plan, which is held in memory: a short configuration can stand for more than any machine holds."""


@dataclass(frozen=True, slots=True)
class RowRef:
    """One trajectory to run: an index into the condition's prompt set, and the sample number."""

    prompt: int
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of scheduling, retry and commit."""

    id: str
    """Derived from content: everything that determines the shard's output."""
    condition: Condition
    rows: tuple[RowRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A resolved experiment."""

    run_id: str
    config: RunConfig
    prompt_sets: dict[str, PromptSet]
    """Prompt-set key → prompts."""
    models: dict[str, CheckpointFacts]
    """Model name → what its folder says, without weights."""
    conditions: tuple[Condition, ...]
    skipped: dict[str, str]
    """Condition id → why it is not run (an attack that a model kind does not support)."""
    shards: tuple[Shard, ...]

    def decoding(self, condition: Condition) -> DecodingConfig:
        """The decoding settings of a condition."""
        return next(d for d in self.config.decodings if d.name == condition.decoding)

    def attack(self, condition: Condition) -> Spec:
        """The attack of a condition."""
        return next(a for a in self.config.attacks if a.key == condition.attack)

    def guardrail(self, condition: Condition) -> GuardrailConfig:
        """The guardrail of a condition."""
        return next(g for g in self.config.guardrails if g.name == condition.guardrail)

    def model(self, condition: Condition) -> ModelConfig:
        """The model of a condition."""
        return next(m for m in self.config.models if m.name == condition.model)


@span("plan")
def resolve(config: RunConfig) -> Plan:
    """Turn a configuration into conditions and shards without loading a model.

    Raises:
        ConfigError: A component, parameter, file or label is wrong.
        CheckpointError: A model folder cannot be read or is not a supported layout.
    """
    _check_components(config)
    prompt_sets = {p.key: load_prompts(p) for p in config.prompts}
    models = {m.name: inspect_checkpoint(m) for m in config.models}
    conditions, skipped = expand_grid(config, {name: facts.kind for name, facts in models.items()})
    if not conditions:
        raise ConfigError("The configuration has no runnable condition: " + "; ".join(skipped.values()))
    trajectories = config.samples * sum(len(prompt_sets[condition.prompts].prompts) for condition in conditions)
    if trajectories > MAX_TRAJECTORIES:
        raise ConfigError(
            f"The configuration stands for {trajectories} trajectories. Allowed: {MAX_TRAJECTORIES} a run; make "
            "several runs of it, with other seeds or fewer conditions."
        )
    shards = tuple(_shards(config, conditions, prompt_sets, models))
    plan = Plan(
        run_id=f"{config.name}-{_digest(s.id for s in shards)[:8]}",
        config=config,
        prompt_sets=prompt_sets,
        models=models,
        conditions=tuple(conditions),
        skipped=skipped,
        shards=shards,
    )
    check_raw(plan)
    _check_rendering(plan)
    return plan


def _check_components(config: RunConfig) -> None:
    from dsprobe.decoding.ordering import ORDERINGS
    from dsprobe.decoding.schedule import SCHEDULES

    for attack in config.attacks:
        _check_attack(attack, config)
    for judge in config.judges:
        kind = JUDGES.get(judge.name)
        _check_files(f"Judge `{judge.key}`", kind.files(JUDGES.config(judge.name, judge.params)))
    for decoding in config.decodings:
        SCHEDULES.config(decoding.schedule.name, decoding.schedule.params)
        ORDERINGS.config(decoding.ordering.name, decoding.ordering.params)
        for guardrail in config.guardrails:
            check_guardrail(guardrail, decoding)
    SCORERS.config(config.risk.scorer.name, config.risk.scorer.params)
    _check_narrowing(config)


def _check_narrowing(config: RunConfig) -> None:
    """What prompt sets restrict themselves to must exist."""
    known = {
        "attack": [attack.key for attack in config.attacks],
        "decoding": [decoding.name for decoding in config.decodings],
        "guardrail": [guardrail.name for guardrail in config.guardrails],
    }
    for prompts in config.prompts:
        wanted = {"attack": prompts.attacks, "decoding": prompts.decodings, "guardrail": prompts.guardrails}
        for what, names in wanted.items():
            for name in names or ():
                if name not in known[what]:
                    raise unknown_name(f"{what} of prompts `{prompts.key}`", name, known[what])


def _check_attack(attack: Spec, config: RunConfig) -> None:
    kind, own = ATTACKS.get(attack.name), ATTACKS.config(attack.name, attack.params)
    label = kind.needs_model(own)
    if label is not None and label not in (names := [model.name for model in config.models]):
        raise unknown_name(f"surrogate model of attack `{attack.key}`", label, names)
    _check_files(f"Attack `{attack.key}`", kind.files(own))


def attack_inputs(attack: Spec, models: Mapping[str, CheckpointFacts]) -> dict[str, str]:
    """What an attack depends on beside its parameters: digest of every file, and of the model that it searches on.

    Args:
        attack: A configured attack.
        models: Model label → facts.
    """
    kind, own = ATTACKS.get(attack.name), ATTACKS.config(attack.name, attack.params)
    inputs = _digests(kind.files(own))
    label = kind.needs_model(own)
    return inputs if label is None else inputs | {label: models[label].digest}


def judge_inputs(judges: Iterable[Spec]) -> dict[str, str]:
    """Digest of every file that judges read."""
    paths = [path for judge in judges for path in JUDGES.get(judge.name).files(JUDGES.config(judge.name, judge.params))]
    return _digests(paths)


def _digests(paths: Iterable[str]) -> dict[str, str]:
    return {path: hashlib.sha256(local_path(path, "file").read_bytes()).hexdigest() for path in paths}


def _check_files(what: str, paths: Iterable[str]) -> None:
    for path in paths:
        if not (found := local_path(path, what)).is_file():
            raise ConfigError(f"{what}: no file at {found.absolute()}.")


def _check_rendering(plan: Plan) -> None:
    """Render prompts of every condition with the tokenizers alone, whatever its guardrail."""
    models = {name: stand_in(facts) for name, facts in plan.models.items()}
    for condition in {(c.model, c.prompts, c.attack, c.decoding): c for c in plan.conditions}.values():
        model = models[condition.model]
        if model is not None:
            spec = plan.attack(condition)
            attack, prompts = ATTACKS.build(spec.name, spec.params), plan.prompt_sets[condition.prompts]
            every = attack.reads_metadata or bool(attack.files(ATTACKS.config(spec.name, spec.params)))
            check_rendering(attack, prompts, model, plan.decoding(condition), every=every)


def expand_grid(config: RunConfig, kinds: Mapping[str, str]) -> tuple[list[Condition], dict[str, str]]:
    """Expand the grid; an autoregressive model runs once, under the first decoding of each prompt set.

    Args:
        config: The run's configuration.
        kinds: Model label → ``diffusion`` or ``autoregressive``.

    Returns:
        Conditions in the configuration's order, and condition id → why it is not run.

    Raises:
        ConfigError: There would be more than `MAX_CONDITIONS`.
    """
    cells = len(config.models) * len(config.prompts) * len(config.attacks)
    if cells * len(config.decodings) * len(config.guardrails) > MAX_CONDITIONS:
        raise ConfigError(f"The configuration's lists multiply to more than {MAX_CONDITIONS} conditions.")
    conditions: list[Condition] = []
    skipped: dict[str, str] = {}
    for model, prompts, attack in _cells(config):
        kind = kinds[model.name]
        wanted = [d for d in config.decodings if prompts.decodings is None or d.name in prompts.decodings]
        decodings = wanted if kind == "diffusion" else wanted[:1]
        guardrails = [g for g in config.guardrails if prompts.guardrails is None or g.name in prompts.guardrails]
        for decoding, guardrail in itertools.product(decodings, guardrails):
            condition = Condition(
                model=model.name,
                prompts=prompts.key,
                attack=attack.key,
                decoding=decoding.name,
                guardrail=guardrail.name,
            )
            unfit = [f"attack `{attack.name}`"] if kind not in ATTACKS.get(attack.name).supports else []
            unfit += [f"guardrail `{g.name}`" for g in guardrail.stack if kind not in GUARDRAILS.get(g.name).supports]
            if unfit:
                skipped[condition.id] = f"{condition.id}: {unfit[0]} is not defined for {kind} models"
            else:
                conditions.append(condition)
    return conditions, skipped


def _cells(config: RunConfig) -> Iterable[tuple[ModelConfig, PromptsConfig, Spec]]:
    for model in config.models:
        for prompts in config.prompts:
            for attack in config.attacks:
                if prompts.attacks is None or attack.key in prompts.attacks:
                    yield model, prompts, attack


def _shards(
    config: RunConfig,
    conditions: list[Condition],
    prompt_sets: dict[str, PromptSet],
    models: dict[str, CheckpointFacts],
) -> Iterable[Shard]:
    own_judges = beside_generation(config.judges)
    for condition in conditions:
        prompt_set = prompt_sets[condition.prompts]
        attack: Spec = _one(config.attacks, condition.attack, "key")
        rows = [RowRef(p, s) for p in range(len(prompt_set.prompts)) for s in range(config.samples)]
        content = {
            "format": SHARD_FORMAT,
            "seed": config.seed,
            "condition": condition.id,
            "model": models[condition.model].digest,
            "placement": _one(config.models, condition.model, "name").model_dump(mode="json"),
            "prompts": prompt_set.digest,
            "attack": attack.model_dump(mode="json", exclude=None if attack.family else {"family"}),
            "decoding": _one(config.decodings, condition.decoding, "name").model_dump(mode="json"),
            **({"attack_inputs": inputs} if (inputs := attack_inputs(attack, models)) else {}),
            "guardrail": _one(config.guardrails, condition.guardrail, "name").model_dump(mode="json"),
            "risk": config.risk.model_dump(mode="json"),
            "judges": [judge.model_dump(mode="json") for judge in own_judges],
            **({"judge_inputs": inputs} if (inputs := judge_inputs(own_judges)) else {}),
            "recording": config.recording.model_dump(mode="json"),
        }
        size = config.execution.shard_size
        for start in range(0, len(rows), size):
            part = tuple(rows[start : start + size])
            rows_content = [[row.prompt, row.sample] for row in part]
            yield Shard(id=_digest([json.dumps(content | {"rows": rows_content}, sort_keys=True)])[:20],
                        condition=condition, rows=part)  # fmt: skip


def _one(items: Iterable[Any], label: str, attribute: str) -> Any:
    return next(item for item in items if getattr(item, attribute) == label)


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()
