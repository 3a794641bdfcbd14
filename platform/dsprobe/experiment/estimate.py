"""What a plan will cost, from counts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from dsprobe.decoding.schedule import planned_steps
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.plan import Plan
from dsprobe.experiment.raw_rows import shard_budget, trajectory_bytes

BYTES_PER_TRAJECTORY = 1200
"""Compressed `trajectories` row without its token lists (measured on the demo run)."""
BYTES_PER_STEP = 12
"""Compressed `steps` row."""
BYTES_PER_POSITION = 8
"""Compressed `positions` row."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Upper bounds, before any early stop."""

    trajectories: int
    steps: int
    """Denoising steps over all trajectories (one row of the `steps` table each)."""
    forward_passes: int
    """Forward passes of single rows."""
    disk_bytes: int

    def to_dict(self) -> dict[str, int]:
        """As plain data."""
        return asdict(self)


def estimate(plan: Plan) -> Estimate:
    """Count the work of a plan and estimate its size on disk.

    Args:
        plan: A resolved plan.
    """
    return total((work, 1) for work in condition_estimates(plan).values())


def condition_estimates(plan: Plan) -> dict[Condition, Estimate]:
    """The same for every condition.

    Args:
        plan: A resolved plan.
    """
    rows: Counter[Condition] = Counter()
    for shard in plan.shards:
        rows[shard.condition] += len(shard.rows)
    return {condition: _condition_estimate(plan, condition, rows[condition]) for condition in plan.conditions}


def total(parts: Iterable[tuple[Estimate, int]]) -> Estimate:
    """Sum of estimates.

    Args:
        parts: Each with the number of times that it is done.
    """
    sums: Counter[str] = Counter()
    for work, times in parts:
        sums.update({name: count * times for name, count in work.to_dict().items()})
    return Estimate(**{field.name: sums[field.name] for field in fields(Estimate)})


def _condition_estimate(plan: Plan, condition: Condition, rows: int) -> Estimate:
    recorded = plan.config.recording.sample_positions + plan.config.recording.extreme_positions
    decoding = plan.decoding(condition)
    autoregressive = plan.models[condition.model].kind == "autoregressive"
    steps = decoding.reply_length if autoregressive else planned_steps(decoding)
    positions = min(rows, recorded) * steps * decoding.reply_length
    size = rows * (BYTES_PER_TRAJECTORY + steps * BYTES_PER_STEP) + positions * BYTES_PER_POSITION
    return Estimate(
        trajectories=rows,
        steps=rows * steps,
        forward_passes=rows * steps * (2 if decoding.cfg_scale > 0 and not autoregressive else 1),
        disk_bytes=size + _raw_bytes(plan, condition, rows, steps),
    )


def _raw_bytes(plan: Plan, condition: Condition, rows: int, steps: int) -> int:
    """Raw logs of a condition, within their budget."""
    raw = plan.config.recording.raw
    if not raw.keep:
        return 0
    shards = sum(shard.condition == condition for shard in plan.shards)
    chosen = max(raw.sample * rows, raw.sample_rows * shards) + raw.extreme * shards
    size = int(min(chosen, rows) * sum(trajectory_bytes(plan, condition).values()))
    if "steps" in raw.keep:
        positions = plan.decoding(condition).reply_length * BYTES_PER_POSITION
        size += rows * steps * (BYTES_PER_STEP + positions)
    return min(size, shards * shard_budget(raw, len(plan.shards)))
