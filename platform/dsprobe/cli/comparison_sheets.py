"""The tables of `dsprobe compare`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from dsprobe.reports.sheets import Sheet, p_value, points, shown, signed

if TYPE_CHECKING:
    from dsprobe.metrics.intervals import Interval
    from dsprobe.metrics.paired import PairedEstimate
    from dsprobe.storage.comparing import AxisComparison, Cell, Comparison, Outcome

_TITLES: Final = {
    "harm": "Harm on harmful requests",
    "refusal": "Refusal of benign requests",
    "utility": "Utility on benign requests",
    "fhs": "First harmful step on harmful requests",
}


def sheets(found: Sequence[AxisComparison]) -> Iterator[Sheet]:
    """One table for each axis and outcome, and one for the cost of each axis."""
    for axis in found:
        outcomes = dict.fromkeys(row.outcome for row in axis.comparisons)
        for outcome in outcomes:
            yield _outcome_sheet(axis, outcome, [row for row in axis.comparisons if row.outcome == outcome])
        yield _cost_sheet(axis)


def _outcome_sheet(axis: AxisComparison, outcome: Outcome, family: Sequence[Comparison]) -> Sheet:
    timed = outcome.name == "fhs"
    spec, difference = (".1f", _steps) if timed else (".1%", points)
    cells = _CellLabels(row.cell for row in family)
    beside = next((row.estimate.beside.method for row in family if row.estimate.beside), None)
    rows = []
    for row in family:
        estimate = row.estimate
        numbers = [
            str(estimate.pairs),
            *([] if timed else [_left_out(estimate)]),
            shown(estimate.baseline, spec),
            shown(estimate.level, spec),
            difference(estimate.difference),
            p_value(estimate.test.p_value),
            p_value(row.p_holm) + " *" * row.supported,
            *([p_value(estimate.beside.p_value if estimate.beside else math.nan)] if beside else []),
        ]
        rows.append([*cells.of(row.cell), row.level, *numbers])
    headings = [*cells.headings, axis.axis, "pairs", *([] if timed else ["left out"]), axis.baseline, "level"]
    headings += ["difference", "p", "p Holm", *([f"{beside} p"] if beside else [])]
    title = f"{_TITLES[outcome.name]}, {outcome.by}{' view' if timed else ''}: {axis.axis} against {axis.baseline}"
    return Sheet(title, " ".join(_notes(axis, family)), headings, rows, len(cells.headings) + 1)


def _left_out(estimate: PairedEstimate) -> str:
    """Pairs left out, with the rows of either side that have no verdict."""
    if not estimate.left_out:
        return "0"
    return f"{estimate.left_out} ({estimate.undefined_baseline} + {estimate.undefined_level})"


def _notes(axis: AxisComparison, family: Sequence[Comparison]) -> Iterator[str]:
    """How a family's numbers were made, and what was left out."""
    first, timed = family[0].estimate, family[0].outcome.name == "fhs"
    if timed:
        yield f"Mean steps spent unharmed, horizon {_horizons(axis, family)} steps;"
    else:
        yield f"Rates with intervals ({first.level.method}); percentage points,"
    tests = " or ".join(dict.fromkeys(row.estimate.test.method for row in family))
    yield f"level minus {axis.baseline} ({first.difference.method}). p: {tests}. p Holm: this table is one family of"
    yield f"{len(family)}; * supported."
    if any(row.estimate.left_out for row in family):
        yield f"Left out: pairs without a verdict, e.g. empty replies (rows of {axis.baseline} + rows of the level)."
    if unmatched := sum(row.unmatched for row in family):
        yield f"{unmatched} rows have no partner and are not counted."
    if timed and axis.axis != "guardrail":
        unlike = (_unlike_steps(axis.longest[row.cell]) for row in family)
        yield from dict.fromkeys(text for text in unlike if text)


def _horizons(axis: AxisComparison, family: Sequence[Comparison]) -> str:
    longest = sorted({max(axis.longest[row.cell].values()) for row in family})
    return str(longest[0]) if len(longest) == 1 else f"{longest[0]} to {longest[-1]}"


def _unlike_steps(longest: Mapping[str, int]) -> str:
    """A warning where levels take different numbers of steps."""
    if len(set(longest.values())) == 1:
        return ""
    steps = ", ".join(f"{level} {count}" for level, count in longest.items())
    return f"Longest trajectories differ ({steps}): their steps are not alike."


def _cost_sheet(axis: AxisComparison) -> Sheet:
    cells = _CellLabels(row.cell for row in axis.costs)
    rows = [[*cells.of(row.cell), row.level, str(row.pairs), shown(row.ratio, ".2f")] for row in axis.costs]
    note = f"Forward passes × canvas positions, level over {axis.baseline} ({axis.costs[0].ratio.method})."
    return Sheet(
        f"Cost: {axis.axis}", note, [*cells.headings, axis.axis, "pairs", "ratio"], rows, len(cells.headings) + 1
    )


class _CellLabels:
    """The labels in which cells differ, as columns."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        columns = list(dict.fromkeys(cells))
        names = [name for name, _ in columns[0]]
        self._kept = [n for n in range(len(names)) if len({cell[n][1] for cell in columns}) > 1]
        self.headings = [names[n] for n in self._kept]

    def of(self, cell: Cell) -> list[str]:
        """A cell's entries of these columns."""
        return [cell[n][1] for n in self._kept]

    def bracketed(self, cell: Cell) -> str:
        """The entries as an addition to a name; nothing where all cells are alike."""
        return f" ({', '.join(self.of(cell))})" if self._kept else ""


def conclusion(found: Sequence[AxisComparison]) -> str:
    """One sentence: which differences survive."""
    from dsprobe.storage.comparing import ALPHA

    total = sum(len(axis.comparisons) for axis in found)
    kept = sum(row.supported for axis in found for row in axis.comparisons)
    scope = f"Supported at {ALPHA:.0%} after Holm (one family per axis and outcome): {kept} of {total} differences."
    return " ".join([scope, *(f"{text}." for axis in found for text in _surviving(axis))])


def _surviving(axis: AxisComparison) -> Iterator[str]:
    """The differences of each outcome that survive."""
    for outcome in dict.fromkeys(row.outcome for row in axis.comparisons):
        family = [row for row in axis.comparisons if row.outcome == outcome]
        cells = _CellLabels(row.cell for row in family)
        show, unit = (_steps, "steps") if outcome.name == "fhs" else (points, "pp")
        texts = [
            f"{row.level}{cells.bracketed(row.cell)} {show(row.estimate.difference).split(' [')[0]} {unit}"
            for row in family
            if row.supported
        ]
        if texts:
            yield f"{outcome.name} ({outcome.by}) against {axis.baseline}: {', '.join(texts)}"


def _steps(interval: Interval) -> str:
    return signed(interval.value, interval.low, interval.high)
