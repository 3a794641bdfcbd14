"""The look of all figures: one palette, one way to save.

Colours are Okabe and Ito's, distinguishable under the common colour-vision deficiencies. Text and rules use sentinel
colours, which the HTML report replaces in the SVG by its theme's variables, so that figures follow light and dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from dsprobe.errors import missing_package
from dsprobe.reports.text import NO_GUARDRAIL

try:
    import matplotlib as mpl
except ImportError:
    raise missing_package("Drawing figures", "report") from None

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK: Final = "#1b1f27"
SOFT: Final = "#5b6472"
RULE: Final = "#e3e5e9"
VIEW_COLOURS: Final = {"committed": "#0072b2", "predicted": "#d55e00"}
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b6472", "#a8553a")
HEAT: Final = ("#f4b26a00", "#f0964299", "#dd5f10ff", "#a82c00ff")
"""Stops of the risk scale, transparent at 0 so that it stands on light and on dark ground."""
WIDTH: Final = 11.0
"""Width of every figure in inches; the report scales it."""

_RC: Final[dict[str, Any]] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "text.parse_math": False, "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": SOFT,
    "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlepad": 6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.7,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.7, "legend.frameon": False,
    "legend.fontsize": 8.5, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "dsprobe",
    "image.interpolation": "nearest", "figure.dpi": 100,
}  # fmt: skip

GUARDED: Final = (*SERIES[:6], SERIES[7])
"""Colours of guardrails; without one, conditions are drawn in the colour of the text."""
_DASHES: Final = ("-", (0, (4, 1.5)), (0, (1, 1.2)))


def series_style(place: int) -> dict[str, Any]:
    """Line style of the series at a place; with more series than colours, dashes tell them apart."""
    turn, colour = divmod(place, len(SERIES))
    return {"color": SERIES[colour], "linestyle": _DASHES[turn % len(_DASHES)]}


def guardrail_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line style of each guardrail, the same in all figures; with more guardrails than colours, dashes tell them apart.

    Args:
        names: Guardrails as shown, in reading order.

    Returns:
        Name → keywords of a matplotlib line. The unguarded one lies broad beneath the others, so that it is seen where
        a guardrail changes nothing.
    """
    styles: dict[str, dict[str, Any]] = {}
    for name in names:
        place = len(styles.keys() - {NO_GUARDRAIL})
        turn, colour = divmod(place, len(GUARDED))
        styles[name] = (
            {"color": INK, "linestyle": "-", "linewidth": 3.4, "zorder": 1.9}
            if name == NO_GUARDRAIL
            else {"color": GUARDED[colour], "linestyle": _DASHES[turn % len(_DASHES)]}
        )
    return styles


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with the report's settings, whatever the user's matplotlib configuration says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", _RC))
        yield


def svg_text(figure: Figure) -> str:
    """The figure as SVG, the same bytes for the same figure: no date, hashed ids with a fixed salt."""
    with house_style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG on white at 160 dpi, without software or date fields."""
    with house_style():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


_THEMED: Final = (
    (INK, "--ink"),
    (SOFT, "--soft"),
    (RULE, "--line"),
    (SERIES[0], "--committed"),
    (SERIES[1], "--predicted"),
)
"""Colours that the page replaces by its theme's variables."""


def themed_svg(svg: str, name: str) -> str:
    """An SVG made fit to stand inside the HTML page.

    Drops the XML prologue, makes ids unique by the figure's name, and replaces the sentinel colours by the page's
    variables.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    opening = f'<svg viewBox="\\1" role="img" aria-labelledby="{name}-title {name}-finding">'
    body = re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', opening, body, count=1)
    body = body.replace("xlink:href", "href")
    for sentinel, variable in _THEMED:
        body = body.replace(sentinel, f"var({variable})")
    return body
