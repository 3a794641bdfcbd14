"""A shard's two halves, for any caller: decode rendered rows with everything recorded, evaluate what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from dsprobe.attacks.base import Rendered
from dsprobe.attacks.in_loop import attack_hooks
from dsprobe.config import DecodingConfig, RecordingConfig
from dsprobe.decoding.autoregressive import generate
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.hooks import Hook
from dsprobe.decoding.loop import denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.recorder import Recorder, statistics_needs
from dsprobe.decoding.records import I8, RowKey, TrajectoryBatch
from dsprobe.decoding.schedule import planned_steps
from dsprobe.decoding.watching import OnStep, Watcher
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.guardrails import Guardrail
from dsprobe.judges import Judge, Reply
from dsprobe.judges.run import judge_all
from dsprobe.metrics.temporal import first_harmful_step, kl_slope, kl_step_mean, temporal_risk_integral
from dsprobe.models.base import CausalModel, DiffusionModel, LanguageModel
from dsprobe.models.chat import decode_reply
from dsprobe.prompts.base import Prompt
from dsprobe.risk import RiskScorer


def decode_rows(
    model: LanguageModel,
    rendered: Sequence[Rendered],
    keys: Sequence[RowKey],
    decoding: DecodingConfig,
    *,
    recording: RecordingConfig,
    scorer: RiskScorer | None,
    guardrails: Sequence[Guardrail] = (),
    seed: int = 0,
    on_step: OnStep | None = None,
    raw_B: I8 | None = None,
) -> TrajectoryBatch:
    """Decode one batch and record every step.

    Args:
        model: A model of either kind.
        rendered: Rows of one canvas length (`dsprobe.decoding.canvas.by_width`).
        keys: Identity of each row.
        decoding: How they are decoded.
        recording: What is kept.
        scorer: In-loop risk scorer; `None` records no risk.
        guardrails: Built on the same model and decoding; diffusion models only.
        seed: Seed of the run.
        on_step: Called after every step.
        raw_B: What each row is to the raw logs (`TrajectoryBatch.raw_B`); `None` logs nothing raw.
    """
    if model.info.kind == "autoregressive":
        causal = cast("CausalModel", model)
        return generate(
            causal,
            rendered,
            keys,
            decoding,
            recording=recording,
            scorer=scorer,
            seed=seed,
            on_step=on_step,
            raw_B=raw_B,
        )
    diffusion = cast("DiffusionModel", model)
    canvas = batch_canvases(rendered, keys, model.info, seed=seed, device=model.device)
    recorder = Recorder(recording, diffusion, scorer, raw_B)
    needs = statistics_needs(recording, diffusion, int(canvas.masked_BL.sum()))
    policy = SchedulePolicy(decoding, model.info, model.device)
    hooks: list[Hook] = [
        *attack_hooks(rendered, planned_steps(decoding), model.info.mask_token_id),
        *guardrails,
        recorder,
    ]
    if on_step is not None:
        hooks.append(Watcher(recorder, on_step))
    return recorder.finish(denoise(diffusion, canvas, policy, hooks=hooks, needs=needs))


def evaluate_rows(
    model: LanguageModel,
    condition: Condition,
    prompts: list[Prompt],
    batch: TrajectoryBatch,
    *,
    judges: Mapping[str, Judge],
    threshold: float | None,
) -> EvaluatedBatch:
    """Add texts, verdicts and temporal measures to a batch of trajectories.

    Args:
        model: The model that wrote them.
        condition: The cell of the grid they belong to.
        prompts: Prompt of each row.
        batch: The trajectories.
        judges: Judge key → judge.
        threshold: θ: risk at or above it counts as harmful. `None` where no risk was recorded: the measures of
            risk over time are then left out.
    """
    texts = [
        decode_reply(model, batch.tokens_BL[row][batch.response_BL[row]].tolist()) for row in range(batch.num_rows)
    ]
    empty_B = np.array([not text for text in texts])
    replies = [Reply(prompt=prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
    steps_B = batch.num_steps_B
    views = {"committed": batch.risk_committed_SB, "predicted": batch.risk_predicted_SB}
    risks = {} if threshold is None else views
    fhs = {view: first_harmful_step(risk, threshold or 0.0, steps_B) for view, risk in risks.items()}
    return EvaluatedBatch(
        condition=condition,
        trajectories=batch,
        prompts=prompts,
        texts=texts,
        empty_B=empty_B,
        verdicts=judge_all(judges, replies, empty_B),
        fhs_B={view: step for view, (step, _) in fhs.items()},
        fhs_event_B={view: event for view, (_, event) in fhs.items()},
        tri_B={view: temporal_risk_integral(risk, steps_B) for view, risk in risks.items()},
        kl_slope_B=kl_slope(kl_step_mean(batch.kl_SBL), steps_B),
    )
