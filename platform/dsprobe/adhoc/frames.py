"""Frames: the reply after one step as texts, beside its risk. From a finished batch or while it is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dsprobe.decoding.records import BY_ATTACK, Bool, TrajectoryBatch
from dsprobe.decoding.watching import StepSnapshot, snapshot_of
from dsprobe.models.base import LanguageModel
from dsprobe.models.chat import require_tokenizer
from dsprobe.reports.player import action_phrase

END: Final = "∎"
"""Stands for an end-of-text token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The reply after one step; position i of every tuple is its i-th position. Texts are untrusted."""

    step: int
    """1-based; 0 is the canvas before the first step."""
    committed: tuple[str | None, ...] = field(repr=False)
    """Text of each token on the canvas; `None` where it is undecided."""
    predicted: tuple[str | None, ...] = field(repr=False)
    """Text of each token of the full prediction; `None` where the model predicts nothing (autoregressive models)."""
    fresh: tuple[bool, ...] = field(repr=False)
    """True where the step wrote a token."""
    attribution: tuple[float, ...] = field(repr=False)
    """Share of the predicted view's risk that each position carries, in [0, 1]; 0 without a scorer."""
    risk_committed: float | None
    """Risk of the committed view in [0, 1]; `None` without a scorer."""
    risk_predicted: float | None
    events: tuple[str, ...] = ()
    """What an attack or a guardrail did in this step."""

    @property
    def decided(self) -> int:
        """Positions that hold a token."""
        return sum(text is not None for text in self.committed)


class FrameMaker:
    """Turns the steps of one row into frames, in order.

    Args:
        model: Supplies tokenizer and ids.
        row: Which row of the batch.

    Raises:
        CheckpointError: The model has no tokenizer.
    """

    def __init__(self, model: LanguageModel, row: int = 0) -> None:
        self._model, self._row = model, row
        self._tokenizer = require_tokenizer(model)
        self._texts: dict[int, str] = dict.fromkeys(model.info.eos_token_ids, END)
        self._at: npt.NDArray[np.int64] | None = None

    def initial(self, step: StepSnapshot) -> Frame:
        """The canvas before a row's first step."""
        tokens = step.before_BL[self._row, self._positions(step)].tolist()
        held = self._given(step).tolist()
        return self.given([token if given else None for token, given in zip(tokens, held, strict=True)])

    def given(self, tokens: Sequence[int | None]) -> Frame:
        """A reply before the first step: token ids, `None` where undecided."""
        return Frame(
            step=0,
            committed=tuple(None if token is None else self._text(token) for token in tokens),
            predicted=(None,) * len(tokens),
            fresh=(False,) * len(tokens),
            attribution=(0.0,) * len(tokens),
            risk_committed=None,
            risk_predicted=None,
        )

    def frame(self, step: StepSnapshot) -> Frame:
        """The reply after a step."""
        at, row = self._positions(step), self._row
        held_L = step.committed_BL[row, at]
        fresh_L = held_L & (step.canvas_BL[row, at] != step.before_BL[row, at])
        predicts = self._model.info.kind == "diffusion"
        return Frame(
            step=step.step,
            committed=self._shown(step.canvas_BL[row, at], held_L),
            predicted=self._shown(step.predicted_BL[row, at], held_L | predicts),
            fresh=tuple(fresh_L.tolist()),
            attribution=tuple(np.nan_to_num(step.attribution_BL[row, at].astype(np.float64)).tolist()),
            risk_committed=_finite(step.risk_committed_B[row]),
            risk_predicted=_finite(step.risk_predicted_B[row]),
            events=tuple(_phrase(event, self._model.info.mask_token_id) for event in step.events[row]),
        )

    def _positions(self, step: StepSnapshot) -> npt.NDArray[np.int64]:
        """The reply, and masks that an attack wrote outside of it; fixed by the first step seen."""
        if self._at is None:
            shown_L = step.response_BL[self._row].copy()
            if self._model.info.mask_token_id is not None:
                shown_L |= step.before_BL[self._row] == self._model.info.mask_token_id
            self._at = np.flatnonzero(shown_L)
        return self._at

    def _given(self, step: StepSnapshot) -> Bool:
        """True where the canvas before the first step holds a token."""
        at = self._positions(step)
        if self._model.info.kind == "diffusion":
            return np.asarray(step.before_BL[self._row, at] != self._model.info.mask_token_id)
        # A first autoregressive step writes the last position that is held after it.
        return np.asarray(at < np.flatnonzero(step.committed_BL[self._row])[-1])

    def _shown(self, tokens: npt.NDArray[np.int32], held_L: Bool) -> tuple[str | None, ...]:
        pairs = zip(tokens.tolist(), held_L.tolist(), strict=True)
        return tuple(self._text(token) if held else None for token, held in pairs)

    def _text(self, token: int) -> str:
        if token not in self._texts:
            known = 0 <= token < len(self._tokenizer)
            self._texts[token] = str(self._tokenizer.decode([token])) if known else f"[{token}]"
        return self._texts[token]


def frames_of(model: LanguageModel, batch: TrajectoryBatch, row: int) -> Iterator[Frame]:
    """The initial canvas and every step of one row of a finished batch."""
    maker = FrameMaker(model, row)
    yield maker.initial(snapshot_of(batch, 1))
    for step in range(1, int(batch.num_steps_B[row]) + 1):
        yield maker.frame(snapshot_of(batch, step))


def separator_of(model: LanguageModel) -> str:
    """What stands between the texts of two tokens: nothing where they carry their own spaces, else a space.

    Raises:
        CheckpointError: The model has no tokenizer.
    """
    tokenizer = require_tokenizer(model)
    tokens = list(tokenizer.encode("step 1 : step 2 :", add_special_tokens=False))
    together = str(tokenizer.decode(tokens))
    return "" if together == "".join(str(tokenizer.decode([token])) for token in tokens) else " "


def _phrase(event: dict[str, Any], mask: int | None) -> str:
    lost = sum(token == mask for token in event["after"])
    by = "attack" if event.get("by") == BY_ATTACK else "guardrail"
    return f"{by}: {action_phrase(event['action'], lost, len(event['after']) - lost)}"


def _finite(value: np.float32) -> float | None:
    return None if math.isnan(value) else float(value)
