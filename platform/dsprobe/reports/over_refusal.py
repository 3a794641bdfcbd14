"""The report's table of refusals of safe requests beside those of their unsafe contrasts."""

from __future__ import annotations

from collections.abc import Sequence

from dsprobe.metrics.over_refusal import RefusalContrast
from dsprobe.reports.attack_data import PairedRefusal
from dsprobe.reports.sheets import Sheet, points, shown
from dsprobe.reports.text import part

_PLAIN = (
    "Share of benign requests that are refused (lower is better). Wilson intervals; first reply to each request; an "
    "empty reply is no refusal."
)
_PAIRED = (
    "Share of safe requests that are refused (lower is better) and, where a prompt set pairs them with unsafe "
    "contrasts as XSTest does, of the contrasts. Discrimination is contrast minus safe in percentage points: 100 tells "
    "them apart perfectly, 0 not at all. Wilson and Newcombe intervals; first reply to each request; an empty reply "
    "is no refusal."
)
_SAFE = ("safe n", "safe ↓")
_CONTRAST = ("contrast n", "contrast ↑", "discrimination ↑")


def over_refusal_sheets(found: Sequence[PairedRefusal]) -> list[Sheet]:
    """One table, with a row per type of pair and one over all; a set without contrasts has one row."""
    if not found:
        return []
    keys = ["prompts", "model", "attack"]
    keys += [key for key in ("decoding", "guardrail") if len({getattr(entry.condition, key) for entry in found}) > 1]
    any_pairs = any(entry.paired for entry in found)
    rows = []
    for entry in found:
        labels = [*(part(entry.condition, key) for key in keys), entry.judge]
        for kind in [*entry.found.types, entry.found.overall] if entry.paired else [entry.found.overall]:
            name = kind.pair_type or ("all types" if entry.paired else "no pairs")
            numbers = [str(kind.safe.n), shown(kind.safe, ".1%")]
            rows.append([name, *labels, *numbers, *_contrast(kind)] if any_pairs else [*labels, *numbers])
    headings = ["type", *keys, "judge", *_SAFE, *_CONTRAST] if any_pairs else [*keys, "judge", *_SAFE]
    return [Sheet("Over-refusal", _PAIRED if any_pairs else _PLAIN, headings, rows, headings.index("judge") + 1)]


def _contrast(kind: RefusalContrast) -> list[str]:
    contrast = kind.contrast
    return [str(contrast.n) if contrast.n else "–", shown(contrast, ".1%"), points(kind.discrimination)]
