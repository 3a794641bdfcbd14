"""Prompt files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dsprobe.errors import ConfigError
from dsprobe.prompts.tables import Row, Table, decode


def jsonl_table(data: bytes, where: str) -> Table:
    """Open a JSON Lines file.

    Args:
        data: The file's bytes; UTF-8, with or without a byte-order mark.
        where: The file, for messages.

    Returns:
        The keys of all its objects, in order of first appearance, and its rows; none in an empty file. Blank lines are
        skipped.

    Raises:
        ConfigError: A line is no JSON object; the message names line and position.
    """
    rows = []
    # Not `splitlines`, which also splits at characters that JSON strings may hold.
    for number, line in enumerate(decode(data, where).split("\n"), start=1):
        if line.strip():
            rows.append(Row(where, f"line {number}", "key", _object(line, f"{where}, line {number}")))
    keys = tuple(dict.fromkeys(key for row in rows for key in row.cells))
    return Table(where, where, keys, rows)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_unique(place))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}, position {error.colno}: not valid JSON ({error.msg}).") from None
    except RecursionError:
        raise ConfigError(f"{place}: not readable JSON (nested too deeply).") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{place}: not readable JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: a JSON object is needed, not `{type(value).__name__}`.")
    return value


def _unique(place: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Refuse a key that an object has twice, of which `json` would silently keep the last."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(f"{place}, key `{twice}`: there twice.")
        return found

    return build
