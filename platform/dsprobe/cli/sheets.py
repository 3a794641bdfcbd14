"""Sheets on the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dsprobe.reports.sheets import Sheet


def print_terminal(sheets: Iterable[Sheet]) -> None:
    """Print tables on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsprobe.visible_text import visible

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
    from dsprobe.reports.sheets import sheet_markdown

    for sheet in sheets:
        print(sheet_markdown(sheet))
