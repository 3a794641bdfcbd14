"""The forking engine: guarded runs at the price of the steps that differ.

A guarded run walks the logged segments: the guardrails' own triggers say where it leaves one, their own action (run
on the logged step, without a model) gives the node it goes to, and where that node is known the walk goes on. Only
rows that reach a state nobody has seen are decoded, from there to their end. The result equals a run from scratch,
token for token: every decision is made by the same code on the same state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dsprobe.attacks.in_loop import attack_hooks
from dsprobe.config import DecodingConfig
from dsprobe.decoding.canvas import Canvas, batch_canvases, by_width, in_batches
from dsprobe.decoding.hooks import Hook
from dsprobe.decoding.loop import DenoiseOutput, Reentry, StatisticsNeeds, denoise, enter
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.schedule import planned_steps
from dsprobe.errors import ConfigError
from dsprobe.forking.logger import SegmentLogger, effects
from dsprobe.forking.segment import F32, I32, ForkRow, Segment, node_key
from dsprobe.forking.store import TrajectoryStore, joint_log
from dsprobe.guardrails.base import ForkableGuardrail, Guardrail, Setting, Signal
from dsprobe.models.base import DiffusionModel

NEEDS = StatisticsNeeds(all_masks=True)
"""As in a recorded run: logits at every mask, so that both views exist and the arithmetic is the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkResult:
    """One finished row."""

    tokens_L: I32
    """Final canvas."""
    num_steps: int
    passes: int
    """Forward passes that a run from scratch takes."""
    passes_used: int
    """Forward passes computed for it now."""
    interventions: int
    margin: float
    """Smallest decision margin of the steps computed now; infinite where none was."""


@dataclass(slots=True)
class _Cursor:
    """A row on its way through the segments."""

    index: int
    row: ForkRow
    digest: bytes
    segment: Segment
    states: list[Mapping[str, Tensor]] | None = None
    """State of each guardrail on this row; `None` before the first intervention."""
    entry: int = -1
    """Step index at which it leaves the segment, or goes on beyond it."""
    passes_used: int = 0
    margins: list[float] = field(default_factory=list)


