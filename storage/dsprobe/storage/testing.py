"""Made-up batches with plausible dynamics, for tests and benchmarks of storage and whatever reads its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dsprobe.config import UNGUARDED
from dsprobe.decoding.records import ACTION_NONE, ACTION_REMASK, NEVER, RAW_SAMPLE, RowKey, TrajectoryBatch
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.prompts.base import Prompt
from dsprobe.storage.derived import VIEWS

MASK, PAD = 1, 0
"""Token ids of the made-up vocabulary."""


def synthetic_condition(attack: str = "direct", model: str = "toy", guardrail: str = UNGUARDED) -> Condition:
    """A condition with made-up labels."""
    return Condition(model=model, prompts="toy", attack=attack, decoding="default", guardrail=guardrail)


def synthetic_batch(
    seed: int,
    *,
    condition: Condition | None = None,
    rows: int = 4,
    steps: int = 6,
    shortest: int = 1,
    length: int = 8,
    prompt_length: int = 3,
    first_prompt: int = 0,
    threshold: float = 0.5,
    judges: Sequence[str] = ("keyword",),
) -> EvaluatedBatch:
    """B trajectories that commit random positions at random steps; rows end at different steps.

    Those of a guarded condition have interventions.

    Args:
        seed: The same seed gives the same batch, but for `wall_seconds_B`.
        condition: Defaults to `synthetic_condition`.
        rows: B.
        steps: S.
        shortest: Fewest steps of a row; each takes between this and S.
        length: Response positions.
        prompt_length: Positions before the response; row b has up to this many, the rest is left padding.
        first_prompt: Number in the first row's prompt id.
        threshold: Harm threshold of the first harmful steps.
        judges: Judge keys to give verdicts for.
    """
    rng = np.random.default_rng(seed)
    width = prompt_length + length
    num_steps_B = rng.integers(shortest, steps + 1, rows).astype(np.int16)
    commit_BL = rng.integers(1, num_steps_B[:, None] + 1, (rows, width)).astype(np.int16)
    response_BL = np.broadcast_to(np.arange(width) >= prompt_length, (rows, width)).copy()
    real_BL = np.arange(width) >= rng.integers(0, prompt_length + 1, rows)[:, None]
    given_BL = ~response_BL | (rng.random((rows, width)) < 0.1)
    commit_BL[given_BL] = NEVER
    step_S11 = np.arange(1, steps + 1)[:, None, None]
    committed_SBL = commit_BL <= step_S11
    masked_SBL = commit_BL >= step_S11
    tokens_BL = np.where(real_BL, rng.integers(2, 50, (rows, width)), PAD).astype(np.int32)
    undefined = np.float16(np.nan)

    def plane(high: float, where_SBL: npt.NDArray[np.bool_]) -> npt.NDArray[np.float16]:
        values = rng.gamma(2.0, high / 4, where_SBL.shape).astype(np.float16)
        return np.where(where_SBL, np.minimum(values, np.float16(high)), undefined)

    risks: dict[str, npt.NDArray[np.float32]] = {}
    for view in VIEWS:
        walk_SB = np.clip(np.cumsum(rng.normal(0.05, 0.2, (steps, rows)), axis=0), 0, 1).astype(np.float32)
        hold_SB = np.minimum(np.arange(steps)[:, None], num_steps_B - 1)
        risks[view] = np.take_along_axis(walk_SB, hold_SB, axis=0)
    condition = condition or synthetic_condition()
    open_SBL = ~committed_SBL & response_BL if condition.guardrail != UNGUARDED else np.zeros_like(committed_SBL)
    taken_SBL = _taken_back(open_SBL, num_steps_B, rng)
    trajectories = TrajectoryBatch(
        keys=[RowKey(prompt_id=f"p{first_prompt + row // 2:05d}", sample=row % 2) for row in range(rows)],
        canvas_BL=np.where(given_BL, tokens_BL, MASK).astype(np.int32),
        real_BL=real_BL,
        response_BL=response_BL,
        tokens_BL=tokens_BL,
        num_steps_B=num_steps_B,
        forward_passes_B=num_steps_B.astype(np.int32),
        commit_step_BL=commit_BL,
        predicted_SBL=np.broadcast_to(tokens_BL, (steps, rows, width)).copy(),
        committed_SBL=committed_SBL,
        canvas_SBL=np.where(committed_SBL, tokens_BL, MASK).astype(np.int32),
        probability_SBL=plane(1.0, masked_SBL),
        entropy_SBL=plane(6.0, masked_SBL),
        kl_SBL=plane(3.0, masked_SBL & (step_S11 > 1)),
        attribution_SBL=plane(1.0, np.broadcast_to(response_BL, masked_SBL.shape)),
        risk_committed_SB=risks["committed"],
        risk_predicted_SB=risks["predicted"],
        action_SB=np.where(taken_SBL.any(axis=2), ACTION_REMASK, ACTION_NONE).astype(np.int8),
        margin_B=rng.random(rows).astype(np.float32),
        wall_seconds_B=np.random.default_rng().random(rows).astype(np.float32),
        events=[_events(taken_SBL[:, row], tokens_BL[row]) for row in range(rows)],
    )
    return _evaluated(condition, trajectories, risks, threshold, judges, rng)


def _taken_back(
    masked_SBL: npt.NDArray[np.bool_], num_steps_B: npt.NDArray[np.int16], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Positions that a made-up guardrail takes back as soon as they are written: at some steps of two rows of three."""
    steps, rows, _ = masked_SBL.shape
    acting_SB = (rng.random((steps, rows)) < 0.4) & (np.arange(rows) % 3 > 0)
    acting_SB &= np.arange(1, steps + 1)[:, None] <= num_steps_B
    taken_SBL: npt.NDArray[np.bool_] = masked_SBL & acting_SB[:, :, None] & (rng.random(masked_SBL.shape) < 0.5)
    return taken_SBL


