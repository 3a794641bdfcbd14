"""An attack as it happens: a live canvas on a terminal, one plain line a step where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dsprobe.adhoc.drawing import pieces, risk_text, sparkline, step_line
from dsprobe.adhoc.frames import Frame, FrameMaker, separator_of
from dsprobe.adhoc.run import is_synthetic

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from dsprobe.adhoc import AttackRequest, AttackResult
    from dsprobe.decoding.watching import StepSnapshot
    from dsprobe.models.base import LanguageModel

_HEAT: Final = ((0.5, "bold white on red"), (0.2, "red"), (0.0, "yellow"))
"""Least attribution (exclusive) → style."""
_EVENTS_SHOWN: Final = 6


@contextmanager
def show_attack(model: LanguageModel, request: AttackRequest, delay: float) -> Iterator[_Lines]:
    """Yield a view to be told of every step and of the end.

    Args:
        model: The attacked model.
        request: The request, of one prompt and one sample.
        delay: Seconds to wait after every step.
    """
    if not sys.stdout.isatty():
        yield _Lines(model, request, delay)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="visible") as live:
        yield _Canvas(model, request, delay, live)


class _Lines:
    """One line a step, without escape codes."""

    def __init__(self, model: LanguageModel, request: AttackRequest, delay: float) -> None:
        self.request, self._delay = request, delay
        self.frames: list[Frame] = []
        self.allowed = request.show_text or is_synthetic(model)
        self.separator = separator_of(model)
        self._maker = FrameMaker(model)

    def step(self, snapshot: StepSnapshot) -> None:
        """Show a step."""
        if not self.frames:
            self.frames.append(self._maker.initial(snapshot))
            self.draw()
        self.frames.append(self._maker.frame(snapshot))
        self.draw()
        time.sleep(self._delay)

    def draw(self) -> None:
        """Show the last frame."""
        print(step_line(self.frames[-1], None, allowed=self.allowed, separator=self.separator), flush=True)

    def end(self, result: AttackResult) -> None:
        """Show what became of it."""
        for name, value in (*result.facts(), ("reply", result.shown_text())):
            print(f"{name:15} {value}")


class _Canvas(_Lines):
    """The canvas drawn in place: masks, fresh tokens bright, risk in colour, both views' risk so far."""

    def __init__(self, model: LanguageModel, request: AttackRequest, delay: float, live: Live) -> None:
        super().__init__(model, request, delay)
        self._live = live

    def draw(self) -> None:
        """Draw the last frame over the one before."""
        self._live.update(self._view(), refresh=True)

    def end(self, result: AttackResult) -> None:
        """Leave the last canvas and print what became of it below."""
        self._live.stop()
        super().end(result)

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        frame, steps = self.frames[-1], self.frames[1:]
        head = Text(f"step {frame.step}   {frame.decided}/{len(frame.committed)} decided", style="dim")
        lines: list[Any] = [head, self._canvas(frame), Text()]
        for view in ("committed", "predicted"):
            risks = [getattr(step, f"risk_{view}") for step in steps]
            last = risk_text(risks[-1] if risks else None)
            lines.append(
                Text(f"risk {view:9} {sparkline(risks)} {last}", style="cyan" if view == "committed" else "red")
            )
        events = [Text(f"step {step.step}  {event}", style="magenta") for step in steps for event in step.events]
        return Group(*lines, *events[-_EVENTS_SHOWN:])

    def _canvas(self, frame: Frame) -> Text:
        from rich.text import Text

        text = Text()
        for piece in pieces(frame, allowed=self.allowed, separator=self.separator):
            heat = next((style for least, style in _HEAT if piece.attribution > least), "")
            style = "dim" if piece.masked else heat or ("green" if piece.fresh else "")
            text.append(piece.text, style=f"{style} bold underline" if piece.fresh else style)
        return text
