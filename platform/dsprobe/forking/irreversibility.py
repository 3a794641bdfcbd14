"""The interventional Irreversibility Index: re-mask part of a logged trajectory at a step; does harm return?

Every fork starts from the same logged trajectory, so a whole curve over steps and shares costs the continuations only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsprobe.decoding import randomness
from dsprobe.decoding.hooks import StepContext
from dsprobe.forking.engine import ForkEngine
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails.base import ForkableGuardrail, Setting, Signal, StepLog, score_view
from dsprobe.metrics.intervals import RatePoint
from dsprobe.metrics.temporal import irreversibility_renoise
from dsprobe.risk.base import RiskInput

Target = Literal["random", "attributed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forks:
    """N forks; arrays of length N."""

    row: npt.NDArray[np.int64]
    """Index of the row."""
    step: npt.NDArray[np.int64]
    """Step s of the fork."""
    share: npt.NDArray[np.float64]
    """Share ρ of the response positions that was re-masked."""
    harmful_at_step: npt.NDArray[np.bool_]
    """Risk of the view at s reached θ, before re-masking."""
    harmful_at_end: npt.NDArray[np.bool_]
    """Risk of the finished reply reached θ."""
    passes_used: int
    passes: int
    """Forward passes computed, and what runs from scratch would have taken."""

    def curve(self) -> tuple[RatePoint, ...]:
        """P(harmful at the end given harmful at s) over (s, ρ) with Wilson intervals; one fork a row and setting."""
        return irreversibility_renoise(self.harmful_at_step, self.harmful_at_end, self.step, self.share)


def renoise_forks(
    engine: ForkEngine,
    rows: Sequence[ForkRow],
    steps: Sequence[int],
    shares: Sequence[float],
    *,
    signal: Signal,
    threshold: float,
    target: Target = "random",
) -> Forks:
    """Fork every row at every step with every share.

    A row that ended before s has no fork there. Where the model may not take the steps that re-masked positions need
    (`DecodingConfig.max_extra_steps`), they come back as they were, so give the engine's decoding as many as it plans.

    Args:
        engine: Model and decoding.
        rows: What is decoded.
        steps: 1-based steps s.
        shares: Shares ρ in (0, 1] of a row's response positions; at most those that hold a generated token.
        signal: The risk, on the view whose irreversibility is asked for.
        threshold: θ.
        target: Which positions: random ones, or those that carry the risk.
    """
    risks = engine.trunk_risks(rows, signal)
    columns: list[tuple[int, int, float, bool, bool]] = []
    used = total = 0
    for step in steps:
        alive = [index for index, risk_S in enumerate(risks) if len(risk_S) >= step]
        for share in shares if alive else ():
            probe = RenoiseAt(step, share, target, signal, engine.setting)
            results = engine.run([rows[index] for index in alive], [probe])
            ends = _harmful(engine, [rows[i] for i in alive], [r.tokens_L for r in results], signal, threshold)
            used += sum(result.passes_used for result in results)
            total += sum(result.passes for result in results)
            columns += [
                (index, step, share, bool(risks[index][step - 1] >= threshold), end)
                for index, end in zip(alive, ends, strict=True)
            ]
    row, at, rho, before, after = zip(*columns, strict=True) if columns else ((),) * 5
    return Forks(
        row=np.array(row, np.int64),
        step=np.array(at, np.int64),
        share=np.array(rho, np.float64),
        harmful_at_step=np.array(before, np.bool_),
        harmful_at_end=np.array(after, np.bool_),
        passes_used=used,
        passes=total,
    )


def _harmful(
    engine: ForkEngine,
    rows: Sequence[ForkRow],
    tokens: Sequence[npt.NDArray[np.int32]],
    signal: Signal,
    threshold: float,
) -> list[bool]:
    """Whether finished canvases reach θ."""
    scorer = engine.setting.scorer(signal.scorer)
    harmful = []
    for row, tokens_L in zip(rows, tokens, strict=True):
        index_L = torch.arange(len(tokens_L), device=engine.model.device)
        response_L = (index_L >= row.rendered.response_start) & (index_L < row.rendered.response_end)
        canvas_1L = torch.from_numpy(tokens_L).long().to(engine.model.device)[None]
        risk_1 = scorer.score(RiskInput(tokens_NL=canvas_1L, response_NL=response_L[None])).risk_N
        harmful.append(bool(risk_1[0] >= threshold))
    return harmful


class RenoiseAt(ForkableGuardrail):
    """Re-masks a share of the response once, at one step.

    Args:
        step: 1-based step s.
        share: Share ρ of the row's response positions.
        target: Random positions (counter-based, by row, step and position), or those with the largest attribution.
        signal: Whose attribution, and on which view.
        setting: Model, decoding and scorers.
    """

    source: ClassVar[str] = "interventional irreversibility, the programme's draft"

    def __init__(self, step: int, share: float, target: Target, signal: Signal, setting: Setting) -> None:
        self.step, self.share, self.target, self.signal, self.setting = step, share, target, signal, setting

    def on_canvas(self, context: StepContext) -> None:
        """Re-mask the best-ranked positions of every row that is at its step."""
        canvas = context.canvas
        fired_B = context.running_B & (context.step_B == self.step) & (self.interventions_B == 0)
        if bool(fired_B.any()):
            open_BL = canvas.response_BL & ~canvas.given_BL & (canvas.tokens_BL != canvas.mask_token_id)
            rank_BL = self._rank(context).masked_fill(~open_BL, -torch.inf)
            order_BL = rank_BL.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
            count_B = (self.share * canvas.response_BL.sum(dim=1)).ceil()
            taken_BL = fired_B[:, None] & open_BL & (order_BL < count_B[:, None])
            canvas.tokens_BL = torch.where(taken_BL, canvas.mask_token_id, canvas.tokens_BL)
        self.note(fired_B)

    def _rank(self, context: StepContext) -> Tensor:
        if self.target == "attributed":
            return score_view(context, self.setting, self.signal).attribution_NL.double()
        canvas = context.canvas
        position_L = torch.arange(canvas.tokens_BL.shape[1], device=canvas.tokens_BL.device)
        return randomness.uniform(canvas.random_key_B[:, None], self.step, position_L[None], randomness.STREAM_RENOISE)

    def signals(self) -> Sequence[Signal]:
        """None: the step alone decides."""
        return []

    def triggers(self, log: StepLog) -> Tensor:
        """At the step, once."""
        return (log.step_SB == self.step) & log.valid_SB & (self.interventions_B == 0)

    def effects(self) -> list[bytes]:
        """None but the canvas."""
        return [b""] * len(self.interventions_B)

    def row_state(self) -> Mapping[str, Tensor]:
        """Whether it has acted."""
        return {"interventions": self.interventions_B}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `ForkableGuardrail.restore`."""
        self.interventions_B = state["interventions"].clone()
