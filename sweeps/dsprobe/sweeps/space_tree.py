"""The tree that says under which choices each domain of a search space exists.

A stack is parsed into nodes: fixed values, mappings and sequences of nodes, numeric domains, and choices whose options
are nodes again. Everything else (suggesting, the grid, building a guardrail) walks this tree and asks a `Pick` for
the value of each domain that it meets, so a domain under a choice that was not taken is never asked for.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dsprobe.errors import ConfigError, unknown_name
from dsprobe.registry import validated
from dsprobe.sweeps.domains import Domain, NumericConfig, Parent

Pick: TypeAlias = Callable[[Domain], Any]
"""Says which value a domain takes."""


class Node(ABC):
    """A part of a stack."""

    @abstractmethod
    def domains(self) -> Iterator[Domain]:
        """Every domain in it, in order; a choice stands before the domains of its options."""

    @abstractmethod
    def resolve(self, pick: Pick) -> Any:
        """The plain value under the picked values; asks only for domains that exist under them."""

    @abstractmethod
    def size(self) -> int:
        """Points of its grid."""

    @abstractmethod
    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of its domains' grid points, only with the domains that exist in each."""


@dataclass(frozen=True, slots=True)
class Fixed(Node):
    """A value without domains."""

    value: Any

    def domains(self) -> Iterator[Domain]:
        """See `Node.domains`."""
        return iter(())

    def resolve(self, pick: Pick) -> Any:
        """See `Node.resolve`."""
        return self.value

    def size(self) -> int:
        """See `Node.size`."""
        return 1

    def grid(self) -> Iterator[dict[str, Any]]:
        """See `Node.grid`."""
        return iter(({},))


@dataclass(frozen=True, slots=True)
class Numeric(Node):
    """A numeric domain."""

    domain: Domain

    def domains(self) -> Iterator[Domain]:
        """See `Node.domains`."""
        return iter((self.domain,))

    def resolve(self, pick: Pick) -> Any:
        """See `Node.resolve`."""
        return pick(self.domain)

    def size(self) -> int:
        """See `Node.size`."""
        return len(self.domain.grid())

    def grid(self) -> Iterator[dict[str, Any]]:
        """See `Node.grid`."""
        return ({self.domain.path: value} for value in self.domain.grid())


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """A categorical domain, whose options may hold domains of their own."""

    domain: Domain
    options: tuple[Node, ...]
    """One for each label."""

    def domains(self) -> Iterator[Domain]:
        """See `Node.domains`."""
        yield self.domain
        for option in self.options:
            yield from option.domains()

    def resolve(self, pick: Pick) -> Any:
        """See `Node.resolve`."""
        return self.options[self.domain.choices.index(pick(self.domain))].resolve(pick)

    def size(self) -> int:
        """See `Node.size`."""
        return sum(option.size() for option in self.options)

    def grid(self) -> Iterator[dict[str, Any]]:
        """See `Node.grid`."""
        for label, option in zip(self.domain.choices, self.options, strict=True):
            for point in option.grid():
                yield {self.domain.path: label, **point}


@dataclass(frozen=True, slots=True)
class Group(Node):
    """A mapping or a sequence of nodes."""

    keys: tuple[str, ...] | None
    """Keys of a mapping; `None` for a sequence."""
    parts: tuple[Node, ...]

    def domains(self) -> Iterator[Domain]:
        """See `Node.domains`."""
        for part in self.parts:
            yield from part.domains()

    def resolve(self, pick: Pick) -> Any:
        """See `Node.resolve`."""
        values = [part.resolve(pick) for part in self.parts]
        return values if self.keys is None else dict(zip(self.keys, values, strict=True))

    def size(self) -> int:
        """See `Node.size`."""
        return math.prod(part.size() for part in self.parts)

    def grid(self) -> Iterator[dict[str, Any]]:
        """See `Node.grid`."""
        for points in itertools.product(*(list(part.grid()) for part in self.parts)):
            yield {path: value for point in points for path, value in point.items()}


def parse(value: Any, path: str, parent: Parent = None) -> Node:
    """Turn a written value into a node.

    Args:
        value: Anything YAML can say.
        path: Dotted path of the value.
        parent: The choice and label that it stands under.

    Raises:
        ConfigError: A domain is malformed; the message starts with its path.
    """
    if isinstance(value, Mapping) and "choices" in value:
        return parse_choice(value, path, parent)
    if isinstance(value, Mapping) and {"low", "high"} & set(value) and "name" not in value:
        unknown = sorted(set(value) - set(NumericConfig.model_fields))
        if unknown:
            raise unknown_name(f"key in the domain `{path}`", unknown[0], NumericConfig.model_fields)
        return Numeric(validated(NumericConfig, value, f"space: {path}").domain(path, parent))
    if isinstance(value, Mapping):
        keys = tuple(str(key) for key in value)
        parts = (parse(part, f"{path}.{key}", parent) for key, part in zip(keys, value.values(), strict=True))
        return Group(keys, tuple(parts))
    if isinstance(value, list | tuple):
        return Group(None, tuple(parse(part, f"{path}.{index}", parent) for index, part in enumerate(value)))
    return Fixed(value)


def parse_choice(value: Mapping[str, Any], path: str, parent: Parent) -> Choice:
    """Turn ``{choices: [...]}`` into a node; see `parse`."""
    extra = sorted(set(value) - {"choices"})
    if extra:
        raise unknown_name(f"key in the domain `{path}`", extra[0], ["choices"])
    options, labels = choice_labels(value["choices"], path)
    nodes = (parse(option, f"{path}.{name}", (path, name)) for name, option in zip(labels, options, strict=True))
    return Choice(Domain(path=path, kind="categorical", choices=labels, parent=parent), tuple(nodes))


def choice_labels(choices: Any, path: str) -> tuple[Sequence[Any], tuple[str, ...]]:
    """The options of a choice and their labels: alias or name of a mapping, a scalar itself, else the index.

    Raises:
        ConfigError: There are no options, or two have the same label.
    """
    if not isinstance(choices, list | tuple) or not choices:
        raise ConfigError(f"space: {path}: `choices` is a list with at least one entry (given: {choices!r}).")
    labels = tuple(_label(option, index) for index, option in enumerate(choices))
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"space: {path}: two choices are called `{twice}`; give one of them an alias.")
    return choices, labels


def _label(option: Any, index: int) -> str:
    if isinstance(option, Mapping):
        name = option.get("alias") or option.get("name")
        return name if isinstance(name, str) else str(index)
    if isinstance(option, list | tuple):
        return str(index)
    return option if isinstance(option, str) else json.dumps(option)
