"""`dsprobe compare`: the levels of an axis against its baseline on the same rows, with paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from dsprobe.cli.options import JsonOption, SetOption, emit, load
from dsprobe.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dsprobe.metrics.intervals import Interval
    from dsprobe.metrics.paired import PairedEstimate
    from dsprobe.storage.comparing import AxisComparison, Cell, Choice, Comparison, Outcome
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
    limit: Annotated[int | None, typer.Option(min=1, help="Recipes: keep the first N prompts of every set.")] = None,
    output: Annotated[str | None, typer.Option("--out", help="Recipes: output root, a folder or URL.")] = None,
    executor: Annotated[str | None, typer.Option(help="Recipes: ray or local.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown tables on standard output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare guardrails, decodings, attacks or models on the same prompts: paired intervals, tests, Holm."""
    from dsprobe.cli.running import shorthands
    from dsprobe.storage.comparing import compare_run

    if markdown and as_json:
        raise ConfigError("--json and --markdown exclude each other.")
    request = _Request(axis, baseline, judge or [])
    settings = [*(overrides or ()), *_given(limit=limit, out=output, executor=executor)]
    if _is_experiment(source):
        values = [*(overrides or ()), *shorthands(limit, output, executor, source, overrides)]
        store, choice = _carried_out(source, values, request, quiet=as_json)
    elif settings:
        raise ConfigError(f"`{settings[0]}` changes what is run, and `{source}` is a finished run. Leave it out.")
    else:
        store = _opened(source)
        manifest = store.manifest()
        choice = request.choose(manifest["config"], manifest["judges"])
    found = compare_run(store, choice)
    if as_json:
        emit(_document(store, found))
    else:
        _print_markdown(found) if markdown else _print_terminal(found)


@dataclass(frozen=True, slots=True)
class _Request:
    """What the options ask for."""

    axis: str | None
    baseline: str | None
    judges: Sequence[str]

    def choose(self, config: dict[str, Any], judges: dict[str, str]) -> Choice:
        """See `dsprobe.storage.comparing.choose`."""
        from dsprobe.storage.comparing import choose

        return choose(config, judges, self.axis, self.baseline, self.judges)


def _given(**options: Any) -> list[str]:
    return [f"--{name}" for name, value in options.items() if value is not None]


def _is_experiment(source: str) -> bool:
    """Whether a source is something to run: a file or the name of a recipe."""
    from dsprobe.sweeps.library import recipes

    return Path(source).is_file() or source in recipes("run") or Path(source).suffix in (".yaml", ".yml")


def _carried_out(source: str, values: list[str], request: _Request, *, quiet: bool) -> tuple[RunStore, Choice]:
    """Check the request, then run what is missing of the experiment."""
    from dsprobe.cli.running import carry_out
    from dsprobe.experiment.plan import resolve
    from dsprobe.judges import JUDGES

    loaded = load(source, values)
    plan = resolve(loaded.config)
    judges = {judge.key: str(JUDGES.get(judge.name).decides) for judge in loaded.config.judges}
    choice = request.choose(loaded.config.model_dump(mode="json"), judges)
    store, outcome = carry_out(plan, loaded.sources, quiet=quiet)
    outcome.raise_if_incomplete()
    return store, choice


