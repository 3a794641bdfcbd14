"""The search space of a sweep: a guardrail stack with domains among its values.

A stack entry is a guardrail's spec, any value of which may be a domain, or a choice between guardrails::

    stack:
      - choices:                                   # parameter `guardrail`: none, renoise or refuse
          - none                                   # leaves this entry out
          - name: renoise
            threshold: {low: 0.05, high: 0.95}     # parameter `renoise.threshold`
            weighting:
              choices:                             # parameter `renoise.weighting`
                - constant
                - {name: linear, end: {low: 0.2, high: 1.0}}  # `renoise.weighting.linear.end`, only for linear
          - {name: refuse, window: {choices: [late, end]}}

Numbers appear in results as they are, choices by their label. Everything that a single setting could get wrong is
found when the space is built, before any model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import optuna

from dsprobe.config import UNGUARDED, DecodingConfig, GuardrailConfig, Spec
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.guardrails import GUARDRAILS
from dsprobe.guardrails.weighting import WEIGHTINGS
from dsprobe.registry import Registry
from dsprobe.risk import SCORERS
from dsprobe.sweeps.config import SpaceConfig
from dsprobe.sweeps.domains import Domain, Parent
from dsprobe.sweeps.space_checks import SpaceCheck, validate_spec
from dsprobe.sweeps.space_tree import Choice, Fixed, Node, Pick, choice_labels, parse

CHOICE: Final = "guardrail"
"""Path of the choice between guardrails where the entry has no alias."""
MOST_GRID_POINTS: Final = 100_000
"""Larger grids are refused."""
NESTED: Final[Mapping[str, Registry[Any]]] = {"weighting": WEIGHTINGS, "scorer": SCORERS}
"""Parameters that are components themselves."""


class SearchSpace:
    """Typed, conditional domains of a guardrail stack.

    Args:
        config: The stack with its domains.
        decoding: What the stack will run in; windows must fit it.

    Raises:
        ConfigError: A domain is malformed, two parameters share a path, or some end or choice cannot be used: an
            unknown component or parameter, or a value out of range. The message names the dotted path.
    """

    def __init__(self, config: SpaceConfig, decoding: DecodingConfig) -> None:
        self.decoding = decoding
        self.entries = _entries(config)
        self.domains: tuple[Domain, ...] = tuple(domain for entry in self.entries for domain in entry.domains())
        paths = [domain.path for domain in self.domains]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ConfigError(f"space: two parameters are called `{twice}`; give one of the guardrails an alias.")
        for key, guardrail in (pair for entry in self.entries for pair in _guardrails(entry)):
            SpaceCheck(key, guardrail, decoding).run()
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        self.digest: str = hashlib.sha256(text.encode()).hexdigest()[:16]
        """Identity of the space."""

    @property
    def conditional(self) -> bool:
        """Whether some domain exists only under a choice."""
        return any(domain.parent is not None for domain in self.domains)

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask a trial for the parameters that exist under the choices it makes.

        Args:
            trial: An Optuna trial, fixed and frozen ones included.

        Returns:
            Dotted path → number or label.
        """
        parameters: dict[str, Any] = {}

        def pick(domain: Domain) -> Any:
            parameters[domain.path] = value = suggest_value(trial, domain)
            return value

        self._stack(pick)
        return parameters

    def suggest_all(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask a trial for every domain, whatever the choices; `active` keeps those that exist."""
        return {domain.path: suggest_value(trial, domain) for domain in self.domains}

    def active(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that exist under the choices made, in order.

        Raises:
            ConfigError: One of them is missing or out of range.
        """
        kept: dict[str, Any] = {}

        def pick(domain: Domain) -> Any:
            if domain.path not in parameters:
                raise ConfigError(f"parameter `{domain.path}` is missing.")
            kept[domain.path] = value = domain.value(parameters[domain.path])
            return value

        self._stack(pick)
        return kept

    def guardrail(self, parameters: Mapping[str, Any], name: str = "trial") -> GuardrailConfig:
        """The guardrail stack that parameters stand for, validated.

        Args:
            parameters: Dotted path → value, as `suggest` gives them.
            name: Label of the guardrail.

        Returns:
            The stack; ``none`` where every entry was left out.

        Raises:
            ConfigError: Parameters are missing, unknown, out of range, or do not fit each other.
        """
        kept = self.active(parameters)
        for path in parameters:
            if path not in kept:
                raise unknown_name("parameter of this setting", path, kept)
        stack = [spec for spec in self._stack(lambda domain: kept[domain.path]) if spec != UNGUARDED]
        for spec in stack:
            validate_spec(spec, self.decoding)
        return GuardrailConfig.model_validate({"name": name if stack else UNGUARDED, "stack": stack})

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the domains' grid points, each only with the parameters that exist in it.

        The order is that of the stack; the last domain varies fastest.

        Raises:
            ConfigError: There are more than 100 000 points.
        """
        points: list[dict[str, Any]] = [{}]
        for entry in self.entries:
            if len(points) * entry.size() > MOST_GRID_POINTS:
                raise ConfigError(f"space: the grid has more than {MOST_GRID_POINTS} settings; give `points`.")
            points = [{**point, **more} for point in points for more in entry.grid()]
        return points

    def _stack(self, pick: Pick) -> list[Any]:
        return [entry.resolve(pick) for entry in self.entries]


def suggest_value(trial: optuna.trial.BaseTrial, domain: Domain) -> Any:
    """Ask a trial for one domain."""
    if domain.kind == "categorical":
        return trial.suggest_categorical(domain.path, domain.choices)
    if domain.kind == "int":
        step = int(domain.step or 1)
        return trial.suggest_int(domain.path, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(domain.path, domain.low, domain.high, step=domain.step, log=domain.log)


def guardrail_digest(guardrail: GuardrailConfig) -> str:
    """Identity of what a guardrail does: settings with the same digest give the same outcomes.

    Labels, the order of keys, and parameters that equal their defaults do not matter; the order of the stack does.

    Args:
        guardrail: A stack.

    Returns:
        16 hexadecimal characters.

    Raises:
        ConfigError: A component or parameter is unknown or out of range.
    """
    text = json.dumps([_canonical(GUARDRAILS, spec) for spec in guardrail.stack], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(registry: Registry[Any], spec: Spec) -> dict[str, Any]:
    config = registry.config(spec.name, spec.params)
    values = config.model_dump(mode="json")
    for key, nested in NESTED.items():
        part = getattr(config, key, None)
        if isinstance(part, Spec):
            values[key] = _canonical(nested, part)
    return {"name": spec.name, "parameters": values}


def _entries(config: SpaceConfig) -> tuple[Node, ...]:
    choices = sum("choices" in entry for entry in config.stack)
    nodes = []
    for index, entry in enumerate(config.stack, start=1):
        path = CHOICE if choices == 1 else f"{CHOICE}_{index}"
        nodes.append(_choice(entry, path) if "choices" in entry else _guardrail(entry, None, f"stack entry {index}"))
    return tuple(nodes)


def _choice(entry: Mapping[str, Any], path: str) -> Choice:
    """A choice between guardrails; `none` leaves the entry out."""
    extra = sorted(set(entry) - {"choices", "alias"})
    if extra:
        raise unknown_name("key in a choice between guardrails", extra[0], ["choices", "alias"])
    path = str(entry.get("alias") or path)
    options, labels = choice_labels(entry["choices"], path)
    nodes = [
        Fixed(UNGUARDED) if option == UNGUARDED else _guardrail(option, (path, label), f"{path}: {label}")
        for option, label in zip(options, labels, strict=True)
    ]
    return Choice(Domain(path=path, kind="categorical", choices=labels), tuple(nodes))


def _guardrail(entry: Any, parent: Parent, where: str) -> Node:
    """One guardrail's spec; its parameters' paths start with its alias or name."""
    spec = {"name": entry} if isinstance(entry, str) else entry
    name = spec.get("name") if isinstance(spec, Mapping) else None
    if not isinstance(name, str):
        raise ConfigError(f"space: {where}: a guardrail's `name` is missing. Allowed: {', '.join(GUARDRAILS.names())}.")
    return parse(spec, str(spec.get("alias") or name), parent)


def _guardrails(entry: Node) -> Iterator[tuple[str, Node]]:
    """Every guardrail that an entry can be, with the path its parameters start with."""
    if isinstance(entry, Choice):
        for label, option in zip(entry.domain.choices, entry.options, strict=True):
            if not isinstance(option, Fixed):
                yield label, option
        return
    yield str((spec := entry.resolve(_extreme(0))).get("alias") or spec["name"]), entry


def _extreme(place: int) -> Pick:
    """Every domain at its first end or label (0), or its last (-1)."""
    return lambda domain: domain.ends[place]
