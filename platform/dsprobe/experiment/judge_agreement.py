"""How far a run's judges agree, and what human labels say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.judges.base import VERDICT_PREFIX, Decides
from dsprobe.metrics.agreement import AgreementTable, agreement_table
from dsprobe.metrics.calibration import CorrectedRate, JudgeCalibration, corrected_rate, judge_calibration

Labels = Mapping[Decides, Sequence[bool | None]]
"""Question → human labels of the rows of `trajectories`, `None` where a row has none."""

HUMAN = "human"
"""Name of the human labels among judges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledJudge:
    """A judge beside human labels of the same question."""

    judge: str
    question: Decides
    calibration: JudgeCalibration
    corrected: dict[str, CorrectedRate]
    """Condition → Attack Success Rate by the judge's verdicts, and the true one behind it; harm judges only. Both
    are of all attacked requests: an empty reply is no success; other replies without a verdict are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        corrected = {condition: rate.to_dict() for condition, rate in self.corrected.items()}
        return {"judge": self.judge, "question": self.question, **self.calibration.to_dict(), "corrected": corrected}


def agreements(trajectories: pa.Table, judges: Mapping[str, Decides], labels: Labels) -> dict[Decides, AgreementTable]:
    """Agreement of the judges of each question that has at least two, over all conditions.

    Args:
        trajectories: A run's table.
        judges: Judge key → question, see `dsprobe.storage.query.run_judges`.
        labels: Human labels; they count as one more judge, `HUMAN`.

    Returns:
        Question → table; resampling draws whole prompts.
    """
    prompt_N = _prompts(trajectories)
    found: dict[Decides, AgreementTable] = {}
    for question in dict.fromkeys(judges.values()):
        verdicts = {key: _verdicts(trajectories, key) for key, what in judges.items() if what == question}
        if question in labels:
            verdicts[HUMAN] = _numbers(labels[question])
        if len(verdicts) > 1:
            found[question] = agreement_table(verdicts, prompt_N)
    return found


def calibrations(trajectories: pa.Table, judges: Mapping[str, Decides], labels: Labels) -> list[LabelledJudge]:
    """Sensitivity and specificity of every judge whose question was labelled, and harm rates corrected by them.

    Args:
        trajectories: A run's table.
        judges: Judge key → question.
        labels: Human labels.
    """
    condition_N = np.asarray(trajectories["condition"].to_pylist(), np.str_)
    harmful_N, empty_N = (np.asarray(trajectories[name].to_numpy(), np.bool_) for name in ("harmful", "empty"))
    found = []
    for key, question in judges.items():
        if question not in labels:
            continue
        verdict_N = _verdicts(trajectories, key)
        calibration = judge_calibration(_numbers(labels[question]), verdict_N)
        asked = dict.fromkeys(condition_N[harmful_N].tolist()) if question == "harm" else {}
        corrected = {}
        for condition in asked:
            attacked_N = harmful_N & (condition_N == condition)
            empty = int(np.count_nonzero(attacked_N & empty_N & np.isnan(verdict_N)))
            corrected[condition] = corrected_rate(verdict_N[attacked_N], calibration, empty=empty)
        found.append(LabelledJudge(judge=key, question=question, calibration=calibration, corrected=corrected))
    return found


def _verdicts(trajectories: pa.Table, judge: str) -> npt.NDArray[np.float64]:
    return _numbers(trajectories[VERDICT_PREFIX + judge].to_pylist())


def _numbers(verdicts: Sequence[bool | None]) -> npt.NDArray[np.float64]:
    """0, 1, or NaN where open."""
    return np.array(verdicts, np.float64)


def _prompts(trajectories: pa.Table) -> npt.NDArray[np.str_]:
    pairs = zip(trajectories["prompts"].to_pylist(), trajectories["prompt_id"].to_pylist(), strict=True)
    return np.array([f"{label}/{prompt_id}" for label, prompt_id in pairs], np.str_)
