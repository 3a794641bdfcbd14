"""The recorder: a hook that keeps every step of a batch on the device and hands it over once, as plain NumPy.

Per step it scatters the statistics of the masked positions into dense ``[B, L]`` planes; nothing crosses to the host
until the batch is finished, and nothing vocabulary-sized is kept, but the logits of rows that are logged raw, which
leave the device step by step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsprobe.config import RecordingConfig
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.logits_capture import LogitsCapture
from dsprobe.decoding.loop import DenoiseOutput, StatisticsNeeds
from dsprobe.decoding.records import (
    ACTION_NONE,
    ACTION_REMASK,
    ACTION_REWRITE,
    BY_ATTACK,
    F32,
    I8,
    NEVER,
    TrajectoryBatch,
)
from dsprobe.decoding.watching import StepSnapshot, events_at
from dsprobe.models.base import DiffusionModel
from dsprobe.risk.base import RiskInput, RiskScorer

SCORING_BYTES = 64 << 20
"""Canvases are scored in chunks whose token tensor stays below this."""


@dataclass(slots=True)
class _Planes:
    """Per-step planes, stacked along steps at the end."""

    predicted: list[Tensor] = field(default_factory=list)
    canvas: list[Tensor] = field(default_factory=list)
    probability: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    action: list[Tensor] = field(default_factory=list)
    risk: list[Tensor] = field(default_factory=list)
    attribution: list[Tensor] = field(default_factory=list)
    top_tokens: list[Tensor] = field(default_factory=list)
    top_logprobs: list[Tensor] = field(default_factory=list)
    layers: list[dict[int, Tensor]] = field(default_factory=list)


def statistics_needs(config: RecordingConfig, model: DiffusionModel, masks: int) -> StatisticsNeeds:
    """What the recorder asks of the statistics pass.

    Args:
        config: Recording settings.
        model: Supplies vocabulary size and dtype, to choose the state behind the KL.
        masks: Largest number of masked positions in the batch.
    """
    if not config.enabled:
        return StatisticsNeeds()
    state_bytes = masks * model.info.vocab_size * model.dtype.itemsize
    from_hidden = config.kl == "hidden" or (config.kl == "auto" and state_bytes > config.max_state_mib << 20)
    return StatisticsNeeds(
        all_masks=True,
        top_k=max(2, config.top_k),
        entropy=True,
        kl=config.kl != "off",
        kl_from_hidden=from_hidden,
        model_logits="logits" in config.raw.keep,
    )


class Recorder(Hook):
    """Records one batch.

    Args:
        config: What to keep.
        model: Read for hidden states of chosen layers, where asked for.
        scorer: In-loop risk scorer; `None` records no risk (NaN).
        raw_B: What each row is to the raw logs (`TrajectoryBatch.raw_B`); `None` logs nothing raw.
    """

    def __init__(
        self,
        config: RecordingConfig,
        model: DiffusionModel,
        scorer: RiskScorer | None,
        raw_B: I8 | None = None,
    ) -> None:
        self._config, self._model, self._scorer, self._raw_B = config, model, scorer, raw_B
        self._logits = LogitsCapture.of(config, raw_B)
        self._planes = _Planes()
        self._events: list[list[dict[str, Any]]] = []
        self._start = time.perf_counter()

    def on_init(self, canvas: Canvas) -> None:
        """Remember the initial canvas."""
        self._initial = canvas.tokens_BL.clone()
        self._commit_step_BL = torch.full_like(canvas.tokens_BL, NEVER)
        self._events = [[] for _ in canvas.keys]

    def on_logits(self, context: StepContext) -> None:
        """Score risk where the scorer reads logits."""
        if self._scorer is None or not self._scorer.needs_logits:
            return
        output = self._scorer.score(
            RiskInput(
                tokens_NL=context.canvas.tokens_BL,
                response_NL=context.canvas.response_BL,
                logits_MV=context.logits_NV,
                row_M=context.row_N,
                position_M=context.position_N,
            )
        )
        self._planes.risk.append(output.risk_N)
        self._planes.attribution.append(output.attribution_NL)

    def on_step_end(self, context: StepContext) -> None:
        """Keep the step."""
        canvas, statistics, planes = context.canvas, context.statistics, self._planes
        at = (context.row_N, context.position_N)
        masked_BL = canvas.tokens_BL == canvas.mask_token_id
        planes.predicted.append(context.predicted_BL.int())
        planes.canvas.append(canvas.tokens_BL.int())
        chosen_N = context.token_BL[at]
        logit_N = context.logits_NV.gather(-1, chosen_N[:, None])[:, 0].float()
        planes.probability.append(_plane(context, (logit_N - statistics.logsumexp_N).exp()))
        planes.entropy.append(_plane(context, statistics.entropy_N))
        planes.kl.append(_plane(context, statistics.kl_N))
        planes.action.append(context.action_B)
        written_BL = (canvas.tokens_BL != context.before_BL) & ~masked_BL
        self._commit_step_BL[written_BL] = context.step + 1
        self._commit_step_BL[masked_BL] = NEVER
        if self._config.top_k:
            planes.top_tokens.append(_plane_k(context, statistics.top_tokens_NK.int(), -1))
            planes.top_logprobs.append(_plane_k(context, statistics.top_logprobs_NK.half(), torch.nan))
        if self._config.hidden_layers:
            states = self._model.hidden_layers(context.before_BL, canvas.real_BL, self._config.hidden_layers)
            planes.layers.append({layer: state.half() for layer, state in states.items()})
        if self._logits is not None and context.model_logits_NV is not None:
            self._logits.keep(context.model_logits_NV, context.row_N, context.position_N)
        self._note_events(context)

    def _note_events(self, context: StepContext) -> None:
        """Write down what an attack and guardrails changed; costs one comparison when none is installed."""
        if context.unattacked_BL is not None:
            self._note_attack(context, context.unattacked_BL)
        if bool((context.action_B != ACTION_NONE).any()):
            rows_B = context.action_B != ACTION_NONE
            self._note(context, rows_B, context.committed_BL, context.canvas.tokens_BL, context.action_B)

    def _note_attack(self, context: StepContext, unattacked_BL: Tensor) -> None:
        changed_BL = unattacked_BL != context.committed_BL
        masked_BL = context.committed_BL == context.canvas.mask_token_id
        action_B = (changed_BL & masked_BL).any(dim=1) * ACTION_REMASK
        action_B = action_B | (changed_BL & ~masked_BL).any(dim=1) * ACTION_REWRITE
        self._note(context, changed_BL.any(dim=1), unattacked_BL, context.committed_BL, action_B, by=BY_ATTACK)

    def _note(
        self, context: StepContext, rows_B: Tensor, before_BL: Tensor, after_BL: Tensor, action_B: Tensor, **facts: str
    ) -> None:
        changed_BL = before_BL != after_BL
        for row in rows_B.nonzero()[:, 0].tolist():
            where = changed_BL[row].nonzero()[:, 0]
            self._events[row].append(
                {
                    "step": context.step + 1,
                    "action": int(action_B[row]),
                    "positions": where.tolist(),
                    "before": before_BL[row, where].tolist(),
                    "after": after_BL[row, where].tolist(),
                    **facts,
                }
            )

    def latest(self, context: StepContext) -> StepSnapshot:
        """The step that was recorded last, scored now; see `dsprobe.decoding.watching`."""
        canvas, planes = context.canvas, self._planes
        risk = self._risk(canvas, planes.predicted[-1][None], planes.canvas[-1][None])
        return StepSnapshot(
            step=context.step + 1,
            running_B=_numpy(context.running_B),
            response_BL=_numpy(canvas.response_BL),
            before_BL=_numpy(context.before_BL.int()),
            canvas_BL=_numpy(planes.canvas[-1]),
            committed_BL=_numpy(planes.canvas[-1] != canvas.mask_token_id),
            predicted_BL=_numpy(planes.predicted[-1]),
            risk_committed_B=_numpy(risk[0][0]),
            risk_predicted_B=_numpy(risk[1][0]),
            attribution_BL=_numpy(risk[2][0]),
            events=events_at(self._events, context.step + 1),
        )

    def finish(self, output: DenoiseOutput) -> TrajectoryBatch:
        """Score the recorded steps and hand the batch over.

        Args:
            output: What `denoise` returned for the same batch.
        """
        canvas, planes = output.canvas, self._planes
        predicted_SBL, canvas_SBL = torch.stack(planes.predicted), torch.stack(planes.canvas)
        risk = self._risk(canvas, predicted_SBL, canvas_SBL)
        seconds = time.perf_counter() - self._start
        return TrajectoryBatch(
            keys=canvas.keys,
            canvas_BL=_numpy(self._initial.int()),
            real_BL=_numpy(canvas.real_BL),
            response_BL=_numpy(canvas.response_BL),
            tokens_BL=_numpy(canvas.tokens_BL.int()),
            num_steps_B=_numpy(output.num_steps_B.short()),
            forward_passes_B=_numpy(output.forward_passes_B.int()),
            commit_step_BL=_numpy(self._commit_step_BL.short()),
            predicted_SBL=_numpy(predicted_SBL),
            committed_SBL=_numpy(canvas_SBL != canvas.mask_token_id),
            canvas_SBL=_numpy(canvas_SBL),
            probability_SBL=_numpy(torch.stack(planes.probability)),
            entropy_SBL=_numpy(torch.stack(planes.entropy)),
            kl_SBL=_numpy(torch.stack(planes.kl)),
            attribution_SBL=_numpy(risk[2]),
            risk_committed_SB=_numpy(risk[0]),
            risk_predicted_SB=_numpy(risk[1]),
            action_SB=_numpy(torch.stack(planes.action)),
            margin_B=_numpy(output.margin_B),
            wall_seconds_B=wall_seconds(seconds, len(canvas.keys), self._config),
            events=self._events,
            topk_tokens_SBLK=_numpy(torch.stack(planes.top_tokens)) if planes.top_tokens else None,
            topk_logprobs_SBLK=_numpy(torch.stack(planes.top_logprobs)) if planes.top_logprobs else None,
            hidden_SBLD={
                layer: _numpy(torch.stack([states[layer] for states in planes.layers]))
                for layer in (self._config.hidden_layers if planes.layers else ())
            }
            or None,
            raw_B=self._raw_B,
            **({} if self._logits is None else self._logits.finish()),
        )

    def _risk(self, canvas: Canvas, predicted_SBL: Tensor, canvas_SBL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Risk of both views and attribution of the predicted one."""
        if self._scorer is not None and self._scorer.needs_logits:
            steps = len(predicted_SBL)
            risk_SB = torch.stack(self._planes.risk[-steps:])
            attribution_SBL = torch.stack(self._planes.attribution[-steps:])
            risk = (risk_SB, risk_SB)
        else:
            committed_SB, _ = score_steps(self._scorer, canvas_SBL, canvas.response_BL)
            predicted_SB, attribution_SBL = score_steps(self._scorer, predicted_SBL, canvas.response_BL)
            risk = (committed_SB, predicted_SB)
        return *risk, attribution_SBL.masked_fill(~canvas.response_BL, torch.nan).half()


