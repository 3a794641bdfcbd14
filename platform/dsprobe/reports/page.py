"""Renders the page and its Markdown twin from templates; everything is inlined, nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import dsprobe.reports
from dsprobe.errors import missing_package
from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.style import themed_svg
from dsprobe.reports.header import Header, manifest_text
from dsprobe.reports.numbers import NumberTable
from dsprobe.reports.player import player_payload
from dsprobe.reports.sheets import sheet_markdown
from dsprobe.reports.text import escape_markdown
from dsprobe.visible_text import visible

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape
except ImportError:
    raise missing_package("The report", "report") from None

if TYPE_CHECKING:
    from dsprobe.reports.attack_section import AttackSection
    from dsprobe.reports.build import RenderedFigure
    from dsprobe.reports.hypothesis_section import HypothesisSection
    from dsprobe.reports.sweep_section import SweepSection

_BRIEF = ("overview", "transfer-index", "harm-over-steps", "survival", "risk-heatmap")
"""Figures whose findings are repeated above the fold."""


def page(
    data: ReportData,
    head: Header,
    tables: Sequence[NumberTable],
    figures: Sequence[RenderedFigure],
    sweep: SweepSection | None = None,
    attacks: AttackSection | None = None,
    hypotheses: HypothesisSection | None = None,
) -> str:
    """The self-contained HTML page."""
    payload = player_payload(data)
    script = _asset("player.js")
    return _environment(autoescape=True).get_template("report.html.j2").render(
        header=head,
        brief=_brief(figures, sweep, attacks, hypotheses),
        figures=_themed(figures),
        tables=tables,
        confidence=f"{DEFAULT_CONFIDENCE:.0%}",
        manifest=manifest_text(data),
        version=_version(),
        has_player=bool(payload["trajectories"]),
        player_note=_player_note(payload),
        player_json=Markup(script_safe_json(payload)),
        script=Markup(script),
        script_hash=_hash(script),
        css=Markup(_asset("report.css")),
        sweep=sweep,
        **_sweep_parts(sweep),
        attacks=attacks,
        hypotheses=hypotheses,
        attack_blocks=_attack_blocks(attacks),
        attacks_css=Markup(_asset("attacks.css")),
    )  # fmt: skip


def _brief(
    figures: Sequence[RenderedFigure],
    sweep: SweepSection | None,
    attacks: AttackSection | None,
    hypotheses: HypothesisSection | None,
) -> list[Any]:
    """What stands above the fold: name, title and finding each."""
    among = [*figures, *(attacks.figures if attacks else ())]
    findings = [figure for name in _BRIEF for figure in among if figure.name == name]
    return [*([hypotheses] if hypotheses else ()), *(sweep.figures[:1] if sweep else ()), *findings]


def _attack_blocks(attacks: AttackSection | None) -> list[dict[str, Any]]:
    """The section's blocks with figures for the templates."""
    blocks = attacks.blocks if attacks else ()
    return [
        {"figure": _themed([b.figure])[0] if b.figure else None, "tables": b.tables, "unfolded": b.unfolded}
        for b in blocks
    ]


def _sweep_parts(sweep: SweepSection | None) -> dict[str, Any]:
    """What the page inlines for a sweep; nothing without one."""
    if sweep is None:
        return {}
    script = _asset("sweep.js")
    return {
        "sweep_figures": _themed(sweep.figures),
        "sweep_css": Markup(_asset("sweep.css")),
        "sweep_json": Markup(script_safe_json(sweep.payload)),
        "sweep_script": Markup(script),
        "sweep_hash": _hash(script),
    }


def _themed(figures: Sequence[RenderedFigure]) -> list[dict[str, Any]]:
    """Figures for the templates, drawings in the page's colours."""
    return [
        {
            "name": f.name, "short": f.short, "title": f.title, "how_to_read": f.how_to_read,
            "left_out": f.left_out, "finding": f.finding, "svg": Markup(themed_svg(f.svg, f.name) if f.svg else ""),
        }
        for f in figures
    ]  # fmt: skip


def _hash(script: str) -> str:
    """Name of an inlined script in the page's content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def markdown(
    head: Header,
    tables: Sequence[NumberTable],
    figures: Sequence[RenderedFigure],
    sweep: SweepSection | None = None,
    attacks: AttackSection | None = None,
    hypotheses: HypothesisSection | None = None,
) -> str:
    """The report without the player, as Markdown that links to the PNG files."""
    environment = _environment(autoescape=False)
    environment.filters |= {"md": escape_markdown, "sheet_markdown": sheet_markdown}
    template = environment.get_template("report.md.j2")
    return template.render(
        header=head, tables=tables, figures=figures, sweep=sweep, attacks=attacks, hypotheses=hypotheses,
        version=_version(),
    )  # fmt: skip


def script_safe_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("dsprobe.reports"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": visible, "ticked": _ticked}
    return environment


def _ticked(text: str) -> Markup:
    """Text of the program for the page: what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))


def _asset(name: str) -> str:
    return resources.files(dsprobe.reports).joinpath("templates", name).read_text(encoding="utf-8")


def _player_note(payload: dict[str, Any]) -> str:
    shown, stored = payload["shown"], payload["stored"]
    note = f"{shown} trajectories: the most extreme of each condition and some drawn at random."
    return note if shown == stored else f"{note} {stored - shown} more are stored and were left out for size."


def _version() -> str:
    from importlib.metadata import version

    return visible(version("dsprobe"))
