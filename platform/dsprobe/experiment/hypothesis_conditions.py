"""Which conditions of a run answer which hypothesis: from its configuration alone, never from its results.

In words: `dsprobe.metrics.preregistration.CONDITIONS`. Where a run has no such conditions, `Answers.missing` says what
to add to the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from dsprobe.config import UNGUARDED, DecodingConfig, GuardrailConfig, RunConfig, Spec
from dsprobe.errors import ConfigError
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.plan import expand_grid
from dsprobe.guardrails import GUARDRAILS
from dsprobe.guardrails.trigger import TriggerConfig

NO_ATTACK: Final = "direct"
"""Name of the attack that is none."""
WINDOWS: Final = ("early", "middle", "late")
CONSTANT: Final = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What H3 compares in one cell."""

    unguarded: Condition
    windows: Mapping[str, Condition]
    """Name of a window → the condition that intervenes there."""
    end_only: Condition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """What H4 compares in one cell."""

    constant: tuple[Condition, ...]
    weighted: Mapping[str, tuple[Condition, ...]]
    """λ family → its settings; the first decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Conditions by hypothesis; H5 chooses its own, see `dsprobe.experiment.transfer`."""

    risk: tuple[Condition, ...]
    """H1, H2 and the stop rule; the first is primary."""
    windows: Windows | None
    """H3."""
    fronts: Fronts | None
    """H4."""
    schedules: Mapping[str, tuple[Condition, Condition]]
    """H6: name → dilated and linear condition."""
    missing: Mapping[str, str]
    """Hypothesis → what the run lacks for it."""


def answers(config: RunConfig, manifest: Mapping[str, Any]) -> Answers:
    """Sort out a run's conditions.

    Args:
        config: Its configuration.
        manifest: Its manifest, for model kinds and the number of harmful prompts.

    Raises:
        ConfigError: The manifest does not say which prompts are harmful.
    """
    return _Sorting(config, manifest).answers()


def _has_harmful(prompts: str, facts: Mapping[str, Any]) -> bool:
    if facts.get("harmful") is None:
        raise ConfigError(
            f"The run's manifest was written by an early version and does not say how many prompts of `{prompts}` are "
            "harmful, so its conditions cannot be sorted out. Run the experiment again under another name."
        )
    return bool(facts["harmful"])


