"""`dsprobe run`: the whole chain, resumable by the same command."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.display import show_progress
from dsprobe.cli.options import (
    EXIT_INTERRUPTED,
    ConfigArgument,
    JsonOption,
    SetOption,
    ShowTextOption,
    emit,
    load,
    read_guardrail,
)
from dsprobe.errors import IncompleteRunError, PrerequisiteError

if TYPE_CHECKING:
    from dsprobe.actors.executor import ExecutionReport
    from dsprobe.actors.session import Session
    from dsprobe.config import ExecutionConfig
    from dsprobe.experiment.plan import Plan
    from dsprobe.storage.run_store import RunStore
    from dsprobe.storage.status import StatusWriter
    from dsprobe.sweeps.library import Kind


def run(
    config: ConfigArgument,
    overrides: SetOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep the first N prompts of every set.")] = None,
    output: Annotated[
        str | None, typer.Option("--out", help="Output root: a folder or URL (s3://bucket/prefix).")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="ray or local.")] = None,
    guardrail: Annotated[
        list[Path] | None,
        typer.Option("--guardrail", metavar="FILE", help="Add a guardrail, e.g. one that a sweep wrote. Repeatable."),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    show_text: ShowTextOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment: generate, record every step, reduce, report. Running it again does only what is missing."""
    from dsprobe.experiment.plan import resolve
    from dsprobe.storage.spans import keep_spans

    given = [*(overrides or ()), *shorthands(limit, output, executor, config, overrides)]
    loaded = load(config, [*given, *_with_guardrails(config, given, guardrail or ())])
    plan = resolve(loaded.config)
    store, outcome = carry_out(plan, loaded.sources, quiet=as_json)
    path = _write_report(store, show_text) if report else None
    keep_spans(store.objects)
    _conclude(plan, store, outcome, path, as_json)
    outcome.raise_if_incomplete()


