"""The whole of a sweep: search, front, validation on unseen prompts, and a recorded run of the chosen settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsprobe.actors import meters
from dsprobe.actors.executor import ExecutionReport, Progress, execute
from dsprobe.actors.meters import Totals
from dsprobe.actors.pool import ReplicaPool
from dsprobe.config import GuardrailConfig, RunConfig
from dsprobe.errors import ConfigError, StorageError
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.experiment.plan import Plan, resolve
from dsprobe.models.checkpoint import inspect_checkpoint
from dsprobe.storage.compaction import compact
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.spans import keep_spans
from dsprobe.sweeps.archive import Archive
from dsprobe.sweeps.config import SweepConfig
from dsprobe.sweeps.exports import write_front
from dsprobe.sweeps.front import Front, FrontPoint, chosen, compute_front, with_validation
from dsprobe.sweeps.importance import importances, importances_note
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.pool_evaluator import Job, PoolEvaluator
from dsprobe.sweeps.records import TrialRecord
from dsprobe.sweeps.replay import ReplayReport, replay, trial_records
from dsprobe.sweeps.samplers import sampler_builder
from dsprobe.sweeps.search import SearchProgress, search
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import Study
from dsprobe.telemetry.metrics import FRONT_POINTS, SWEEP_PASSES, TRIALS

UNGUARDED_DIGEST = "unguarded"
"""Name of the baseline's rows in the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A resolved sweep; resolving it loads no model."""

    id: str
    """``<name>-<digest>``; the same for more trials of the same search."""
    config: SweepConfig
    plan: Plan
    """The experiment, unguarded."""
    validation: Plan | None
    """The same on unseen prompts."""
    space: SearchSpace
    objectives: ObjectiveSet


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a sweep found."""

    front: Front
    trials: list[TrialRecord]
    baseline: RowOutcomes
    recorded: ExecutionReport | None
    """Of the recorded run of the chosen settings; `None` where the front is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who is told how far a sweep is."""

    search: Callable[[SearchProgress], None]
    stage: Callable[[str], None]
    """Told what begins: one short phrase."""
    run: Callable[[Progress], None]


def resolve_sweep(config: SweepConfig) -> SweepPlan:
    """Check everything that can be checked without loading a model.

    Raises:
        ConfigError: A name, a value, an objective or a place is wrong; the message names it.
        CheckpointError: A model folder cannot be read.
    """
    experiment = config.experiment.model_copy(update={"name": config.name})
    sampler_builder(config.search.sampler)
    space = SearchSpace(config.space, experiment.decodings[0])
    objectives = ObjectiveSet(config.objectives, config.constraints, experiment, fluency=config.fluency)
    plan = resolve(experiment)
    _require_kind(
        plan.models[experiment.models[0].name].kind, "diffusion", "experiment.models", experiment.models[0].name
    )
    for model in config.fluency:
        _require_kind(inspect_checkpoint(model).kind, "autoregressive", "fluency", model.name)
    return SweepPlan(
        id=f"{config.name}-{_digest(config, plan, space)[:8]}",
        config=config,
        plan=plan,
        validation=_validation_plan(config, experiment),
        space=space,
        objectives=objectives,
    )


def _require_kind(kind: str, needed: str, where: str, name: str) -> None:
    if kind != needed:
        raise ConfigError(f"{where}: model `{name}` is {kind}. Allowed: {needed} models.")


def _validation_plan(config: SweepConfig, experiment: RunConfig) -> Plan | None:
    """The experiment on the prompts that the search does not see."""
    if not config.validation:
        return None
    unseen = {prompts.key: prompts for prompts in config.validation}
    kept = [prompts for prompts in experiment.prompts if prompts.key in unseen]
    sets = tuple(unseen[p.key].model_copy(update={"attacks": p.attacks, "harmful": p.harmful}) for p in kept)
    return resolve(experiment.model_copy(update={"prompts": sets}))


def _digest(config: SweepConfig, plan: Plan, space: SearchSpace) -> str:
    """Of everything that decides what a trial is and which come; not of how many there are, or where they run."""
    content = {
        "shards": [shard.id for shard in plan.shards],
        "fluency": [inspect_checkpoint(model).digest for model in config.fluency],
        "space": space.digest,
        "objectives": [objective.model_dump(mode="json") for objective in config.objectives],
        "constraints": [constraint.model_dump(mode="json") for constraint in config.constraints],
        "search": config.search.model_dump(mode="json", exclude={"trials", "concurrency", "storage", "fork"}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sweep_manifest(sweep: SweepPlan, sources: Mapping[str, str]) -> dict[str, Any]:
    """Manifest of a sweep's folder: that of its experiment, without shards of its own."""
    manifest = build_manifest(sweep.plan, sources)
    return {**manifest, "run_id": sweep.id, "shards": [], "sweep": sweep.config.model_dump(mode="json")}


