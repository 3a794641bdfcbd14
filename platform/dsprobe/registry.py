"""Named components, found by name and imported only when used.

A registry maps a name to a `module:attribute` target. Listing names imports nothing, so `dsprobe list` and
`dsprobe --help` stay fast. Other packages add components through the entry-point group
``dsprobe.<kind>`` (e.g. ``dsprobe.attacks``) without touching this repository.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from dsprobe.errors import ConfigError, unknown_name

T = TypeVar("T")


class ComponentConfig(BaseModel):
    """Base of every component's nested ``Config``: typed, immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered component."""

    target: str
    """Import path ``module:attribute``."""
    summary: str
    """One phrase for `dsprobe list`."""


class Registry(Generic[T]):
    """A lazy name → component-class map for one kind of component.

    Each component class has a nested ``Config`` (a `ComponentConfig`) and takes it as its first argument.

    Args:
        kind: Singular name of the kind, as it appears in errors (``"attack"``).
        entries: Built-in components.
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._plugins_loaded = False

    def _all(self) -> dict[str, Entry]:
        if not self._plugins_loaded:
            for point in entry_points(group=f"dsprobe.{self.kind.replace(' ', '_')}s"):
                self._entries.setdefault(point.name, Entry(point.value, f"plug-in {point.value}"))
            self._plugins_loaded = True
        return self._entries

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter(sorted(self._all().items()))

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._all())

    def get(self, name: str) -> type[T]:
        """Import and return the class registered under a name.

        Raises:
            ConfigError: The name is unknown; the message names the nearest one.
        """
        entry = self._all().get(name)
        if entry is None:
            raise unknown_name(self.kind, name, self.names())
        module, _, attribute = entry.target.partition(":")
        return cast("type[T]", getattr(importlib.import_module(module), attribute))

    def config(self, name: str, params: Mapping[str, Any]) -> ComponentConfig:
        """Validate parameters against a component's ``Config`` without building it.

        Raises:
            ConfigError: The name or a parameter is unknown, or a value is out of range.
        """
        config_class: type[ComponentConfig] = cast("Any", self.get(name)).Config
        for key in params:
            if key not in config_class.model_fields:
                raise unknown_name(f"parameter of {self.kind} `{name}`", key, config_class.model_fields)
        return validated(config_class, params, f"{self.kind} `{name}`")

    def build(self, name: str, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> T:
        """Construct the named component from its validated parameters and run-time arguments."""
        return cast("Any", self.get(name))(self.config(name, params), *args, **kwargs)  # type: ignore[no-any-return]


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """Validate values into a pydantic model.

    Raises:
        ConfigError: One line per problem, each naming `where`, the key, the value and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(describe_validation(error, where)) from None


SECRET: Final = "secret"
"""Type of a validation problem whose value may hold a password; raise it as a `PydanticCustomError`."""
_NEVER_QUOTED: Final = (SECRET, "extra_forbidden")
"""Problems whose value is not told: an unknown key may be an `api_key`."""


def describe_validation(error: ValidationError, where: str, *, show_input: bool = True) -> str:
    """Turn pydantic's report into one line per problem: where, what was given, what is allowed.

    Args:
        error: The report.
        where: What was validated.
        show_input: Whether to quote the value; not where it may be benchmark text.
    """
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        quoted = show_input and problem["type"] not in _NEVER_QUOTED
        given = f" (given: {problem.get('input')!r})" if quoted else ""
        lines.append(f"{where}{': ' if path else ''}{path}: {problem['msg']}{given}")
    return "\n".join(lines)
