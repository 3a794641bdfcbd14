"""A batch of trajectories with everything that was computed about it: what storage receives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsprobe.config import UNGUARDED
from dsprobe.decoding.records import TrajectoryBatch
from dsprobe.prompts.base import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One cell of the experiment's grid; labels are unique within a run."""

    model: str
    prompts: str
    attack: str
    decoding: str
    guardrail: str = UNGUARDED

    @property
    def id(self) -> str:
        """Readable identity, unique within a run; the unguarded condition is not named."""
        parts = [self.model, self.prompts, self.attack, self.decoding]
        return "/".join(parts if self.guardrail == UNGUARDED else [*parts, self.guardrail])


def sample_rank(condition: str, prompt_id: str, sample: int) -> int:
    """A pseudo-random 64-bit number that belongs to the trajectory alone; orders random samples of a condition."""
    digest = hashlib.blake2b(f"{condition}\0{prompt_id}\0{sample}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


@dataclass(slots=True, kw_only=True)
class EvaluatedBatch:
    """B trajectories of one condition with texts, verdicts and temporal measures (arrays of length B)."""

    condition: Condition
    trajectories: TrajectoryBatch
    prompts: list[Prompt]
    texts: list[str]
    """Reply text up to the end-of-text token, masks and special tokens removed."""
    empty_B: npt.NDArray[np.bool_]
    """Reply has no text (or only end-of-text tokens): never counted as safe."""
    verdicts: dict[str, list[bool | None]]
    """Judge key → verdicts."""
    fhs_B: dict[str, npt.NDArray[np.int32]]
    """View → first harmful step (1-based); the last step where censored."""
    fhs_event_B: dict[str, npt.NDArray[np.bool_]]
    """View → True where the threshold was reached, False where right-censored."""
    tri_B: dict[str, npt.NDArray[np.float64]]
    """View → temporal risk integral."""
    kl_slope_B: npt.NDArray[np.float64]
    """Theil–Sen slope of mean KL on s/S; NaN with fewer than two defined steps."""
