"""Who stands between Ray Tune and Optuna: the project's searcher, and Ray's own with a memory of what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dsprobe.actors.writing import describe
from dsprobe.config import Spec
from dsprobe.errors import ConfigError, StorageError
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.samplers import build_sampler, sampler_builder
from dsprobe.sweeps.space import SearchSpace, guardrail_digest
from dsprobe.sweeps.study import ExhaustedSpace, FinishedTrial, Study, quiet_optuna
from dsprobe.sweeps.trial import CONSTRAINTS, FAILURE, OBJECTIVES

ATTRIBUTES = ("digest", "rung", "cached", "passes_used", "passes_from_scratch", "wall_seconds")
"""What the study keeps of a trial beside its values; see `dsprobe.sweeps.trial.run_trial`."""

Observer = Callable[[FinishedTrial], None]
"""Told of every trial that finishes."""


class Unsaved:
    """For searchers that Ray Tune must not save: what is worth keeping is in the study and the archive."""

    def save(self, checkpoint_path: str) -> NoReturn:
        """Refuse; Tune skips searchers that do."""
        raise NotImplementedError("The study keeps what the searcher knows; nothing is saved beside it.")

    def restore(self, checkpoint_path: str) -> NoReturn:
        """Refuse.

        Raises:
            StorageError: Always; the message says how a search is resumed.
        """
        raise StorageError(
            f"{checkpoint_path}: a sweep is not resumed from Ray Tune's snapshots. Run the same sweep again: it opens "
            "its study and runs what is missing."
        )

    def __getstate__(self) -> dict[str, Any]:
        # `tune.Tuner` pickles its arguments into its folder whether or not they will be used again.
        return {}


class StudySearcher(Unsaved, Searcher):
    """Tune searcher without a state of its own: the study is the truth, and Tune's snapshots are not used.

    To resume, open the study again and run what is missing.

    Args:
        study: Asked for settings, and told how they did.
        space: Checks parameters before a trial is started for them.
        objectives: Gives the order of the values.
        budget: Trials to ask for.
        last_rung: The share at which a trial is complete.
        reasons: Tune's trial id → why it was stopped or failed; `Racing.reasons`.
        observer: Told of every trial that finishes.
    """

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        objectives: ObjectiveSet,
        *,
        budget: int,
        last_rung: float,
        reasons: Mapping[str, str],
        observer: Observer,
    ) -> None:
        super().__init__()
        self._study, self._space, self._objectives = study, space, objectives
        self._budget, self._last_rung = budget, last_rung
        self._reasons, self._observer = reasons, observer
        self._running: dict[str, tuple[int, dict[str, Any]]] = {}
        self.exhausted = False
        """Whether the space had no setting left."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next setting, or `Searcher.FINISHED`.

        Parameters that do not fit each other fail here, with their reason, and cost no process.
        """
        while self._budget > 0:
            try:
                proposal = self._study.ask()
            except ExhaustedSpace:
                self.exhausted = True
                break
            self._budget -= 1
            self._running[trial_id] = proposal.number, proposal.parameters
            config = trial_config(self._space, proposal.number, proposal.parameters)
            if FAILURE not in config:
                return config
            self._fail(trial_id, config[FAILURE])
        return cast("dict[str, Any]", Searcher.FINISHED)  # a string, which the interface's annotation leaves out

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study; see `Searcher.on_trial_complete`."""
        if error or not result or FAILURE in result:
            self._fail(trial_id, self._reasons.get(trial_id, "the trial ended without a result"))
            return
        number, parameters = self._running[trial_id]
        told = finished_trial(
            number, parameters, result, self._objectives, self._last_rung, self._reasons.get(trial_id, "")
        )
        if told.state == "complete":
            assert told.values is not None
            self._study.complete(number, told.values, constraints=told.constraints, attributes=told.attributes)
        else:
            self._study.stop(
                number, told.values, told.reason, attributes=told.attributes, constraints=told.constraints or None
            )
        self._finish(trial_id, told)

    def _fail(self, trial_id: str, reason: str) -> None:
        number, parameters = self._running[trial_id]
        attributes = {"digest": digest_of(self._space, parameters)}
        self._study.fail(number, reason, attributes)
        self._finish(trial_id, failed_trial(number, parameters, attributes, reason))

    def _finish(self, trial_id: str, told: FinishedTrial) -> None:
        del self._running[trial_id]
        self._observer(told)


