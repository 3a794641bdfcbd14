"""Which causal model a judge owns, as configured. No torch here: `dsprobe list` and judges behind endpoints read it."""

from __future__ import annotations

from typing import Literal

from dsprobe.config import ModelConfig
from dsprobe.registry import ComponentConfig


class OwnModel(ComponentConfig):
    """Which model a judge uses. Weights are read from safetensors; code beside them is never run."""

    path: str
    """Local folder or hub id."""
    revision: str | None = None
    """Commit hash; required for hub ids."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights and activations; `auto` is float32 on the CPU and the checkpoint's dtype elsewhere."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    attention: Literal["sdpa", "eager"] = "sdpa"

    def model_config_named(self, name: str) -> ModelConfig:
        """The same as the loader's own configuration, under a name for messages."""
        return ModelConfig(name=name, **{field: getattr(self, field) for field in OwnModel.model_fields})
