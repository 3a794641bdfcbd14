"""Which trajectories keep their position rows: a random sample and the most extreme ones, whatever the shards.

Per condition the N trajectories with the smallest hash are the sample; of all others, the M with the largest temporal
risk integral of the predicted view are the extremes. Both are made so that cutting the union of cut parts gives the
same as cutting the whole: each shard keeps its own candidates, and compaction cuts them to the final ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dsprobe.experiment.evaluated import EvaluatedBatch, sample_rank

__all__ = ["Candidate", "Selection", "candidates_of", "sample_rank", "select"]

Selection = Literal["sample", "extreme"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trajectory that may keep its position rows."""

    prompt_id: str
    sample: int
    rank: int
    """Hash that orders the random sample."""
    tri: float
    """Temporal risk integral of the predicted view; NaN where there is no risk."""

    @property
    def key(self) -> tuple[str, int]:
        """Identity within the condition."""
        return self.prompt_id, self.sample


def candidates_of(batch: EvaluatedBatch) -> list[Candidate]:
    """The batch's rows as candidates for the positions table, in order."""
    return [
        Candidate(
            prompt_id=key.prompt_id,
            sample=key.sample,
            rank=sample_rank(batch.condition.id, key.prompt_id, key.sample),
            tri=float(tri),
        )
        for key, tri in zip(batch.trajectories.keys, batch.tri_B["predicted"], strict=True)
    ]


def select(candidates: Iterable[Candidate], samples: int, extremes: int) -> dict[tuple[str, int], Selection]:
    """Choose the trajectories of one condition that keep their position rows.

    Args:
        candidates: Trajectories, or a superset of earlier selections from their parts.
        samples: N, size of the random sample.
        extremes: M, how many of the rest with the largest risk integral; those without one are never extreme.

    Returns:
        Key → why it was chosen.
    """
    by_rank = sorted(candidates, key=lambda c: (c.rank, c.key))
    chosen: dict[tuple[str, int], Selection] = {c.key: "sample" for c in by_rank[:samples]}
    scored = [c for c in by_rank[samples:] if not math.isnan(c.tri)]
    for candidate in sorted(scored, key=lambda c: (-c.tri, c.rank, c.key))[:extremes]:
        chosen[candidate.key] = "extreme"
    return chosen
