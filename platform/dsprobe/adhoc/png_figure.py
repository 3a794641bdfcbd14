"""A figure that a notebook shows by itself, whatever its matplotlib backend."""

from __future__ import annotations

from dsprobe.reports.figures.style import png_bytes  # first: says which extra to install where matplotlib is missing

from matplotlib.figure import Figure  # isort: skip


class PngFigure(Figure):
    """Shown as the PNG of the house style."""

    def _repr_png_(self) -> bytes:
        return png_bytes(self)