def _opened(source: str) -> RunStore:
    from dsprobe.storage.query import open_run
    from dsprobe.sweeps.library import recipes

    if "://" not in source and not Path(source).exists() and not Path("runs", source).exists():
        runs = [path.name for path in Path("runs").glob("*") if path.is_dir()]
        raise unknown_name("run or recipe", source, [*recipes("run"), *runs])
    return open_run(source)


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


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table, ready to be printed anywhere. Texts are plain and may hold anything a user named."""

    title: str
    note: str
    headings: list[str]
    rows: list[list[str]]
    labels: int
    """Number of leading columns that are labels; the rest are numbers."""


_TITLES: Final = {
    "harm": "Harm on harmful requests",
    "refusal": "Refusal of benign requests",
    "utility": "Utility on benign requests",
    "fhs": "First harmful step on harmful requests",
}


def sheets(found: Sequence[AxisComparison]) -> Iterator[Sheet]:
    """One table for each axis and outcome, and one for the cost of each axis."""
    for axis in found:
        outcomes = dict.fromkeys(row.outcome for row in axis.comparisons)
        for outcome in outcomes:
            yield _outcome_sheet(axis, outcome, [row for row in axis.comparisons if row.outcome == outcome])
        yield _cost_sheet(axis)


def _outcome_sheet(axis: AxisComparison, outcome: Outcome, family: Sequence[Comparison]) -> Sheet:
    timed = outcome.name == "fhs"
    spec, difference = (".1f", _steps) if timed else (".1%", _points)
    cells = _CellLabels(row.cell for row in family)
    beside = next((row.estimate.beside.method for row in family if row.estimate.beside), None)
    rows = []
    for row in family:
        estimate = row.estimate
        numbers = [
            str(estimate.pairs),
            *([] if timed else [_left_out(estimate)]),
            _shown(estimate.baseline, spec),
            _shown(estimate.level, spec),
            difference(estimate.difference),
            _p(estimate.test.p_value),
            _p(row.p_holm) + " *" * row.supported,
            *([_p(estimate.beside.p_value if estimate.beside else math.nan)] if beside else []),
        ]
        rows.append([*cells.of(row.cell), row.level, *numbers])
    headings = [*cells.headings, axis.axis, "pairs", *([] if timed else ["left out"]), axis.baseline, "level"]
    headings += ["difference", "p", "p Holm", *([f"{beside} p"] if beside else [])]
    title = f"{_TITLES[outcome.name]}, {outcome.by}{' view' if timed else ''}: {axis.axis} against {axis.baseline}"
    return Sheet(title, " ".join(_notes(axis, family)), headings, rows, len(cells.headings) + 1)


def _left_out(estimate: PairedEstimate) -> str:
    """Pairs left out, with the rows of either side that have no verdict."""
    if not estimate.left_out:
        return "0"
    return f"{estimate.left_out} ({estimate.undefined_baseline} + {estimate.undefined_level})"


def _notes(axis: AxisComparison, family: Sequence[Comparison]) -> Iterator[str]:
    """How a family's numbers were made, and what was left out."""
    first, timed = family[0].estimate, family[0].outcome.name == "fhs"
    if timed:
        yield f"Mean steps spent unharmed, horizon {_horizons(axis, family)} steps;"
    else:
        yield f"Rates with intervals ({first.level.method}); percentage points,"
    tests = " or ".join(dict.fromkeys(row.estimate.test.method for row in family))
    yield f"level minus {axis.baseline} ({first.difference.method}). p: {tests}. p Holm: this table is one family of"
    yield f"{len(family)}; * supported."
    if any(row.estimate.left_out for row in family):
        yield f"Left out: pairs without a verdict, e.g. empty replies (rows of {axis.baseline} + rows of the level)."
    if unmatched := sum(row.unmatched for row in family):
        yield f"{unmatched} rows have no partner and are not counted."
    if timed and axis.axis != "guardrail":
        unlike = (_unlike_steps(axis.longest[row.cell]) for row in family)
        yield from dict.fromkeys(text for text in unlike if text)


def _horizons(axis: AxisComparison, family: Sequence[Comparison]) -> str:
    longest = sorted({max(axis.longest[row.cell].values()) for row in family})
    return str(longest[0]) if len(longest) == 1 else f"{longest[0]} to {longest[-1]}"


def _unlike_steps(longest: Mapping[str, int]) -> str:
    """A warning where levels take different numbers of steps."""
    if len(set(longest.values())) == 1:
        return ""
    steps = ", ".join(f"{level} {count}" for level, count in longest.items())
    return f"Longest trajectories differ ({steps}): their steps are not alike."


def _cost_sheet(axis: AxisComparison) -> Sheet:
    cells = _CellLabels(row.cell for row in axis.costs)
    rows = [[*cells.of(row.cell), row.level, str(row.pairs), _shown(row.ratio, ".2f")] for row in axis.costs]
    note = f"Forward passes × canvas positions, level over {axis.baseline} ({axis.costs[0].ratio.method})."
    return Sheet(
        f"Cost: {axis.axis}", note, [*cells.headings, axis.axis, "pairs", "ratio"], rows, len(cells.headings) + 1
    )


