"""Which condition goes into which panel, what the panel is called, and which panels need no drawing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from dsprobe.experiment.evaluated import Condition
from dsprobe.metrics.summary import VIEWS
from dsprobe.reports.text import part

if TYPE_CHECKING:
    from dsprobe.reports.data import ReportData

PARTS: Final = ("model", "prompts", "decoding", "attack", "guardrail")
"""Parts of a condition, in the order in which a row names them."""

CELL: Final = PARTS[:-1]
"""Parts in which an unguarded condition and its guarded twins agree; a figure that overlays them has one panel each."""

MAX_COLUMNS: Final = 6
"""Most panels side by side; further columns follow below, under their own headings."""

_COLUMNS: Final = ("attack", "decoding", "guardrail", "view", "prompts", "model")
"""What the columns of a figure are: the first of these in which its panels differ."""


@dataclass(frozen=True, slots=True)
class Facet:
    """Place and name of one panel in a grid of panels."""

    column: str
    """Heading of the column, usually the attack."""
    row: tuple[str, ...]
    """What names the row: the other parts in which the panels differ; may be empty."""
    n: int
    """Trajectories behind the panel."""

    @property
    def name(self) -> str:
        """Column and row as one phrase for sentences."""
        return f"{self.column} ({' · '.join(self.row)})" if self.row else self.column


def parts_of(condition: Condition, keys: Iterable[str] = PARTS) -> dict[str, str]:
    """Some parts of a condition by key, fit for printing."""
    return {key: part(condition, key) for key in keys}


def shown_guardrails(data: ReportData) -> list[str]:
    """Guardrails as shown, in reading order; empty where the run compares none, so that nothing is overlaid."""
    found = {condition.guardrail: part(condition, "guardrail") for condition in data.conditions}
    return [found[name] for name in data.guardrails] if data.compares_guardrails else []


def facet(parts: Mapping[str, str], among: Sequence[Mapping[str, str]], n: int) -> Facet:
    """Place of a panel.

    Args:
        parts: What the panel shows, e.g. from `parts_of`.
        among: The same of every panel in the figure.
        n: Trajectories behind the panel.
    """
    varying = [key for key in parts if len({other[key] for other in among}) > 1]
    column = next((key for key in _COLUMNS if key in varying), next(key for key in _COLUMNS if key in parts))
    columns = [column]
    if column == "attack" and "prompts" in varying:
        # Prompt sets seldom share all attacks; side by side they leave no holes in the grid.
        pairs = {(other["attack"], other["prompts"]) for other in among}
        columns += ["prompts"] if len(pairs) <= MAX_COLUMNS else []
    heading = " · ".join(parts[key] for key in columns)
    return Facet(heading, tuple(parts[key] for key in varying if key not in columns), n)


def cells_by_view(data: ReportData) -> Iterator[tuple[Facet, str, list[Condition]]]:
    """Panels that overlay guardrails: heading, view, and the conditions of one cell, the unguarded one first."""
    cells: dict[tuple[str, ...], list[Condition]] = {}
    for condition in data.conditions:
        cells.setdefault(tuple(getattr(condition, key) for key in CELL), []).append(condition)
    drawn = [(view, members) for members in cells.values() for view in VIEWS]
    among = [parts_of(members[0], CELL) | {"view": f"{view} view"} for view, members in drawn]
    for (view, members), parts in zip(drawn, among, strict=True):
        heading = facet(parts, among, max(data.summaries[condition].n for condition in members))
        yield heading, view, sorted(members, key=lambda condition: data.guardrails.index(condition.guardrail))


class Panel(Protocol):
    """What every figure's panels have in common."""

    @property
    def facet(self) -> Facet:
        """Place and name."""

    @property
    def blank(self) -> bool:
        """Nothing to see: drawing the panel would show an empty frame."""


P = TypeVar("P", bound=Panel)


def drawn(panels: Sequence[P]) -> list[P]:
    """Panels worth drawing, in order; all of them where none shows anything."""
    return [panel for panel in panels if not panel.blank] or list(panels)


def left_out(panels: Sequence[Panel], reason: str) -> str:
    """A sentence that names the panels which `drawn` leaves out; empty where there are none.

    Args:
        panels: All panels of a figure.
        reason: Why, e.g. ``the risk stays at 0``.
    """
    missing = [panel.facet for panel in panels if panel.blank]
    if not missing or len(missing) == len(panels):
        return ""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for facet_ in missing:
        rows.setdefault((facet_.column, facet_.row[:-1]), []).extend(facet_.row[-1:])
    places: dict[str, list[str]] = {}
    for (column, start), ends in rows.items():
        place = " · ".join([*start, ", ".join(ends)] if ends else start)
        places.setdefault(column, []).append(place)
    named = "; ".join(f"{c} ({'; '.join(filter(None, p))})" if any(p) else c for c, p in places.items())
    return f"Not drawn, because {reason}: {named}."
