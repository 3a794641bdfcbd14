"""The report's table of refusals of safe requests beside those of their unsafe contrasts."""

from __future__ import annotations

from collections.abc import Sequence

from dsprobe.metrics.over_refusal import RefusalContrast
from dsprobe.reports.attack_data import PairedRefusal
from dsprobe.reports.sheets import Sheet, points, shown
from dsprobe.reports.text import part

_NOTE = (
    "Share of safe requests that are refused (lower is better) and, where a prompt set pairs them with unsafe "
    "contrasts as XSTest does, of the contrasts. Discrimination is contrast minus safe in percentage points: 100 tells "
    "them apart perfectly, 0 not at all. Wilson and Newcombe intervals; first reply to each request; an empty reply "
    "is no refusal."
)

_NUMBERS = ("safe n", "safe ↓", "contrast n", "contrast ↑", "discrimination ↑")


def over_refusal_sheets(found: Sequence[PairedRefusal]) -> list[Sheet]:
    """One table, with a row per type of pair and one over all; a set without contrasts has one row."""
    if not found:
        return []
    guarded = len({entry.condition.guardrail for entry in found}) > 1
    decoded = len({entry.condition.decoding for entry in found}) > 1
    rows = []
    for entry in found:
        kinds = [*entry.found.types, entry.found.overall] if entry.paired else [entry.found.overall]
        condition = entry.condition
        labels = [part(condition, "prompts"), part(condition, "model"), part(condition, "attack")]
        labels += [part(condition, "decoding")] if decoded else []
        labels += [part(condition, "guardrail")] if guarded else []
        for kind in kinds:
            name = kind.pair_type or ("all types" if entry.paired else "no pairs")
            rows.append([name, *labels, entry.judge, *_numbers(kind)])
    headings = ["type", "prompts", "model", "attack", *(["decoding"] if decoded else [])]
    headings += ["guardrail"] if guarded else []
    headings += ["judge", *_NUMBERS]
    return [Sheet("Over-refusal", _NOTE, headings, rows, len(headings) - len(_NUMBERS))]


def _numbers(kind: RefusalContrast) -> list[str]:
    contrast = kind.contrast
    return [
        str(kind.safe.n),
        shown(kind.safe, ".1%"),
        str(contrast.n) if contrast.n else "–",
        shown(contrast, ".1%"),
        points(kind.discrimination),
    ]
