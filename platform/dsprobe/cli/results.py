"""Commands on a finished (or half-finished) run: `compact`, `report`, `query`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.options import JsonOption, RunArgument, ShowTextOption, emit

if TYPE_CHECKING:
    from dsprobe.reports.data import ReportData
    from dsprobe.reports.sweep_data import SweepData
    from dsprobe.storage.run_store import RunStore


class Format(StrEnum):
    """Output formats of `dsprobe query`."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def compact(
    run: RunArgument,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Write every partition, also those whose shards and scores are the same.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a run's tables from its committed shards and scores; only what has changed is written."""
    from dsprobe.storage.compaction import compact as make_tables
    from dsprobe.storage.query import open_run

    store = open_run(run)
    make_tables(store, rebuild=rebuild)
    shards = len(store.committed())
    emit({"url": store.url, "shards": shards}) if as_json else print(f"Tables of {shards} shards: {store.url}/tables")


def report(run: RunArgument, show_text: ShowTextOption = False, as_json: JsonOption = False) -> None:
    """Write a run's report: index.html, report.md, summary.json and figures."""
    from dsprobe.storage.query import open_run

    path = write_report(open_run(run), show_text=show_text)
    emit({"report": path}) if as_json else print(path)


def query(
    run: RunArgument,
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help='e.g. "SELECT attack, avg(tri_predicted) FROM trajectories GROUP BY 1"')
    ],
    output: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Ask a run's tables in SQL (DuckDB): trajectories, steps, positions, step_stats, position_stats."""
    from dsprobe.storage.query import query as ask

    rows = ask(run, sql)
    if as_json or output is Format.JSON:
        emit(rows.to_pylist())
    elif output is Format.CSV:
        import sys

        from pyarrow import csv

        csv.write_csv(rows, sys.stdout.buffer)
    else:
        _print_table(rows)


def _print_table(rows: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in rows.column_names:
        table.add_column(Text(column))
    for row in rows.to_pylist():
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    """Plain text of a value; control characters that a model may have written are shown, not obeyed."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def write_report(store: RunStore, *, show_text: bool) -> str:
    """Build a run's report and put it into the run's folder.

    Args:
        store: The run.
        show_text: Show text of real prompt sets.

    Returns:
        Path or URL of ``index.html``.
    """
    from dsprobe.reports.build import build_report
    from dsprobe.telemetry.spans import span

    with span("report"), tempfile.TemporaryDirectory() as folder:
        build_report(report_data(store, show_text=show_text), Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            store.objects.put(f"report/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"{store.url}/report/index.html"


def report_data(store: RunStore, *, show_text: bool) -> ReportData:
    """Read what a report needs: a run's tables and manifest, or a sweep's front with the run of its chosen settings.

    Raises:
        StorageError: Tables are missing, or the sweep has no front.
    """
    manifest = store.manifest()
    if "sweep" in manifest:
        return _sweep_report_data(store, manifest["sweep"]["search"], show_text=show_text)
    return _run_report_data(store, manifest, None, show_text=show_text)


def _sweep_report_data(store: RunStore, search: dict[str, Any], *, show_text: bool) -> ReportData:
    from dsprobe.errors import StorageError
    from dsprobe.reports.sweep_data import SweepData
    from dsprobe.storage.run_store import RunStore
    from dsprobe.sweeps.exports import read_front, read_trials

    front = read_front(store.objects)
    if front["validation_run"] is None:
        raise StorageError(f"{store.url}: no setting beats the unguarded model, so there is no front to report.")
    facts = {**search, "sampler": search["sampler"]["name"]}
    data = SweepData.from_parts(front, read_trials(store.objects), facts)
    recorded = RunStore.at(f"{store.url.rpartition('/')[0]}/{front['validation_run']}", store.objects.s3)
    return _run_report_data(recorded, recorded.manifest(), data, show_text=show_text)


def _run_report_data(
    store: RunStore, manifest: dict[str, Any], sweep: SweepData | None, *, show_text: bool
) -> ReportData:
    from dsprobe.experiment.judge_agreement import calibrations
    from dsprobe.reports.data import ReportData
    from dsprobe.storage.decided import read_decided
    from dsprobe.storage.human_labels import read_labels
    from dsprobe.storage.query import read_table, run_judges

    sets, judges = manifest["prompt_sets"], run_judges(store)
    names = ("trajectories", "steps", "positions", "step_stats", "position_stats")
    tables = {name: read_table(store, name) for name in names}
    labels = read_labels(store, tables["trajectories"])
    return ReportData(
        manifest=manifest,
        **tables,
        decode_token=_token_decoder(manifest["config"]["models"]),
        judges=judges,
        theta=manifest["config"]["risk"]["threshold"],
        synthetic_sets={name for name, facts in sets.items() if facts["synthetic"]},
        limited_sets={name for name, facts in sets.items() if facts["limited"]},
        show_text=show_text,
        sweep=sweep,
        hypotheses=read_decided(store),
        labelled=calibrations(tables["trajectories"], judges, labels),
    )


def _token_decoder(models: list[dict[str, Any]]) -> Callable[[str, int], str]:
    """A function from (model, token id) to text, loading each tokenizer once and no weights."""
    from dsprobe.config import ModelConfig
    from dsprobe.models.checkpoint import inspect_checkpoint
    from dsprobe.models.tokenization import load_tokenizer

    facts = {model["name"]: inspect_checkpoint(ModelConfig.model_validate(model)) for model in models}
    tokenizers = {name: load_tokenizer(fact.path, fact) if fact.path else None for name, fact in facts.items()}

    @cache
    def decode(model: str, token_id: int) -> str:
        tokenizer = tokenizers[model]
        if tokenizer is None or not 0 <= token_id < len(tokenizer):
            return f"[{token_id}]"
        return str(tokenizer.decode([token_id]))

    return decode