class _CellLabels:
    """The labels in which cells differ, as columns."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        columns = list(dict.fromkeys(cells))
        names = [name for name, _ in columns[0]]
        self._kept = [n for n in range(len(names)) if len({cell[n][1] for cell in columns}) > 1]
        self.headings = [names[n] for n in self._kept]

    def of(self, cell: Cell) -> list[str]:
        """A cell's entries of these columns."""
        return [cell[n][1] for n in self._kept]

    def bracketed(self, cell: Cell) -> str:
        """The entries as an addition to a name; nothing where all cells are alike."""
        return f" ({', '.join(self.of(cell))})" if self._kept else ""


def conclusion(found: Sequence[AxisComparison]) -> str:
    """One sentence: which differences survive."""
    from dsprobe.storage.comparing import ALPHA

    total = sum(len(axis.comparisons) for axis in found)
    kept = sum(row.supported for axis in found for row in axis.comparisons)
    scope = f"Supported at {ALPHA:.0%} after Holm (one family per axis and outcome): {kept} of {total} differences."
    return " ".join([scope, *(f"{text}." for axis in found for text in _surviving(axis))])


def _surviving(axis: AxisComparison) -> Iterator[str]:
    """The differences of each outcome that survive."""
    for outcome in dict.fromkeys(row.outcome for row in axis.comparisons):
        family = [row for row in axis.comparisons if row.outcome == outcome]
        cells = _CellLabels(row.cell for row in family)
        show, unit = (_steps, "steps") if outcome.name == "fhs" else (_points, "pp")
        texts = [
            f"{row.level}{cells.bracketed(row.cell)} {show(row.estimate.difference).split(' [')[0]} {unit}"
            for row in family
            if row.supported
        ]
        if texts:
            yield f"{outcome.name} ({outcome.by}) against {axis.baseline}: {', '.join(texts)}"


def _shown(interval: Interval, spec: str) -> str:
    return "–" if math.isnan(interval.value) else format(interval, spec).replace("inf", "∞")


def _points(interval: Interval) -> str:
    """A difference of rates in percentage points."""
    return _signed(100 * interval.value, 100 * interval.low, 100 * interval.high)


def _steps(interval: Interval) -> str:
    return _signed(interval.value, interval.low, interval.high)


def _signed(value: float, low: float, high: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _print_terminal(found: Sequence[AxisComparison]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsprobe.reports.text import visible

    console = Console()
    for sheet in sheets(found):
        table = Table(box=None, header_style="bold", padding=(0, 1))
        table.title, table.title_justify, table.title_style = Text(visible(sheet.title)), "left", "bold"
        table.caption, table.caption_justify = Text(visible(sheet.note)), "left"
        for index, heading in enumerate(sheet.headings):
            justify: Literal["left", "right"] = "left" if index < sheet.labels else "right"
            table.add_column(Text(visible(heading)), justify=justify, overflow="fold")
        for row in sheet.rows:
            texts = [visible(cell) for cell in row]
            numbers = (text.replace(" [", "\n[") for text in texts[sheet.labels :])
            table.add_row(*(Text(text) for text in (*texts[: sheet.labels], *numbers)))
        console.print(table)
        console.print()
    print(visible(conclusion(found)))


def _print_markdown(found: Sequence[AxisComparison]) -> None:
    from dsprobe.reports.text import escape_markdown

    for sheet in sheets(found):
        print(f"### {escape_markdown(sheet.title)}\n")
        print(_markdown_row(escape_markdown(heading) for heading in sheet.headings))
        print(_markdown_row(["---"] * sheet.labels + ["---:"] * (len(sheet.headings) - sheet.labels)))
        for row in sheet.rows:
            numbers = (number.replace("*", "\\*") for number in row[sheet.labels :])
            print(_markdown_row([*(escape_markdown(label) for label in row[: sheet.labels]), *numbers]))
        print(f"\n{escape_markdown(sheet.note)}\n")
    print(escape_markdown(conclusion(found)))


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
