"""`dsprobe compare`: the levels of an axis against its baseline on the same rows, with paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dsprobe.cli.comparison_sheets import conclusion, sheets
from dsprobe.cli.options import (
    ExecutorOption,
    JsonOption,
    LimitOption,
    MarkdownOption,
    OutputOption,
    SetOption,
    emit,
    load,
)
from dsprobe.cli.sheets import print_markdown, print_terminal
from dsprobe.cli.sources import Changes, is_experiment, opened
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from dsprobe.storage.comparing import AxisComparison, Choice
    from dsprobe.storage.run_store import RunStore

COMPARISON_VERSION: Final = 1
"""Version of the JSON document."""


def compare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run (folder, URL, or id under ./runs), or a recipe or YAML file, which is run first (resumable).",
        ),
    ],
    axis: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="AXIS",
            help="guardrail, decoding, attack or model; guardrail and decoding, where they vary, when omitted.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Level to compare with; `none` for guardrails, else the first configured."),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Judge to use for the question it decides. Repeatable."),
    ] = None,
    overrides: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    executor: ExecutorOption = None,
    markdown: MarkdownOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare guardrails, decodings, attacks or models on the same prompts: paired intervals, tests, Holm."""
    from dsprobe.storage.comparing import compare_run
    from dsprobe.storage.query import run_judges

    if markdown and as_json:
        raise ConfigError("--json and --markdown exclude each other.")
    request = _Request(axis, baseline, judge or [])
    changes = Changes(overrides=overrides or (), limit=limit, output=output, executor=executor)
    if is_experiment(source, "run"):
        store, choice = _carried_out(source, changes.values(source, "run"), request, quiet=as_json)
    else:
        changes.refuse(source)
        store = opened(source, "run")
        choice = request.choose(store.manifest()["config"], run_judges(store))
    found = compare_run(store, choice)
    if as_json:
        emit(_document(store, found))
    else:
        _print(found, as_markdown=markdown)


@dataclass(frozen=True, slots=True)
class _Request:
    """What the options ask for."""

    axis: str | None
    baseline: str | None
    judges: Sequence[str]

    def choose(self, config: dict[str, Any], judges: Mapping[str, str]) -> Choice:
        """See `dsprobe.storage.comparing.choose`."""
        from dsprobe.storage.comparing import choose

        return choose(config, judges, self.axis, self.baseline, self.judges)


def _carried_out(source: str, values: list[str], request: _Request, *, quiet: bool) -> tuple[RunStore, Choice]:
    """Check the request, then run what is missing of the experiment."""
    from dsprobe.cli.running import carry_out
    from dsprobe.experiment.plan import resolve
    from dsprobe.judges import beside_generation, decides

    loaded = load(source, values)
    plan = resolve(loaded.config)
    own = beside_generation(loaded.config.judges)
    later = sorted((judge for judge in loaded.config.judges if judge not in own), key=lambda judge: judge.key)
    judges = {judge.key: decides(judge) for judge in (*own, *later)}  # in the order of `run_judges`
    choice = request.choose(loaded.config.model_dump(mode="json"), judges)
    store, outcome = carry_out(plan, loaded.sources, quiet=quiet)
    outcome.raise_if_incomplete()
    return store, choice


def _document(store: RunStore, found: Sequence[AxisComparison]) -> dict[str, Any]:
    """All numbers as JSON values; see docs/comparisons.md."""
    from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE
    from dsprobe.storage.comparing import ALPHA

    return {
        "version": COMPARISON_VERSION,
        "run_id": store.manifest()["run_id"],
        "url": store.url,
        "confidence": DEFAULT_CONFIDENCE,
        "alpha": ALPHA,
        "adjustment": "Holm, one family per axis and outcome",
        "axes": [_axis_json(axis) for axis in found],
        "conclusion": conclusion(found),
    }


def _axis_json(axis: AxisComparison) -> dict[str, Any]:
    comparisons = [
        {
            "outcome": row.outcome.name,
            "by": row.outcome.by,
            "requests": "harmful" if row.outcome.harmful else "benign",
            "cell": dict(row.cell),
            "level": row.level,
            "baseline": axis.baseline,
            "unmatched": row.unmatched,
            "estimate": row.estimate.to_dict(),
            "p_holm": None if math.isnan(row.p_holm) else row.p_holm,
            "supported": row.supported,
        }
        for row in axis.comparisons
    ]
    costs = [
        {"cell": dict(row.cell), "level": row.level, "baseline": axis.baseline, "pairs": row.pairs,
         "delta_nfe": row.ratio.to_dict()}
        for row in axis.costs
    ]  # fmt: skip
    horizons = [{"cell": dict(cell), "longest": dict(steps)} for cell, steps in axis.longest.items()]
    return {"by": axis.axis, "baseline": axis.baseline, "levels": list(axis.levels), "comparisons": comparisons,
            "costs": costs, "steps": horizons}  # fmt: skip


def _print(found: Sequence[AxisComparison], *, as_markdown: bool) -> None:
    from dsprobe.reports.text import escape_markdown
    from dsprobe.visible_text import visible

    if as_markdown:
        print_markdown(sheets(found))
        print(escape_markdown(conclusion(found)))
    else:
        print_terminal(sheets(found))
        print(visible(conclusion(found)))
