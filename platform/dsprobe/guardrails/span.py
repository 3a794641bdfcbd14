"""Which positions an intervention takes back: the attributed tokens, with a margin around them."""

from __future__ import annotations

import torch
from torch import Tensor

from dsprobe.decoding.canvas import Canvas


def attributed_span(
    attribution_BL: Tensor, canvas: Canvas, *, share: float, margin: int, include_given: bool
) -> Tensor:
    """Positions that carry a row's risk, widened.

    Args:
        attribution_BL: Attribution in [0, 1].
        canvas: Says what is response, given and padding.
        share: Positions with at least this share of the row's largest attribution carry the risk, in (0, 1].
        margin: Positions added on both sides.
        include_given: Whether response tokens that the attack or prompt gave may be taken back too.

    Returns:
        bool ``[B, L]``, inside the response; masked positions may be in it.
    """
    top_B1 = attribution_BL.amax(dim=1, keepdim=True)
    core_BL = (attribution_BL >= share * top_B1) & (attribution_BL > 0)
    wide_BL = core_BL
    if margin:
        kernel = 2 * margin + 1
        pooled = torch.nn.functional.max_pool1d(core_BL.float()[:, None], kernel, stride=1, padding=margin)
        wide_BL = pooled[:, 0] > 0
    allowed_BL = canvas.response_BL & canvas.real_BL
    return wide_BL & (allowed_BL if include_given else allowed_BL & ~canvas.given_BL)
