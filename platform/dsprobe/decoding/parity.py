"""Parity with the official decoders: decode a golden file's cases and compare every canvas.

A golden file holds, per case, the prompt, the official argument names and the token canvas after every step (see
`docs/decoding.md` for the format). `dsprobe parity` runs it against any checkpoint folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.loop import denoise
from dsprobe.decoding.official import OfficialDream, OfficialLLaDA
from dsprobe.decoding.policy import Policy
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.models.base import DiffusionModel
from dsprobe.untrusted import parse_json, parse_record

MAX_REPLY: Final = 1 << 16
"""Positions of a golden reply at most: files of goldens may come from anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    """Outcome of one golden case."""

    case: str
    identical: bool
    """Every canvas of every step equals the golden one."""
    first_difference: int | None
    """Step (0 = the initial canvas) of the first canvas that differs; `None` when identical."""
    steps: int
    rng_dependent: bool
    """The case draws from torch's CPU generator."""


class _CanvasTrace(Hook):
    """Keeps the canvas after every step."""

    def __init__(self) -> None:
        self.canvases: list[list[list[int]]] = []

    def on_init(self, canvas: Canvas) -> None:
        self.canvases.append(canvas.tokens_BL.tolist())

    def on_step_end(self, context: StepContext) -> None:
        self.canvases.append(context.canvas.tokens_BL.tolist())


class _Golden(BaseModel):
    """One case; see `docs/decoding.md`."""

    model_config = ConfigDict(extra="allow")

    id: str | int
    prompt: list[list[int]] = Field(min_length=1)
    params: dict[str, Any]
    canvases: list[list[list[int]]] = Field(min_length=1)
    seed: int | None = None
    attention_mask: list[list[int]] | None = None
    rng_dependent: bool | None = None

    @model_validator(mode="after")
    def _rows_fit(self) -> _Golden:
        for rows in (self.prompt, self.attention_mask or self.prompt):
            if [len(row) for row in rows] != [len(self.prompt[0])] * len(self.prompt):
                raise ValueError("the rows of `prompt` and `attention_mask` are not of one length")
        return self


class _GoldenFile(BaseModel):
    cases: list[_Golden]


def load_goldens(path: Path) -> list[dict[str, Any]]:
    """Read a golden file's cases.

    Raises:
        ConfigError: The file is missing or not of this format.
    """
    if not path.is_file():
        raise ConfigError(f"No golden file at `{path}`.")
    try:
        content = parse_json(path.read_bytes())
        parse_record(_GoldenFile, content)
    except (OSError, ValueError) as error:
        raise ConfigError(f"`{path}` is not a golden file (a JSON object with `cases`): {error}") from None
    return list(content["cases"])


def check_parity(model: DiffusionModel, cases: list[dict[str, Any]]) -> Iterator[ParityResult]:
    """Decode every case with the faithful policy of the model's family and compare.

    Args:
        model: A Dream or LLaDA checkpoint on the CPU in float32 (goldens are of that arithmetic).
        cases: From `load_goldens`.

    Raises:
        ConfigError: The model's family has no official decoder.
    """
    for case in cases:
        got = decode_case(model, case)
        want = case["canvases"]
        differing = [step for step, (a, b) in enumerate(zip(got, want, strict=False)) if a != b]
        if len(got) != len(want):
            differing.append(min(len(got), len(want)))
        yield ParityResult(
            case=str(case["id"]),
            identical=not differing,
            first_difference=differing[0] if differing else None,
            steps=len(want) - 1,
            rng_dependent=bool(case.get("rng_dependent", False)),
        )


def decode_case(model: DiffusionModel, case: Mapping[str, Any]) -> list[list[list[int]]]:
    """Decode one golden case; returns the canvas before the first and after every step."""
    trace = _CanvasTrace()
    policy, canvas = _faithful(model, case)
    denoise(model, canvas, policy, hooks=[trace])
    return trace.canvases


def _faithful(model: DiffusionModel, case: Mapping[str, Any]) -> tuple[Policy, Canvas]:
    params = dict(case["params"])
    generator = torch.Generator().manual_seed(int(case.get("seed") or 0))
    prompt_BP = torch.tensor(case["prompt"])
    try:
        policy, reply = _official(model, params, prompt_BP, generator)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"Golden case {case['id']}: no `params` of the official decoder: {error}") from None
    known_BP = (prompt_BP >= 0) & (prompt_BP < model.info.vocab_size)
    if not known_BP.all() or not 1 <= reply <= MAX_REPLY:
        raise ConfigError(
            f"Golden case {case['id']}: token ids are 0 to {model.info.vocab_size - 1}, "
            f"and a reply is 1 to {MAX_REPLY} positions long."
        )
    return policy, _official_canvas(model, prompt_BP, case.get("attention_mask"), reply)


def _official(
    model: DiffusionModel, params: dict[str, Any], prompt_BP: Tensor, generator: torch.Generator
) -> tuple[Policy, int]:
    """The official decoder of the model's family, and how long a reply it writes."""
    policy: Policy
    if model.info.family == "llada":
        reply = int(params["gen_length"])
        policy = OfficialLLaDA(prompt_length=prompt_BP.shape[1], generator=generator, **params)
    elif model.info.family == "dream":
        reply = int(params.pop("max_new_tokens"))
        policy = OfficialDream(generator=generator, **params)
    else:
        raise ConfigError(f"Parity is defined for the families dream and llada, not `{model.info.family}`.")
    return policy, reply


def _official_canvas(model: DiffusionModel, prompt_BP: Tensor, mask: Any, reply: int) -> Canvas:
    """Prompts padded on the left, as the official code takes them, with the reply's masks appended."""
    rows = prompt_BP.shape[0]
    assert model.info.mask_token_id is not None
    blank_BR = torch.full((rows, reply), model.info.mask_token_id)
    tokens_BL = torch.cat([prompt_BP, blank_BR], dim=1)
    real_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    if mask is not None:
        real_BL[:, : prompt_BP.shape[1]] = torch.tensor(mask, dtype=torch.bool)
    response_BL = torch.zeros_like(real_BL)
    response_BL[:, prompt_BP.shape[1] :] = True
    return Canvas(
        tokens_BL=tokens_BL,
        real_BL=real_BL,
        given_BL=tokens_BL != model.info.mask_token_id,
        response_BL=response_BL,
        keys=[RowKey(str(row)) for row in range(rows)],
        random_key_B=torch.zeros(rows, dtype=torch.long),
        mask_token_id=model.info.mask_token_id,
        eos_token_id=model.info.eos_token_ids[0],
        stopped_B=torch.zeros(rows, dtype=torch.bool),
    )
