"""The log behind forking: a hook that keeps what re-entering a step needs, and cuts it into segments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.forking.segment import Segment, node_key
from dsprobe.guardrails.base import ForkableGuardrail

_Log = dict[str, npt.NDArray[Any]]
"""Plane name → values at every turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Logged steps of one row between interventions."""

    row: int
    """Index in the batch."""
    is_entry: bool
    """True for the stretch that goes on with the segment that the row came from; its segment's key is empty."""
    segment: Segment


class SegmentLogger(Hook):
    """Logs a batch; must come before the guardrails in the list of hooks.

    Args:
        policy: Its row state is logged.
        guardrails: Those of the batch, for where they intervened and what they left behind.
        rows: Digests of the batch's rows.
        pooled: Whether pooled hidden states are logged.
        entered: Whether the batch enters logged steps: the first turn is then in the log already.
    """

    def __init__(
        self,
        policy: SchedulePolicy,
        guardrails: Sequence[ForkableGuardrail],
        rows: Sequence[bytes],
        *,
        pooled: bool,
        entered: bool,
    ) -> None:
        self._policy, self._guardrails, self._rows = policy, guardrails, rows
        self._pooled, self._entered = pooled, entered
        self._turns: dict[str, list[Tensor]] = {}
        self._effects: list[list[bytes] | None] = []

    def on_init(self, canvas: Canvas) -> None:
        """Remember what stays the same."""
        self._initial_BL, self._response_BL = canvas.tokens_BL, canvas.response_BL

    def on_canvas(self, context: StepContext) -> None:
        """Keep the state right after the commits."""
        canvas = context.canvas
        masked_BL = canvas.masked_BL
        size_B = canvas.response_BL.sum(dim=1).clamp_min(1)
        self._keep(
            tokens=canvas.tokens_BL.int(),
            greedy=context.greedy_BL.int(),
            policy=self._policy.row_state(),
            step=context.step_B,
            running=context.running_B,
            fraction=1 - (masked_BL & canvas.response_BL).sum(dim=1) / size_B,
            complete=~masked_BL.any(dim=1),
        )
        if self._pooled:
            self._keep(pooled=context.pooled_BD)

    def on_step_end(self, context: StepContext) -> None:
        """Keep the state after the step's end, and what guardrails did."""
        canvas = context.canvas
        fired_B = torch.zeros_like(context.running_B)
        for guardrail in self._guardrails:
            fired_B = fired_B | guardrail.fired_B
        self._keep(
            after=canvas.tokens_BL.int(),
            after_policy=self._policy.row_state(),
            stopped=canvas.stopped_B,
            fired=fired_B,
        )
        self._effects.append(effects(self._guardrails) if bool(fired_B.any()) else None)

    def _keep(self, **planes: Tensor) -> None:
        for name, plane in planes.items():
            self._turns.setdefault(name, []).append(plane)

    def stretches(self) -> Iterator[Stretch]:
        """Cut every row's log at its interventions."""
        if not self._turns:
            return
        log = {name: torch.stack(planes).cpu().numpy() for name, planes in self._turns.items()}
        for row in range(log["running"].shape[1]):
            yield from self._row_stretches(row, {name: plane[:, row] for name, plane in log.items()})

    def _row_stretches(self, row: int, log: _Log) -> Iterator[Stretch]:
        turns = np.flatnonzero(log["running"])
        logged = turns[1:] if self._entered else turns
        cuts = [-1, *(int(turn) for turn in turns if log["fired"][turn])]
        for cut, end in itertools.zip_longest(cuts, cuts[1:]):
            last = int(turns[-1]) if end is None else end
            steps = logged[(logged > cut) & (logged <= last)]
            yield Stretch(row=row, is_entry=cut < 0, segment=self._segment(row, log, cut, steps, end is None))

    def _segment(self, row: int, log: _Log, cut: int, steps: npt.NDArray[Any], finished: bool) -> Segment:
        if cut < 0:
            key, start_step = b"", int(log["step"][0]) if self._entered else 0
            start = log["after"][0] if self._entered else self._initial_BL[row].int().cpu().numpy()
        else:
            made = self._effects[cut]
            assert made is not None, "a row fired, so its effects were kept"
            start, start_step = log["after"][cut], int(log["step"][cut])
            key = node_key(
                self._rows[row], start_step, start, log["after_policy"][cut], bool(log["stopped"][cut]), made[row]
            )
        return Segment(
            key=key,
            start_step=start_step,
            start_tokens_L=start,
            tokens_SL=log["tokens"][steps],
            greedy_SL=log["greedy"][steps],
            policy_SC=log["policy"][steps],
            fraction_S=log["fraction"][steps].astype(np.float32),
            complete_S=log["complete"][steps],
            pooled_SD=log["pooled"][steps] if self._pooled else None,
            finished=finished,
            final_tokens_L=log["after"][steps[-1]] if len(steps) else start,
        )


def effects(guardrails: Sequence[ForkableGuardrail]) -> list[bytes]:
    """What a stack left behind on each row, as one text."""
    per_guardrail = [guardrail.effects() for guardrail in guardrails]
    return [b"\x1e".join(parts) if any(parts) else b"" for parts in zip(*per_guardrail, strict=True)]
