"""Prompt files as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from dsprobe.errors import ConfigError
from dsprobe.prompts.tables import Row, Table, decode


def csv_table(data: bytes, where: str) -> Table:
    """Open a CSV file with a header.

    Args:
        data: The file's bytes; UTF-8, with or without a byte-order mark.
        where: The file, for messages.

    Returns:
        Its columns and rows, none in an empty file; blank lines are skipped, and a bad row raises when it is reached.

    Raises:
        ConfigError: The file is no such CSV; the message names the file, and line and column.
    """
    lines = _lines(decode(data, where), where)
    first = next(lines, None)
    if first is None:
        return Table(where, where, (), ())
    header = tuple(first[1])
    return Table(where, f"{where}, line 1", header, (_row(header, cells, where, line) for line, cells in lines))


def _lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Non-blank records with the number of the line on which each starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{where}, line {start}: not valid CSV ({error}).") from None


def _row(header: Sequence[str], cells: Sequence[str], where: str, line: int) -> Row:
    sizes = f"the row has {len(cells)} cells for {len(header)} columns"
    if len(cells) < len(header):
        raise ConfigError(f"{where}, line {line}, column `{header[len(cells)]}`: missing; {sizes}.")
    if len(cells) > len(header):
        raise ConfigError(
            f"{where}, line {line}, column {len(header) + 1}: {sizes}; put text that holds commas in double quotes."
        )
    return Row(where, f"line {line}", "column", dict(zip(header, cells, strict=True)))
