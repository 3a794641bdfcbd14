"""Logged stretches of trajectories between interventions.

A *node* is a state right after an intervention, or the start of a trajectory; a *segment* is what follows a node as
long as nothing intervenes. Segments depend on no guardrail setting: settings only decide where one is left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dsprobe.attacks.base import Rendered
from dsprobe.decoding.records import RowKey

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRow:
    """One row to decode."""

    rendered: Rendered
    key: RowKey

    def digest(self, seed: int) -> bytes:
        """Identity of the row's unguarded trajectory under one model and decoding."""
        rendered = self.rendered
        text = f"{seed}\x1f{self.key}\x1f{rendered.response_start}\x1f{rendered.response_end}\x1f{rendered.tokens}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(slots=True, kw_only=True)
class Segment:
    """S logged steps after a node; step index i holds the state right **after the commits** of its i-th step."""

    key: bytes
    """Digest of the node's state (`node_key`), or of the row where the segment is a trunk."""
    start_step: int
    """Steps taken at the node."""
    start_tokens_L: I32
    """Canvas at the node."""
    tokens_SL: I32
    greedy_SL: I32
    """Greedy tokens of each step; see `StepContext.greedy_BL`."""
    policy_SC: I64
    """`SchedulePolicy.row_state` before each step was counted."""
    fraction_S: F32
    """Share of the response positions that hold a token."""
    complete_S: Bool
    """True where no mask is left."""
    pooled_SD: F32 | None
    """Pooled hidden states, where they are logged."""
    finished: bool
    """True when the row ended in this segment; otherwise it can be continued from its last step."""
    final_tokens_L: I32
    """Canvas after the last step's end, or at the node where there is no step."""
    risk: dict[str, F32] = field(default_factory=dict)
    """Signal key → risk at every step, filled on demand."""

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.tokens_SL)

    def extended(self, more: Segment) -> Segment:
        """This segment followed by later steps of the same stretch."""
        pooled = None if self.pooled_SD is None or more.pooled_SD is None else _join(self.pooled_SD, more.pooled_SD)
        return Segment(
            key=self.key,
            start_step=self.start_step,
            start_tokens_L=self.start_tokens_L,
            tokens_SL=_join(self.tokens_SL, more.tokens_SL),
            greedy_SL=_join(self.greedy_SL, more.greedy_SL),
            policy_SC=_join(self.policy_SC, more.policy_SC),
            fraction_S=_join(self.fraction_S, more.fraction_S),
            complete_S=_join(self.complete_S, more.complete_S),
            pooled_SD=pooled,
            finished=more.finished,
            final_tokens_L=more.final_tokens_L,
            risk=self.risk,
        )


def _join(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([first, second])


def node_key(row: bytes, step: int, tokens_L: I32, policy_C: I64, stopped: bool, effects: bytes) -> bytes:
    """Digest of all that a trajectory's continuation depends on.

    Args:
        row: The row's digest.
        step: Steps taken.
        tokens_L: Canvas after the step's end.
        policy_C: `SchedulePolicy.row_state` after the step's end.
        stopped: Whether the row was stopped.
        effects: What guardrails left behind beside the canvas (`ForkableGuardrail.effects`).
    """
    digest = hashlib.blake2b(row, digest_size=16)
    digest.update(f"{step},{stopped},".encode())
    for part in (tokens_L.tobytes(), policy_C.tobytes(), effects):
        digest.update(part)
    return digest.digest()
