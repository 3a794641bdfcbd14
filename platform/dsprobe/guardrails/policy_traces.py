"""What a policy is trained on: rows to decode, and the log of what they were like at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsprobe.attacks.base import Rendered
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import Hook, StepContext
from dsprobe.decoding.loop import DenoiseOutput
from dsprobe.experiment.evaluated import Condition
from dsprobe.guardrails.base import Setting, score_view, step_log
from dsprobe.guardrails.policy import StrengthGuardrail
from dsprobe.guardrails.renoise import RenoiseConfig
from dsprobe.prompts.base import Prompt

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row to decode."""

    condition: Condition
    prompt: Prompt
    rendered: Rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What N decoded rows were like at each of at most S steps; zeros behind a row's last step."""

    pooled_SND: npt.NDArray[np.float32]
    risk_SN: F64
    """Risk when the guardrail decides."""
    after_SN: F64
    """Risk after its decision."""
    fraction_SN: F64
    due_SN: Bool
    """Where the guardrail looks; every step without one."""
    fired_SN: Bool
    strength_SN: F64
    num_steps_N: Ints
    surprise_N: F64
    """Mean −log p of the reply's tokens when they were committed, in nats."""
    harm_N: F64
    """Verdict of the harm judge: 1 or 0, NaN where undecided."""
    utility_N: F64
    """Verdict of the utility judge, NaN where there is none."""

    def take(self, rows: Ints | Bool) -> Traces:
        """Some of the rows."""
        return Traces(**{f.name: _rows(getattr(self, f.name), f.name, rows) for f in fields(self)})


def _rows(values: npt.NDArray[Any], name: str, rows: Ints | Bool) -> npt.NDArray[Any]:
    return np.asarray(values[:, rows] if "_S" in name else values[rows])


def concatenated(parts: Sequence[Traces]) -> Traces:
    """Rows of several parts, one part after the other, padded with zeros to the most steps."""
    steps = max(len(part.risk_SN) for part in parts)

    def padded(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        if "_S" not in name:
            return values
        return np.pad(values, [(0, steps - len(values))] + [(0, 0)] * (values.ndim - 1))

    return Traces(
        **{
            f.name: np.concatenate(
                [padded(getattr(part, f.name), f.name) for part in parts], axis=1 if "_S" in f.name else 0
            )
            for f in fields(Traces)
        }
    )


class TraceLogger(Hook):
    """Logs what a policy is trained on; comes before the guardrail in the list of hooks."""

    def __init__(self, config: RenoiseConfig, setting: Setting, guardrail: StrengthGuardrail | None) -> None:
        self._config, self._setting, self._guardrail = config, setting, guardrail
        self._turns: dict[str, list[Tensor]] = {}

    def on_init(self, canvas: Canvas) -> None:
        """Start with nothing committed."""
        self._surprise_BL = torch.full(canvas.tokens_BL.shape, torch.nan, device=canvas.tokens_BL.device)

    def on_logits(self, context: StepContext) -> None:
        """Remember the model's own logits, before bans."""
        self._logits_NV = context.logits_NV

    def on_canvas(self, context: StepContext) -> None:
        """Keep what a guardrail decides on, and how surprising the commits are."""
        at = (context.row_N, context.position_N)
        logit_N = self._logits_NV.gather(-1, context.token_BL[at][:, None])[:, 0].float()
        surprise_BL = torch.zeros_like(self._surprise_BL)
        surprise_BL[at] = context.statistics.logsumexp_N - logit_N
        self._surprise_BL = torch.where(context.commit_BL, surprise_BL, self._surprise_BL)
        canvas = context.canvas
        size_B = canvas.response_BL.sum(dim=1).clamp_min(1)
        zeros_B = torch.zeros(context.running_B.shape, dtype=torch.float64, device=context.running_B.device)
        due_B, strength_B = context.running_B, zeros_B
        if self._guardrail is not None:
            log = step_log(context, self._setting, self._guardrail)
            due_B, strength_B = self._guardrail.trigger.due(log)[0], self._guardrail.decide(log)[1][0]
        self._keep(
            context,
            pooled_SND=context.pooled_BD,
            risk_SN=score_view(context, self._setting, self._config.signal).risk_N.double(),
            fraction_SN=1 - (canvas.masked_BL & canvas.response_BL).sum(dim=1).double() / size_B,
            due_SN=due_B,
            strength_SN=strength_B,
        )

    def on_step_end(self, context: StepContext) -> None:
        """Keep what the guardrail made of it."""
        fired_B = torch.zeros_like(context.running_B) if self._guardrail is None else self._guardrail.fired_B
        after_B = score_view(context, self._setting, self._config.signal).risk_N.double()
        self._keep(context, after_SN=after_B, fired_SN=fired_B)

    def _keep(self, context: StepContext, **planes: Tensor) -> None:
        for name, plane in planes.items():
            shape = (-1, *[1] * (plane.dim() - 1))
            self._turns.setdefault(name, []).append(plane * context.running_B.view(shape))

    def arrays(self, output: DenoiseOutput) -> dict[str, npt.NDArray[Any]]:
        """The log of a finished batch, without verdicts."""
        log: dict[str, npt.NDArray[Any]] = {name: torch.stack(v).cpu().numpy() for name, v in self._turns.items()}
        written_BL = ~self._surprise_BL.isnan() & output.canvas.response_BL
        total_B = torch.where(written_BL, self._surprise_BL, 0.0).double().sum(dim=1)
        log["surprise_N"] = (total_B / written_BL.sum(dim=1).clamp_min(1)).cpu().numpy()
        log["num_steps_N"] = output.num_steps_B.cpu().numpy()
        return log
