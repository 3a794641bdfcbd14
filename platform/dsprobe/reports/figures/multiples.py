"""Small multiples: panels in rows and columns, placed in inches, so that no label can squeeze a panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Generic

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from dsprobe.reports.figures.facets import MAX_COLUMNS, Facet, P, drawn
from dsprobe.reports.figures.style import INK, SOFT, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL: Final = 1.5
"""Width of the row labels in inches."""
_ORDINATE, _RIGHT, _GAP = 0.72, 0.14, 0.3
_ROW_GAP, _ABSCISSA, _LINE = 0.28, 0.62, 0.165
_FEW_ROWS: Final = 3
"""Up to so many rows have the full height."""


class Multiples(Generic[P]):
    """A figure of panels at the places that their facets name; blank panels are left out.

    Args:
        panels: Columns and rows appear in order of their first panel.
        height: Height of a panel in inches where there are few rows.
        abscissae: Labels of the x axes; the whole grid is drawn once for each, one below the other.
        ordinate: Label of the y axes, or one for each of the abscissae.
        legend: Handles of the legend above all panels.
        strip: Inches to keep free at the top for something else than a legend.
        remarks: Keep a line free above every panel for a remark.
    """

    def __init__(
        self,
        panels: Sequence[P],
        height: float,
        abscissae: Sequence[str],
        ordinate: str | Sequence[str],
        legend: Sequence[Any] = (),
        strip: float = 0.0,
        remarks: bool = False,
    ) -> None:
        self._remark = 0.13 if remarks else 0.0
        self.panels = drawn(panels)
        """Panels that have axes."""
        self._facets = [panel.facet for panel in self.panels]
        self._rows = list(dict.fromkeys(facet.row for facet in self._facets))
        used = {facet.column for facet in self._facets}
        names = [name for name in dict.fromkeys(panel.facet.column for panel in panels) if name in used]
        self._chunks = [names[i : i + MAX_COLUMNS] for i in range(0, len(names), MAX_COLUMNS)]
        self._height = height if len(self._rows) <= _FEW_ROWS else 0.68 * height
        self._width = (WIDTH - self._left - _RIGHT + _GAP) / len(self._chunks[0]) - _GAP
        self._titles = {name: fitted(name, self._width, 9.5, bold=True) for name in names}
        columns = self._legend_columns(legend)
        top = strip + (0.14 + 0.2 * math.ceil(len(legend) / columns) if legend else 0.0)
        tall = top + len(abscissae) * sum(self._block_height(chunk) for chunk in self._chunks)
        self.figure = Figure(figsize=(WIDTH, tall))
        if legend:
            self.figure.legend(
                handles=list(legend), loc="upper left", bbox_to_anchor=(0, 1), ncols=columns,
                borderaxespad=0.2, borderpad=0.1,
            )  # fmt: skip
        self.axes: list[list[Axes]] = []
        """Per abscissa, one axes per panel."""
        ordinates = [ordinate] * len(abscissae) if isinstance(ordinate, str) else ordinate
        for label, upright in zip(abscissae, ordinates, strict=True):
            placed: dict[int, Axes] = {}
            for chunk in self._chunks:
                placed |= self._block(chunk, top, label, upright)
                top += self._block_height(chunk)
            self.axes.append([placed[number] for number in range(len(self._facets))])

    @property
    def _left(self) -> float:
        return _LABEL + _ORDINATE

    @staticmethod
    def _legend_columns(handles: Sequence[Any]) -> int:
        widest = max((text_inches(str(handle.get_label()), 8.5, False) for handle in handles), default=0.0) + 0.65
        return max(1, min(len(handles), int(WIDTH / widest)))

    def _title_height(self, chunk: Sequence[str]) -> float:
        return 0.12 + self._remark + _LINE * max(len(self._titles[name]) for name in chunk)

    def _block_height(self, chunk: Sequence[str]) -> float:
        rows = len(self._used_rows(chunk))
        return self._title_height(chunk) + rows * self._height + (rows - 1) * _ROW_GAP + _ABSCISSA

    def _used_rows(self, chunk: Sequence[str]) -> list[tuple[str, ...]]:
        used = {facet.row for facet in self._facets if facet.column in chunk}
        return [row for row in self._rows if row in used]

    def _block(self, chunk: Sequence[str], top: float, abscissa: str, ordinate: str) -> dict[int, Axes]:
        """Add one grid with its headings, row labels and axis labels; returns axes by facet number."""
        first = top + self._title_height(chunk)
        for place, name in enumerate(chunk):
            x = self._left + place * (self._width + _GAP)
            self._text(
                x, first - 0.07 - self._remark, "\n".join(self._titles[name]), size=9.5, weight="bold", va="bottom"
            )
        rows = self._used_rows(chunk)
        axes = {}
        for place, row in enumerate(rows):
            y = first + place * (self._height + _ROW_GAP)
            members = {i: f for i, f in enumerate(self._facets) if f.row == row and f.column in chunk}
            self._row_label(row, list(members.values()), y)
            sharing: Axes | None = None
            for number, facet in sorted(members.items(), key=lambda item: chunk.index(item[1].column)):
                x = self._left + chunk.index(facet.column) * (self._width + _GAP)
                sharing = axes[number] = self.figure.add_axes(
                    self._box(x, y, self._width, self._height), sharey=sharing
                )
        bottom = first + len(rows) * self._height + (len(rows) - 1) * _ROW_GAP
        wide = len(chunk) * (self._width + _GAP) - _GAP
        self._text(self._left + wide / 2, bottom + 0.46, abscissa, ha="center", va="center", color=SOFT)
        middle = (first + bottom) / 2
        self._text(_LABEL + 0.14, middle, ordinate, ha="center", va="center", rotation=90, color=SOFT)
        return axes

    def _row_label(self, row: Sequence[str], members: Sequence[Facet], y: float) -> None:
        counts = sorted({facet.n for facet in members})
        n = "n = " + "–".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
        lines = [(line, place == 0) for place, part in enumerate(row) for line in fitted(part, _LABEL - 0.1, 8.5)]
        for place, (line, strong) in enumerate([*lines, (n, False)]):
            self._text(0.04, y + place * _LINE, line, va="top", color=INK if strong else SOFT)

    def _text(self, x: float, y: float, text: str, *, size: float = 8.5, **style: Any) -> None:
        """Text at a place in inches from the upper left corner."""
        width, height = self.figure.get_size_inches()
        self.figure.text(x / width, 1 - y / height, text, fontsize=size, **style)

    def _box(self, x: float, y: float, wide: float, tall: float) -> tuple[float, float, float, float]:
        width, height = self.figure.get_size_inches()
        return x / width, 1 - (y + tall) / height, wide / width, tall / height

    def strip_axes(self, x: float, y: float, wide: float, tall: float) -> Axes:
        """Axes of a colour bar in the strip at the top; inches from the upper left corner."""
        return self.figure.add_axes(self._box(x, y, wide, tall), label="<colorbar>")

    def finish(self) -> Figure:
        """Keep tick labels at the outer edges only, and where the panel below has another range; call after drawing."""
        for band in self.axes:
            for chunk in self._chunks:
                for name in chunk:
                    members = [(f.row, axes) for f, axes in zip(self._facets, band, strict=True) if f.column == name]
                    members.sort(key=lambda member: self._rows.index(member[0]))
                    for (_, upper), (_, lower) in pairwise(members):
                        upper.tick_params(labelbottom=upper.get_xlim() != lower.get_xlim())
                for row in self._used_rows(chunk):
                    of_row = {f.column: a for f, a in zip(self._facets, band, strict=True) if f.row == row}
                    for later in [of_row[name] for name in chunk if name in of_row][1:]:
                        later.tick_params(labelleft=False)
        return self.figure


def fitted(text: str, inches: float, size: float, *, bold: bool = False, lines: int = 2) -> list[str]:
    """Text broken into at most `lines` lines of a width; what does not fit ends in an ellipsis."""
    found: list[str] = []
    rest = text
    while rest and len(found) < lines:
        last = len(found) == lines - 1
        cut = _longest(rest, inches, size, bold)
        if cut < len(rest):
            if last:
                return [*found, rest[: max(1, _longest(rest, inches - text_inches("…", size, bold), size, bold))] + "…"]
            soft = max(rest.rfind(mark, 0, cut) for mark in " -_/.+,")
            cut = soft + 1 if soft > 0 else cut
        found.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    return found


def _longest(text: str, inches: float, size: float, bold: bool) -> int:
    """Length of the longest start of a text that fits, at least 1."""
    cut = len(text)
    while cut > 1 and text_inches(text[:cut], size, bold) > inches:
        cut -= 1
    return cut


@cache
def text_inches(text: str, size: float, bold: bool) -> float:
    """Width of a text at a font size in points."""
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72
