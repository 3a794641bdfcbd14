"""Tables of estimates, ready to be printed on a terminal or as Markdown: one way to write a number everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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


def print_terminal(sheets: Iterable[Sheet]) -> None:
    """Print tables on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsprobe.reports.text import visible

    console = Console()
    for sheet in sheets:
        table = Table(box=None, header_style="bold", padding=(0, 1))
        table.title, table.title_justify, table.title_style = Text(visible(sheet.title)), "left", "bold"
        table.caption, table.caption_justify = Text(visible(sheet.note)), "left"
        for index, heading in enumerate(sheet.headings):
            justify: Literal["left", "right"] = "left" if index < sheet.labels else "right"
            table.add_column(Text(visible(heading)), justify=justify, overflow="fold")
        for row in sheet.rows:
            texts = [visible(cell) for cell in row]
            numbers = (text.replace(" [", "\n[") for text in texts[sheet.labels :])
            table.add_row(*(Text(text) for text in (*texts[: sheet.labels], *numbers)))
        console.print(table)
        console.print()


def print_markdown(sheets: Iterable[Sheet]) -> None:
    """Print tables as Markdown."""
    from dsprobe.reports.text import escape_markdown

    for sheet in sheets:
        print(f"### {escape_markdown(sheet.title)}\n")
        print(_markdown_row(escape_markdown(heading) for heading in sheet.headings))
        print(_markdown_row(["---"] * sheet.labels + ["---:"] * (len(sheet.headings) - sheet.labels)))
        for row in sheet.rows:
            numbers = (number.replace("*", "\\*") for number in row[sheet.labels :])
            print(_markdown_row([*(escape_markdown(label) for label in row[: sheet.labels]), *numbers]))
        print(f"\n{escape_markdown(sheet.note)}\n")


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
