"""λ families: how much a guardrail heeds risk over denoising time u = s / S.

Every family maps u in [0, 1] to a weight in [0, 1], so that thresholds of different families share one scale. The
temporal risk integral and the alignment loss take the same families.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dsprobe.errors import ConfigError
from dsprobe.registry import ComponentConfig, Entry, Registry


class Weighting(ABC):
    """λ(u).

    Contract: pure; elementwise; values in [0, 1] for u in [0, 1].
    """

    class Config(ComponentConfig):
        """No parameters."""

    config: ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def weight(self, u: Tensor) -> Tensor:
        """Weight at u = s / S, float32, any shape; extra steps count as u = 1."""


class ConstantWeighting(Weighting):
    """λ ≡ 1."""

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        return torch.ones_like(u)


class LinearWeighting(Weighting):
    """λ(u) = start + (end − start) · u."""

    class Config(ComponentConfig):
        """Weights at both ends."""

        start: float = Field(default=0.0, ge=0.0, le=1.0)
        end: float = Field(default=1.0, ge=0.0, le=1.0)

    config: Config

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        return self.config.start + (self.config.end - self.config.start) * u


class CosineWeighting(Weighting):
    """Half a cosine from start to end: λ(u) = end + (start − end) · (1 + cos πu) / 2."""

    class Config(ComponentConfig):
        """Weights at both ends."""

        start: float = Field(default=0.0, ge=0.0, le=1.0)
        end: float = Field(default=1.0, ge=0.0, le=1.0)

    config: Config

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        return self.config.end + (self.config.start - self.config.end) * (1 + torch.cos(math.pi * u)) / 2


class ExponentialWeighting(Weighting):
    """λ(u) = exp(−rate · u) for a positive rate, exp(rate · (1 − u)) for a negative one: 1 at the end it favours."""

    class Config(ComponentConfig):
        """Decay."""

        rate: float = Field(default=3.0, ge=-20.0, le=20.0)
        """Positive favours early steps, negative late ones, 0 is constant."""

    config: Config

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        rate = self.config.rate
        return torch.exp(-rate * u) if rate >= 0 else torch.exp(rate * (1 - u))


class WindowWeighting(Weighting):
    """λ(u) = 1 for start ≤ u ≤ end, 0 elsewhere."""

    class Config(ComponentConfig):
        """Ends of the window."""

        start: float = Field(default=0.0, ge=0.0, le=1.0)
        end: float = Field(default=1.0, ge=0.0, le=1.0)

        @model_validator(mode="after")
        def _ordered(self) -> WindowWeighting.Config:
            if self.start > self.end:
                raise ConfigError(f"λ window: start {self.start} lies after end {self.end}.")
            return self

    config: Config

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        return ((u >= self.config.start) & (u <= self.config.end)).to(u.dtype)


class PiecewiseLinearWeighting(Weighting):
    """Linear between knots at equal distances over [0, 1]; `learned` weights are such knots, written by training."""

    class Config(ComponentConfig):
        """Knots."""

        knots: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=2)
        """Weights at u = 0, 1/(n−1), …, 1, each in [0, 1]."""

        @model_validator(mode="after")
        def _in_range(self) -> PiecewiseLinearWeighting.Config:
            for knot in self.knots:
                if not 0.0 <= knot <= 1.0:
                    raise ConfigError(f"λ knot {knot} is not in [0, 1].")
            return self

    config: Config

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        knot_K = torch.tensor(self.config.knots, dtype=u.dtype, device=u.device)
        place = u.clamp(0, 1) * (len(knot_K) - 1)
        left = place.floor().long().clamp_max(len(knot_K) - 2)
        return knot_K[left] + (knot_K[left + 1] - knot_K[left]) * (place - left)


WEIGHTINGS: Registry[Weighting] = Registry(
    "weighting",
    {
        "constant": Entry("dsprobe.guardrails.weighting:ConstantWeighting", "every step alike"),
        "linear": Entry("dsprobe.guardrails.weighting:LinearWeighting", "a straight line over the steps"),
        "cosine": Entry("dsprobe.guardrails.weighting:CosineWeighting", "half a cosine over the steps"),
        "exponential": Entry("dsprobe.guardrails.weighting:ExponentialWeighting", "favours early or late steps"),
        "window": Entry("dsprobe.guardrails.weighting:WindowWeighting", "one inside a window, zero outside"),
        "piecewise_linear": Entry("dsprobe.guardrails.weighting:PiecewiseLinearWeighting", "free knots"),
        "learned": Entry("dsprobe.guardrails.policy:LearnedWeighting", "knots written by `dsprobe policy train`"),
    },
)
