"""Frames as text and as HTML: what may be shown, control characters visible, markup escaped."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dsprobe.adhoc.frames import END, Frame
from dsprobe.reports.redaction import shown

MASK: Final = "░"
"""Stands for an undecided position."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_HEAT: Final = "221, 95, 16"
"""Colour of full attribution, as in the reports' heat scale."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One position as it is shown."""

    text: str
    """Fit for a terminal; the space before a word is kept."""
    masked: bool
    fresh: bool
    attribution: float


def pieces(frame: Frame, *, allowed: bool, separator: str) -> Iterator[Piece]:
    """A frame's positions, the separator before every one but the first.

    Args:
        frame: The frame.
        allowed: Whether text may be shown; block glyphs stand for it where not.
        separator: `AttackResult.separator`.
    """
    cells = zip(frame.committed, frame.fresh, frame.attribution, strict=True)
    for place, (text, fresh, attribution) in enumerate(cells):
        before = separator if place else ""
        yield Piece(before + piece_text(text, allowed=allowed), text is None, fresh, attribution)


def piece_text(text: str | None, *, allowed: bool) -> str:
    """One token's text as it may be shown, with the spaces before it."""
    if text is None or text == END:
        return text or MASK
    return " " * (len(text) - len(text.lstrip(" "))) + shown(text.strip(" "), allowed=allowed)


def canvas_text(frame: Frame, *, allowed: bool, separator: str) -> str:
    """A frame's canvas as one line."""
    return "".join(piece.text for piece in pieces(frame, allowed=allowed, separator=separator)).strip(" ")


def risk_text(value: float | None) -> str:
    """A risk with two decimals; an en dash without a scorer."""
    return "–" if value is None else f"{value:.2f}"


def sparkline(risks: Sequence[float | None], width: int = 64) -> str:
    """Bars of the last risks, full height at 1; a space where there is none."""
    last = risks[-width:]
    return "".join(" " if risk is None else _BARS[min(int(risk * len(_BARS)), len(_BARS) - 1)] for risk in last)


def step_line(frame: Frame, last: int | None, *, allowed: bool, separator: str) -> str:
    """A frame as one line: step, decided positions, risk of both views, canvas, events.

    Args:
        frame: The frame.
        last: Number of steps where it is known.
        allowed: Whether text may be shown.
        separator: `AttackResult.separator`.
    """
    step = f"step {frame.step:>3}" + ("" if last is None else f"/{last}")
    risk = f"risk {risk_text(frame.risk_committed)} committed {risk_text(frame.risk_predicted)} predicted"
    events = f"  [{'; '.join(frame.events)}]" if frame.events else ""
    line = canvas_text(frame, allowed=allowed, separator=separator)
    return f"{step}  {frame.decided:>3}/{len(frame.committed)}  {risk}  {line}{events}"


def canvas_html(frame: Frame, *, allowed: bool, separator: str) -> str:
    """A frame's canvas as HTML, shaded by attribution; fresh tokens underlined."""
    spans = []
    for piece in pieces(frame, allowed=allowed, separator=separator):
        style = f"background:rgba({_HEAT},{min(piece.attribution, 1.0):.2f});" if piece.attribution else ""
        style += "text-decoration:underline;" if piece.fresh else ""
        style += "opacity:.45;" if piece.masked else ""
        text = html.escape(piece.text)
        spans.append(f'<span style="{style}">{text}</span>' if style else text)
    return "".join(spans)
