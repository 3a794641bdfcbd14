"""Words for labels and sentences: short names, visible control characters, numbers with their interval."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from dsprobe.config import UNGUARDED
from dsprobe.experiment.evaluated import Condition

_PARTS: Final = ("model", "prompts", "attack", "decoding", "guardrail")

NO_GUARDRAIL: Final = "no guardrail"
"""How the unguarded condition is shown; no guardrail can be called so, since labels have no blanks."""


def visible(text: str) -> str:
    """Replace characters that would change the layout or the reading direction of what surrounds them.

    Control, format (direction marks, zero-width) and surrogate characters become their code point in angle
    brackets, line breaks ``⏎``, tabs ``⇥``; surrounding blanks are dropped.
    """
    return "".join(_visible_character(character) for character in text.strip(" ") or "␣")


def visible_log(text: str) -> str:
    """The same for logs: line breaks, tabs and blanks stay, and a carriage return becomes a line break."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(character if character in "\n\t" else _visible_character(character) for character in lines)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "⏎"
    if character == "\t":
        return "⇥"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"⟨{ord(character):04X}⟩"
    return character


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
