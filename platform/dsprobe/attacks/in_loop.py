"""What attackers with access to the denoising loop do between steps, as one hook for a whole batch.

The hook acts after a step's commits and before any guardrail. What it writes counts as committed: no extra steps are
granted for what it re-masks, as in the published attacks, whose number of steps stays T; only a re-mask after the last
step of a block, or of all, is followed by one step more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dsprobe.attacks.base import Anchor, CanvasAction, Remask, Rendered, Write
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.errors import ConfigError

A = TypeVar("A", bound=CanvasAction)

_NO_TOKEN = -1


def attack_hooks(rows: Sequence[Rendered], planned_steps: int, mask_token_id: int | None) -> list[Hook]:
    """The hook of a batch as a list; empty where no row is attacked inside the loop.

    Args:
        rows: Rendered rows, in the order of the canvas.
        planned_steps: T, steps of an undisturbed reply.
        mask_token_id: The model's mask.

    Raises:
        ConfigError: An action is due after a step that no row takes.
    """
    if not any(row.actions for row in rows):
        return []
    check_steps(rows, planned_steps, mask_token_id)
    return [AttackHook([row.actions for row in rows], planned_steps)]


def check_steps(rows: Iterable[Rendered], planned_steps: int, mask_token_id: int | None) -> None:
    """Refuse rows whose attack would never act.

    A step commits a token at least, so a row takes no more steps than it has masks. Rows that end sooner than planned
    (`eos_early_stop`, `threshold`) cannot be known here; their events tell whether the attack acted.

    Args:
        rows: Rendered rows.
        planned_steps: T, steps of an undisturbed reply.
        mask_token_id: The model's; `None` for models without masks, whose rows have no actions.

    Raises:
        ConfigError: An action is due after the decoding's last step, or a row's first action after the row's.
    """
    for row in rows:
        if not row.actions:
            continue
        steps = [action.step for action in row.actions]
        own_steps = min(planned_steps, sum(1 for token in row.tokens if token == mask_token_id))
        if max(steps) > planned_steps:
            raise ConfigError(
                f"The attack acts after step {max(steps)}, and the decoding takes {planned_steps} steps; an earlier "
                "step, or more steps, are needed."
            )
        if min(steps) > own_steps:
            raise ConfigError(
                f"The attack acts after step {min(steps)}, and a row with {own_steps} masks takes {own_steps} steps; "
                "an earlier step, or fewer given tokens, are needed."
            )


class AttackHook(Hook):
    """Applies the actions of every row at their steps: anchors first, then re-masks, then writes.

    Anchoring (2510.00565, section 4.1): with r the given reply and t the step, positions that were masked before the
    step stay masked with probability (T − t)/T and take r's token otherwise; committed positions take r's token. What
    the attack or prompt gave before the first step stays.

    Args:
        actions: The actions of each row, in the order of the canvas.
        planned_steps: T.
    """

    def __init__(self, actions: Sequence[Sequence[CanvasAction]], planned_steps: int) -> None:
        self._actions, self._planned_steps = actions, planned_steps

    def on_init(self, canvas: Canvas) -> None:
        """Lay the actions out as tensors."""
        device = canvas.tokens_BL.device
        self._open_BL = canvas.response_BL & ~canvas.given_BL
        anchors, remasks, writes = self._of_kind(Anchor), self._of_kind(Remask), self._of_kind(Write)
        self._anchor_row_A, self._anchor_step_A = _columns(anchors, device)
        self._anchor_AL = torch.full((len(anchors), canvas.tokens_BL.shape[1]), _NO_TOKEN, device=device)
        starts = canvas.response_start_B.tolist()
        for index, (row, anchor) in enumerate(anchors):
            end = starts[row] + len(anchor.tokens)
            self._anchor_AL[index, starts[row] : end] = torch.tensor(anchor.tokens, device=device)
        self._remask_row_R, self._remask_step_R = _columns(remasks, device)
        widest = max((len(remask.tokens) for _, remask in remasks), default=0)
        padded = [[*remask.tokens, *[_NO_TOKEN] * (widest - len(remask.tokens))] for _, remask in remasks]
        self._remask_RK = torch.tensor(padded, dtype=torch.long, device=device).view(len(remasks), widest)
        spread = [
            (row, write.step, write.position + offset, token)
            for row, write in writes
            for offset, token in enumerate(write.tokens)
        ]
        table_W4 = torch.tensor(spread, dtype=torch.long, device=device).view(-1, 4)
        self._write_row_W, self._write_step_W, self._write_position_W, self._write_token_W = table_W4.unbind(dim=1)

    def _of_kind(self, kind: type[A]) -> list[tuple[int, A]]:
        """Row index and action, in row order."""
        return [
            (row, action) for row, actions in enumerate(self._actions) for action in actions if isinstance(action, kind)
        ]

    def on_canvas(self, context: StepContext) -> None:
        """Do what is due on running rows."""
        committed_BL = context.canvas.tokens_BL
        self._anchor(context)
        self._remask(context)
        self._write(context)
        if context.canvas.tokens_BL is not committed_BL:
            context.unattacked_BL, context.committed_BL = committed_BL, context.canvas.tokens_BL

    def _due(self, context: StepContext, row_X: Tensor, step_X: Tensor) -> Tensor:
        return context.running_B[row_X] & (context.step_B[row_X] == step_X)

    def _anchor(self, context: StepContext) -> None:
        due_A = self._due(context, self._anchor_row_A, self._anchor_step_A)
        if not bool(due_A.any()):
            return
        canvas, row_D = context.canvas, self._anchor_row_A[due_A]
        position_L = torch.arange(canvas.tokens_BL.shape[1], device=row_D.device)
        step_D = self._anchor_step_A[due_A]
        key_D1, step_D1 = canvas.random_key_B[row_D][:, None], step_D[:, None]
        uniform_DL = randomness.uniform(key_D1, step_D1, position_L[None], randomness.STREAM_ANCHOR)
        hidden_DL = uniform_DL < ((self._planned_steps - step_D) / self._planned_steps)[:, None]
        hidden_DL = hidden_DL & (context.before_BL[row_D] == canvas.mask_token_id)
        new_DL = torch.where(hidden_DL, canvas.mask_token_id, self._anchor_AL[due_A])
        old_DL = canvas.tokens_BL[row_D]
        replaced_DL = self._open_BL[row_D] & (self._anchor_AL[due_A] != _NO_TOKEN)
        canvas.tokens_BL = canvas.tokens_BL.index_put((row_D,), torch.where(replaced_DL, new_DL, old_DL))

    def _remask(self, context: StepContext) -> None:
        due_R = self._due(context, self._remask_row_R, self._remask_step_R)
        if not bool(due_R.any()):
            return
        canvas, row_D = context.canvas, self._remask_row_R[due_R]
        old_DL = canvas.tokens_BL[row_D]
        hit_DL = (old_DL[:, :, None] == self._remask_RK[due_R][:, None, :]).any(dim=-1) & self._open_BL[row_D]
        canvas.tokens_BL = canvas.tokens_BL.index_put((row_D,), old_DL.masked_fill(hit_DL, canvas.mask_token_id))

    def _write(self, context: StepContext) -> None:
        due_W = self._due(context, self._write_row_W, self._write_step_W)
        if not bool(due_W.any()):
            return
        at = (self._write_row_W[due_W], self._write_position_W[due_W])
        context.canvas.tokens_BL = context.canvas.tokens_BL.index_put(at, self._write_token_W[due_W])


def _columns(actions: Sequence[tuple[int, Anchor | Remask]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and step of each action."""
    table_X2 = torch.tensor([(row, action.step) for row, action in actions], dtype=torch.long, device=device).view(
        -1, 2
    )
    return table_X2[:, 0], table_X2[:, 1]