def run_sweep(sweep: SweepPlan, store: RunStore, listener: Listener) -> SweepResult:
    """Search, or go on with a search that was killed, and write the front; needs an open Ray session.

    Args:
        sweep: From `resolve_sweep`.
        store: The sweep's folder, its manifest written.
        listener: Told how far it is.

    Raises:
        DSProbeError: Resources are missing, the study belongs to another sweep, or the search could not be finished.
    """
    front, trials, baseline = find_front(sweep, store, listener)
    if sweep.validation is not None and front.points:
        listener.stage("validation on unseen prompts")
        front = _validated(sweep, front, _evaluator(sweep, sweep.validation))
    recorded = None
    if front.points:
        listener.stage("recorded run of the chosen settings")
        front, recorded = _record_chosen(sweep, front, store, listener)
    write_front(front, trials, store.objects)
    return SweepResult(front=front, trials=trials, baseline=baseline, recorded=recorded)


def find_front(sweep: SweepPlan, store: RunStore, listener: Listener) -> tuple[Front, list[TrialRecord], RowOutcomes]:
    """The search alone: its front, its trials, and the unguarded rows; arguments as in `run_sweep`."""
    evaluator, archive = _evaluator(sweep, sweep.plan), Archive(store.objects)
    listener.stage("unguarded baseline")
    baseline = _baseline(archive, evaluator)
    sweep.objectives.check(baseline)
    listener.stage("search")
    trials = _search(sweep, store, archive, evaluator, baseline, listener)
    listener.stage("front")
    return _front(sweep, trials, baseline), trials, baseline


def _evaluator(sweep: SweepPlan, plan: Plan) -> PoolEvaluator:
    """Settings of a sweep on a plan's prompts, on the sweep's pool."""
    # Rows belong to replicas, which keep their trajectories, so a search begins with all of them and does not grow.
    execution = sweep.config.experiment.execution.model_copy(update={"min_replicas": None})
    pool = ReplicaPool.get_or_create(execution.pool, execution, plan.config.models)
    return PoolEvaluator(pool.name, Job(plan, sweep.config.fluency), fork=sweep.config.search.fork)


def replay_sweep(sweep: SweepPlan, store: RunStore, on_progress: Callable[[int, int], None]) -> ReplayReport:
    """Run the recorded trials of a sweep again, in order and from their parameters alone, and compare every row.

    Needs an open Ray session. Nothing is written.

    Raises:
        StorageError: The sweep has no recorded trials here.
        DSProbeError: Resources are missing, or another process has the study open.
    """
    rungs = sweep.config.search.rungs
    with _open_study(sweep, store) as study:
        recorded = trial_records(study.finished(), sweep.space, Archive(store.objects), rungs)
    if not recorded:
        raise StorageError(f"{store.url} holds no finished trial to replay. Run the sweep first.")
    return replay(recorded, _evaluator(sweep, sweep.plan), rungs=rungs, on_progress=on_progress)


def _baseline(archive: Archive, evaluator: PoolEvaluator) -> RowOutcomes:
    known = archive.get(UNGUARDED_DIGEST, 0.0, 1.0)
    if known is None:
        known = evaluator.evaluate(GuardrailConfig(), 0.0, 1.0)
        archive.put(UNGUARDED_DIGEST, 0.0, 1.0, known)
    return known


