"""Rows of a run's conditions side by side: the paired estimates that the hypotheses are decided on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.config import RunConfig
from dsprobe.decoding.schedule import planned_steps
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.transfer_rows import Columns, Rows, trajectory_columns, verdict_values
from dsprobe.judges.base import VERDICT_PREFIX, Decides
from dsprobe.metrics.intervals import F64
from dsprobe.metrics.outputs import Labels
from dsprobe.metrics.paired import PairedEstimate, compare_rates, compare_times
from dsprobe.metrics.paired_decisions import PairedOutcomes

VIEW: Final = "predicted"
"""View of the risk curves and of First Harmful Steps."""


class RunRows:
    """Harmful prompts of a run, condition by condition.

    Args:
        config: The run's configuration.
        trajectories: The run's table.
        steps: The run's table; empty where nothing was recorded.
        judges: Judge key → question; the first of a question counts.
    """

    def __init__(
        self, config: RunConfig, trajectories: pa.Table, steps: pa.Table, judges: Mapping[str, Decides]
    ) -> None:
        self.config, self._steps = config, steps
        self.harm = next((judge for judge, question in judges.items() if question == "harm"), None)
        self.validity = next((judge for judge, question in judges.items() if question == "validity"), None)
        names = ["condition", "prompt_id", "sample", "harmful", "empty", "num_steps"]
        names += [f"fhs_{VIEW}", f"fhs_{VIEW}_event"]
        names += [VERDICT_PREFIX + judge for judge in (self.harm, self.validity) if judge]
        self.columns: Columns = trajectory_columns(trajectories.select(names))

    def of(self, condition: Condition) -> Rows:
        """Indices of a condition's rows."""
        return np.flatnonzero((self.columns["condition"] == condition.id) & self.columns["harmful"])

    def steps(self, condition: Condition) -> pa.Table:
        """A condition's rows of the `steps` table; empty without a record of the steps."""
        prompts = pa.array(self.columns["prompt_id"][self.of(condition)], pa.string())
        here = pc.equal(self._steps["condition"], condition.id)
        return self._steps.filter(pc.and_(here, pc.is_in(self._steps["prompt_id"], value_set=prompts)))

    def planned(self, condition: Condition) -> int:
        """Denoising steps of a condition's decoding."""
        return planned_steps(next(d for d in self.config.decodings if d.name == condition.decoding))

    def horizon(self, conditions: Sequence[Condition]) -> int:
        """Steps of the longest trajectory of some conditions."""
        return max(int(self.columns["num_steps"][self.of(condition)].max(initial=1)) for condition in conditions)

    def outcomes(self, level: Condition, baseline: Condition, horizon: int) -> PairedOutcomes:
        """ASR on the rows that two conditions share, and FHS where steps were recorded and are alike."""
        alike = self.config.recording.enabled and self.planned(level) == self.planned(baseline)
        return PairedOutcomes(
            asr=self.asr(level, baseline), fhs=self._fhs(level, baseline, horizon) if alike else None
        )  # fmt: skip

    def asr(self, level: Condition, baseline: Condition) -> PairedEstimate:
        """ASR on the rows that two conditions share."""
        first, second = self._matched([level, baseline])
        return compare_rates(self._harm(first), self._harm(second), self.columns["prompt_id"][first])

    def costs(self, conditions: Sequence[Condition]) -> tuple[F64, Labels]:
        """Harm and invalidity of the rows that K conditions share.

        Returns:
            ``[K, N, 2]`` with NaN where undecided, and the prompt of each row.
        """
        assert self.validity is not None, "asked for without a judge of validity"
        rows_KN = self._matched(conditions)
        loss_KN = [1 - verdict_values(self.columns, self.validity, rows) for rows in rows_KN]
        pairs = [np.stack([self._harm(rows), loss], axis=-1) for rows, loss in zip(rows_KN, loss_KN, strict=True)]
        return np.stack(pairs), self.columns["prompt_id"][rows_KN[0]]

    def _fhs(self, level: Condition, baseline: Condition, horizon: int) -> PairedEstimate:
        first, second = self._matched([level, baseline])
        steps, event = self.columns[f"fhs_{VIEW}"], self.columns[f"fhs_{VIEW}_event"].astype(np.bool_)
        times = [(steps[rows], event[rows]) for rows in (first, second)]
        return compare_times(times[0], times[1], self.columns["prompt_id"][first], horizon)

    def _harm(self, rows: Rows) -> F64:
        assert self.harm is not None, "asked for without a judge of harm"
        return verdict_values(self.columns, self.harm, rows)

    def _matched(self, conditions: Sequence[Condition]) -> list[Rows]:
        """Rows of several conditions: the prompts and samples that all have, in the same order."""
        rows = [self.of(condition) for condition in conditions]
        keys = [self.columns["row"][part] for part in rows]
        common = set(keys[0]).intersection(*keys[1:])
        found = []
        for part, key in zip(rows, keys, strict=True):
            kept = np.flatnonzero([name in common for name in key])
            found.append(part[kept[np.argsort(key[kept])]])
        return found
