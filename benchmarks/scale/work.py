"""What the simulated replicas do: how long a batch takes on the modelled GPU, what it holds, and a plan of shards.

Light on purpose: sixty-four simulated replicas import this, and neither torch nor `dsprobe.experiment.plan`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from dsprobe.decoding.records import RowKey
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.prompts.base import Prompt
from dsprobe.storage.testing import synthetic_batch, synthetic_condition

H100_FLOPS: Final = 989.4e12
"""Dense bf16 peak of an H100 SXM a second (NVIDIA's data sheet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledGpu:
    """A GPU that does nothing but forward passes of one model; an assumption, not a measurement."""

    parameters: float = 7.6e9
    """Weights that every token meets: a 7B-shaped Dream."""
    layers: int = 28
    width: int = 3584
    flops: float = H100_FLOPS
    share: float = 0.4
    """Part of the peak that the forward pass reaches."""

    def step_ms(self, rows: int, tokens: int) -> float:
        """Milliseconds of a denoising step: 2 FLOP a weight and token, and attention over the canvas.

        Args:
            rows: B.
            tokens: Positions of the canvas, prompt included.
        """
        dense = 2 * self.parameters * rows * tokens
        attention = 4 * self.layers * self.width * rows * tokens**2
        return 1e3 * (dense + attention) / (self.flops * self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every replica does with a shard."""

    rows: int = 16
    """Trajectories a batch."""
    steps: int = 64
    length: int = 128
    """Response positions."""
    prompt_length: int = 128
    step_ms: float
    """Modelled milliseconds of a denoising step of the whole batch."""
    jitter: float = 0.2
    """A batch takes this share more or less, evenly spread, so that replicas do not march in step."""

    @property
    def batch_s(self) -> float:
        """Mean modelled seconds of a batch."""
        return self.steps * self.step_ms / 1e3

    @property
    def positions(self) -> int:
        """Response positions of all steps of a batch: the rows of its position log."""
        return self.rows * self.steps * self.length

    def seconds(self, shard_id: str, number: int) -> float:
        """Modelled seconds of one batch of a shard; the same in every run."""
        return self.batch_s * (1 + self.jitter * random.Random(f"{shard_id}/{number}").uniform(-1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedShard:
    """What the online path uses of `dsprobe.experiment.plan.Shard`, without what that imports."""

    run: str
    id: str
    condition: Condition
    rows: range
    """Prompt numbers."""
    work: Work


def simulated_shards(run: str, work: Work, *, count: int, batches: int, per_condition: int) -> list[SimulatedShard]:
    """Shards in the order of a plan: condition by condition.

    Args:
        run: Name of the run; the shard ids begin with it.
        work: What to do with each.
        count: Number of shards.
        batches: Batches a shard.
        per_condition: Shards of a condition.
    """
    size = batches * work.rows
    shards = []
    for number in range(count):
        place = number % per_condition * size
        condition = synthetic_condition(f"attack-{number // per_condition:03d}")
        rows = range(place, place + size)
        name = f"{run}-{number:06d}"
        shards.append(SimulatedShard(run=run, id=name, condition=condition, rows=rows, work=work))
    return shards


def batches_of(shard: SimulatedShard) -> Iterator[EvaluatedBatch]:
    """A shard's batches, real ones at the cost of their labels: the arrays are made once and shared."""
    work = shard.work
    made = _made(work.rows, work.steps, work.length, work.prompt_length)
    for start in range(0, len(shard.rows), work.rows):
        names = [f"p{number:06d}" for number in shard.rows[start : start + work.rows]]
        prompts = [Prompt(id=name, text="placeholder", harmful=True, source="toy") for name in names]
        trajectories = replace(made.trajectories, keys=[RowKey(name) for name in names])
        yield replace(made, condition=shard.condition, prompts=prompts, trajectories=trajectories)


def prepare(work: Work) -> None:
    """Make the arrays ahead of the first batch, which should not pay for them."""
    _made(work.rows, work.steps, work.length, work.prompt_length)


@functools.lru_cache(maxsize=1)
def _made(rows: int, steps: int, length: int, prompt_length: int) -> EvaluatedBatch:
    """Made-up values; every row takes all steps."""
    return synthetic_batch(0, rows=rows, steps=steps, shortest=steps, length=length, prompt_length=prompt_length)