def _search(
    sweep: SweepPlan,
    store: RunStore,
    archive: Archive,
    evaluator: PoolEvaluator,
    baseline: RowOutcomes,
    listener: Listener,
) -> list[TrialRecord]:
    config = sweep.config
    arguments: dict[str, Any] = {
        "space": sweep.space,
        "objectives": sweep.objectives,
        "archive": archive,
        "evaluator": evaluator,
        "baseline": baseline,
        "on_progress": _metered(listener.search, store.run_id),
    }
    if config.search.searcher == "optuna_search":
        return search(config, study=None, **arguments)
    with _open_study(sweep, store) as study:
        return search(config, study=study, **arguments)


def _metered(on_progress: Callable[[SearchProgress], None], run: str) -> Callable[[SearchProgress], None]:
    """Show the search as metrics too."""
    totals = Totals(run)

    def report(progress: SearchProgress) -> None:
        trials = {"total": progress.trials_total, "complete": progress.complete, "stopped": progress.stopped,
                  "failed": progress.failed, "cached": progress.cached}  # fmt: skip
        totals.show(TRIALS, trials, "state")
        meters.put(FRONT_POINTS, len(progress.front), run=run)
        totals.grow(SWEEP_PASSES, progress.passes_used, kind="used")
        totals.grow(SWEEP_PASSES, progress.passes_from_scratch - progress.passes_used, kind="saved")
        on_progress(progress)

    return report


def _open_study(sweep: SweepPlan, store: RunStore) -> Study:
    config = sweep.config
    return Study.open(
        study_storage(config, store),
        sweep.id,
        sweep.objectives.names,
        sweep.space,
        config.search.sampler,
        config.search.seed,
        constraints=sweep.objectives.told_constraints,
    )


def study_storage(config: SweepConfig, store: RunStore) -> str:
    """Where the Optuna study lives.

    Raises:
        ConfigError: The sweep's folder is remote and no storage is given: a journal needs a local file.
    """
    if config.search.storage is not None:
        return config.search.storage
    if store.objects.kind != "file":
        raise ConfigError(
            f"search.storage: {store.url} is remote, and a study's journal needs a local file. Allowed: a local path, "
            "or an RDB URL such as sqlite:///study.db."
        )
    path = Path(store.objects.path("sweep/study.journal"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)


def _front(sweep: SweepPlan, trials: Sequence[TrialRecord], baseline: RowOutcomes) -> Front:
    front = compute_front(trials, baseline, sweep.objectives, sweep.config.front, seed=sweep.config.search.seed)
    shares = importances(trials, sweep.objectives.names, front.measures)
    note = importances_note(trials, front.measures, shares)
    return replace(front, sweep_id=sweep.id, importances=shares, importances_note=note)


def _validated(sweep: SweepPlan, front: Front, evaluator: PoolEvaluator) -> Front:
    baseline = evaluator.evaluate(GuardrailConfig(), 0.0, 1.0)
    rows = {point.label: evaluator.evaluate(point.guardrail, 0.0, 1.0) for point in front.points}
    seed = sweep.config.search.seed
    return with_validation(front, rows, baseline, sweep.objectives, sweep.config.front, seed=seed)


def _record_chosen(
    sweep: SweepPlan, front: Front, store: RunStore, listener: Listener
) -> tuple[Front, ExecutionReport]:
    """Run the unguarded model and the chosen settings with every step recorded."""
    points = chosen(front, sweep.config.front.chosen)
    plan = resolve(_recorded_config(sweep, points))
    recorded = RunStore(store.url.rpartition("/runs/")[0], plan.run_id, s3=store.objects.s3)
    recorded.write_manifest(build_manifest(plan, {}))
    outcome = execute(plan, recorded, progress=listener.run)
    outcome.raise_if_incomplete()
    compact(recorded, known=outcome.merged)
    keep_spans(recorded.objects)
    return replace(front, validation_run=plan.run_id), outcome


def _recorded_config(sweep: SweepPlan, points: Sequence[FrontPoint]) -> RunConfig:
    config = (sweep.validation or sweep.plan).config
    stacks = tuple(GuardrailConfig(name=point.label, stack=point.guardrail.stack) for point in points)
    return config.model_copy(update={"name": f"{sweep.config.name}-chosen", "guardrails": (GuardrailConfig(), *stacks)})
