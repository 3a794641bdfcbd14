"""The temporal policy head's network, and the file it is kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from dsprobe.config import Spec, Strict
from dsprobe.errors import ConfigError
from dsprobe.models.base import ModelInfo
from dsprobe.registry import describe_validation
from dsprobe.risk.base import View

HEADER_KEY: Final = "dsprobe_policy"
"""Metadata key of a policy file's header."""
SCALARS: Final = 2
"""Inputs beside the pooled hidden state: risk and fraction committed."""


class PolicyHeader(Strict):
    """What a policy file says about itself: what it was trained for, and the λ it was trained with."""

    version: Literal[1] = 1
    width: int = Field(ge=1)
    """D: width of the pooled hidden state."""
    hidden: int = Field(ge=1)
    """Units of the hidden layer."""
    model: str
    """Label of the model it was trained on."""
    model_digest: str
    """`ModelInfo.digest` of that model."""
    scorer: Spec
    """Risk scorer of its risk input."""
    view: View
    """View that the scorer read."""
    knots: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = Field(min_length=2)
    """λ at u = 0, 1/(n−1), …, 1; the largest is 1."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings and held-out results of the training, for the record."""


class PolicyNetwork(nn.Module):
    """Two-layer perceptron: ``h = tanh(W₁ x̃ + b₁)``, ``(p, q) = σ(W₂ h + b₂)`` with ``x̃ = (x − mean) / scale``.

    x is the pooled hidden state, the risk and the fraction committed. Computed in float64: a matrix product's last bits
    depend on the batch's shape, and must not decide at a threshold.

    Args:
        header: Widths, and what is saved beside the weights.
        seed: Seed of the initial weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, header: PolicyHeader, seed: int = 0) -> None:
        super().__init__()
        self.header = header
        inputs, hidden = header.width + SCALARS, header.hidden
        generator = torch.Generator().manual_seed(seed)

        def drawn(outputs: int, width: int) -> nn.Parameter:
            shape = (outputs, width)
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) * width**-0.5)

        self.inner_HI, self.inner_H = drawn(hidden, inputs), nn.Parameter(torch.zeros(hidden, dtype=torch.float64))
        self.outer_2H, self.outer_2 = drawn(2, hidden), nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(inputs, dtype=torch.float64))

    def forward(self, pooled_ND: Tensor, risk_N: Tensor, fraction_N: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and strength of an intervention.

        Args:
            pooled_ND: Pooled hidden states ``[..., D]``.
            risk_N: Risk in [0, 1], shape ``[...]``.
            fraction_N: φ in [0, 1], shape ``[...]``.

        Returns:
            p and q in (0, 1), float64 ``[...]``.
        """
        scalars_N2 = torch.stack([risk_N, fraction_N], dim=-1)
        input_NI = torch.cat([pooled_ND.double(), scalars_N2.double()], dim=-1)
        hidden_NH = torch.tanh(linear((input_NI - self.mean) / self.scale, self.inner_HI, self.inner_H))
        probability_N, strength_N = torch.sigmoid(linear(hidden_NH, self.outer_2H, self.outer_2)).unbind(dim=-1)
        return probability_N, strength_N

    def save(self, path: Path) -> None:
        """Write a safetensors file with the header as metadata."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={HEADER_KEY: self.header.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> PolicyNetwork:
        """Read a file that `save` wrote.

        Raises:
            ConfigError: There is no such file, or its header or weights are not a policy's.
        """
        header = read_header(path)
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        wanted = _shapes(header)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != wanted:
            raise ConfigError(f"policy file `{path}`: its tensors {found} are not the {wanted} that its header names.")
        # Built once the file is known to hold that much: a header may name any width.
        network = cls(header)
        network.load_state_dict(tensors)
        return network.requires_grad_(False).eval()

    def check_fits(self, path: Path, info: ModelInfo, width: int) -> None:
        """Refuse a model other than the one it was trained on.

        Args:
            path: File that it came from, for the message.
            info: The model's facts.
            width: The model's hidden width.

        Raises:
            ConfigError: Width or digest differ.
        """
        header = self.header
        trained = f"policy file `{path}` was trained on model `{header.model}`"
        retrain = "Train one on a run of this model: dsprobe policy train RUN."
        if width != header.width:
            raise ConfigError(
                f"{trained} of hidden width {header.width}; model `{info.name}` has width {width}. {retrain}"
            )
        if info.digest != header.model_digest:
            raise ConfigError(
                f"{trained} with digest {header.model_digest[:12]}…; model `{info.name}` has digest "
                f"{info.digest[:12]}…. {retrain}"
            )


def _shapes(header: PolicyHeader) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a header names."""
    inputs, hidden = header.width + SCALARS, header.hidden
    return {
        "inner_HI": (hidden, inputs),
        "inner_H": (hidden,),
        "outer_2H": (2, hidden),
        "outer_2": (2,),
        "mean": (inputs,),
        "scale": (inputs,),
    }


def read_header(path: Path) -> PolicyHeader:
    """Read what a policy file says about itself, without its weights.

    Raises:
        ConfigError: There is no such file, or it is not a policy file.
    """
    if not path.is_file():
        raise ConfigError(f"policy file `{path}` does not exist. Train one: dsprobe policy train RUN --out {path}")
    try:
        with safe_open(path, framework="pt") as stream:
            header = (stream.metadata() or {}).get(HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"`{path}` is not a policy file: {error}. Allowed: files of dsprobe policy train.") from None
    if header is None:
        raise ConfigError(f"`{path}` is not a policy file: its metadata lacks `{HEADER_KEY}`. Allowed: files of "
                          "dsprobe policy train.")  # fmt: skip
    try:
        return PolicyHeader.model_validate_json(header)
    except ValidationError as error:
        raise ConfigError(describe_validation(error, f"header of policy file `{path}`")) from None
