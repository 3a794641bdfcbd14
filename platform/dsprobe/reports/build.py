"""Builds a report folder: one self-contained page, a Markdown twin, the numbers as JSON, and the figures.

Equal input gives equal bytes: nothing is stamped with the time of writing, and figures carry no dates or random ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dsprobe.errors import missing_package
from dsprobe.reports.data import ReportData
from dsprobe.reports.header import Header, header
from dsprobe.reports.numbers import all_measures, number_tables, numbers_json

if TYPE_CHECKING:
    from dsprobe.reports.figures.catalogue import FigureSpec

FORMAT: Final = 1
"""Version of `summary.json`."""


@dataclass(frozen=True, slots=True)
class RenderedFigure:
    """A drawn figure and the words around it."""

    name: str
    short: str
    title: str
    how_to_read: str
    left_out: str
    """Which conditions are not drawn, and why; empty where all are."""
    finding: str
    svg: str
    """The SVG file's content; empty where the run recorded nothing to draw."""
    png: bytes


def build_report(data: ReportData, output_dir: Path) -> Path:
    """Write ``index.html``, ``report.md``, ``summary.json`` and ``figures/`` into a folder.

    Args:
        data: Tables and facts of a run.
        output_dir: Folder to write into; created when missing, files of the same name are replaced.

    Returns:
        Path of ``index.html``. It opens from ``file://`` and needs no network.

    Raises:
        PrerequisiteError: matplotlib or jinja2 is not installed.
    """
    try:
        from dsprobe.reports.page import markdown, page
    except ImportError:
        raise missing_package("The report", "report") from None
    from dsprobe.reports.attack_data import without_grids
    from dsprobe.reports.attack_section import ATTACK_FIGURES, attack_section, wants_attacks
    from dsprobe.reports.figures.catalogue import FIGURES
    from dsprobe.reports.hypothesis_section import hypothesis_section
    from dsprobe.reports.sweep_section import SWEEP_FIGURES, sweep_section

    head = header(data)
    found = all_measures(data)
    tables = number_tables(data, found)
    drawn, grids = without_grids(data)
    figures = [_render(spec, drawn, grids) for spec in FIGURES if spec.wanted(drawn)]
    attacks = None
    if wants_attacks(data):
        attacks = attack_section(data, [_render(spec, data) for spec in ATTACK_FIGURES if spec.wanted(data)])
    hypotheses = hypothesis_section(data.hypotheses) if data.hypotheses else None
    sweep = sweep_section(data.sweep, [_render(spec, data) for spec in SWEEP_FIGURES]) if data.sweep else None
    output_dir.mkdir(parents=True, exist_ok=True)
    further = [*(sweep.figures if sweep else ()), *(attacks.figures if attacks else ())]
    _write_figures([*further, *figures], output_dir / "figures")
    summary = _summary(data, head, figures) | {"conditions": numbers_json(data, found)}
    sections = {"sweep": sweep, "attacks": attacks, "hypotheses": hypotheses}
    summary |= {name: section.summary for name, section in sections.items() if section}
    _write(output_dir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=True) + "\n")
    _write(output_dir / "report.md", markdown(head, tables, figures, sweep, attacks, hypotheses))
    _write(output_dir / "index.html", page(data, head, tables, figures, sweep, attacks, hypotheses))
    return output_dir / "index.html"


def _render(spec: FigureSpec, data: ReportData, left_out: str = "") -> RenderedFigure:
    from dsprobe.reports.figures.style import house_style, png_bytes, svg_text

    info = spec.collect(data)
    svg, png = "", b""
    if info.panels:
        with house_style():
            figure = spec.draw(info)
            svg, png = svg_text(figure), png_bytes(figure)
    missing = " ".join(filter(None, (info.left_out, left_out)))
    return RenderedFigure(spec.name, spec.short, spec.title, spec.how_to_read, missing, info.finding(), svg, png)


def _write_figures(figures: list[RenderedFigure], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for figure in figures:
        if figure.svg:
            _write(folder / f"{figure.name}.svg", figure.svg)
            (folder / f"{figure.name}.png").write_bytes(figure.png)


def _summary(data: ReportData, head: Header, figures: list[RenderedFigure]) -> dict[str, Any]:
    """The report's numbers, without any text that a model or a data set wrote."""
    return {
        "format": FORMAT,
        "run": head.name,
        "facts": dict(head.facts),
        "notices": head.notices,
        "theta": data.theta,
        "findings": {figure.name: figure.finding for figure in figures},
    }


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))
