"""Logits of the few rows that are logged raw, streamed off the device step by step."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dsprobe.config import RecordingConfig
from dsprobe.decoding.records import I8, RAW_SAMPLE

LARGEST: Final = 65504.0
"""The largest float16; logits of suppressed tokens lie below its negative."""


class LogitsCapture:
    """Keeps the logits of chosen rows on the host, as float16.

    Args:
        wanted_B: Rows to keep.
    """

    def __init__(self, wanted_B: Tensor) -> None:
        self._wanted_B = wanted_B
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def of(cls, config: RecordingConfig, raw_B: I8 | None) -> LogitsCapture | None:
        """A capture where logits are kept: of the sampled rows, or of all where the extremes are not known yet.

        Args:
            config: What is kept.
            raw_B: What each row is to the raw logs.
        """
        if raw_B is None or "logits" not in config.raw.keep:
            return None
        wanted_B = np.ones_like(raw_B, np.bool_) if config.raw.extreme else raw_B == RAW_SAMPLE
        return cls(torch.from_numpy(wanted_B)) if wanted_B.any() else None

    def keep(self, logits_NV: Tensor, row_N: Tensor, position_N: Tensor) -> None:
        """Keep one step; the copy runs while the device goes on.

        Args:
            logits_NV: Logits of N positions.
            row_N: Row of each.
            position_N: Canvas position of each.
        """
        self._wanted_B = self._wanted_B.to(row_N.device)
        at_K = self._wanted_B[row_N].nonzero()[:, 0]
        kept_KV = logits_NV[at_K].clamp_(-LARGEST, LARGEST).half()
        self._steps.append((_to_host(kept_KV), _to_host(row_N[at_K].int()), _to_host(position_N[at_K].int())))

    def finish(self) -> dict[str, Any]:
        """The fields of `TrajectoryBatch` that hold what was kept."""
        if self._wanted_B.is_cuda:
            torch.cuda.current_stream(self._wanted_B.device).synchronize()
        names = ("logits_NV", "logits_row_N", "logits_position_N")
        return {
            name: {step: parts[place].numpy() for step, parts in enumerate(self._steps)}
            for place, name in enumerate(names)
        }


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
