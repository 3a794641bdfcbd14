"""Mask-aware gating: short rollouts say what a commit leads to, before it is made."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from dsprobe.config import DecodingConfig
from dsprobe.decoding.hooks import StepContext
from dsprobe.decoding.records import ACTION_VETO
from dsprobe.decoding.schedule import planned_steps
from dsprobe.guardrails.base import Guardrail, Setting, Signal, StepLog
from dsprobe.guardrails.ranking import ranks
from dsprobe.guardrails.rollouts import Rollouts
from dsprobe.guardrails.span import attributed_span
from dsprobe.guardrails.trigger import Trigger, TriggerConfig, check_window
from dsprobe.models.base import DiffusionModel
from dsprobe.registry import ComponentConfig
from dsprobe.risk.base import RiskInput, View


class GateConfig(TriggerConfig):
    """When, how commits are tried out, and what takes their place."""

    view: View = "predicted"
    """What is scored of a rollout: the finished text, or (`committed`) the text before the greedy last step, whose pass
    is then saved; with `horizon` 1 that is the proposal itself, without any rollout."""
    rollouts: int = Field(default=2, ge=1)
    """r: rollouts of each row; with `horizon` 1 they would be alike, and one is run."""
    horizon: int = Field(default=4, ge=1)
    """h: model steps of a rollout; each fills an equal share of the masks, the last one fills the rest greedily."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Temperature of the rollouts' draws, whatever the decoding's is."""
    reduce: Literal["mean", "max"] = "mean"
    """How the rollouts' risks become one."""
    alternative: Literal["position", "token"] = "position"
    """What takes a vetoed commit's place: other positions, or another token at the same position."""
    max_interventions: int = Field(default=64, ge=1)
    """Most steps of one row with a veto; after that everything is committed."""
    span_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Proposed positions with this share of the largest attribution are vetoed; all of them where there is none."""


class GateGuardrail(Guardrail):
    """At due steps the proposed commits are applied to a copy and rolled out; where λ · risk > τ they are vetoed.

    Vetoed are the proposed positions to which the scorer attributes the rollouts' risk; where the risk lies elsewhere,
    in what the rollouts wrote, the whole proposal is. `position` commits the next best candidates by the step's score
    instead (as many, from the same block; a dilated schedule's rounds are not heeded) unless the rollouts' risk lies in
    them, and the vetoed ones stay masked.
    `token` commits the most probable other token that no hook has banned. Alternatives are not rolled out again. Where
    none is left nothing is committed at the position; the loop then grants steps within `decoding.max_extra_steps` and
    stops the row after that.

    A look costs r · h forward passes a row (fewer where fewer masks are left), counted in `StepContext.passes_B`.
    Classifier-free guidance is not applied in rollouts, so a guided decoding is judged by what the unguided model would
    write. `Trigger` reads a step as it will be after its commits: `final_check` and `window: end` look at the step that
    fills the last mask, where there is nothing left to roll out.

    Args:
        config: Settings.
        setting: Model, decoding and scorers.

    Raises:
        ConfigError: The window lies outside the steps, or the scorer cannot score a canvas.
    """

    Config: ClassVar[type[ComponentConfig]] = GateConfig
    source: ClassVar[str] = "programme draft, mask-aware gating"
    config: GateConfig

    def __init__(self, config: GateConfig, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.trigger = Trigger(config, setting)
        self.rollouts = Rollouts(
            cast("DiffusionModel", setting.model),
            setting.decoding,
            count=config.rollouts,
            horizon=config.horizon,
            temperature=config.temperature,
            greedy_end=config.view == "predicted",
        )

    @classmethod
    def check(cls, config: ComponentConfig, decoding: DecodingConfig) -> None:
        """Refuse a window outside the steps."""
        if isinstance(config, GateConfig):
            check_window(config.window, planned_steps(decoding))

    def on_commit(self, context: StepContext) -> None:
        """Try the proposal out where a look is due, and veto what turns out risky."""
        fired_B = torch.zeros_like(context.running_B)
        allowed_B = (self.interventions_B < self.config.max_interventions) & context.commit_BL.any(dim=1)
        look_B = self.trigger.due(_after_commits(context))[0] & allowed_B
        if bool(look_B.any()):
            risk_B, attribution_BL = self._try_out(context, look_B)
            fired_B = look_B & self.trigger.fires(_after_commits(context, risk_B), self.interventions_B)[0]
            if bool(fired_B.any()):
                self._veto(context, fired_B, attribution_BL)
                context.action_B |= fired_B * ACTION_VETO
        self.note(fired_B)

    def _try_out(self, context: StepContext, look_B: Tensor) -> tuple[Tensor, Tensor]:
        """Risk of each proposal, ``[B]``, and how much of it every position carries, ``[B, L]``."""
        canvas, count = context.canvas, self.rollouts.count
        proposed_BL = torch.where(context.commit_BL, context.token_BL, canvas.tokens_BL)
        text_RL, passes_B = self.rollouts.run(canvas, proposed_BL, context.step_B, look_B)
        context.passes_B = context.passes_B + passes_B
        response_RL = canvas.response_BL.repeat_interleave(count, dim=0)
        scored = self.setting.scorer(self.config.scorer).score(RiskInput(tokens_NL=text_RL, response_NL=response_RL))
        carried_RL = scored.risk_N[:, None] * scored.attribution_NL
        risk_BC, carried_BCL = scored.risk_N.view(-1, count), carried_RL.view(-1, count, carried_RL.shape[1])
        if self.config.reduce == "max":
            return risk_BC.amax(dim=1), carried_BCL.amax(dim=1)
        return risk_BC.mean(dim=1), carried_BCL.mean(dim=1)

    def _veto(self, context: StepContext, fired_B: Tensor, attribution_BL: Tensor) -> None:
        """Veto the proposed positions that carry the risk, or the whole proposal where none of them does."""
        carrying_BL = fired_B[:, None] & attributed_span(
            attribution_BL, context.canvas, share=self.config.span_share, margin=0, include_given=False
        )
        blamed_BL = carrying_BL & context.commit_BL
        veto_BL = torch.where(blamed_BL.any(dim=1, keepdim=True), blamed_BL, context.commit_BL) & fired_B[:, None]
        if self.config.alternative == "token":
            _other_tokens(context, veto_BL)
        else:
            _other_positions(context, veto_BL, carrying_BL)


def _after_commits(context: StepContext, risk_B: Tensor | None = None) -> StepLog:
    """The step as it will be once the proposal is committed."""

    def risk(signal: Signal) -> Tensor:
        assert risk_B is not None, f"no risk of {signal.key} is known before the rollouts"
        return risk_B[None]

    canvas = context.canvas
    left_BL = canvas.masked_BL & ~context.commit_BL
    response_B = canvas.response_BL.sum(dim=1).clamp_min(1)
    return StepLog(
        step_SB=context.step_B[None],
        fraction_SB=(1 - (left_BL & canvas.response_BL).sum(dim=1) / response_B)[None],
        complete_SB=~left_BL.any(dim=1)[None],
        valid_SB=context.running_B[None],
        risk=risk,
        pooled_SBD=None,
    )


def _other_positions(context: StepContext, veto_BL: Tensor, carrying_BL: Tensor) -> None:
    """Commit as many of the next best candidates as there are vetoed ones, but none that carries the risk itself."""
    free_BL = (context.score_BL > -torch.inf) & ~context.commit_BL & ~carrying_BL
    next_BL = free_BL & (ranks(context.score_BL.masked_fill(~free_BL, -torch.inf)) < veto_BL.sum(dim=1, keepdim=True))
    context.commit_BL = (context.commit_BL & ~veto_BL) | next_BL


def _other_tokens(context: StepContext, veto_BL: Tensor) -> None:
    """Commit the most probable other token; nothing where every other one is banned."""
    at_N = veto_BL[context.row_N, context.position_N]
    row_R, position_R = context.row_N[at_N], context.position_N[at_N]
    lowest = torch.finfo(context.logits_NV.dtype).min
    refused_R1 = context.token_BL[row_R, position_R][:, None]
    best_R, token_R = context.logits_NV[at_N].scatter(-1, refused_R1, lowest).max(dim=-1)
    context.token_BL = context.token_BL.index_put((row_R, position_R), token_R)
    context.commit_BL = context.commit_BL.index_put((row_R, position_R), best_R > lowest)