class ForkEngine:
    """Decodes rows of one model under one decoding, with or without guardrails.

    Args:
        model: A diffusion model.
        decoding: Settings of the decoder.
        seed: Seed of the run.
        batch_size: Most rows in one forward pass.
    """

    def __init__(self, model: DiffusionModel, decoding: DecodingConfig, *, seed: int = 0, batch_size: int = 32) -> None:
        self.model, self.decoding, self.seed, self.batch_size = model, decoding, seed, batch_size
        self.setting = Setting(model=model, decoding=decoding)
        self.store = TrajectoryStore()
        self._pooled = False

    def run(
        self, rows: Sequence[ForkRow], guardrails: Sequence[Guardrail] = (), *, fork: bool = True
    ) -> list[ForkResult]:
        """Decode rows.

        Args:
            rows: In any order; results come in the same.
            guardrails: A stack, built for this model and decoding.
            fork: Start from logged trajectories where every guardrail allows it and no attack acts inside the loop; the
                results are the same without.
        """
        forkable = [guardrail for guardrail in guardrails if isinstance(guardrail, ForkableGuardrail)]
        results: dict[int, ForkResult] = {}
        for indices in by_width([row.rendered for row in rows]):
            part = [rows[index] for index in indices]
            if fork and len(forkable) == len(guardrails) and not any(row.rendered.actions for row in part):
                found = self._walk(part, forkable)
            else:
                found = [
                    result
                    for chunk in in_batches(part, self.batch_size)
                    for result in self._from_scratch(chunk, guardrails)
                ]
            results.update(zip(indices, found, strict=True))
        return [results[index] for index in range(len(rows))]

    def trunk_risks(self, rows: Sequence[ForkRow], signal: Signal) -> list[F32]:
        """Risk at every step of each row's unguarded trajectory, float32 ``[S]``."""
        risks: dict[int, F32] = {}
        for indices in by_width([row.rendered for row in rows]):
            for chunk in in_batches(indices, self.batch_size):
                part = [rows[index] for index in chunk]
                segments = [cursor.segment for cursor in self._on_trunks(part)]
                risk_SB = joint_log(segments, self._canvas(part), self.setting).risk(signal).cpu().numpy()
                for column, (index, segment) in enumerate(zip(chunk, segments, strict=True)):
                    risks[index] = risk_SB[: segment.num_steps, column]
        return [risks[index] for index in range(len(rows))]

    # ---- without the log -------------------------------------------------------------------------------------------

    def _from_scratch(self, rows: Sequence[ForkRow], guardrails: Sequence[Guardrail]) -> list[ForkResult]:
        canvas = self._canvas(rows)
        attack = attack_hooks(
            [row.rendered for row in rows], planned_steps(self.decoding), self.model.info.mask_token_id
        )
        output = denoise(self.model, canvas, self._policy(), hooks=[*attack, *guardrails], needs=NEEDS)
        return _results(output, guardrails, output.forward_passes_B)

    def _canvas(self, rows: Sequence[ForkRow]) -> Canvas:
        return batch_canvases(
            [row.rendered for row in rows],
            [row.key for row in rows],
            self.model.info,
            seed=self.seed,
            device=self.model.device,
        )

    def _policy(self) -> SchedulePolicy:
        return SchedulePolicy(self.decoding, self.model.info, self.model.device)

    # ---- with the log ----------------------------------------------------------------------------------------------

    def _walk(self, rows: Sequence[ForkRow], guardrails: Sequence[ForkableGuardrail]) -> list[ForkResult]:
        """Follow rows of one canvas length to their ends."""
        self._require_pooled(any(guardrail.needs_pooled for guardrail in guardrails))
        active = self._on_trunks(rows)
        results: dict[int, ForkResult] = {}
        while active:
            leaving, unknown = [], []
            for chunk in in_batches(active, self.batch_size):
                for cursor, found in zip(chunk, self._first_triggers(chunk, guardrails), strict=True):
                    if found is not None:
                        cursor.entry = found
                        leaving.append(cursor)
                    elif cursor.segment.finished:
                        results[cursor.index] = self._finished(cursor)
                    else:
                        cursor.entry = cursor.segment.num_steps - 1
                        unknown.append(cursor)
            active = []
            for chunk in in_batches(leaving, self.batch_size):
                known, new = self._intervene(chunk, guardrails)
                active += known
                unknown += new
            for chunk in in_batches(unknown, self.batch_size):
                results.update(self._decode(chunk, guardrails))
        return [results[index] for index in range(len(rows))]

    def _require_pooled(self, pooled: bool) -> None:
        """A log without pooled hidden states cannot serve a guardrail that reads them."""
        if pooled and not self._pooled:
            self.store, self._pooled = TrajectoryStore(), True

    def _on_trunks(self, rows: Sequence[ForkRow]) -> list[_Cursor]:
        """Put every row on its unguarded trajectory, decoding those that are not logged.

        Raises:
            ConfigError: An attack acts on a row inside the loop, which a logged step cannot be re-entered with.
        """
        for row in rows:
            if row.rendered.actions:
                raise ConfigError(
                    f"Prompt `{row.key.prompt_id}` is attacked inside the loop, so its trajectory cannot be forked. "
                    "Allowed: attacks that write before the first step, e.g. dija, pad, prefill at step 0."
                )
        digests = [row.digest(self.seed) for row in rows]
        missing = [index for index, digest in enumerate(digests) if self.store.get(digest) is None]
        used: dict[int, tuple[int, float]] = {}
        for chunk in in_batches(missing, self.batch_size):
            policy = self._policy()
            keys = [digests[index] for index in chunk]
            logger = SegmentLogger(policy, [], keys, pooled=self._pooled, entered=False)
            output = denoise(self.model, self._canvas([rows[i] for i in chunk]), policy, hooks=[logger], needs=NEEDS)
            for stretch in logger.stretches():
                self.store.add(stretch, entered=keys[stretch.row])
            passes, margins = output.forward_passes_B.tolist(), output.margin_B.tolist()
            used |= {index: (passes[place], margins[place]) for place, index in enumerate(chunk)}
        cursors = []
        for index, (row, digest) in enumerate(zip(rows, digests, strict=True)):
            segment = self.store.get(digest)
            assert segment is not None, "every missing trunk was just decoded"
            passes_used, margin = used.get(index, (0, np.inf))
            cursors.append(_Cursor(index, row, digest, segment, passes_used=passes_used, margins=[margin]))
        return cursors

    def _first_triggers(self, cursors: Sequence[_Cursor], guardrails: Sequence[ForkableGuardrail]) -> list[int | None]:
        """Step index of each row's first intervention in its segment."""
        if not guardrails or max(cursor.segment.num_steps for cursor in cursors) == 0:
            return [None] * len(cursors)
        canvas = self._canvas([cursor.row for cursor in cursors])
        log = joint_log([cursor.segment for cursor in cursors], canvas, self.setting)
        fires_SB = torch.zeros_like(log.valid_SB)
        for place, guardrail in enumerate(guardrails):
            guardrail.on_init(canvas)
            _restore(guardrail, place, cursors)
            fires_SB = fires_SB | guardrail.triggers(log)
        first_B = fires_SB.int().argmax(dim=0).tolist()
        fired_B = fires_SB.any(dim=0).tolist()
        return [first if fired else None for first, fired in zip(first_B, fired_B, strict=True)]

    def _intervene(
        self, cursors: Sequence[_Cursor], guardrails: Sequence[ForkableGuardrail]
    ) -> tuple[list[_Cursor], list[_Cursor]]:
        """Run the intervention on the logged step; move rows whose next node is known, return the others too."""
        canvas, policy = self._canvas([cursor.row for cursor in cursors]), self._policy()
        enter(canvas, policy, [*guardrails, _WithPast(guardrails, cursors)], self._reentry(cursors, canvas))
        tokens_BL, policy_BC = canvas.tokens_BL.int().cpu().numpy(), policy.row_state().cpu().numpy()
        stopped, left = canvas.stopped_B.tolist(), effects(guardrails)
        known, new = [], []
        for b, cursor in enumerate(cursors):
            step = cursor.segment.start_step + cursor.entry + 1
            key = node_key(cursor.digest, step, tokens_BL[b], policy_BC[b], stopped[b], left[b])
            segment = self.store.get(key)
            if segment is None:
                new.append(cursor)
                continue
            cursor.segment, cursor.entry = segment, -1
            cursor.states = [{k: v[b : b + 1] for k, v in g.row_state().items()} for g in guardrails]
            known.append(cursor)
        return known, new

    def _decode(
        self, cursors: Sequence[_Cursor], guardrails: Sequence[ForkableGuardrail]
    ) -> Iterator[tuple[int, ForkResult]]:
        """Decode rows from their entries to their ends, and log what is new."""
        canvas, policy = self._canvas([cursor.row for cursor in cursors]), self._policy()
        reentry = self._reentry(cursors, canvas)
        digests = [cursor.digest for cursor in cursors]
        logger = SegmentLogger(policy, guardrails, digests, pooled=self._pooled, entered=True)
        hooks = [logger, *guardrails, _WithPast(guardrails, cursors)]
        output = denoise(self.model, canvas, policy, hooks=hooks, needs=NEEDS, reentry=reentry)
        for stretch in logger.stretches():
            self.store.add(stretch, entered=cursors[stretch.row].segment.key)
        new_B = output.forward_passes_B - reentry.passes_B
        for cursor, result in zip(cursors, _results(output, guardrails, new_B), strict=True):
            yield cursor.index, _with_past(result, cursor)

    def _reentry(self, cursors: Sequence[_Cursor], canvas: Canvas) -> Reentry:
        """The state of each row right after the commits of its entry step."""
        device = canvas.tokens_BL.device

        def stacked(name: str) -> Tensor:
            parts = [getattr(cursor.segment, name)[cursor.entry] for cursor in cursors]
            return torch.from_numpy(np.stack(parts)).to(device)

        step_B = torch.tensor([cursor.segment.start_step + cursor.entry + 1 for cursor in cursors], device=device)
        return Reentry(
            initial_BL=canvas.tokens_BL,
            committed_BL=stacked("tokens_SL").long(),
            greedy_BL=stacked("greedy_SL").long(),
            pooled_BD=stacked("pooled_SD") if self._pooled else None,
            policy_BC=stacked("policy_SC"),
            step_B=step_B,
            passes_B=step_B * self._passes_per_step,
        )

    @property
    def _passes_per_step(self) -> int:
        return 2 if self.decoding.cfg_scale > 0 else 1

    def _finished(self, cursor: _Cursor) -> ForkResult:
        segment = cursor.segment
        steps = segment.start_step + segment.num_steps
        hits = 0 if cursor.states is None else sum(int(state["interventions"][0]) for state in cursor.states)
        result = ForkResult(
            tokens_L=segment.final_tokens_L,
            num_steps=steps,
            passes=steps * self._passes_per_step,
            passes_used=0,
            interventions=hits,
            margin=np.inf,
        )
        return _with_past(result, cursor)


