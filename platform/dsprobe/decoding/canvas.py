"""The canvas: what the denoising loop works on.

A canvas holds prompt and reply of every row of a batch on the model's device. Masks may stand anywhere, inside the user
turn too. Rows are padded on the **right**: a row's positions then do not depend on its neighbours, and a shifted
model never predicts a row's first token from padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dsprobe.attacks.base import Rendered
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.models.base import ModelInfo

T = TypeVar("T")

LENGTH_BUCKET = 16
"""Canvas lengths are rounded up to a multiple of this, so that a row meets few tensor shapes."""


@dataclass(slots=True, kw_only=True)
class Canvas:
    """A batch of canvases. `tokens_BL` is the only tensor that changes while decoding."""

    tokens_BL: Tensor
    """Token ids, int64 ``[B, L]``."""
    real_BL: Tensor
    """True where the position is not padding."""
    given_BL: Tensor
    """True where a token was given (prompt, scaffold, anchors) before the first step."""
    response_BL: Tensor
    """True on the judged reply: a contiguous range of every row."""
    keys: list[RowKey]
    random_key_B: Tensor
    """Counter key of each row, int64; see `dsprobe.decoding.randomness`."""
    mask_token_id: int
    eos_token_id: int
    stopped_B: Tensor
    """True where a hook has stopped the row."""

    @property
    def masked_BL(self) -> Tensor:
        """True at undecided positions."""
        return (self.tokens_BL == self.mask_token_id) & self.real_BL

    @property
    def response_start_B(self) -> Tensor:
        """First response position of each row, int64 ``[B]``."""
        return self.response_BL.int().argmax(dim=1)

    def stop(self, rows_B: Tensor) -> None:
        """End rows: undecided positions become end-of-text and no further step is taken."""
        self.tokens_BL = torch.where(rows_B[:, None] & self.masked_BL, self.eos_token_id, self.tokens_BL)
        self.stopped_B = self.stopped_B | rows_B


def random_key(seed: int, key: RowKey) -> int:
    """64-bit counter key of a row (signed), a digest of (seed, prompt id, sample)."""
    text = f"{seed}\x1f{key.prompt_id}\x1f{key.sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def bucket_length(length: int) -> int:
    """Round a canvas length up to its bucket."""
    return -(-length // LENGTH_BUCKET) * LENGTH_BUCKET


def batch_canvases(
    rows: Sequence[Rendered],
    keys: Sequence[RowKey],
    info: ModelInfo,
    *,
    seed: int = 0,
    length: int | None = None,
    device: torch.device | str = "cpu",
) -> Canvas:
    """Stack rendered rows into one canvas.

    Args:
        rows: Rows of a diffusion model; tokens hold the mask id where the model writes.
        keys: Identity of each row.
        info: Supplies mask, end-of-text and padding ids.
        seed: Seed of the run.
        length: Canvas length L; the longest row's bucket when `None`.
        device: Where the canvas lives.

    Raises:
        ConfigError: A row has no mask, or does not fit the length or the model's trained length.
    """
    if info.mask_token_id is None:
        raise ConfigError(f"Model `{info.name}` is {info.kind}: it has no mask token and cannot fill a canvas.")
    longest = max(len(row.tokens) for row in rows)
    width = bucket_length(longest) if length is None else length
    if longest > width:
        raise ConfigError(f"A row of {longest} tokens does not fit a canvas of {width}.")
    if info.max_positions and longest > info.max_positions:
        raise ConfigError(
            f"A canvas of {longest} tokens is longer than the {info.max_positions} positions of model `{info.name}`."
        )
    pad = info.pad_token_id
    tokens_BL = torch.tensor([list(row.tokens) + [pad] * (width - len(row.tokens)) for row in rows])
    index_L = torch.arange(width)[None]
    length_B1 = torch.tensor([[len(row.tokens)] for row in rows])
    start_B1 = torch.tensor([[row.response_start] for row in rows])
    end_B1 = torch.tensor([[row.response_end] for row in rows])
    real_BL = index_L < length_B1
    given_BL = (tokens_BL != info.mask_token_id) | ~real_BL
    if bool(given_BL.all(dim=1).any()):
        row = int(given_BL.all(dim=1).int().argmax())
        raise ConfigError(f"Row {row} (prompt `{keys[row].prompt_id}`) has no mask to denoise.")
    return Canvas(
        tokens_BL=tokens_BL.to(device),
        real_BL=real_BL.to(device),
        given_BL=given_BL.to(device),
        response_BL=((index_L >= start_B1) & (index_L < end_B1)).to(device),
        keys=list(keys),
        random_key_B=torch.tensor([random_key(seed, key) for key in keys], device=device),
        mask_token_id=info.mask_token_id,
        eos_token_id=info.eos_token_ids[0],
        stopped_B=torch.zeros(len(rows), dtype=torch.bool, device=device),
    )


def by_width(rows: Sequence[Rendered]) -> list[list[int]]:
    """Row indices of each canvas length, shortest first: rows of one batch have one length."""
    widths: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        widths.setdefault(bucket_length(len(row.tokens)), []).append(index)
    return [indices for _, indices in sorted(widths.items())]


def in_batches(items: Sequence[T], limit: int) -> Iterator[Sequence[T]]:
    """Cut items into batches of `batch_sizes`."""
    start = 0
    for size in batch_sizes(len(items), limit):
        yield items[start : start + size]
        start += size


def batch_sizes(count: int, limit: int) -> list[int]:
    """Cut a number of rows into batches: as many full ones as fit, then descending powers of two.

    >>> batch_sizes(45, 16)
    [16, 16, 8, 4, 1]
    """
    sizes = [limit] * (count // limit)
    rest = count % limit
    power = 1 << max(0, rest.bit_length() - 1)
    while rest:
        if power <= rest:
            sizes.append(power)
            rest -= power
        power //= 2
    return sizes
