"""The one denoising loop.

Families differ by adapter, decoders by policy, experiments by hooks. The loop itself only knows the order of events
in a step: body → guidance → head on masked rows → statistics → proposal → selection → commit → end, with a hook at
each joint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.policy import Policy, SchedulePolicy
from dsprobe.decoding.records import ACTION_NONE, ACTION_REMASK, ACTION_REWRITE, ACTION_VETO
from dsprobe.decoding.vocabulary import PreviousStep, VocabularyStatistics, vocabulary_statistics
from dsprobe.models.base import DiffusionModel
from dsprobe.telemetry.logs import log_context

LOGGER = logging.getLogger("dsprobe.decoding.loop")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsNeeds:
    """What the statistics pass must deliver beyond the two best tokens."""

    all_masks: bool = False
    """Logits at every mask, not only at candidates (the predicted view needs them)."""
    top_k: int = 2
    entropy: bool = False
    kl: bool = False
    kl_from_hidden: bool = False
    """Recompute previous logits from previous hidden states instead of keeping them."""
    model_logits: bool = False
    """Logits as they were before hooks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reentry:
    """Where rows enter a logged trajectory again: right after a step's commits, before `Hook.on_canvas`.

    Rows may be at different steps. With the initial canvas this is all that the rest of a trajectory depends on, so
    the loop goes on as if it had never stopped (`dsprobe.forking`).
    """

    initial_BL: Tensor
    """Initial canvas of each row."""
    committed_BL: Tensor
    """Canvas right after the commits of the entered step."""
    greedy_BL: Tensor
    """Greedy tokens of the entered step (`StepContext.greedy_BL`); the committed canvas where not logged."""
    pooled_BD: Tensor | None
    """Pooled hidden state of the entered step, where logged."""
    policy_BC: Tensor
    """`SchedulePolicy.row_state` before the step was counted."""
    step_B: Tensor
    """1-based number of the entered step."""
    passes_B: Tensor
    """Forward passes spent so far, the entered step included."""


@dataclass(slots=True, kw_only=True)
class DenoiseOutput:
    """A finished batch."""

    canvas: Canvas
    num_steps_B: Tensor
    """Steps each row took."""
    forward_passes_B: Tensor
    """Forward passes spent on each row."""
    margin_B: Tensor
    """Smallest decision margin of each row; see `Policy.margin`."""


@torch.inference_mode()
def denoise(
    model: DiffusionModel,
    canvas: Canvas,
    policy: Policy,
    *,
    hooks: Sequence[Hook] = (),
    needs: StatisticsNeeds = StatisticsNeeds(),
    reentry: Reentry | None = None,
) -> DenoiseOutput:
    """Denoise a batch of canvases until no row has a mask left.

    Args:
        model: A diffusion model.
        canvas: The initial canvas; changed in place.
        policy: Decides what is committed when.
        hooks: Called at every joint of a step, in this order.
        needs: What hooks (the recorder) expect of `StepContext.statistics`.
        reentry: Enter logged trajectories in the middle of a step instead of starting from `canvas`, which must then
            hold the initial tokens. Needs a `SchedulePolicy`. Hooks that keep state per row restore it themselves in
            `on_init`.

    Returns:
        The final canvas and the work it took, that of the logged steps included.
    """
    output = enter(canvas, policy, hooks, reentry)
    known_BL = (canvas.tokens_BL if reentry is None else reentry.initial_BL) != canvas.mask_token_id
    memory = _PreviousDistributions(model, needs)
    step = 0
    while bool((running_B := policy.running(canvas)).any()):
        _log_step(canvas, running_B, step)
        hidden_BLD = _guided_hidden(model, canvas, known_BL, policy.cfg_scale)
        for hook in hooks:
            hidden_BLD = hook.on_hidden(canvas, hidden_BLD)
        output.num_steps_B = output.num_steps_B + running_B
        context = _open_step(model, canvas, policy, running_B, hidden_BLD, step, needs, memory)
        context.step_B = output.num_steps_B
        _decide(context, policy, hooks)
        policy.commit(context)
        _apply(context, policy, hooks)
        output.forward_passes_B = output.forward_passes_B + context.passes_B
        output.margin_B = torch.minimum(output.margin_B, policy.margin(context))
        step += 1
    return output


