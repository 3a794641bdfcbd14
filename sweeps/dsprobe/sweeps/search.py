"""The search: Ray Tune runs trials, the study proposes them, and what is finished stays finished.

There is one way for all: a trial is a process without a GPU that asks an `Evaluator` for rows. Tune's own snapshots,
logs and tables are off; a killed search is resumed by opening its study again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsprobe.actors.session import ray_session
from dsprobe.errors import ConfigError, DSProbeError, IncompleteRunError
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.metrics.pareto import Direction, hypervolume, non_dominated
from dsprobe.sweeps.archive import Archive
from dsprobe.sweeps.config import SearchConfig, SweepConfig
from dsprobe.sweeps.evaluation import Evaluator
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.records import TrialRecord
from dsprobe.sweeps.replay import trial_records
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import FinishedTrial, Study
from dsprobe.sweeps.trial import Setup, quiet_tune, resources, run_trial


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProgress:
    """Where a search stands. Counts of trials, those of earlier sessions included."""

    trials_total: int
    """Trials to finish."""
    complete: int
    stopped: int
    failed: int
    earlier: int
    """Finished before this session."""
    cached: int
    """Complete or stopped trials of this session that took all their rows from the archive."""
    passes_used: int
    """Forward passes that this session's trials computed."""
    passes_from_scratch: int
    """Forward passes that they would have taken without forking and without the archive."""
    elapsed_s: float
    """Seconds since this session's start."""
    front: tuple[tuple[float, ...], ...]
    """Objectives of the complete trials that no other one dominates, constraints left aside."""
    hypervolume: float = 0.0
    """Volume that they dominate, up to the objectives' reference point."""

    @property
    def finished(self) -> int:
        """Trials that are done with, however they ended."""
        return self.complete + self.stopped + self.failed


class Tally:
    """Counts finished trials and reports each.

    Args:
        total: Trials to finish.
        earlier: Trials of earlier sessions.
        on_progress: Called at once and after every trial.
        reference: Reference point of the hypervolume.
    """

    def __init__(
        self,
        total: int,
        earlier: Sequence[FinishedTrial],
        on_progress: Callable[[SearchProgress], None],
        reference: Sequence[float],
    ) -> None:
        self._reference = reference
        self._total, self._earlier, self._on_progress = total, len(earlier), on_progress
        self._start = time.monotonic()
        self.trials = list(earlier)
        self._report()

    def add(self, trial: FinishedTrial) -> None:
        """Count a trial that just finished."""
        self.trials.append(trial)
        self._report()

    def _report(self) -> None:
        states = [trial.state for trial in self.trials]
        front = _front(self.trials)
        directions: list[Direction] = ["minimize"] * len(self._reference)
        ran = [trial.attributes for trial in self.trials[self._earlier :] if trial.state != "failed"]
        self._on_progress(
            SearchProgress(
                trials_total=self._total,
                complete=states.count("complete"),
                stopped=states.count("stopped"),
                failed=states.count("failed"),
                earlier=self._earlier,
                cached=sum(attributes["passes_used"] == 0 and bool(attributes["cached"]) for attributes in ran),
                passes_used=sum(attributes["passes_used"] for attributes in ran),
                passes_from_scratch=sum(attributes["passes_from_scratch"] for attributes in ran),
                elapsed_s=time.monotonic() - self._start,
                front=front,
                hypervolume=hypervolume(front, self._reference, directions) if front else 0.0,
            )
        )


def _front(trials: Sequence[FinishedTrial]) -> tuple[tuple[float, ...], ...]:
    found = [trial.values for trial in trials if trial.state == "complete" and trial.values is not None]
    if not found:
        return ()
    kept_N = non_dominated(found, ["minimize"] * len(found[0]))
    return tuple(dict.fromkeys(point for point, kept in zip(found, kept_N, strict=True) if kept))


