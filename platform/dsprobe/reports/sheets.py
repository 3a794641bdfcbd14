"""Tables of estimates, ready to be printed anywhere: one way to write a number on the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsprobe.metrics.intervals import Interval


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table, ready to be printed anywhere. Texts are plain and may hold anything a user named."""

    title: str
    note: str
    headings: list[str]
    rows: list[list[str]]
    labels: int
    """Number of leading columns that are labels; the rest are numbers."""


def shown(interval: Interval, spec: str) -> str:
    """An estimate with its bounds; an en dash where it is undefined."""
    return "–" if math.isnan(interval.value) else format(interval, spec).replace("inf", "∞")


def points(interval: Interval) -> str:
    """A difference of rates in percentage points."""
    return signed(100 * interval.value, 100 * interval.low, 100 * interval.high)


def signed(value: float, low: float, high: float) -> str:
    """A difference with its bounds; an en dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def p_value(value: float) -> str:
    """A p-value; an en dash where it is undefined."""
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def sheet_markdown(sheet: Sheet) -> str:
    """The table as Markdown below a heading, its note after it."""
    from dsprobe.reports.text import escape_markdown

    lines = [
        f"### {escape_markdown(sheet.title)}\n",
        _markdown_row(escape_markdown(heading) for heading in sheet.headings),
        _markdown_row(["---"] * sheet.labels + ["---:"] * (len(sheet.headings) - sheet.labels)),
    ]
    for row in sheet.rows:
        numbers = (number.replace("*", "\\*") for number in row[sheet.labels :])
        lines.append(_markdown_row([*(escape_markdown(label) for label in row[: sheet.labels]), *numbers]))
    return "\n".join([*lines, f"\n{escape_markdown(sheet.note)}\n"])


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