class _Sorting:
    def __init__(self, config: RunConfig, manifest: Mapping[str, Any]) -> None:
        self.config = config
        self.kinds = {name: facts["kind"] for name, facts in manifest["models"].items()}
        self.harmful = {name for name, facts in manifest["prompt_sets"].items() if _has_harmful(name, facts)}
        self.conditions, _ = expand_grid(config, self.kinds)

    def answers(self) -> Answers:
        windows, fronts, schedules = self._windows(), self._fronts(), self._schedules()
        missing = {}
        if not self.risk:
            missing["H1"] = missing["H2"] = (
                "no attacked condition without a guardrail on a diffusion model; add an attack such as `dija` and the "
                f"guardrail `{UNGUARDED}` on a harmful prompt set"
            )
        if windows is None:
            missing["H3"] = (
                "no attacked cell with a guardrail in a window beside none; add guardrails such as `{name: middle, "
                f"stack: [{{name: renoise, window: middle}}]}}` and `{UNGUARDED}`"
            )
        if fronts is None:
            missing["H4"] = (
                "no attacked cell with both constant and step-weighted risk; add guardrails that differ only in "
                "`threshold` and `weighting`, e.g. `weighting: {name: linear}`, as many of either kind"
            )
        if not schedules:
            missing["H6"] = (
                "no attacked condition under a dilated schedule and an otherwise equal uniform one; add a decoding "
                "with `schedule: dilated`"
            )
        return Answers(risk=self.risk, windows=windows, fronts=fronts, schedules=schedules, missing=missing)

    @cached_property
    def attacked(self) -> tuple[Condition, ...]:
        """Attacked conditions of diffusion models with harmful prompts, attacks of a grid left out."""
        specs = {attack.key: attack for attack in self.config.attacks}
        return tuple(
            condition
            for condition in self.conditions
            if self.kinds[condition.model] == "diffusion"
            and condition.prompts in self.harmful
            and specs[condition.attack].name != NO_ATTACK
            and not specs[condition.attack].family
        )

    @cached_property
    def risk(self) -> tuple[Condition, ...]:
        """The unguarded ones under the first decoding of their prompt set."""
        first: dict[tuple[str, str], str] = {}
        for condition in self.conditions:
            first.setdefault((condition.model, condition.prompts), condition.decoding)
        return tuple(c for c in self.attacked if c.guardrail == UNGUARDED and c.decoding == first[c.model, c.prompts])

    def _cells(self) -> Iterator[tuple[Condition, list[tuple[GuardrailConfig, Spec, TriggerConfig]]]]:
        """Every attacked cell with the guardrails there that stand alone and have a trigger."""
        triggered = {guardrail.name: found for guardrail in self.config.guardrails if (found := _trigger(guardrail))}
        cells: dict[Condition, list[tuple[GuardrailConfig, Spec, TriggerConfig]]] = {}
        for condition in self.attacked:
            here = cells.setdefault(replace(condition, guardrail=UNGUARDED), [])
            if condition.guardrail in triggered:
                here.append(triggered[condition.guardrail])
        yield from cells.items()

    def _windows(self) -> Windows | None:
        for cell, guardrails in self._cells():
            found = [(g.name, str(trigger.window)) for g, _, trigger in guardrails if trigger.window in WINDOWS]
            if found and cell in self.attacked:
                windows = [window for _, window in found]
                ends = [g.name for g, _, trigger in guardrails if trigger.window == "end"]
                return Windows(
                    unguarded=cell,
                    windows={
                        f"{window}, {name}" if windows.count(window) > 1 else window: replace(cell, guardrail=name)
                        for name, window in found
                    },
                    end_only=replace(cell, guardrail=ends[0]) if ends else None,
                )
        return None

    def _fronts(self) -> Fronts | None:
        for cell, guardrails in self._cells():
            groups: dict[str, dict[str, list[Condition]]] = {}
            for guardrail, spec, trigger in guardrails:
                families = groups.setdefault(_without_weight(spec, trigger), {})
                families.setdefault(trigger.weighting.name, []).append(replace(cell, guardrail=guardrail.name))
            for families in groups.values():
                weighted = {name: tuple(settings) for name, settings in families.items() if name != CONSTANT}
                if CONSTANT in families and weighted:
                    return Fronts(constant=tuple(families[CONSTANT]), weighted=weighted)
        return None

    def _schedules(self) -> dict[str, tuple[Condition, Condition]]:
        decodings = {decoding.name: decoding for decoding in self.config.decodings}
        linear = {name: _linear_twin(decoding, self.config.decodings) for name, decoding in decodings.items()}
        unguarded = [condition for condition in self.attacked if condition.guardrail == UNGUARDED]
        pairs = [
            (condition, replace(condition, decoding=linear[condition.decoding] or ""))
            for condition in unguarded
            if decodings[condition.decoding].schedule.name == "dilated"
        ]
        pairs = [(dilated, twin) for dilated, twin in pairs if twin in unguarded]
        return named(pairs)


def named(pairs: Sequence[tuple[Condition, Condition]]) -> dict[str, tuple[Condition, Condition]]:
    """Pairs by the attack of their first condition, and whatever else differs among these."""
    among = [first for first, _ in pairs]
    keys = ["attack"] + [
        key for key in ("model", "prompts", "decoding") if len({getattr(first, key) for first in among}) > 1
    ]
    return {" · ".join(getattr(first, key) for key in keys): (first, second) for first, second in pairs}


def _trigger(guardrail: GuardrailConfig) -> tuple[GuardrailConfig, Spec, TriggerConfig] | None:
    """A guardrail that stands alone and watches risk by `TriggerConfig`."""
    if len(guardrail.stack) != 1:
        return None
    spec = guardrail.stack[0]
    config = GUARDRAILS.config(spec.name, spec.params)
    return (guardrail, spec, config) if isinstance(config, TriggerConfig) else None


def _without_weight(spec: Spec, trigger: TriggerConfig) -> str:
    """Everything about a guardrail but τ and λ."""
    return f"{spec.name} {trigger.model_dump_json(exclude={'threshold', 'weighting'})}"


def _linear_twin(dilated: DecodingConfig, decodings: Iterable[DecodingConfig]) -> str | None:
    """The first decoding with a uniform schedule that is otherwise the same, steps aside."""
    apart = {"name", "schedule", "steps"}
    wanted = dilated.model_dump(exclude=apart)
    linear = (decoding for decoding in decodings if decoding.schedule.name == "uniform")
    return next((decoding.name for decoding in linear if decoding.model_dump(exclude=apart) == wanted), None)
