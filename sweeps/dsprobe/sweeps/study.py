"""The Optuna study of a sweep: its storage is the one truth about trials, and one process owns it.

Optuna's own study is kept behind this class because of what it allows: a second study of the same name silently joins
the first, a trial of a killed process stays ``RUNNING`` for ever, and a restarted sampler goes on with other draws
(see `Study` for what happens here instead). The study stays an ordinary one, and opens in optuna-dashboard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from dsprobe.config import Spec
from dsprobe.errors import DSProbeError
from dsprobe.sweeps.samplers import SamplerBuilder, build_sampler, sampler_builder
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study_opening import (
    INTERRUPTED,
    PARTIAL,
    REASON,
    STOPPED,
    check_names,
    create_or_load,
    interrupted,
    quiet_optuna,
    recover,
)
from dsprobe.sweeps.study_storage import open_storage
from dsprobe.sweeps.study_trials import (
    FinishedTrial,
    Proposal,
    constrain,
    finished_trial,
    finite_constraints,
    finite_values,
    note,
)

__all__ = ["ExhaustedSpace", "FinishedTrial", "Proposal", "Study", "quiet_optuna"]


class ExhaustedSpace(DSProbeError):  # noqa: N818 - a state of the search, not a mistake
    """Every point of the grid has been proposed."""


class Study:
    """Ask for settings, tell what they gave; all objectives are minimised.

    *One owner.* A lock file beside the storage is held while the study is open.

    *Killed processes.* Trials left running become ``FAIL`` with the reason ``interrupted`` when the study is opened
    again, and their parameters are proposed once more, before new ones.

    *Repeatability.* Every proposal is made by a new sampler, seeded by (seed, ordinal), where the ordinal counts the
    trials that were not interrupted. A sequential sweep therefore proposes the same settings whether or not it
    was killed and resumed.

    *Stopped trials* are ``COMPLETE`` with the values of the prompts that they ran, and violate the constraint
    ``stopped``; so they stay out of `best_trials`, and every sampler learns from them. ``PRUNED``, which Optuna takes
    with several objectives too, hides their values: NSGA-II's generations then wait for complete trials only, and the
    GP proposes next to stopped trials again and again. It is used where values or constraints were not measured.

    Use `open`; the initialiser only takes what it has checked.
    """

    def __init__(
        self, study: optuna.Study, space: SearchSpace, sampler: Spec, seed: int, constraints: Sequence[str]
    ) -> None:
        self._study = study
        self._owned = contextlib.ExitStack()
        self._space, self._sampler, self._seed = space, sampler, seed
        self._constraints = tuple(constraints)
        self._builder: SamplerBuilder = sampler_builder(sampler)
        self._points = space.grid() if self._builder.is_grid else None
        self._running: dict[int, optuna.Trial] = {}
        self._ordinal = sum(trial.state.is_finished() and not interrupted(trial) for trial in self._trials())

    @classmethod
    def open(
        cls,
        storage: str,
        name: str,
        objectives: Sequence[str],
        space: SearchSpace,
        sampler: Spec,
        seed: int,
        *,
        constraints: Sequence[str] = (),
    ) -> Study:
        """Create a study, or continue it.

        Args:
            storage: Path of a journal file, or an RDB URL such as ``sqlite:///study.db``.
            name: The study's name; use the run id, so that no two sweeps share one.
            objectives: Names of the objectives, in the order of their values.
            space: What is searched.
            sampler: Who proposes; see `dsprobe.sweeps.samplers`.
            seed: Seed of all proposals.
            constraints: Names of the constraints that every complete trial reports.

        Raises:
            ConfigError: The sampler is unknown, another process owns the storage, or a study of this name searches for
                something else; the message shows both.
        """
        sampler_builder(sampler)
        check_names(objectives, constraints)
        identity = {"objectives": list(objectives), "constraints": list(constraints), "space": space.digest}
        with contextlib.ExitStack() as owned, quiet_optuna():
            opened = owned.enter_context(open_storage(storage))
            optuna_study = create_or_load(opened, name, identity)
            recover(optuna_study, opened, space, sampler)
            study = cls(optuna_study, space, sampler, seed, constraints)
            study._owned = owned.pop_all()
            return study

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def optuna_study(self) -> optuna.Study:
        """Optuna's study, for reading: importances, plots."""
        return self._study

    def ask(self) -> Proposal:
        """Propose a setting; queued ones of interrupted trials come first.

        Raises:
            ExhaustedSpace: Every point of the grid has been proposed.
        """
        with quiet_optuna():
            if self._points is not None:
                self._queue_grid_point(self._points)
            seed = int(np.random.SeedSequence((self._seed, self._ordinal)).generate_state(1)[0])
            self._study.sampler = build_sampler(self._sampler, seed, self._space, bool(self._constraints))
            trial = self._study.ask()
            if self._builder.suggests_all:
                parameters = self._space.active(self._space.suggest_all(trial))
            else:
                parameters = self._space.suggest(trial)
        self._running[trial.number] = trial
        self._ordinal += 1
        return Proposal(trial.number, parameters)

    def complete(
        self,
        number: int,
        values: Sequence[float],
        *,
        constraints: Mapping[str, float] = {},
        attributes: Mapping[str, Any] = {},
    ) -> None:
        """Finish a trial that ran on all prompts.

        Args:
            number: Its number.
            values: One finite value per objective.
            constraints: One finite value per constraint of the study; feasible where it is at most 0.
            attributes: Anything JSON can say, kept with the trial.

        Raises:
            ValueError: The trial is not running, or something is missing, not finite, or not JSON.
        """
        trial = self._running_trial(number)
        told = finite_values(number, values, len(self._study.directions))
        bounds = finite_constraints(number, constraints, self._constraints)
        note(trial, attributes)
        constrain(trial, {**bounds, STOPPED: -1.0})
        self._finish(trial, TrialState.COMPLETE, told)

    def stop(
        self,
        number: int,
        values: Sequence[float] | None,
        reason: str,
        attributes: Mapping[str, Any] = {},
        *,
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Finish a trial that was dominated on a rung.

        Args:
            number: Its number.
            values: Objectives on the prompts that it ran, or `None`.
            reason: Why it was stopped.
            attributes: See `complete`.
            constraints: The study's constraints on the prompts that it ran, or `None`. Samplers learn from the trial
                only where these (if the study has any) and the values are given.

        Raises:
            ValueError: See `complete`.
        """
        trial = self._running_trial(number)
        told = None if values is None else finite_values(number, values, len(self._study.directions))
        bounds = {} if constraints is None else finite_constraints(number, constraints, self._constraints)
        note(trial, attributes, {REASON: reason, PARTIAL: told})
        constrain(trial, {**bounds, STOPPED: 1.0})
        measured = told is not None and len(bounds) == len(self._constraints)
        self._finish(trial, *((TrialState.COMPLETE, told) if measured else (TrialState.PRUNED, None)))

    def fail(self, number: int, reason: str, attributes: Mapping[str, Any] = {}) -> None:
        """Finish a trial that gave no values.

        Args:
            number: Its number.
            reason: What went wrong.
            attributes: See `complete`.

        Raises:
            ValueError: The trial is not running, an attribute is not JSON, or the reason is ``interrupted``.
        """
        trial = self._running_trial(number)
        if reason == INTERRUPTED:
            raise ValueError(f"trial {number}: the reason `{INTERRUPTED}` is kept for trials of killed processes.")
        note(trial, attributes, {REASON: reason})
        self._finish(trial, TrialState.FAIL)

    def finished(self) -> list[FinishedTrial]:
        """All finished trials by number, without the interrupted ones."""
        return [
            finished_trial(trial, self._space, suggests_all=self._builder.suggests_all)
            for trial in self._trials()
            if trial.state.is_finished() and not interrupted(trial)
        ]

    def close(self) -> None:
        """Let go of the storage; trials that are still running count as interrupted when it is opened again."""
        self._owned.close()

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _running_trial(self, number: int) -> optuna.Trial:
        if number not in self._running:
            raise ValueError(f"trial {number} is not running; running are {sorted(self._running)}.")
        return self._running[number]

    def _queue_grid_point(self, points: Sequence[dict[str, Any]]) -> None:
        """Put the next grid point into the queue, unless an interrupted one waits there."""
        if any(trial.state == TrialState.WAITING for trial in self._trials()):
            return
        if self._ordinal >= len(points):
            raise ExhaustedSpace(f"All {len(points)} points of the grid have been proposed.")
        self._study.enqueue_trial(points[self._ordinal])

    def _finish(self, trial: optuna.Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        with quiet_optuna():
            self._study.tell(trial, values, state=state)
        del self._running[trial.number]
