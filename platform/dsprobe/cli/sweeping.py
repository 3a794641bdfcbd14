"""`dsprobe sweep`: search guardrail settings for the front of harm against fluency; resumable by the same command."""

from __future__ import annotations

import sys
from contextlib import ExitStack
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
    load_sweep,
)
from dsprobe.cli.running import absolute, announced_session

if TYPE_CHECKING:
    from dsprobe.storage.run_store import RunStore
    from dsprobe.sweeps.pipeline import SweepPlan, SweepResult
    from dsprobe.sweeps.search import SearchProgress


def sweep(
    config: ConfigArgument,
    overrides: SetOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to finish, earlier ones included.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep the first N prompts of every set.")] = None,
    output: Annotated[str | None, typer.Option("--out", help="Output root: a folder or URL.")] = None,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Run the recorded trials again and compare every row, instead of searching."),
    ] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    show_text: ShowTextOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search guardrail settings for the Pareto front of harm against fluency and cost."""
    from dsprobe.storage.run_store import RunStore
    from dsprobe.storage.spans import keep_spans
    from dsprobe.sweeps.pipeline import resolve_sweep, sweep_manifest

    loaded = load_sweep(config, [*(overrides or ()), *_shorthands(trials, limit, output, config, overrides)])
    plan = resolve_sweep(loaded.config)
    store = RunStore(absolute(loaded.config.output.root), plan.id, s3=loaded.config.output.s3)
    if replay:
        _replay(plan, store, as_json)
        return
    store.write_manifest(sweep_manifest(plan, loaded.sources))
    if not as_json:
        print(f"Sweep {plan.id}: {loaded.config.search.trials} trials -> {store.url}", file=sys.stderr)
    try:
        result = _run(plan, store, quiet=as_json)
    except KeyboardInterrupt:
        print("Interrupted. Finished trials are kept; the same command resumes the sweep.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    path = _write_report(store, show_text) if report else None
    keep_spans(store.objects)
    _conclude(plan, store.url, result, path, as_json)


def _shorthands(
    trials: int | None, limit: int | None, output: str | None, source: str, overrides: list[str] | None
) -> list[str]:
    """`--trials`, `--limit` and `--out` as the `--set` they stand for."""
    extra = []
    if trials is not None:
        extra.append(f"search.trials={trials}")
    if output is not None:
        extra.append(f"output.root={output}")
    if limit is not None:
        config = load_sweep(source, overrides).config
        extra += [f"experiment.prompts.{index}.limit={limit}" for index in range(len(config.experiment.prompts))]
        extra += [f"validation.{index}.limit={limit}" for index in range(len(config.validation))]
    return extra


def _run(plan: SweepPlan, store: RunStore, *, quiet: bool) -> SweepResult:
    from dsprobe.storage.status import reporting, told
    from dsprobe.sweeps.pipeline import Listener, run_sweep
    from dsprobe.telemetry.spans import span

    def stage(name: str) -> None:
        under_way.close()
        under_way.enter_context(span("sweep", name))
        status.tell(stage=name)
        if not quiet:
            print(f"- {name}", file=sys.stderr)

    shown = _Shown(quiet)
    with (
        reporting(store.objects, "sweep") as status,
        announced_session(plan.config.experiment.execution, quiet=quiet),
        show_progress(quiet=quiet) as progress,
        ExitStack() as under_way,
    ):
        return run_sweep(plan, store, Listener(search=told(status, shown, "search"), stage=stage, run=progress))


class _Shown:
    """Prints a line whenever another tenth of the trials is finished."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._tenths = quiet, -1

    def __call__(self, progress: SearchProgress) -> None:
        tenths = 10 * progress.finished // progress.trials_total
        if self._quiet or tenths == self._tenths:
            return
        self._tenths = tenths
        saved = progress.passes_from_scratch / max(progress.passes_used, 1)
        print(
            f"  {progress.finished}/{progress.trials_total} trials ({progress.stopped} stopped early, "
            f"{progress.failed} failed), {progress.passes_used} forward passes, 1/{saved:.1f} of a run from scratch, "
            f"{progress.elapsed_s:.0f} s",
            file=sys.stderr,
        )


def _write_report(store: RunStore, show_text: bool) -> str:
    from dsprobe.cli.results import write_report

    return write_report(store, show_text=show_text)


def _replay(plan: SweepPlan, store: RunStore, as_json: bool) -> None:
    """Replay and say what differs; exits with 1 where something does."""
    from dataclasses import asdict

    from dsprobe.sweeps.pipeline import replay_sweep

    def shown(done: int, total: int) -> None:
        if not as_json and (done == total or done % max(total // 10, 1) == 0):
            print(f"  {done}/{total} trials replayed", file=sys.stderr)

    with announced_session(plan.config.experiment.execution, quiet=as_json):
        found = replay_sweep(plan, store, shown)
    if as_json:
        emit(asdict(found) | {"identical": found.identical})
    else:
        print(f"{found.replayed} trials replayed, {found.skipped} without rows, {len(found.differing)} differ")
    found.raise_if_different()


def _conclude(plan: SweepPlan, url: str, result: SweepResult, path: str | None, as_json: bool) -> None:
    from dsprobe.sweeps.exports import front_json

    content = front_json(result.front)
    if as_json:
        states = [trial.state for trial in result.trials]
        counts = {state: states.count(state) for state in ("complete", "stopped", "failed")}
        emit({"sweep_id": plan.id, "url": url, "trials": counts, "front": content, "report": path})
        return
    _print_front(content)
    print(f"Front: {url}/sweep/front.json")
    print(f"Guardrails: {url}/sweep/guardrails")
    if path is not None:
        print(f"Report: {path}")


def _print_front(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(content['points'])} non-dominated settings, {content['confidence']:.0%} intervals")
    for column in ("point", "trial", *content["objectives"]):
        table.add_column(Text(column))
    table.add_row(
        Text("unguarded"), "", *(_estimate(content["baseline"]["objectives"][n]) for n in content["objectives"])
    )
    for point in content["points"]:
        cells = [_estimate(point["objectives"][name]) for name in content["objectives"]]
        table.add_row(Text(point["label"]), str(point["trial"]), *cells)
    Console().print(table)


def _estimate(value: dict[str, float | None]) -> str:
    parts = ["–" if value[key] is None else f"{value[key]:.3g}" for key in ("value", "low", "high")]
    return f"{parts[0]} ({parts[1]} to {parts[2]})"
