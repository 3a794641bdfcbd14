"""Opening a study: is it the one that was asked for, and what did a killed process leave behind?"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dsprobe.config import Spec
from dsprobe.errors import ConfigError
from dsprobe.sweeps.samplers import sampler_builder
from dsprobe.sweeps.space import SearchSpace

IDENTITY: Final = "dsprobe"
"""Study attribute that says what the study searches for."""
REASON: Final = "reason"
"""Trial attribute: why it was stopped or failed."""
PARTIAL: Final = "partial_values"
"""Trial attribute: objectives of a stopped trial on the prompts that it ran."""
RESUMES: Final = "resumes"
"""Trial attribute: number of the interrupted trial whose parameters were queued again."""
INTERRUPTED: Final = "interrupted"
"""Reason of trials that were running when their process was killed."""
STOPPED: Final = "stopped"
"""Optuna constraint that every trial with values carries: 1 where it was stopped, -1 where it ran to its end."""
RESERVED: Final = frozenset({REASON, PARTIAL, RESUMES})
"""Trial attributes that only the study writes."""


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's notes on every trial, and its warnings about experimental arguments, out of the user's sight."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial was running when its process was killed."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get(REASON) == INTERRUPTED


def check_names(objectives: Sequence[str], constraints: Sequence[str]) -> None:
    """Refuse missing, doubled and reserved names."""
    if not objectives:
        raise ConfigError("objectives: a study needs at least one.")
    for kind, names in {"objectives": objectives, "constraints": constraints}.items():
        if len(set(names)) != len(names):
            raise ConfigError(f"{kind}: {list(names)} has a name twice.")
    if STOPPED in constraints:
        raise ConfigError(f"constraints: `{STOPPED}` is the study's own; take another name.")


def create_or_load(storage: optuna.storages.BaseStorage, name: str, identity: Mapping[str, Any]) -> optuna.Study:
    """The study of a name, after checking that it searches for the same."""
    directions = [StudyDirection.MINIMIZE] * len(identity["objectives"])
    if name not in optuna.get_all_study_names(storage):
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    else:
        study = optuna.load_study(storage=storage, study_name=name)
    found = study.user_attrs.get(IDENTITY)
    if (
        study.directions != directions
        or found not in (identity, None)
        or (found is None and study.get_trials(deepcopy=False))
    ):
        raise ConfigError(
            f"Study `{name}` exists and searches for something else; take another name or another storage.\n"
            f"in the storage: {_shown(study.directions, found)}\n"
            f"asked for:      {_shown(directions, identity)}"
        )
    if found is None:
        study.set_metric_names(identity["objectives"])
        study.set_user_attr(IDENTITY, dict(identity))
    return study


def _shown(directions: Sequence[StudyDirection], identity: Mapping[str, Any] | None) -> str:
    shown = [f"{key} {value}" for key, value in identity.items()] if identity else ["not written by a sweep"]
    return ", ".join([f"directions {[direction.name.lower() for direction in directions]}", *shown])


def recover(study: optuna.Study, storage: optuna.storages.BaseStorage, space: SearchSpace, sampler: Spec) -> None:
    """Fail the trials that a killed process left running, and queue their parameters once more.

    Each step can be repeated: a process killed in here leaves the rest to the next one.
    """
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        storage.set_trial_user_attr(trial_id, REASON, INTERRUPTED)
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    resumed = {trial.user_attrs.get(RESUMES) for trial in trials}
    every = sampler_builder(sampler).suggests_all
    for trial in trials:
        if interrupted(trial) and trial.number not in resumed:
            parameters = _proposed(trial, space, every)
            if parameters is not None:
                study.enqueue_trial(parameters, user_attrs={RESUMES: trial.number})


def _proposed(trial: FrozenTrial, space: SearchSpace, every: bool) -> dict[str, Any] | None:
    """What an interrupted trial was to run; `None` where it was killed before that was decided.

    Such a trial is not queued: the next proposal has its ordinal, and so comes out as it would have.
    """
    queued: dict[str, Any] | None = trial.system_attrs.get("fixed_params")
    if queued is not None:
        return queued
    if every:
        return dict(trial.params) if all(domain.path in trial.params for domain in space.domains) else None
    try:
        return space.active(trial.params)
    except ConfigError:
        return None
