"""Transfer indices both ways, by attack and pooled, with their asymmetry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dsprobe.experiment.transfer import PairTransfer
from dsprobe.metrics.intervals import Interval
from dsprobe.reports.data import ReportData
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIRECTION: Final = 1.9
"""Width of the targets' names in inches."""
UNDEFINED: Final = "undefined"
"""Word in the place of an index whose source has no success."""


@dataclass(frozen=True, slots=True)
class IndexLine:
    """One index in one direction, or the asymmetry of the pooled ones."""

    pair: str
    """Models and prompt set."""
    name: str
    """Attack, or what is pooled."""
    target: str
    """Model that is attacked with what was made for the other; empty for the asymmetry."""
    forward: bool
    """From the diffusion to the autoregressive model."""


@dataclass(frozen=True, slots=True)
class IndexPanel:
    """One judge."""

    judge: str
    found: list[Interval | None]
    """In the order of `TransferIndexData.lines`."""


@dataclass(frozen=True, slots=True)
class TransferIndexData:
    """One panel per judge of harm."""

    lines: list[IndexLine]
    panels: list[IndexPanel]
    left_out: str = ""

    def finding(self) -> str:
        """The pooled indices and their asymmetry, by the first judge that gives them."""
        for panel in self.panels:
            pooled = [
                (line, found)
                for line, found in zip(self.lines, panel.found, strict=True)
                if not line.target and found is not None and not math.isnan(found.value)
            ]
            if pooled:
                line, found = pooled[0]
                way = "says nothing about which way attacks carry over better"
                if found.low > 0:
                    way = "attacks carry over better from the diffusion to the autoregressive model"
                elif found.high < 0:
                    way = "attacks carry over better from the autoregressive to the diffusion model"
                value = format(found, "+.2f").replace("inf", "∞")
                return f"{line.pair}, by {panel.judge}: asymmetry of the pooled indices {value}; {way}."
        return "The pooled indices are undefined: nothing succeeds on a source."


def transfer_index_data(data: ReportData) -> TransferIndexData:
    """Collect the indices of every pair of models, prompt set and judge."""
    found = [pair for pair in data.study.transfers if pair.own] if data.study else []
    keys = list(dict.fromkeys(_key(pair) for pair in found))
    judges = list(dict.fromkeys(pair.judge for pair in found))
    lines: list[IndexLine] = []
    columns: dict[str, list[Interval | None]] = {judge: [] for judge in judges}
    for key in keys:
        of_judge = {pair.judge: pair for pair in found if _key(pair) == key}
        mine = _lines(next(iter(of_judge.values())), len({k[:2] for k in keys}) > 1)
        lines += mine
        for judge in judges:
            columns[judge] += _indices(of_judge[judge]) if judge in of_judge else [None] * len(mine)
    return TransferIndexData(lines, [IndexPanel(visible(judge), column) for judge, column in columns.items()])


def _key(pair: PairTransfer) -> tuple[str, str, str]:
    return pair.diffusion, pair.autoregressive, pair.prompts


def _lines(pair: PairTransfer, several: bool) -> list[IndexLine]:
    """Lines of a pair; the models are named where the run has several pairs."""
    models = f"{visible(pair.diffusion)} ⇄ {visible(pair.autoregressive)} · " if several else ""
    where, ahead, back = models + visible(pair.prompts), visible(pair.autoregressive), visible(pair.diffusion)
    lines = []
    for part in pair.table.attacks:
        if part.attack in pair.own:
            lines += [IndexLine(where, visible(part.attack), ahead, True)]
            lines += [IndexLine(where, visible(part.attack), back, False)]
    return [
        *lines,
        IndexLine(where, "pooled, made for diffusion", ahead, True),
        IndexLine(where, "pooled, made for AR", back, False),
        IndexLine(where, "asymmetry: pooled minus pooled", "", True),
    ]


def _indices(pair: PairTransfer) -> list[Interval | None]:
    """Indices in the order of `_lines`."""
    table = pair.table
    own = [part for part in table.attacks if part.attack in pair.own]
    both = [index for part in own for index in (part.forward.index, part.backward.index)]
    return [*both, table.forward.index, table.backward.index, table.asymmetry]


def draw_transfer_indices(info: TransferIndexData) -> Figure:
    """Dots with whiskers on a logarithmic axis around 1; the asymmetry is a difference, so it stands as a number."""
    from dsprobe.reports.figures.forest import ForestPanel, Line, draw_forest, ratio_scale
    from dsprobe.reports.figures.style import SERIES

    lines: list[Line] = []
    places: list[int | None] = []
    pair = name = ""
    for place, line in enumerate(info.lines):
        if line.pair != pair:
            lines.append(Line(line.pair, heading=True))
            places.append(None)
        repeated = (line.pair, line.name) == (pair, name)
        colour, marker = (SERIES[1], "s") if line.forward else (SERIES[0], "o")
        second = f"→ {line.target}" if line.target else ""
        lines.append(Line("" if repeated else line.name, False, second, colour if second else "", marker))
        places.append(place)
        pair, name = line.pair, line.name
    panels = [
        ForestPanel(
            "transfer index", p.judge, [None if i is None else _mark(info.lines[i], p.found[i]) for i in places]
        )
        for p in info.panels
    ]
    known = [m for panel in panels for m in panel.marks if isinstance(m, Interval)]
    scale = ratio_scale("ASR on the target / ASR on the source, log scale", known)
    return draw_forest(panels, lines, scale, _DIRECTION, snug=True)


def _mark(line: IndexLine, found: Interval | None) -> Interval | str | None:
    if found is None:
        return None
    if line.target:
        return UNDEFINED if math.isnan(found.value) else found
    return UNDEFINED if math.isnan(found.value) else format(found, "+.2f").replace("inf", "∞")
