"""Rows of prompt files before they are prompts, and how a row becomes one. Every message names the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dsprobe.errors import ConfigError
from dsprobe.prompts.base import Prompt
from dsprobe.prompts.layouts import PLAIN, Layout, pair_of


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for the cells of a column whose type can be no text."""

    kind: str


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file."""

    where: str
    """File, or dataset and split."""
    place: str
    """``line 4``, ``row 3``."""
    noun: str
    """What the file calls its fields: ``column`` or ``key``."""
    cells: Mapping[str, Any]

    def error(self, column: str, problem: str) -> ConfigError:
        """An error at one of the row's cells."""
        return ConfigError(f"{self.where}, {self.place}, {self.noun} `{column}`: {problem}")

    def optional(self, column: str, *, numbers: bool = True) -> str:
        """A cell's text without outer white space; empty where the cell is absent or null.

        Args:
            column: Column or key.
            numbers: Whether integers and truth values count as their text, as in ids and categories.

        Raises:
            ConfigError: The cell holds something else, or characters that no UTF-8 file can hold.
        """
        value = self.cells.get(column)
        if value is None:
            return ""
        value = _cell_text(value) if numbers else value
        if not isinstance(value, str):
            kind = value.kind if isinstance(value, Unreadable) else type(value).__name__
            raise self.error(column, f"a text is needed, not `{kind}`.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(column, "holds half a surrogate pair, which is no character.")
        return value.strip()

    def text(self, column: str, *, numbers: bool = True) -> str:
        """A cell that may not be empty; see `optional`."""
        value = self.optional(column, numbers=numbers)
        if not value:
            raise self.error(column, "empty; a text is needed." if column in self.cells else "missing.")
        return value


def _cell_text(value: Any) -> Any:
    """An integer or truth value as the text that a configuration names it by; all else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


@dataclass(frozen=True, slots=True)
class Table:
    """A file's columns and rows."""

    where: str
    """File, or dataset and split."""
    header: str
    """Place of the columns' names, for messages."""
    columns: tuple[str, ...]
    rows: Iterable[Row]


def decode(data: bytes, where: str) -> str:
    """UTF-8 text, with or without a byte-order mark.

    Raises:
        ConfigError: It is not; the message names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def read_prompts(table: Table, layout: Layout, source: str, *, split: str = "", harmful: bool) -> list[Prompt]:
    """Turn rows into prompts, in file order.

    Args:
        table: The file.
        layout: What its columns mean.
        source: The configuration's source, which plain lists are named after.
        split: Split of a benchmark whose splits share one layout; part of ids made from row numbers.
        harmful: Whether the requests count as harmful, in files without labels.

    Raises:
        ConfigError: A row is malformed, an id is used twice, or there are no rows.
    """
    name = source if layout.name == PLAIN else layout.name
    prefix = f"{name}-{split}" if split and not layout.splits.get(split, True) else name
    has_id = layout.id in table.columns
    prompts: list[Prompt] = []
    place_of: dict[str, str] = {}
    for number, row in enumerate(table.rows, start=1):
        key = row.text(layout.id) if has_id else f"{prefix}-{number:04d}"
        if key in place_of:
            raise row.error(layout.id, f"id `{key}` is already used in {place_of[key]}.")
        place_of[key] = row.place
        prompts.append(
            Prompt(
                id=key,
                text=row.text(layout.text, numbers=False),
                harmful=_label(row, layout) if layout.labels else harmful,
                source=name,
                category=row.optional(layout.category),
                context=row.optional(layout.context),
                metadata=_metadata(row, layout),
            )
        )
    if not prompts:
        raise ConfigError(f"{table.where} has no rows.")
    return prompts


def _metadata(row: Row, layout: Layout) -> dict[str, str]:
    found = {column: row.optional(column) for column in layout.metadata}
    found["target"] = row.optional(layout.target)
    if layout.paired:
        found["pair"] = pair_of(row.optional(layout.category))
    return {name: value for name, value in found.items() if value}


def _label(row: Row, layout: Layout) -> bool:
    label = row.optional(layout.label)
    if label not in layout.labels:
        raise row.error(layout.label, f"`{label}` is unknown. Allowed: {', '.join(layout.labels)}.")
    return layout.labels[label]
