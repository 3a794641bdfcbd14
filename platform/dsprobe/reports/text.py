"""Words for labels and sentences: short names, numbers with their interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from dsprobe.config import UNGUARDED
from dsprobe.experiment.evaluated import Condition
from dsprobe.visible_text import visible

_PARTS: Final = ("model", "prompts", "attack", "decoding", "guardrail")

NO_GUARDRAIL: Final = "no guardrail"
"""How the unguarded condition is shown; no guardrail can be called so, since labels have no blanks."""


def part(condition: Condition, key: str) -> str:
    """One part of a condition, fit for printing."""
    value: str = getattr(condition, key)
    return NO_GUARDRAIL if key == "guardrail" and value == UNGUARDED else visible(value)


def label(condition: Condition, among: Sequence[Condition], keys: Sequence[str] = _PARTS) -> str:
    """Shortest readable name of a condition: the parts in which the conditions shown together differ.

    Args:
        condition: The condition to name.
        among: All conditions that are shown together.
        keys: Parts to consider, in order.
    """
    parts = [part(condition, key) for key in keys if len({getattr(c, key) for c in among}) > 1]
    return " · ".join(parts) or part(condition, [key for key in keys if key != "guardrail"][-1])


def by_group(conditions: Sequence[Condition]) -> list[tuple[str, list[Condition]]]:
    """Conditions under sub-headings, in order: one per model and prompt set, without words where there is one."""
    groups: dict[tuple[str, str], list[Condition]] = {}
    for condition in conditions:
        groups.setdefault((condition.model, condition.prompts), []).append(condition)
    if len(groups) == 1:
        return [("", list(conditions))]
    return [(label(members[0], conditions, _PARTS[:2]), members) for members in groups.values()]


def member_label(condition: Condition, among: Sequence[Condition]) -> str:
    """Name of a condition's cell under its sub-heading of `by_group`: attack, and decoding where decodings differ.

    Conditions of one cell differ by their guardrail, which stands beside the name.
    """
    keys = ["attack"] + ["decoding"] * (len({c.decoding for c in among}) > 1)
    return " · ".join(part(condition, key) for key in keys)


def percent(share: float) -> str:
    """A share as a percentage with one decimal; an en dash when undefined."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}%"


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed decimals; an en dash when undefined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def listing(names: Iterable[str]) -> str:
    """Names joined for a sentence: ``a``, ``a and b``, ``a, b and c``."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def escape_markdown(text: str) -> str:
    """Text that stays text inside Markdown, tables included, also where HTML is passed through."""
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]#+!|~$" else c for c in escaped)
