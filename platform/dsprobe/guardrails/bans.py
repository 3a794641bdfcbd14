"""Tokens that must not, or should not, come back at positions that were re-masked."""

from __future__ import annotations

import torch
from torch import Tensor

from dsprobe.decoding.hooks import StepContext

EMPTY = -1
"""Slot without a token."""


class TokenBans:
    """Removed tokens per position, in slots: one per intervention.

    Args:
        shape: Rows and canvas positions.
        slots: Most tokens that one position can have removed.
        penalty: Subtracted from the logit of a removed token, in nats; infinite bans it.
        device: Where it lives.
    """

    def __init__(self, shape: tuple[int, int], slots: int, penalty: float, device: torch.device) -> None:
        self.penalty = penalty
        self.token_BLJ = torch.full((*shape, slots), EMPTY, dtype=torch.long, device=device)

    def add(self, where_BL: Tensor, tokens_BL: Tensor, interventions_B: Tensor) -> None:
        """Remove tokens.

        Args:
            where_BL: Positions that lose a token.
            tokens_BL: The token each loses.
            interventions_B: Slot to write to: interventions on each row before this one.
        """
        slots = self.token_BLJ.shape[-1]
        slot_BJ = torch.arange(slots, device=where_BL.device)[None] == interventions_B[:, None].clamp_max(slots - 1)
        write_BLJ = where_BL[..., None] & slot_BJ[:, None]
        self.token_BLJ = torch.where(write_BLJ, tokens_BL[..., None], self.token_BLJ)

    def apply(self, context: StepContext) -> None:
        """Lower the removed tokens' logits at masked positions; does nothing while nothing is removed."""
        token_NJ = self.token_BLJ[context.row_N, context.position_N]
        touched_N = (token_NJ != EMPTY).any(dim=1)
        if not bool(touched_N.any()):
            return
        logits_NV = context.logits_NV.clone()
        lowest = torch.finfo(logits_NV.dtype).min
        index_R = touched_N.nonzero()[:, 0]
        token_RJ = token_NJ[index_R]
        present_RJ = token_RJ != EMPTY
        kept_RJ = logits_NV[index_R[:, None], token_RJ.clamp_min(0)]
        lowered_RJ = (kept_RJ - self.penalty).clamp_min(lowest)
        row_RJ = index_R[:, None].expand_as(token_RJ)
        logits_NV[row_RJ[present_RJ], token_RJ[present_RJ]] = lowered_RJ[present_RJ]
        context.logits_NV = logits_NV
