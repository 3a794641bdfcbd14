"""What a finished batch of trajectories looks like: plain NumPy, independent of device and model.

`TrajectoryBatch` is the only thing that leaves the decoder. Metrics compute on it, the reducer consumes it and
the object store ships it (NumPy arrays are zero-copy there). Steps are counted forward: axis S index ``s`` holds
the state **after** step ``s + 1``; the initial canvas is ``canvas_BL``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NEVER: Final = -1
"""`commit_step` of a position that the attack or prompt gave and that no step committed."""

ACTION_NONE, ACTION_REMASK, ACTION_REWRITE, ACTION_VETO, ACTION_STOP = 0, 1, 2, 4, 8
"""Bit flags of what guardrails did to a row in a step."""

BY_ATTACK: Final = "attack"
"""Value of an event's `by` where an attack changed the canvas; events of guardrails have no `by`."""

RAW_NONE, RAW_SAMPLE, RAW_CUT = 0, 1, 2
"""What a row is to the raw logs: nothing, one of the random sample, or one that the budget has no room for."""

I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
I8 = npt.NDArray[np.int8]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RowKey:
    """Identity of a trajectory within its condition; the counter-based randomness hangs on it."""

    prompt_id: str
    sample: int = 0


def by_guardrails(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of a row that guardrails caused."""
    return [event for event in events if event.get("by") != BY_ATTACK]


@dataclass(slots=True, kw_only=True)
class TrajectoryBatch:
    """Every step of B trajectories over a canvas of L positions and at most S steps.

    Values at steps after a row has finished repeat the row's last state (risk, canvas) or are NaN
    (entropy, KL, probability); use ``num_steps_B`` to cut.
    """

    keys: list[RowKey]
    """Row identities, length B."""
    canvas_BL: I32
    """Initial canvas: prompt, attack text, masks, padding."""
    real_BL: Bool
    """True where the position is not padding."""
    response_BL: Bool
    """True on the response positions that are judged, scored and reported (masks, anchors and prefills in it)."""
    tokens_BL: I32
    """Final canvas."""
    num_steps_B: I16
    """Steps the row took until it was finished, extra steps included."""
    forward_passes_B: I32
    """Model forward passes spent on the row (2 a step under classifier-free guidance), those of guardrails included."""
    commit_step_BL: I16
    """1-based step that committed the position for the last time; `NEVER` where given."""
    predicted_SBL: I32
    """Full greedy prediction x̂_s: committed tokens, every mask filled by its argmax."""
    committed_SBL: Bool
    """True where the canvas after the step holds a token (given or committed)."""
    canvas_SBL: I32
    """Canvas x_s after the step."""
    probability_SBL: F16
    """Model probability of the chosen token at positions masked **before** the step; NaN elsewhere."""
    entropy_SBL: F16
    """Entropy in nats at positions masked before the step; NaN elsewhere."""
    kl_SBL: F16
    """KL(p_s ‖ p_{s-1}) in nats at positions masked before both steps; NaN elsewhere and at the first step."""
    attribution_SBL: F16
    """Risk attribution of the predicted view, in [0, 1]; NaN outside the response."""
    risk_committed_SB: F32
    """Risk of the committed view x_s in [0, 1]."""
    risk_predicted_SB: F32
    """Risk of the predicted view x̂_s in [0, 1]."""
    action_SB: I8
    """Bit flags of guardrail actions."""
    margin_B: F32
    """Smallest decision margin of the trajectory, in nats of log-probability (argmax and selection gaps)."""
    wall_seconds_B: F32
    """Wall time of the batch divided by its rows."""
    events: list[list[dict[str, Any]]] = field(default_factory=list)
    """Per row: changes of the canvas between steps, `{step, action, positions, before, after}`, by guardrails, or by an
    attack inside the loop (`by: attack`)."""
    topk_tokens_SBLK: I32 | None = None
    topk_logprobs_SBLK: F16 | None = None
    hidden_SBLD: dict[int, F16] | None = None
    """Opt-in: layer → hidden states at response positions."""
    raw_B: I8 | None = None
    """`RAW_NONE`, `RAW_SAMPLE` or `RAW_CUT`; `None` where nothing is logged raw."""
    logits_NV: dict[int, F16] | None = None
    """Opt-in: index s → logits of N positions that were masked before the step, of the rows that may be logged raw.

    After guidance and suppression, before hooks change them; finite, suppressed tokens have -65504.
    """
    logits_row_N: dict[int, I32] | None = None
    """Index s → row of each of the N positions."""
    logits_position_N: dict[int, I32] | None = None
    """Index s → canvas position of each."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.keys)

    @property
    def max_steps(self) -> int:
        """S."""
        return int(self.predicted_SBL.shape[0])