def wall_seconds(seconds: float, rows: int, config: RecordingConfig) -> F32:
    """Wall time of a batch divided by its rows, ``[B]``; NaN where clocks are not to be recorded."""
    return np.full(rows, seconds / rows if config.wall_seconds else np.nan, dtype=np.float32)


def score_steps(scorer: RiskScorer | None, tokens_SBL: Tensor, response_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Score every step of a batch in as few calls as memory allows.

    Args:
        scorer: A token scorer, or `None`.
        tokens_SBL: Canvases of one view.
        response_BL: Response positions.

    Returns:
        Risk ``[S, B]`` and attribution ``[S, B, L]``, float32; NaN without a scorer.
    """
    steps, rows, width = tokens_SBL.shape
    if scorer is None:
        nan = torch.full((steps, rows, width), torch.nan, device=tokens_SBL.device)
        return nan[..., 0], nan
    chunk = max(1, SCORING_BYTES // (8 * rows * width))
    risks, attributions = [], []
    for tokens_CBL in torch.split(tokens_SBL, chunk):
        flat_NL = tokens_CBL.flatten(0, 1).long()
        output = scorer.score(RiskInput(tokens_NL=flat_NL, response_NL=response_BL.repeat(len(tokens_CBL), 1)))
        risks.append(output.risk_N.view(-1, rows))
        attributions.append(output.attribution_NL.view(-1, rows, width))
    return torch.cat(risks), torch.cat(attributions)


def _plane(context: StepContext, value_N: Tensor | None) -> Tensor:
    """Spread N values over a float16 ``[B, L]`` plane, NaN elsewhere."""
    plane_BL = torch.full(context.before_BL.shape, torch.nan, dtype=torch.float16, device=context.before_BL.device)
    if value_N is not None:
        plane_BL[context.row_N, context.position_N] = value_N.half()
    return plane_BL


def _plane_k(context: StepContext, value_NK: Tensor, fill: float) -> Tensor:
    shape = (*context.before_BL.shape, value_NK.shape[-1])
    plane_BLK = torch.full(shape, fill, dtype=value_NK.dtype, device=value_NK.device)
    plane_BLK[context.row_N, context.position_N] = value_NK
    return plane_BLK


def _numpy(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
