"""One trial, as Ray Tune runs it: evaluate the next share of the prompts, keep it, report, wait for the verdict."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dsprobe.actors.writing import describe
from dsprobe.config import GuardrailConfig
from dsprobe.errors import ConfigError, DSProbeError
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.sweeps.archive import Archive, increments
from dsprobe.sweeps.evaluation import Evaluator
from dsprobe.sweeps.objectives import ObjectiveSet

OBJECTIVES: Final = "objectives"
"""Key of a report under which the objectives stand."""
CONSTRAINTS: Final = "constraints"
"""Key of a report under which the constraints stand."""
FAILURE: Final = "failure"
"""Key of the report of a trial that failed, and of a configuration that stands for no guardrail: the reason."""

TUNE_ENVIRONMENT: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults for the time of a search unless the user set them. Tune's handler would turn Ctrl-C into a normal end."""


class UndefinedObjectiveError(DSProbeError):
    """An objective or constraint has no finite value on all prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all trials of a search share; goes to Ray's object store once."""

    evaluator: Evaluator
    archive: Archive
    objectives: ObjectiveSet
    baseline: RowOutcomes
    rungs: tuple[float, ...]
    """Growing shares of the prompts, the last one 1."""
    reuse: bool = True
    """Take rows from the archive where the setting ran them before."""


def run_trial(config: Mapping[str, Any], setup: Setup) -> None:
    """Run one setting on growing shares of the prompts; Ray Tune's trainable.

    Reports after every rung: the objectives and constraints on the rows so far, ``digest``, ``rung``, ``cached``
    (rungs that came from the archive), ``passes_used`` and ``passes_from_scratch`` (forward passes so far) and
    ``wall_seconds``. Tune answers a report by letting the trial go on, or by ending its thread.

    A trial that fails for a reason reports it as ``failure`` and ends: Tune replaces the process of a trial that
    raises, which takes seconds. What is not a `DSProbeError` is a bug, and raised after the report.

    Args:
        config: ``guardrail`` (JSON) and its ``digest``, or the ``failure`` that kept the parameters from being one.
        setup: What all trials share.
    """
    from ray import tune

    try:
        for report in rungs(config, setup):
            tune.report(report)
    except Exception as error:
        undefined = dict.fromkeys(setup.objectives.names, math.nan)
        tune.report({FAILURE: describe(error), OBJECTIVES: undefined})
        if not isinstance(error, DSProbeError):
            raise


def rungs(config: Mapping[str, Any], setup: Setup) -> Iterator[dict[str, Any]]:
    """The reports of a trial, each computed when the one before has been answered.

    Raises:
        DSProbeError: There is no guardrail, it cannot run, or an objective is undefined on all prompts.
    """
    began = time.monotonic()
    if FAILURE in config:
        raise ConfigError(config[FAILURE])
    guardrail, digest = GuardrailConfig.model_validate_json(config["guardrail"]), config["digest"]
    parts: list[RowOutcomes] = []
    cached: list[float] = []
    used = 0
    for start, stop in increments(setup.rungs):
        part = setup.archive.get(digest, start, stop) if setup.reuse else None
        if part is None:
            part = setup.evaluator.evaluate(guardrail, start, stop)
            setup.archive.put(digest, start, stop, part)
            used += int(part.passes_used.sum())
        else:
            cached.append(stop)
        parts.append(part)
        outcomes = RowOutcomes.concatenate(parts)
        report = measured(outcomes, setup)
        if stop == setup.rungs[-1]:
            require_finite(report)
        yield {
            **report,
            "digest": digest,
            "rung": stop,
            "cached": list(cached),
            "passes_used": used,
            "passes_from_scratch": int(outcomes.passes.sum()),
            "wall_seconds": time.monotonic() - began,
        }


def measured(outcomes: RowOutcomes, setup: Setup) -> dict[str, Any]:
    """Objectives and constraints on some rows, by name; not a number where no row counts."""
    values = setup.objectives.values(outcomes, setup.baseline)
    return {
        OBJECTIVES: dict(zip(setup.objectives.names, np.asarray(values).tolist(), strict=True)),
        CONSTRAINTS: setup.objectives.told_constraint_values(outcomes, setup.baseline),
    }


def require_finite(report: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse what no sampler could learn from.

    Raises:
        UndefinedObjectiveError: An objective or constraint is not finite; the message names it.
    """
    for kind in (OBJECTIVES, CONSTRAINTS):
        for name, value in report[kind].items():
            if not math.isfinite(value):
                raise UndefinedObjectiveError(
                    f"{kind.removesuffix('s')} `{name}` is {value}: no row of the trial counts."
                )


def resources() -> Any:
    """Next to nothing, and on this node: trials only wait for replicas, and Tune's folder is here.

    A share of a CPU would keep trials waiting for ever where the replicas hold all of them.
    """
    import ray
    from ray import tune

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return tune.PlacementGroupFactory([{f"node:{address}": 0.001}])


@contextlib.contextmanager
def quiet_tune() -> Iterator[None]:
    """Keep Tune from printing and from catching signals; undone at the end."""
    unset = [name for name in TUNE_ENVIRONMENT if name not in os.environ]
    os.environ.update({name: TUNE_ENVIRONMENT[name] for name in unset})
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with _kept_signals():
            yield
    finally:
        logger.setLevel(level)
        for name in unset:
            del os.environ[name]


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Put back the handlers that Tune replaces and leaves."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and Tune knows
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