def _log_step(canvas: Canvas, running_B: Tensor, step: int) -> None:
    """At DEBUG, which alone waits for the device."""
    if LOGGER.isEnabledFor(logging.DEBUG):
        with log_context(step=step + 1):
            masks = int((canvas.tokens_BL == canvas.mask_token_id).sum())
            LOGGER.debug("%d rows go on, %d masks are left", int(running_B.sum()), masks)


@torch.inference_mode()
def enter(canvas: Canvas, policy: Policy, hooks: Sequence[Hook], reentry: Reentry | None = None) -> DenoiseOutput:
    """Get ready for the first step, or do the part of a logged step that needs no model; arguments as in `denoise`."""
    for hook in hooks:
        hook.on_init(canvas)
    policy.begin(canvas)
    output = _start_output(canvas)
    if reentry is not None:
        _reenter(canvas, policy, hooks, reentry, output)
    return output


def _start_output(canvas: Canvas) -> DenoiseOutput:
    rows = torch.zeros(canvas.tokens_BL.shape[0], dtype=torch.long, device=canvas.tokens_BL.device)
    return DenoiseOutput(
        canvas=canvas,
        num_steps_B=rows,
        forward_passes_B=rows.clone(),
        margin_B=torch.full_like(rows, torch.inf, dtype=torch.float32),
    )


def _guided_hidden(model: DiffusionModel, canvas: Canvas, known_BL: Tensor, cfg_scale: float) -> Tensor:
    """Hidden states, with classifier-free guidance applied before the (linear) head: u + (1 + w)(c − u).

    The unconditional branch masks what was known at the start, padding included, and sees tokens committed since
    (as LLaDA's `generate`, 2502.09992 appendix). Mixing hidden states needs one head product instead of two.
    """
    if cfg_scale == 0:
        return model.hidden(canvas.tokens_BL, canvas.real_BL)
    blind_BL = torch.where(known_BL, canvas.mask_token_id, canvas.tokens_BL)
    both = model.hidden(torch.cat([canvas.tokens_BL, blind_BL]), canvas.real_BL.repeat(2, 1))
    conditional, unconditional = both.chunk(2)
    return unconditional + (1.0 + cfg_scale) * (conditional - unconditional)


class _PreviousDistributions:
    """The step before, for the step-to-step KL: its logits tensor as it is, or its hidden states only."""

    def __init__(self, model: DiffusionModel, needs: StatisticsNeeds) -> None:
        self._model, self._needs = model, needs
        self._slot_BL: Tensor | None = None

    def lookup(self, row_N: Tensor, position_N: Tensor) -> PreviousStep | None:
        if not self._needs.kl:
            return None
        if self._slot_BL is None:
            slot_N = torch.full_like(row_N, -1)
            return PreviousStep(logsumexp_M=torch.zeros(1, device=row_N.device), slot_N=slot_N, logits_of=_no_logits)
        return PreviousStep(
            logsumexp_M=self._logsumexp_M,
            slot_N=self._slot_BL[row_N, position_N],
            logits_of=self._logits_of,
        )

    def _logits_of(self, slot_R: Tensor) -> Tensor:
        kept = self._kept[slot_R]
        return self._model.head(kept) if self._needs.kl_from_hidden else kept

    def keep(self, context: StepContext, hidden_ND: Tensor) -> None:
        if not self._needs.kl:
            return
        self._kept = hidden_ND if self._needs.kl_from_hidden else context.logits_NV
        self._logsumexp_M = context.statistics.logsumexp_N
        slot_BL = torch.full(context.canvas.tokens_BL.shape, -1, device=context.row_N.device)
        slot_BL[context.row_N, context.position_N] = torch.arange(len(context.row_N), device=context.row_N.device)
        self._slot_BL = slot_BL


def _no_logits(slot_R: Tensor) -> Tensor:
    return torch.zeros(1, device=slot_R.device)


_NO_STATISTICS = VocabularyStatistics(
    top_logprobs_NK=torch.zeros(0, 2),
    top_tokens_NK=torch.zeros(0, 2, dtype=torch.long),
    logsumexp_N=torch.zeros(0),
    entropy_N=None,
    kl_N=None,
)
"""Of a step that is entered after its decisions: no distribution is known any more."""