def search(
    config: SweepConfig,
    *,
    space: SearchSpace,
    objectives: ObjectiveSet,
    archive: Archive,
    evaluator: Evaluator,
    study: Study | None,
    baseline: RowOutcomes,
    on_progress: Callable[[SearchProgress], None],
) -> list[TrialRecord]:
    """Run trials until the configured number is finished, those of earlier sessions included.

    With one trial at a time the proposals, the racing decisions and the outcomes are the same whenever the study and
    the seed are, killed and resumed or not. `KeyboardInterrupt` passes through; trials under way then count as
    interrupted when the study is opened again.

    Args:
        config: The sweep.
        space: What is searched.
        objectives: What is minimised and kept.
        archive: Where outcomes are kept, on storage that every process sees.
        evaluator: Runs settings; goes to the trials' processes by pickle.
        study: The open study; `None` with ``search.searcher: optuna_search``, which keeps its own in memory.
        baseline: Unguarded outcomes of all rows.
        on_progress: Called at the start and after every trial, on the calling thread.

    Raises:
        ConfigError: The searcher cannot do what the configuration asks.
        StorageError: Outcomes of a finished trial are not in the archive.
        IncompleteRunError: Ray Tune ended before the trials were finished.

    Returns:
        All finished trials by number.
    """
    ray_searcher = config.search.searcher == "optuna_search"
    if ray_searcher:
        _check_optuna_search(config)
    elif study is None:
        raise ValueError("search.searcher `dsprobe` needs an open study.")
    earlier = study.finished() if study and not ray_searcher else []
    tally = Tally(config.search.trials, earlier, on_progress, objectives.reference.tolist())
    setup = Setup(
        evaluator=evaluator,
        archive=archive,
        objectives=objectives,
        baseline=baseline,
        rungs=config.search.rungs,
        reuse=not ray_searcher,
    )
    if len(tally.trials) < config.search.trials:
        with ray_session(config.experiment.execution, include_dashboard=False), quiet_tune():
            _run(config, setup, space, None if ray_searcher else study, tally)
    return trial_records(tally.trials, space, archive, config.search.rungs)


def _check_optuna_search(config: SweepConfig) -> None:
    """Refuse what `OptunaSearch` would do wrongly without a word."""
    if config.constraints:
        raise ConfigError(
            "search.searcher `optuna_search` knows no constraints; leave `constraints` out, or use `dsprobe`."
        )
    if config.search.rungs != (1.0,):
        raise ConfigError(
            f"search.rungs {list(config.search.rungs)}: search.searcher `optuna_search` would take a stopped trial's "
            "values for final ones; give [1.0], or use `dsprobe`."
        )


def _run(config: SweepConfig, setup: Setup, space: SearchSpace, study: Study | None, tally: Tally) -> None:
    """Run the missing trials on Tune, in a folder that is gone afterwards."""
    from ray import tune
    from ray.tune.error import TuneError

    from dsprobe.sweeps.racing import Racing

    search, missing = config.search, config.search.trials - len(tally.trials)
    racing = Racing(
        archive=setup.archive,
        objectives=setup.objectives,
        baseline=setup.baseline,
        rungs=setup.rungs,
        confidence=search.racing_confidence,
        seed=search.seed,
    )
    for trial in tally.trials:
        if trial.state == "complete":
            racing.enter(trial.attributes["digest"])
    searcher = _searcher(search, setup, space, study, missing, racing.reasons, tally)
    with tempfile.TemporaryDirectory(prefix="dsp-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, setup=setup), resources()),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=racing,
                num_samples=missing,
                max_concurrent_trials=search.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="search", storage_path=folder, verbose=0),
        )
        try:
            tuner.fit()
        except TuneError as error:
            raise _cause(error) from error
    if len(tally.trials) < search.trials and not getattr(searcher, "exhausted", False):
        raise IncompleteRunError(
            f"{len(tally.trials)} of {search.trials} trials are finished; run the same command again to go on."
        )


def _searcher(
    search: SearchConfig,
    setup: Setup,
    space: SearchSpace,
    study: Study | None,
    budget: int,
    reasons: Mapping[str, str],
    tally: Tally,
) -> Any:
    from dsprobe.sweeps.searcher import RecordedOptunaSearch, StudySearcher

    if study is None:
        return RecordedOptunaSearch(
            space,
            setup.objectives,
            sampler=search.sampler,
            seed=search.seed,
            study_name="optuna_search",
            reasons=reasons,
            observer=tally.add,
        )
    return StudySearcher(
        study,
        space,
        setup.objectives,
        budget=budget,
        last_rung=setup.rungs[-1],
        reasons=reasons,
        observer=tally.add,
    )


def _cause(error: BaseException) -> BaseException:
    """What went wrong on purpose behind Tune's wrapping, or the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DSProbeError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return error
