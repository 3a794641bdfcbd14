"""Which trajectories of a shard are logged raw, what that may take, and whether it can work at all.

The random sample of a shard is a prefix of its trajectories in the order of a hash, so it depends on nothing but the
trajectories themselves. Where the byte budget is too small for it, the prefix is cut before anything is decoded: what
is left is still a random sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dsprobe.config import RawConfig, RunConfig
from dsprobe.decoding.records import RAW_CUT, RAW_SAMPLE
from dsprobe.decoding.schedule import planned_steps
from dsprobe.errors import ConfigError
from dsprobe.experiment.evaluated import Condition, sample_rank

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan, Shard

POSITION_BYTES = 26
"""A row of `position_log`, uncompressed and rounded up; of `step_log` likewise."""
FILE_BYTES = 64 << 10
"""What the step logs' files take beside their rows."""
ENTRY_BYTES = 16
"""An entry of `topk`, `hidden` or `logits` without its vector."""
TOP_BYTES, HALF_BYTES = 6, 2
"""A token and its log-probability; a float16."""


def shard_budget(raw: RawConfig, shards: int) -> int:
    """Bytes that the raw logs of one shard may take on the disk; the same whatever other shards take."""
    return min(raw.max_shard_bytes, raw.max_bytes // max(shards, 1))


def step_log_bytes(config: RunConfig) -> int:
    """Bytes of a shard's budget that are set aside for its step logs; 0 where they are not kept.

    They are uncompressed bytes, several times what the files take.
    """
    if "steps" not in config.recording.raw.keep:
        return 0
    guarded = any(guardrail.stack for guardrail in config.guardrails)
    most = max(
        (planned_steps(decoding) + guarded * decoding.max_extra_steps) * (decoding.reply_length + 1)
        for decoding in config.decodings
    )
    return config.execution.shard_size * most * POSITION_BYTES + FILE_BYTES


def raw_rows(plan: Plan, shard: Shard) -> dict[tuple[str, int], int]:
    """The random sample of a shard.

    Returns:
        Prompt id and sample number → `RAW_SAMPLE`, or `RAW_CUT` where the budget has no room for it.
    """
    raw = plan.config.recording.raw
    prompts = plan.prompt_sets[shard.condition.prompts].prompts
    keys = [(prompts[row.prompt].id, row.sample) for row in shard.rows]
    ranked = sorted((sample_rank(shard.condition.id, *key), key) for key in keys)
    wanted = max(sum(rank < raw.sample * 2.0**64 for rank, _ in ranked), raw.sample_rows)
    each = sum(trajectory_bytes(plan, shard.condition).values())
    room = shard_budget(raw, len(plan.shards)) - step_log_bytes(plan.config)
    fits = room // each if each else 0
    return {key: RAW_SAMPLE if place < fits else RAW_CUT for place, (_, key) in enumerate(ranked[:wanted])}


def trajectory_bytes(plan: Plan, condition: Condition) -> dict[str, int]:
    """About how many bytes the vectors of one trajectory take, by kind; those of its kinds that are kept."""
    facts, recording = plan.models[condition.model], plan.config.recording
    decoding = plan.decoding(condition)
    length, steps = decoding.reply_length, planned_steps(decoding)
    diffusion = facts.kind == "diffusion"
    # A schedule that commits evenly has half of the reply masked on average.
    predicted = (steps + 1) * length // 2 if diffusion else length
    states = steps * length * len(recording.hidden_layers) if diffusion else 0
    sizes = {
        "topk": predicted * (ENTRY_BYTES + max(2, recording.top_k) * TOP_BYTES),
        "hidden": states * (ENTRY_BYTES + facts.hidden_size * HALF_BYTES),
        "logits": predicted * (ENTRY_BYTES + facts.vocab_size * HALF_BYTES),
    }
    return {kind: size for kind, size in sizes.items() if kind in recording.raw.keep}


def check_raw(plan: Plan) -> None:
    """Refuse raw logs that would not fit the memory, or of which not one trajectory would fit the budget.

    Raises:
        ConfigError: Names the sizes, and what to lower or raise.
    """
    raw = plan.config.recording.raw
    if not raw.keep:
        return
    budget, steps = shard_budget(raw, len(plan.shards)), step_log_bytes(plan.config)
    where = (
        f"recording.raw: a shard's raw logs may take {_size(budget)} (max_shard_bytes {_size(raw.max_shard_bytes)}, "
        f"max_bytes {_size(raw.max_bytes)} over {len(plan.shards)} shards)"
    )
    if steps > budget:
        raise ConfigError(
            f"{where}, and {_size(steps)} are set aside for the step logs of {plan.config.execution.shard_size} "
            "trajectories. Raise the limits, or lower execution.shard_size where max_shard_bytes is the limit."
        )
    for condition in plan.conditions:
        sizes = trajectory_bytes(plan, condition)
        if sum(sizes.values()) > budget - steps:
            parts = ", ".join(f"{kind} {_size(size)}" for kind, size in sizes.items())
            raise ConfigError(
                f"{where}, of which {_size(budget - steps)} are left for vectors. One trajectory of `{condition.id}` "
                f"takes about {_size(sum(sizes.values()))} ({parts}). Raise the limits or keep less."
            )
    _check_memory(plan)


def _check_memory(plan: Plan) -> None:
    raw, batch_size = plan.config.recording.raw, plan.config.execution.batch_size
    if "logits" not in raw.keep:
        return
    captured: dict[Condition, int] = {}
    for shard in plan.shards:
        rows = len(shard.rows) if raw.extreme else _sampled(raw_rows(plan, shard))
        captured[shard.condition] = max(captured.get(shard.condition, 0), min(batch_size, rows))
    for condition, rows in captured.items():
        facts, decoding = plan.models[condition.model], plan.decoding(condition)
        steps = planned_steps(decoding) if facts.kind == "diffusion" else 1
        size = rows * steps * decoding.reply_length * facts.vocab_size * HALF_BYTES
        if size > raw.max_batch_bytes:
            raise ConfigError(
                f"recording.raw: logits of one batch of `{condition.id}` may take {_size(size)} of memory ({rows} "
                f"trajectories x {steps} steps x {decoding.reply_length} masks x {facts.vocab_size} tokens x 2 bytes), "
                f"and max_batch_bytes is {_size(raw.max_batch_bytes)}. Lower execution.batch_size, steps, "
                "reply_length, or the sample (`extreme` captures whole batches); or raise max_batch_bytes."
            )


def _sampled(rows: Mapping[tuple[str, int], int]) -> int:
    return sum(code == RAW_SAMPLE for code in rows.values())


def _size(size: int) -> str:
    """Bytes for people, in decimal units."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the unit reached is used below
        if value < 1000:
            break
        value /= 1000
    return f"{value:.3g} {unit}"
