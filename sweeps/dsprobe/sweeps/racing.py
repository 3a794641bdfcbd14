"""Paired racing: after each rung a trial goes on only if the front has not beaten it for certain.

Optuna's pruners refuse several objectives, and Ray Tune's schedulers compare one number; here a trial is compared with
the settings of the front on its own prompts (`dsprobe.sweeps.comparison.dominated`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dsprobe.experiment.outcomes import F64, RowOutcomes
from dsprobe.metrics.pareto import non_dominated
from dsprobe.sweeps.archive import Archive
from dsprobe.sweeps.comparison import dominated
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.trial import FAILURE


class Racing(FIFOScheduler):
    """Tune scheduler that stops dominated trials, and remembers why a trial was stopped or failed.

    Rivals of a trial are the feasible settings that ran on all prompts and that no other one beats there, and feasible
    settings under way that are further on. With one trial at a time there are none of the second kind, so that
    decisions depend on the study's finished trials only and a resumed search repeats them.

    Args:
        archive: Where trials put their rows.
        objectives: What is compared.
        baseline: Unguarded outcomes of all rows.
        rungs: Growing shares of the prompts, the last one 1.
        confidence: With which a trial must be dominated.
        seed: Seed of the resampling.
    """

    # Tune asks after every single report only of schedulers that say so.
    _supports_buffered_results = False

    def __init__(
        self,
        *,
        archive: Archive,
        objectives: ObjectiveSet,
        baseline: RowOutcomes,
        rungs: tuple[float, ...],
        confidence: float,
        seed: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._archive, self._objectives, self._baseline = archive, objectives, baseline
        self._rungs, self._confidence, self._seed = rungs, confidence, seed
        self._front: dict[str, tuple[F64, RowOutcomes]] = {}
        self._under_way: dict[str, tuple[str, float]] = {}
        self.reasons: dict[str, str] = {}
        """Tune's trial id → why the trial was stopped or failed; the searcher is told of it afterwards."""

    @property
    def front(self) -> tuple[str, ...]:
        """Digests of the feasible settings that ran on all prompts and that no other one beats there."""
        return tuple(self._front)

    def enter(self, digest: str) -> None:
        """Let a setting compete that ran on all prompts.

        Raises:
            StorageError: Its rows are not in the archive.
        """
        if len(self._rungs) == 1 or digest in self._front:
            return
        outcomes = self._archive.through(digest, self._rungs)
        if not self._feasible(outcomes):
            return
        self._front[digest] = self._objectives.values(outcomes, self._baseline), outcomes
        points_ND = np.stack([values_D for values_D, _ in self._front.values()])
        kept_N = non_dominated(points_ND, ["minimize"] * points_ND.shape[1])
        self._front = {key: entry for (key, entry), kept in zip(self._front.items(), kept_N, strict=True) if kept}

    def beaten(self, digest: str, rung: float) -> bool:
        """Whether the front beats a setting, with confidence, on the prompts up to a rung."""
        challenger = self._archive.through(digest, self._through(rung))
        rivals = [outcomes for key, (_, outcomes) in self._front.items() if key != digest]
        for key, reached in self._under_way.values():
            if reached > rung and key != digest:
                ahead = self._archive.through(key, self._through(reached))
                rivals += [ahead] if self._feasible(ahead) else []
        return bool(rivals) and dominated(
            challenger, rivals, self._baseline, self._objectives, confidence=self._confidence, seed=self._seed
        )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Decide after a rung; see `TrialScheduler.on_trial_result`."""
        if FAILURE in result:
            self._under_way.pop(trial.trial_id, None)
            self.reasons[trial.trial_id] = str(result[FAILURE])
            return str(TrialScheduler.CONTINUE)
        digest, rung = str(result["digest"]), float(result["rung"])
        if rung == self._rungs[-1]:
            self._under_way.pop(trial.trial_id, None)
            self.enter(digest)
        elif self.beaten(digest, rung):
            self._under_way.pop(trial.trial_id, None)
            self.reasons[trial.trial_id] = f"dominated at {rung:.0%} of the prompts, confidence {self._confidence:g}"
            return str(TrialScheduler.STOP)
        else:
            self._under_way[trial.trial_id] = digest, rung
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the reason: Tune tells searchers only that a trial failed."""
        self._under_way.pop(trial.trial_id, None)
        self.reasons.setdefault(trial.trial_id, loss(trial))

    def _feasible(self, outcomes: RowOutcomes) -> bool:
        return self._objectives.feasible(self._objectives.constraint_values(outcomes, self._baseline))

    def _through(self, rung: float) -> tuple[float, ...]:
        return tuple(share for share in self._rungs if share <= rung)


def loss(trial: Trial) -> str:
    """One line on how a trial ended that could not report: Ray's own words, e.g. on a process that was killed."""
    lines = Path(trial.error_file).read_text().splitlines() if trial.error_file else []
    told = [line.strip() for line in lines[1:] if line.strip()]  # the first line counts failures
    return told[0] if told else "the trial ended without an error message"