def _reenter(canvas: Canvas, policy: Policy, hooks: Sequence[Hook], reentry: Reentry, output: DenoiseOutput) -> None:
    """Do the part of a logged step that needs no model: `on_canvas`, the count, and the step's end."""
    if not isinstance(policy, SchedulePolicy):
        raise TypeError(f"{type(policy).__name__} cannot enter a trajectory in its middle; SchedulePolicy can.")
    policy.restore(reentry.policy_BC)
    canvas.tokens_BL = reentry.committed_BL.clone()
    output.num_steps_B, output.forward_passes_B = reentry.step_B.clone(), reentry.passes_B.clone()
    nothing = torch.zeros(0, dtype=torch.long, device=canvas.tokens_BL.device)
    context = StepContext(
        step=-1,
        step_B=output.num_steps_B,
        canvas=canvas,
        running_B=torch.ones_like(canvas.stopped_B),
        passes_B=torch.zeros_like(reentry.passes_B),
        row_N=nothing,
        position_N=nothing,
        logits_NV=nothing[:, None].float(),
        statistics=_NO_STATISTICS,
        hidden_BLD=nothing[:, None, None].float(),
        logged_greedy_BL=reentry.greedy_BL,
        logged_pooled_BD=reentry.pooled_BD,
    )
    context.before_BL = context.token_BL = canvas.tokens_BL
    context.action_B = torch.full_like(canvas.stopped_B, ACTION_NONE, dtype=torch.int8)
    _apply(context, policy, hooks)
    output.forward_passes_B = output.forward_passes_B + context.passes_B


def _open_step(
    model: DiffusionModel,
    canvas: Canvas,
    policy: Policy,
    running_B: Tensor,
    hidden_BLD: Tensor,
    step: int,
    needs: StatisticsNeeds,
    memory: _PreviousDistributions,
) -> StepContext:
    """Head and statistics on the rows that need them, and only there."""
    wanted_BL = canvas.masked_BL if needs.all_masks else policy.candidates(canvas)
    row_N, position_N = (wanted_BL & running_B[:, None]).nonzero(as_tuple=True)
    hidden_ND = hidden_BLD[row_N, position_N]
    logits_NV = model.head(hidden_ND)
    if policy.suppressed is not None and len(policy.suppressed):
        # The lowest finite value, not −inf: differences between two steps' logits must stay numbers.
        logits_NV.index_fill_(-1, policy.suppressed, torch.finfo(logits_NV.dtype).min)
    statistics: VocabularyStatistics = vocabulary_statistics(
        logits_NV,
        top_k=needs.top_k,
        entropy=needs.entropy,
        previous=memory.lookup(row_N, position_N),
    )
    context = StepContext(
        step=step,
        step_B=running_B,
        canvas=canvas,
        running_B=running_B,
        passes_B=running_B * (2 if policy.cfg_scale > 0 else 1),
        row_N=row_N,
        position_N=position_N,
        logits_NV=logits_NV,
        statistics=statistics,
        hidden_BLD=hidden_BLD,
        model_logits_NV=logits_NV if needs.model_logits else None,
    )
    memory.keep(context, hidden_ND)
    context.before_BL = canvas.tokens_BL
    context.action_B = torch.full_like(running_B, ACTION_NONE, dtype=torch.int8)
    return context


def _decide(context: StepContext, policy: Policy, hooks: Sequence[Hook]) -> None:
    """From logits to the set of commits."""
    logits_NV = context.logits_NV
    for hook in hooks:
        hook.on_logits(context)
    if context.logits_NV is not logits_NV:
        context.edited_N = (context.logits_NV != logits_NV).any(dim=-1)
    policy.propose(context)
    for hook in hooks:
        hook.on_confidence(context)
    policy.select(context)
    proposed_BL = context.commit_BL
    for hook in hooks:
        hook.on_commit(context)
    if context.commit_BL is not proposed_BL:
        context.action_B |= (proposed_BL & ~context.commit_BL).any(dim=1) * ACTION_VETO


def _apply(context: StepContext, policy: Policy, hooks: Sequence[Hook]) -> None:
    """Let hooks change the canvas after the commits, note what they did, and count the step."""
    canvas = context.canvas
    context.committed_BL = canvas.tokens_BL
    for hook in hooks:
        hook.on_canvas(context)
    if canvas.tokens_BL is not context.committed_BL:
        changed_BL = canvas.tokens_BL != context.committed_BL
        masked_BL = canvas.tokens_BL == canvas.mask_token_id
        context.action_B |= (changed_BL & masked_BL).any(dim=1) * ACTION_REMASK
        context.action_B |= (changed_BL & ~masked_BL).any(dim=1) * ACTION_REWRITE
    policy.end_step(context)
    for hook in hooks:
        hook.on_step_end(context)