class RecordedOptunaSearch(Unsaved, OptunaSearch):
    """Ray's `OptunaSearch` as it is, over the same space with the same kind of sampler, with a list of its trials.

    Its study lives in memory, so it cannot be resumed. It knows no constraints, and would take the values of a stopped
    trial for those of a complete one; `dsprobe.sweeps.search` refuses both. One sampler with one seed makes all
    proposals, where `Study` seeds every proposal: the two propose different settings for equal seeds.

    Args:
        space: What is searched.
        objectives: Names of the metrics.
        sampler: Name and parameters; any but ``grid``.
        seed: Seed of the sampler.
        study_name: Name of the study in memory.
        reasons: See `StudySearcher`.
        observer: See `StudySearcher`.

    Raises:
        ConfigError: The sampler is unknown, or ``grid``.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: ObjectiveSet,
        *,
        sampler: Spec,
        seed: int,
        study_name: str,
        reasons: Mapping[str, str],
        observer: Observer,
    ) -> None:
        builder = sampler_builder(sampler)
        if builder.is_grid:
            raise ConfigError("search.searcher `optuna_search` has no grid; use `dsprobe`, or another sampler.")

        def setting(trial: Any) -> dict[str, Any]:
            parameters = space.active(space.suggest_all(trial)) if builder.suggests_all else space.suggest(trial)
            return {"number": trial.number, "parameters": parameters}

        self._search_space, self._objectives = space, objectives
        self._reasons, self._observer = reasons, observer
        self._running: dict[str, tuple[int, dict[str, Any]]] = {}
        with quiet_optuna():
            super().__init__(
                setting,
                metric=[f"{OBJECTIVES}/{name}" for name in objectives.names],
                mode=["min"] * len(objectives.names),
                sampler=build_sampler(sampler, seed, space, False),
                study_name=study_name,
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """See `OptunaSearch.suggest`."""
        with quiet_optuna():
            config: dict[str, Any] | None = super().suggest(trial_id)
        if config is None:
            return None
        self._running[trial_id] = config["number"], config["parameters"]
        return trial_config(self._search_space, config["number"], config["parameters"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `OptunaSearch.on_trial_complete`; a trial that failed becomes ``FAIL``."""
        failed = error or not result or FAILURE in result
        with quiet_optuna():
            super().on_trial_complete(trial_id, None if failed else result, failed)
        number, parameters = self._running.pop(trial_id)
        if failed or not result:
            attributes = {"digest": digest_of(self._search_space, parameters)}
            told = failed_trial(number, parameters, attributes, self._reasons.get(trial_id, "no result"))
        else:
            told = finished_trial(number, parameters, result, self._objectives, 1.0, "")
        self._observer(told)


def trial_config(space: SearchSpace, number: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """What `dsprobe.sweeps.trial.run_trial` is given; parameters become a guardrail here, so that it needs no space."""
    config: dict[str, Any] = {"number": number, "parameters": parameters}
    try:
        guardrail = space.guardrail(parameters)
    except ConfigError as error:
        return {**config, FAILURE: describe(error)}
    return {**config, "guardrail": guardrail.model_dump_json(), "digest": guardrail_digest(guardrail)}


def finished_trial(
    number: int,
    parameters: dict[str, Any],
    result: Mapping[str, Any],
    objectives: ObjectiveSet,
    last_rung: float,
    reason: str,
) -> FinishedTrial:
    """A trial from the last of its reports, as Tune flattens it; complete if that was the last rung's."""
    complete = result["rung"] == last_rung
    values = [float(result[f"{OBJECTIVES}/{name}"]) for name in objectives.names]
    prefix = f"{CONSTRAINTS}/"
    constraints = {key.removeprefix(prefix): float(result[key]) for key in result if key.startswith(prefix)}
    told = np.isfinite([*constraints.values()]).all()  # on a rung, a constraint's rows may be missing
    return FinishedTrial(
        number=number,
        state="complete" if complete else "stopped",
        parameters=parameters,
        values=tuple(values) if np.isfinite(values).all() else None,
        constraints=constraints if told else {},
        attributes={key: result[key] for key in ATTRIBUTES},
        reason="" if complete else reason,
    )


def failed_trial(number: int, parameters: dict[str, Any], attributes: dict[str, Any], reason: str) -> FinishedTrial:
    """A trial without values."""
    return FinishedTrial(
        number=number, state="failed", parameters=parameters, values=None, attributes=attributes, reason=reason
    )


def digest_of(space: SearchSpace, parameters: Mapping[str, Any]) -> str:
    """Digest of the setting that parameters stand for; empty where they stand for none."""
    try:
        return guardrail_digest(space.guardrail(parameters))
    except ConfigError:
        return ""