def _events(taken_SL: npt.NDArray[np.bool_], tokens_L: npt.NDArray[np.int32]) -> list[dict[str, Any]]:
    """The events of one row, as the recorder writes them."""
    return [
        {
            "step": int(step) + 1,
            "action": ACTION_REMASK,
            "positions": (where := np.flatnonzero(taken_SL[step])).tolist(),
            "before": tokens_L[where].tolist(),
            "after": [MASK] * len(where),
        }
        for step in np.flatnonzero(taken_SL.any(axis=1))
    ]


def _evaluated(
    condition: Condition,
    rows: TrajectoryBatch,
    risks: dict[str, npt.NDArray[np.float32]],
    threshold: float,
    judges: Sequence[str],
    rng: np.random.Generator,
) -> EvaluatedBatch:
    running_SB = np.arange(rows.max_steps)[:, None] < rows.num_steps_B
    harmful = {view: (risks[view] >= np.float32(threshold)) & running_SB for view in VIEWS}
    event_B: dict[str, npt.NDArray[np.bool_]] = {view: np.any(harmful[view], axis=0) for view in VIEWS}
    first_B = {
        view: np.where(event_B[view], harmful[view].argmax(axis=0) + 1, rows.num_steps_B).astype(np.int32)
        for view in VIEWS
    }
    verdict = [True, False, None]
    return EvaluatedBatch(
        condition=condition,
        trajectories=rows,
        prompts=[
            Prompt(id=key.prompt_id, text="bake a cake", harmful=True, source="toy", category="baking")
            for key in rows.keys
        ],
        texts=[f"reply {key.prompt_id} Ω <b>\n" for key in rows.keys],
        empty_B=rng.random(rows.num_rows) < 0.1,
        verdicts={judge: [verdict[i] for i in rng.integers(0, 3, rows.num_rows)] for judge in judges},
        fhs_B=first_B,
        fhs_event_B=event_B,
        tri_B={view: rng.random(rows.num_rows) for view in VIEWS},
        kl_slope_B=rng.normal(size=rows.num_rows),
    )


def take_rows(batch: EvaluatedBatch, rows: Sequence[int]) -> EvaluatedBatch:
    """The same trajectories as a batch of some of them, in the order given."""
    index = np.asarray(rows, dtype=np.intp)
    source = batch.trajectories
    parts: dict[str, Any] = {}
    for name in TrajectoryBatch.__dataclass_fields__:
        value = getattr(source, name)
        if isinstance(value, list):
            parts[name] = [value[row] for row in index]
        elif isinstance(value, np.ndarray):
            parts[name] = value[index] if name.endswith(("_B", "_BL")) and "_SB" not in name else value[:, index]
        else:
            parts[name] = value
    return EvaluatedBatch(
        condition=batch.condition,
        trajectories=TrajectoryBatch(**parts),
        prompts=[batch.prompts[row] for row in index],
        texts=[batch.texts[row] for row in index],
        empty_B=batch.empty_B[index],
        verdicts={judge: [verdicts[row] for row in index] for judge, verdicts in batch.verdicts.items()},
        fhs_B={view: values[index] for view, values in batch.fhs_B.items()},
        fhs_event_B={view: values[index] for view, values in batch.fhs_event_B.items()},
        tri_B={view: values[index] for view, values in batch.tri_B.items()},
        kl_slope_B=batch.kl_slope_B[index],
    )


def with_vectors(batch: EvaluatedBatch, seed: int, *, vocabulary: int, sampled: Sequence[int] = ()) -> EvaluatedBatch:
    """The same batch with made-up top-k tokens (K = 3), hidden states of layer 1 and logits of every row.

    Args:
        batch: From `synthetic_batch`.
        seed: The same seed gives the same vectors; they do not compress.
        vocabulary: V, also the length of a hidden state.
        sampled: Rows of the raw logs' random sample.
    """
    rng = np.random.default_rng(seed)
    rows = batch.trajectories
    masked_SBL = ~np.isnan(rows.probability_SBL) & (
        np.arange(rows.max_steps)[:, None, None] < rows.num_steps_B[None, :, None]
    )

    def vectors(count: int) -> npt.NDArray[np.float16]:
        return rng.integers(-8192, 8192, (count, vocabulary), np.int16).astype(np.float16)

    roles_B = np.zeros(rows.num_rows, np.int8)
    roles_B[list(sampled)] = RAW_SAMPLE
    found = {step: np.nonzero(masked_SBL[step]) for step in range(rows.max_steps)}
    shape = (*masked_SBL.shape, 3)
    logged = replace(
        rows,
        raw_B=roles_B,
        topk_tokens_SBLK=np.where(masked_SBL[..., None], rng.integers(0, vocabulary, shape), -1).astype(np.int32),
        topk_logprobs_SBLK=np.where(masked_SBL[..., None], -rng.random(shape), np.nan).astype(np.float16),
        hidden_SBLD={1: vectors(masked_SBL.size).reshape(*masked_SBL.shape, vocabulary)},
        logits_NV={step: vectors(len(row_N)) for step, (row_N, _) in found.items()},
        logits_row_N={step: row_N.astype(np.int32) for step, (row_N, _) in found.items()},
        logits_position_N={step: at_N.astype(np.int32) for step, (_, at_N) in found.items()},
    )
    return replace(batch, trajectories=logged)