class _WithPast(Hook):
    """Gives guardrails the states that their rows have come with; goes after them in the list of hooks."""

    def __init__(self, guardrails: Sequence[ForkableGuardrail], cursors: Sequence[_Cursor]) -> None:
        self._guardrails, self._cursors = guardrails, cursors

    def on_init(self, canvas: Canvas) -> None:
        """Put the states back."""
        for place, guardrail in enumerate(self._guardrails):
            _restore(guardrail, place, self._cursors)


def _restore(guardrail: ForkableGuardrail, place: int, cursors: Sequence[_Cursor]) -> None:
    """Put the states of one guardrail back, after its `on_init`; rows without a past keep the fresh one."""
    fresh = guardrail.row_state()
    guardrail.restore({name: torch.cat([_own(plane, b, name, place, c) for b, c in enumerate(cursors)])
                       for name, plane in fresh.items()})  # fmt: skip


def _own(fresh: Tensor, row: int, name: str, place: int, cursor: _Cursor) -> Tensor:
    return fresh[row : row + 1] if cursor.states is None else cursor.states[place][name]


def _results(output: DenoiseOutput, guardrails: Sequence[Guardrail], new_B: Tensor) -> list[ForkResult]:
    hits_B = torch.zeros_like(output.num_steps_B)
    for guardrail in guardrails:
        hits_B = hits_B + guardrail.interventions_B
    tokens_BL = output.canvas.tokens_BL.int().cpu().numpy()
    columns = (output.num_steps_B, output.forward_passes_B, new_B, hits_B, output.margin_B)
    return [
        ForkResult(
            tokens_L=tokens_BL[b], num_steps=steps, passes=passes, passes_used=used, interventions=hits, margin=margin
        )
        for b, (steps, passes, used, hits, margin) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]


def _with_past(result: ForkResult, cursor: _Cursor) -> ForkResult:
    """A result with what was computed for the row before."""
    return ForkResult(
        tokens_L=result.tokens_L,
        num_steps=result.num_steps,
        passes=result.passes,
        passes_used=result.passes_used + cursor.passes_used,
        interventions=result.interventions,
        margin=min([result.margin, *cursor.margins]),
    )
