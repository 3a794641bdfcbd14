"""Ranks of scores within a row, with ties in a stated order."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(score_BL: Tensor) -> Tensor:
    """Rank of every position within its row, highest score first; equal scores go by position, lowest first.

    Args:
        score_BL: Any float; −inf comes last.

    Returns:
        int64 ``[B, L]``, 0 for the best.
    """
    order_BL = torch.argsort(score_BL, dim=1, descending=True, stable=True)
    places_BL = torch.arange(score_BL.shape[1], device=score_BL.device).expand_as(order_BL)
    return torch.empty_like(order_BL).scatter_(1, order_BL, places_BL)
