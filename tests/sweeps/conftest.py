from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dsprobe.config import DecodingConfig
from dsprobe.sweeps.config import SpaceConfig
from dsprobe.sweeps.space import SearchSpace

SpaceFactory = Callable[..., SearchSpace]


@pytest.fixture(scope="session")
def make_space() -> SpaceFactory:
    """A search space from stack entries; 32 decoding steps."""

    def make(*stack: dict[str, Any], **decoding: Any) -> SearchSpace:
        return SearchSpace(SpaceConfig(stack=stack), DecodingConfig(**decoding))

    return make


@pytest.fixture(scope="session")
def conditional_stack() -> tuple[dict[str, Any], ...]:
    """A choice between guardrails with parameters below two levels of choices, and a guardrail that is always there."""
    renoise = {
        "name": "renoise",
        "threshold": {"low": 0.05, "high": 0.95},
        "every": {"low": 1, "high": 4},
        "weighting": {"choices": ["constant", {"name": "linear", "end": {"low": 0.2, "high": 1.0}}]},
    }
    refuse = {"name": "refuse", "window": {"choices": ["late", "end", [1, 16]]}}
    always = {"name": "refuse", "alias": "filter", "threshold": {"low": 0.5, "high": 1.0}, "window": "end"}
    return ({"choices": ["none", renoise, refuse]}, always)
