"""Formats of published attack artefacts. No text of an artefact ever stands in a message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dsprobe.errors import ConfigError, unknown_name
from dsprobe.prompts.csv_files import csv_table
from dsprobe.prompts.tables import Row, decode

ID_COLUMNS: Final = ("id", "behaviorid", "behavior_id", "prompt_id")
REQUEST_COLUMNS: Final = ("goal", "behavior", "request", "forbidden_prompt", "prompt")
ATTACK_COLUMNS: Final = ("attack_text", "attack", "test_case", "jailbreak", "adversarial_prompt")
"""Columns of a CSV file in any case, blanks read as underscores; the first one that it has counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """One published attack text, before it is matched to a prompt."""

    text: str
    prompt_id: str = ""
    request: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_artefacts(data: bytes, path: Path, wanted: str = "auto") -> tuple[str, list[Artefact]]:
    """Read a file of artefacts.

    Args:
        data: Its content.
        path: Where it lies; its ending tells a CSV file.
        wanted: One of `FORMATS`.

    Returns:
        Name of the format, and what the file holds, in its order.

    Raises:
        ConfigError: The file is malformed or of another format; the message names the file, the entry and the key.
    """
    if wanted not in ("auto", *_READERS):
        raise unknown_name("format of artefacts", wanted, ["auto", *_READERS])
    if wanted == "csv" or (wanted == "auto" and path.suffix.lower() == ".csv"):
        return "csv", list(_csv(data, str(path)))
    try:
        content = json.loads(decode(data, str(path)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not JSON ({error}).") from None
    name = _format_of(content, path) if wanted == "auto" else wanted
    return name, list(_READERS[name](content, str(path)))


def _format_of(content: Any, path: Path) -> str:
    if isinstance(content, list):
        return "dija"
    if isinstance(content, dict):
        return "jailbreakbench" if "jailbreaks" in content else "harmbench"
    raise ConfigError(f"{path}: neither an object nor a list; say what it is with `--format`.")


def _harmbench(content: Any, where: str) -> Iterator[Artefact]:
    """``{behaviour id: [case, …]}``; a case is a text, or a list of one text."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: HarmBench's test cases are an object of behaviour ids.")
    for number, (key, cases) in enumerate(content.items(), start=1):
        for place, case in enumerate(cases if isinstance(cases, list) else [cases], start=1):
            row = Row(where, f"behaviour {number}", "case", {str(place): _only(case)})
            if isinstance(row.cells[str(place)], list):
                raise row.error(str(place), "has several parts; a case of a single text is needed.")
            yield Artefact(text=_raw(row, str(place)), prompt_id=key)


def _only(case: Any) -> Any:
    return case[0] if isinstance(case, list) and len(case) == 1 else case


def _jailbreakbench(content: Any, where: str) -> Iterator[Artefact]:
    """``{parameters, jailbreaks: [{index, goal, prompt, …}]}``; a null prompt is a jailbreak that was not found."""
    if not isinstance(content, dict) or not isinstance(content.get("jailbreaks"), list):
        raise ConfigError(f"{where}: JailbreakBench's artefacts are an object with a list `jailbreaks`.")
    parameters = content.get("parameters")
    told = parameters if isinstance(parameters, dict) else {}
    metadata = {key: told[key] for key in ("method", "model") if isinstance(told.get(key), str)}
    for row in _rows(content["jailbreaks"], where, "jailbreak"):
        if row.cells.get("prompt") is not None:
            yield Artefact(text=_raw(row, "prompt"), request=row.text("goal", numbers=False), metadata=metadata)


def _dija(content: Any, where: str) -> Iterator[Artefact]:
    """A list of objects with ``X`` and ``refined X``: `Behavior`, `goal` or `vanilla prompt`."""
    if not isinstance(content, list):
        raise ConfigError(f"{where}: DIJA's refined prompts are a list of objects.")
    for row in _rows(content, where, "entry"):
        keys = {_name(key): key for key in row.cells}
        refined = next((name for name in keys if name.startswith("refined_")), "")
        if not refined:
            raise ConfigError(f"{where}, {row.place}: no key that begins with `refined`.")
        vanilla = refined.removeprefix("refined_")
        request = keys.get(vanilla) or keys.get(f"vanilla_{vanilla}")
        if request is None:
            raise row.error(vanilla, f"missing beside `{keys[refined]}`.")
        if not row.optional(keys[refined], numbers=False):
            continue
        prompt_id = next((row.optional(keys[name]) for name in ID_COLUMNS if name in keys), "")
        text = row.text(request, numbers=False)
        yield Artefact(text=_raw(row, keys[refined]), prompt_id=prompt_id, request=text)


def _csv(data: bytes, where: str) -> Iterator[Artefact]:
    table = csv_table(data, where)
    keys = {_name(column): column for column in table.columns}
    attack = _column(ATTACK_COLUMNS, keys)
    found = {"id": _column(ID_COLUMNS, keys), "request": _column(REQUEST_COLUMNS, keys)}
    if attack is None:
        raise ConfigError(f"{table.header}: no column with the attack text. Allowed: {', '.join(ATTACK_COLUMNS)}.")
    if not any(found.values()):
        names = ", ".join((*ID_COLUMNS, *REQUEST_COLUMNS))
        raise ConfigError(f"{table.header}: no column with an id or a request. Allowed: {names}.")
    for row in table.rows:
        told = {name: "" if column is None else row.optional(column) for name, column in found.items()}
        yield Artefact(text=_raw(row, attack), prompt_id=told["id"], request=told["request"])


def _column(names: Sequence[str], keys: Mapping[str, str]) -> str | None:
    return next((keys[name] for name in names if name in keys), None)


def _name(key: str) -> str:
    return "_".join(key.lower().split())


def _rows(entries: Sequence[Any], where: str, noun: str) -> Iterator[Row]:
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}, {noun} {number}: an object is needed, not `{type(entry).__name__}`.")
        yield Row(where, f"{noun} {number}", "key", entry)


def _raw(row: Row, key: str) -> str:
    """A text as it stands, outer white space included; checked as every cell is."""
    row.text(key, numbers=False)
    return str(row.cells[key])


_READERS: Final[Mapping[str, Callable[[Any, str], Iterator[Artefact]]]] = {
    "harmbench": _harmbench,
    "jailbreakbench": _jailbreakbench,
    "dija": _dija,
    "csv": _csv,
}

FORMATS: Final = ("auto", *_READERS)
"""Names of the formats."""
