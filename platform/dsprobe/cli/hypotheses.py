"""`dsprobe hypotheses`: are the programme's hypotheses supported by a run? By rules that were written before."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.options import ExecutorOption, JsonOption, LimitOption, MarkdownOption, OutputOption, SetOption, emit
from dsprobe.cli.sheets import print_markdown, print_terminal
from dsprobe.cli.sources import Changes, finished
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dsprobe.experiment.hypothesis_forks import ForkedRows
    from dsprobe.reports.sheets import Sheet
    from dsprobe.storage.run_store import RunStore


def hypotheses(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A run (folder, URL, or id under ./runs), or a recipe or YAML file, which is run first (resumable).",
        ),
    ] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print the rules and their digest; needs no run.")] = False,
    irreversibility: Annotated[
        bool, typer.Option(help="Run the irreversibility experiment where the run has none.")
    ] = True,
    overrides: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    executor: ExecutorOption = None,
    markdown: MarkdownOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide H1 to H6: supported, not supported or undecided, by rules written before the data. Exit 0 in any case."""
    from dsprobe.metrics.preregistration import rules_document
    from dsprobe.reports.hypothesis_sheets import decided_sheets, rules_name, rules_sheets

    if markdown and as_json:
        raise ConfigError("--json and --markdown exclude each other.")
    if rules:
        document = rules_document()
        if as_json:
            emit(document)
        else:
            lines = [f"Stop rule: {document['stop_rule']}", rules_name(document)]
            _print(rules_sheets(document), lines, as_markdown=markdown)
        return
    if source is None:
        raise ConfigError("Give a run or a recipe, e.g. `dsprobe hypotheses toy`; `--rules` alone needs none.")
    changes = Changes(overrides=overrides or (), limit=limit, output=output, executor=executor)
    store = finished(source, "hypotheses", changes, quiet=as_json)
    document = decide_run(store, irreversibility=irreversibility, quiet=as_json)
    if as_json:
        emit({**document, "url": store.url})
        return
    lines = [document["stop"]["sentence"], rules_name(document), f"Decisions: {store.url}/hypotheses.json"]
    _print(decided_sheets(document), lines, as_markdown=markdown)


def decide_run(store: RunStore, *, irreversibility: bool, quiet: bool) -> dict[str, Any]:
    """Decide the hypotheses from a run and keep the decisions in it.

    Args:
        store: A run with tables.
        irreversibility: Run the irreversibility experiment where the run has none.
        quiet: Print nothing.

    Returns:
        The document that was stored.

    Raises:
        StorageError: The run has no tables, or cannot be written.
    """
    from dsprobe.experiment.hypotheses import decide_all
    from dsprobe.storage.decided import write_decided
    from dsprobe.storage.query import read_table, run_judges

    forks = _forks(store, run=irreversibility, quiet=quiet)
    tables = [read_table(store, name) for name in ("trajectories", "steps")]
    decided = decide_all(tables[0], tables[1], store.manifest(), run_judges(store), forks)
    return write_decided(store, decided.to_dict())


def _forks(store: RunStore, *, run: bool, quiet: bool) -> ForkedRows | None:
    """The rows of the irreversibility experiment: those that the run has, or new ones."""
    from dsprobe.experiment.hypothesis_forks import ForkedRows
    from dsprobe.storage.irreversibility import read_forks

    found = read_forks(store)
    if found is not None:
        return ForkedRows(settings=found[0].settings, table=found[1])
    return _new_forks(store, quiet=quiet) if run else None


def _new_forks(store: RunStore, *, quiet: bool) -> ForkedRows | None:
    """Run the experiment with what H2 reads: the conditions of H1, the middle step of their decodings."""
    from dsprobe.cli.irreversibility import measured
    from dsprobe.decoding.schedule import planned_steps
    from dsprobe.experiment.hypothesis_conditions import answers
    from dsprobe.experiment.hypothesis_forks import ForkedRows
    from dsprobe.experiment.irreversibility import RenoiseSettings
    from dsprobe.experiment.reopening import reopen

    manifest = store.manifest()
    plan = reopen(manifest)
    conditions = answers(plan.config, manifest).risk
    if not conditions:
        return None
    middle = {max(1, planned_steps(plan.decoding(condition)) // 2) for condition in conditions}
    if not quiet:
        print(f"Irreversibility: forking {len(conditions)} conditions in this process", file=sys.stderr)
    found = measured(store, plan, conditions, RenoiseSettings(steps=tuple(sorted(middle))))
    return ForkedRows(settings=found.facts, table=found.table)


def _print(sheets: Iterable[Sheet], lines: Iterable[str], *, as_markdown: bool) -> None:
    from dsprobe.reports.text import escape_markdown
    from dsprobe.visible_text import visible

    print_markdown(sheets) if as_markdown else print_terminal(sheets)
    for line in lines:
        print(f"{escape_markdown(line)}\n" if as_markdown else visible(line))
