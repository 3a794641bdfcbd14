"""`dsprobe preflight`: everything that must hold before a GPU is asked for, in one table."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dsprobe.cli.options import ConfigArgument, JsonOption, SetOption, emit, load, load_sweep

if TYPE_CHECKING:
    from dsprobe.actors.preflight import Preflight, Subject
    from dsprobe.config import OutputConfig, RunConfig
    from dsprobe.experiment.cost import Cost
    from dsprobe.experiment.estimate import Estimate
    from dsprobe.sweeps.config import SweepConfig


class JobKind(StrEnum):
    """What a configuration is for."""

    RUN = "run"
    SWEEP = "sweep"
    TRANSFER = "transfer"


def preflight(
    config: ConfigArgument,
    kind: Annotated[JobKind, typer.Option(help="Which command the configuration is for.")] = JobKind.RUN,
    overrides: SetOption = None,
    local: Annotated[
        bool, typer.Option("--local", help="Only what needs neither the cluster nor its storage.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check models, prompts, judges, output root, resources and cost before anything asks for a GPU.

    All failed checks are shown. Exit 1 where something is missing, 2 where the configuration is wrong.
    """
    found = checked(config, kind, overrides, local=local)
    if as_json:
        emit({"kind": kind.value, **found.to_dict()})
    else:
        show(found)
    refuse_failed(found)


def checked(config: str, kind: JobKind, overrides: list[str] | None, *, local: bool) -> Preflight:
    """Load a configuration and make the checks.

    Args:
        config: File or recipe.
        kind: Which command it is for.
        overrides: ``--set`` values.
        local: Leave out what needs the cluster.

    Raises:
        ConfigError: The configuration cannot be read, so that nothing else can be checked.
    """
    from dsprobe.actors.preflight import preflight as look

    if kind is JobKind.SWEEP:
        return look(_sweep_subject(load_sweep(config, overrides).config), local=local)
    loaded = load(config, overrides, "transfer" if kind is JobKind.TRANSFER else "run")
    return look(_run_subject(loaded.config, kind), local=local)


def refuse_failed(found: Preflight) -> None:
    """Exit where a check failed: with 2 if the configuration is at fault, else with 1."""
    if found.failed:
        raise typer.Exit(2 if any(check.usage for check in found.failed) else 1)


def show(found: Preflight) -> None:
    """Print the findings on standard error and the estimate on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsprobe.untrusted import redacted
    from dsprobe.visible_text import visible

    table = Table(title="Pre-flight", title_justify="left")
    for column in ("check", "state", "detail"):
        table.add_column(column, overflow="fold")
    styles = {"ok": "green", "failed": "bold red"}
    for check in found.checks:
        detail = Text(visible(redacted(check.detail).replace("\n", " ")))
        table.add_row(Text(visible(check.name)), Text(check.state, styles.get(check.state, "yellow")), detail)
    Console(stderr=True).print(table)
    if found.estimate is not None:
        for line in work_lines(found.estimate, found.cost):
            print(line)
    if found.failed:
        print(f"{len(found.failed)} of {len(found.checks)} checks failed.", file=sys.stderr)


def work_lines(work: Estimate, cost: Cost | None) -> list[str]:
    """An estimate in words, with what it assumes.

    Args:
        work: Counts.
        cost: What they cost; `None` where that is not known.
    """
    lines = [
        f"{work.trajectories} trajectories, {work.forward_passes} row forward passes, about "
        f"{work.disk_bytes / 2**20:.1f} MiB on disk"
    ]
    if cost is None:
        return lines
    parts = []
    if cost.gpu is not None:
        parts.append(
            f"{cost.gpu_hours:.2g} hours of one {cost.gpu} ({cost.wall_hours:.2g} h on all replicas), "
            f"{cost.usd:.2f} USD on demand, {cost.usd_spot:.2f} USD on spot"
        )
    if cost.cpu_hours:
        parts.append(
            f"{3600 * cost.cpu_hours:.0f} CPU seconds" if cost.cpu_hours < 1 else f"{cost.cpu_hours:.1f} CPU h"
        )
    return [*lines, f"At most about {' and '.join(parts)}. Assumed: {'; '.join(cost.assumptions)}."]


def _run_subject(config: RunConfig, kind: JobKind) -> Subject:
    from dsprobe.actors.preflight import Resolved, Subject
    from dsprobe.cli.transferring import require_both_kinds
    from dsprobe.experiment.cost import Part
    from dsprobe.experiment.plan import resolve

    def resolved() -> Resolved:
        plan = resolve(config)
        if kind is JobKind.TRANSFER:
            require_both_kinds(plan)
        summary = f"{len(plan.conditions)} conditions, {len(plan.shards)} shards"
        return Resolved(id=plan.run_id, parts=[Part(plan=plan)], summary=summary)

    prompts = {prompts.key: prompts for prompts in config.prompts}
    return Subject(models=config.models, prompts=prompts, judges=config.judges, execution=config.execution,
                   output=_absolute(config.output), resolve=resolved)  # fmt: skip


def _sweep_subject(config: SweepConfig) -> Subject:
    from dsprobe.actors.preflight import Resolved, Subject
    from dsprobe.sweeps.cost import sweep_parts
    from dsprobe.sweeps.pipeline import resolve_sweep

    def resolved() -> Resolved:
        sweep = resolve_sweep(config)
        summary = f"{config.search.trials} trials of {len(sweep.plan.conditions)} conditions"
        return Resolved(id=sweep.id, parts=sweep_parts(sweep), summary=summary)

    run = config.experiment
    prompts = {prompts.key: prompts for prompts in run.prompts}
    prompts |= {f"{prompts.key} (validation)": prompts for prompts in config.validation}
    return Subject(models=[*run.models, *config.fluency], prompts=prompts, judges=run.judges, execution=run.execution,
                   output=_absolute(config.output), resolve=resolved)  # fmt: skip


def _absolute(output: OutputConfig) -> OutputConfig:
    from dsprobe.cli.running import absolute

    return output.model_copy(update={"root": absolute(output.root)})
