"""YAML read strictly: plain data only, no key twice, every error with its line.

Differs from `yaml.safe_load` on purpose: only ``true`` and ``false`` are booleans (``kl: off`` is text, as in YAML
1.2), dates stay text, and tags beyond JSON's types, keys that are not text and structures that hold themselves are
errors.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from dsprobe.errors import ConfigError

_TAG: Final = "tag:yaml.org,2002:"
_PLAIN: Final = ("null", "bool", "int", "float", "str", "seq", "map")
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
MAX_DEPTH: Final = 24
MAX_VALUES: Final = 20_000
"""Aliases are expanded, so a short text can stand for a huge tree."""


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document into dictionaries, lists and scalars that share nothing.

    Args:
        text: The document; empty text is `None`.
        where: Where it comes from, for messages.

    Raises:
        ConfigError: It is not such a document; the message says where and, where known, the line and column.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {error.problem or error.context}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{where}, line {line}: a character that YAML does not allow ({error.reason}).") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply. Allowed: {MAX_DEPTH} levels.") from None
    except (ValueError, OverflowError) as error:
        # The scanner lets these through for escapes beyond Unicode.
        raise ConfigError(f"{where}: not valid YAML ({error}).") from None
    return _Copier(where).copy(value, 0)


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that knows JSON's types only and refuses a key given twice."""

    yaml_constructors = {  # noqa: RUF012 - declared so by the base class
        tag: build
        for tag, build in SafeConstructor.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _PLAIN
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, rule) for tag, rule in rules if tag not in (f"{_TAG}bool", f"{_TAG}timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError):
            kind = node.tag.removeprefix(_TAG)
            raise ConstructorError(None, None, f"`{node.value}` is no {kind}", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise ConstructorError(None, None, "a key must be text; put it in quotes", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"key `{key.value}` is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class _Copier:
    """Copies a tree, so that what an alias repeats is not shared, and counts what it copies."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = MAX_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ConfigError(f"{self._where}: more than {MAX_VALUES} values, aliases expanded.")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{self._where}: nested too deeply, or within itself. Allowed: {MAX_DEPTH} levels.")
        for text in (value,) if isinstance(value, str) else value if isinstance(value, dict) else ():
            if _HALF_PAIR.search(text):
                raise ConfigError(f"{self._where}: a text holds half a surrogate pair, which is no character.")
        if isinstance(value, dict):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.copy(item, depth + 1) for item in value]
        return value
