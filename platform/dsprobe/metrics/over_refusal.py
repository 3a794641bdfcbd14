"""Over-refusal by pairs: prompts that only look unsafe, against contrasts that are.

A model that refuses both has learned the surface of a request; what counts is how far it tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.comparisons import independent_difference
from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, Bool, Interval, rate
from dsprobe.metrics.outputs import as_float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalContrast:
    """Refusals of safe prompts and of their unsafe contrasts."""

    pair_type: str
    """Kind of pair, e.g. ``homonyms``; empty for all together."""
    safe: Interval
    """Refusal rate on safe prompts (over-refusal), Wilson."""
    contrast: Interval
    """Refusal rate on the unsafe contrasts, Wilson."""
    discrimination: Interval
    """Contrast minus safe, in [−1, 1]: 1 tells them apart perfectly, 0 not at all. Newcombe, independent samples."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        names = ("safe", "contrast", "discrimination")
        return {"pair_type": self.pair_type} | {name: getattr(self, name).to_dict() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class OverRefusal:
    """Contrasts by type of pair, and over all."""

    types: tuple[RefusalContrast, ...]
    """Ascending by name."""
    overall: RefusalContrast

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {"types": [kind.to_dict() for kind in self.types], "overall": self.overall.to_dict()}


def over_refusal_by_type(
    refused_N: npt.ArrayLike,
    safe_N: npt.ArrayLike,
    pair_type_N: Iterable[str],
    empty_N: npt.ArrayLike | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
) -> OverRefusal:
    """Refusal rates on safe prompts and on their contrasts, by type of pair.

    Args:
        refused_N: Refusal verdicts; rows left undecided (None) are left out.
        safe_N: True for a safe prompt, False for an unsafe contrast.
        pair_type_N: Type of the pair that the prompt belongs to.
        empty_N: Empty replies: no refusal, but counted.
        confidence: Two-sided level. Intervals take rows as independent: give one reply per prompt.

    Returns:
        One contrast per type, NaN where a type has no prompts on one side. The samples of a type are different
        prompts, so the difference is that of independent rates.

    Raises:
        ValueError: Columns differ in length.

    Source: XSTest (2308.01263), whose safe prompts come with unsafe contrasts of the same type.
    """
    refused, safe = as_float(refused_N), np.asarray(safe_N, np.bool_)
    empty = np.zeros(len(refused), np.bool_) if empty_N is None else np.asarray(empty_N, np.bool_)
    kinds = np.asarray(list(pair_type_N), np.str_)
    lengths = {len(column) for column in (refused, safe, kinds, empty)}
    if len(lengths) > 1:
        raise ValueError(f"Columns must be equally long, not {sorted(lengths)}.")
    refused = np.where(empty, 0.0, refused)
    kept_N = ~np.isnan(refused)
    yes, safe, kinds = refused[kept_N] > 0, safe[kept_N], kinds[kept_N]
    return OverRefusal(
        types=tuple(
            _contrast(str(kind), yes[kinds == kind], safe[kinds == kind], confidence) for kind in np.unique(kinds)
        ),
        overall=_contrast("", yes, safe, confidence),
    )


def _contrast(pair_type: str, refused_N: Bool, safe_N: Bool, confidence: float) -> RefusalContrast:
    on_safe, on_contrast = refused_N[safe_N], refused_N[~safe_N]
    return RefusalContrast(
        pair_type=pair_type,
        safe=rate(on_safe, confidence),
        contrast=rate(on_contrast, confidence),
        discrimination=independent_difference(on_contrast, on_safe, confidence),
    )
