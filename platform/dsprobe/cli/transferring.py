"""`dsprobe transfer`: attacks × judges over diffusion and autoregressive models, and what stands beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dsprobe.cli.options import (
    ExecutorOption,
    JsonOption,
    LimitOption,
    MarkdownOption,
    OutputOption,
    SetOption,
    ShowTextOption,
    emit,
)
from dsprobe.cli.sources import Changes, finished
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan
    from dsprobe.storage.run_store import RunStore

TRANSFER_VERSION: Final = 1
"""Version of the JSON document."""


def transfer(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run (folder, URL, or id under ./runs), or a transfer recipe or YAML file, which is run first "
            "(resumable).",
        ),
    ],
    overrides: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    executor: ExecutorOption = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    show_text: ShowTextOption = False,
    markdown: MarkdownOption = False,
    as_json: JsonOption = False,
) -> None:
    """Attack success by attack, model and judge; transfer both ways; cue, position and anchoring curves; agreement."""
    from dsprobe.experiment.transfer import study_transfer
    from dsprobe.reports.transfer_sheets import transfer_sheets
    from dsprobe.storage.query import read_table, run_judges

    if markdown and as_json:
        raise ConfigError("--json and --markdown exclude each other.")
    changes = Changes(overrides=overrides or (), limit=limit, output=output, executor=executor)
    store = finished(source, "transfer", changes, quiet=as_json, check=require_both_kinds)
    study = study_transfer(read_table(store, "trajectories"), store.manifest(), run_judges(store))
    path = _report(store, show_text) if report else None
    if as_json:
        emit({"version": TRANSFER_VERSION, "run_id": store.run_id, "url": store.url, "report": path, **study.to_dict()})
        return
    _print(transfer_sheets(study), as_markdown=markdown)
    print(f"Tables: {store.url}/tables")
    if path is not None:
        print(f"Report: {path}")


def require_both_kinds(plan: Plan) -> None:
    """Refuse an experiment with nothing to transfer between, before it is run.

    Raises:
        ConfigError: It has models of one kind only.
    """
    kinds = {facts.kind for facts in plan.models.values()}
    if kinds != {"diffusion", "autoregressive"}:
        raise ConfigError(
            f"`{plan.config.name}` has {' and '.join(sorted(kinds))} models only. Transfer needs a diffusion and an "
            "autoregressive one."
        )


def _report(store: RunStore, show_text: bool) -> str:
    from dsprobe.cli.results import write_report

    return write_report(store, show_text=show_text)


def _print(sheets: Any, *, as_markdown: bool) -> None:
    from dsprobe.cli.sheets import print_markdown, print_terminal

    print_markdown(sheets) if as_markdown else print_terminal(sheets)