def carry_out(plan: Plan, sources: Mapping[str, str], *, quiet: bool) -> tuple[RunStore, ExecutionReport]:
    """Run what is missing of an experiment, let its deferred judges judge, and compact its tables.

    Args:
        plan: The resolved experiment.
        sources: Where each configuration value came from.
        quiet: Print nothing (machine-readable output was asked for).

    Raises:
        IncompleteRunError: Nothing could be run at all, or a deferred judge could not judge all replies.
        typer.Exit: Interrupted; committed shards are kept.
    """
    from dsprobe.actors.scoring import deferred_judges
    from dsprobe.cli.scoring import score_deferred
    from dsprobe.experiment.manifest import build_manifest
    from dsprobe.storage.compaction import compact
    from dsprobe.storage.run_store import RunStore
    from dsprobe.storage.status import reporting

    deferred_judges(plan.config.judges)  # what is wrong with one shows before hours of generation
    store = RunStore(absolute(plan.config.output.root), plan.run_id, s3=plan.config.output.s3)
    store.write_manifest(build_manifest(plan, sources))
    if not quiet:
        print(
            f"Run {plan.run_id}: {len(plan.conditions)} conditions, {len(plan.shards)} shards -> {store.url}",
            file=sys.stderr,
        )
    try:
        with reporting(store.objects, "run") as status:
            with _session(plan, store, quiet=quiet):
                outcome = _execute(plan, store, status, quiet=quiet)
            if not outcome.done + outcome.skipped:
                outcome.raise_if_incomplete()
            status.tell(stage="judging")
            score_deferred(plan, store, quiet=quiet)
    except KeyboardInterrupt:
        print("Interrupted. Committed shards are kept; the same command resumes the run.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (IncompleteRunError, PrerequisiteError):
        if store.committed():  # a judge is missing, the trajectories are there
            compact(store)
        raise
    compact(store, known=outcome.merged)
    return store, outcome


def absolute(root: str) -> str:
    """A local root as an absolute path (replicas may have another working directory); URLs as they are."""
    return root if "://" in root else str(Path(root).expanduser().resolve())


def shorthands(
    limit: int | None,
    output: str | None,
    executor: str | None,
    source: str,
    overrides: list[str] | None,
    kind: Kind = "run",
) -> list[str]:
    """`--limit`, `--out` and `--executor` as the `--set` they stand for."""
    extra = []
    if output is not None:
        extra.append(f"output.root={output}")
    if executor is not None:
        extra.append(f"execution.executor={executor}")
    if limit is not None:
        sets = len(load(source, overrides, kind).config.prompts)
        extra += [f"prompts.{index}.limit={limit}" for index in range(sets)]
    return extra


def _with_guardrails(source: str, overrides: list[str], files: Sequence[Path]) -> list[str]:
    """`--guardrail` as the `--set` it stands for: the configured guardrails and those of the files."""
    if not files:
        return []
    stacks = [guardrail.model_dump(mode="json") for guardrail in load(source, overrides).config.guardrails]
    stacks += [read_guardrail(file).model_dump(mode="json") for file in files]
    return [f"guardrails={json.dumps(stacks)}"]


def _session(plan: Plan, store: RunStore, *, quiet: bool) -> AbstractContextManager[Any]:
    """A Ray session around the execution where Ray is used and there is work; its dashboard address is printed."""
    from dsprobe.actors.executor import missing_shards

    if plan.config.execution.executor != "ray" or not missing_shards(plan, store):
        return nullcontext()
    return announced_session(plan.config.execution, quiet=quiet)


@contextmanager
def announced_session(execution: ExecutionConfig, *, quiet: bool) -> Iterator[Session]:
    """A Ray session; says on standard error where its dashboard is."""
    from dsprobe.actors.session import ray_session

    with ray_session(execution) as session:
        if not quiet:
            token = f" (token: {session.token_path})" if session.dashboard_url and session.token_path else ""
            print(f"Ray dashboard: {session.dashboard_url or 'off'}{token}", file=sys.stderr)
        yield session


def _execute(plan: Plan, store: RunStore, status: StatusWriter, *, quiet: bool) -> ExecutionReport:
    from dsprobe.actors.executor import execute
    from dsprobe.storage.status import told

    with show_progress(quiet=quiet) as progress:
        return execute(plan, store, progress=told(status, progress, "trajectories"))


def _write_report(store: RunStore, show_text: bool) -> str:
    from dsprobe.cli.results import write_report

    return write_report(store, show_text=show_text)


def _raw_dropped(plan: Plan, store: RunStore) -> dict[str, int]:
    """Trajectories that the raw logs had no room for; the commit records are read only where raw logs are kept."""
    dropped: Counter[str] = Counter()
    if plan.config.recording.raw.keep:
        for record in store.committed().values():
            dropped.update(record.raw_dropped)
    return dict(dropped)


def _conclude(plan: Plan, store: RunStore, outcome: ExecutionReport, path: str | None, as_json: bool) -> None:
    dropped = _raw_dropped(plan, store)
    if as_json:
        emit({"run_id": plan.run_id, "url": store.url, "complete": outcome.complete, "shards_done": len(outcome.done),
              "shards_skipped": len(outcome.skipped), "shards_elsewhere": len(outcome.elsewhere),
              "retries": len(outcome.retried), "report": path,
              "failed": [{"shard": f.shard_id, "condition": f.condition, "reason": f.reason} for f in outcome.failed],
              "raw_dropped": dropped, "wall_seconds": outcome.wall_seconds})  # fmt: skip
        return
    if outcome.elsewhere:
        print(f"Another driver works on this run; it committed {len(outcome.elsewhere)} shards.", file=sys.stderr)
    for failure in outcome.retried:
        print(f"Retried {failure.condition} ({failure.shard_id}): {failure.reason}", file=sys.stderr)
    print(
        f"{len(outcome.done)} shards run, {len(outcome.skipped)} done before, {outcome.wall_seconds:.1f} s",
        file=sys.stderr,
    )
    for what, count in dropped.items():
        if count:
            print(
                f"Warning: the raw logs have no {what} of {count} trajectories: recording.raw.max_bytes or "
                "max_shard_bytes leaves no room for them.",
                file=sys.stderr,
            )
    print(f"Tables: {store.url}/tables")
    if path is not None:
        print(f"Report: {path}")
