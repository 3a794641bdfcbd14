"""What a plan will cost, from counts alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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
    trajectories = steps = passes = size = 0
    recorded = plan.config.recording.sample_positions + plan.config.recording.extreme_positions
    for condition in plan.conditions:
        rows = sum(len(shard.rows) for shard in plan.shards if shard.condition == condition)
        decoding = plan.decoding(condition)
        autoregressive = plan.models[condition.model].kind == "autoregressive"
        per_row = decoding.reply_length if autoregressive else planned_steps(decoding)
        trajectories += rows
        steps += rows * per_row
        passes += rows * per_row * (2 if decoding.cfg_scale > 0 and not autoregressive else 1)
        positions = min(rows, recorded) * per_row * decoding.reply_length
        size += rows * (BYTES_PER_TRAJECTORY + per_row * BYTES_PER_STEP) + positions * BYTES_PER_POSITION
        size += _raw_bytes(plan, condition, rows, per_row)
    return Estimate(trajectories, steps, passes, size)


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
