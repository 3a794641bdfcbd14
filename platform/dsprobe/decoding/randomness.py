"""Counter-based random numbers that belong to a row, not to a batch.

The number at (row key, step, position, stream) is a hash of these four integers: it never depends on batch size, shard,
replica, order or device. Only integer arithmetic modulo 2^64 is used, so every device gives the same bits.
The mixer is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), applied once per counter.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

STREAM_TOKEN: Final = 1
"""Which token is sampled."""
STREAM_ORDER: Final = 2
"""Random orderings and stochastic commit sets."""

STREAM_RENOISE: Final = 9
"""Positions of an irreversibility experiment."""
STREAM_ANCHOR: Final = 10
"""Positions that an anchoring attack leaves masked."""

_GOLDEN: Final = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1: Final = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2: Final = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _wrap(value: int) -> int:
    """Reduce a Python integer to a signed 64-bit one."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def uniform(key: Tensor, step: Tensor | int, position: Tensor, stream: int) -> Tensor:
    """Uniform numbers in (0, 1), one per entry.

    Args:
        key: Row keys, int64, broadcastable with `position`.
        step: The row's own step number.
        position: Canvas positions, int64.
        stream: One of the ``STREAM_…`` constants; streams are independent.

    Returns:
        float64 tensor: multiples of 2^-53, offset by 2^-54, so that neither 0 nor 1 occurs.
    """
    state = _mix(key + _wrap(_GOLDEN * stream))
    state = _mix(state + _GOLDEN * (torch.as_tensor(step, device=key.device) + 1))
    state = _mix(state + _GOLDEN * (position + 1))
    return _shift_right(state, 11).to(torch.float64) * 2.0**-53 + 2.0**-54


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers (top-k of score + noise samples without replacement)."""
    return -torch.log(-torch.log(uniforms))
