"""`dsprobe score`: verdicts added to a finished run, without generating again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.display import show_counts
from dsprobe.cli.options import EXIT_INTERRUPTED, JsonOption, RunArgument, ShowTextOption, emit
from dsprobe.cli.score_sheets import line, sheets
from dsprobe.cli.sheets import print_terminal
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from dsprobe.actors.scoring import ScoredJudge
    from dsprobe.config import ExecutionConfig, Spec
    from dsprobe.experiment.plan import Plan
    from dsprobe.judges.labels import HumanLabels
    from dsprobe.storage.run_store import RunStore


def score(
    run: RunArgument,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            metavar="JUDGE",
            help="A name, `name key=value …`, a YAML mapping, or a YAML file that lists judges. Repeatable.",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Human labels (CSV, JSON Lines) to measure the run's judges by.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Judge again where the run has scores of that key.")
    ] = False,
    cache: Annotated[bool, typer.Option(help="Keep verdicts of models and endpoints, and use kept ones.")] = True,
    executor: Annotated[str | None, typer.Option(help="ray or local; local for judges without a model.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Judge replicas; the run's when omitted.")] = None,
    num_gpus: Annotated[float | None, typer.Option(min=0, help="GPUs per replica; the run's when omitted.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Replies per batch; the run's when omitted.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Write the report again at the end.")] = False,
    show_text: ShowTextOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge the replies of a finished run: verdicts are added to its tables, and nothing is generated again.

    Shows how far the judges of a question agree and, with human labels, how often each errs and the corrected rates.
    """
    from dsprobe.actors.scoring import check_judges
    from dsprobe.judges.labels import load_labels
    from dsprobe.storage.query import open_run

    if not judge and labels is None:
        raise ConfigError("Nothing to do: give a judge (--judge), human labels (--labels), or both.")
    specs, human = parse_judges(judge or []), load_labels(labels) if labels else None
    store = open_run(run)
    check_judges(store, specs, replace=replace)
    given = {"executor": executor, "replicas": replicas, "num_gpus": num_gpus, "batch_size": batch_size}
    scored = _added(store, specs, _execution(store, specs, given), cached=cache, quiet=as_json)
    if human:
        _keep(store, human)
    path = None
    if report:
        from dsprobe.cli.results import write_report

        path = write_report(store, show_text=show_text)
    _conclude(store, scored, path, as_json)


def _keep(store: RunStore, human: HumanLabels) -> None:
    """Keep human labels in the run, beside the replies that they label."""
    from dsprobe.judges.labels import KEYS
    from dsprobe.storage.human_labels import write_labels
    from dsprobe.storage.query import read_table

    table = read_table(store, "trajectories")
    write_labels(store, table, human.match(table.select(KEYS).to_pylist()))


def score_deferred(plan: Plan, store: RunStore, *, quiet: bool) -> None:
    """Let a run's deferred judges judge the replies they have not judged; `dsprobe.storage.compaction` comes after.

    Args:
        plan: The run's plan.
        store: The run, generated.
        quiet: Print nothing.

    Raises:
        IncompleteRunError: A judge could not judge all replies; what it did judge is in the cache.
        PrerequisiteError: Ray or the resources asked for are not there.
    """
    from dsprobe.actors.scoring import unscored

    missing = unscored(store, plan.config.judges)
    for scored in _judged(store, missing, plan.config.execution, cached=True, quiet=quiet):
        if not quiet:
            print(line(scored), file=sys.stderr)


def parse_judges(given: Sequence[str]) -> list[Spec]:
    """Judges from the command line.

    Args:
        given: Each a name, a name with ``key=value`` parameters, a YAML mapping, or a file with one judge or a list.

    Raises:
        ConfigError: It is none of these.
    """
    from dsprobe.config import Spec
    from dsprobe.registry import validated

    specs = []
    for text in given:
        content, where = _content(text)
        for item in content if isinstance(content, list) else [content]:
            if not isinstance(item, str | dict):
                raise ConfigError(f"{where}: a judge is a name or a mapping with `name:`, not {item!r}.")
            specs.append(validated(Spec, {"name": item} if isinstance(item, str) else item, where))
    return specs


def _content(text: str) -> tuple[Any, str]:
    """What an option stands for, and where that was written."""
    from dsprobe.strict_yaml import parse_yaml

    if Path(text).suffix in (".yaml", ".yml"):
        try:
            return parse_yaml(Path(text).read_text(encoding="utf-8"), f"file {text}"), f"file {text}"
        except OSError as error:
            raise ConfigError(f"Cannot read judges from `{text}`: {error}") from None
    where = f"judge `{text}`"
    name, *params = text.split() or [""]
    if params and all("=" in param for param in params):
        pairs = (param.partition("=") for param in params)
        return {"name": name} | {key: parse_yaml(value, where) for key, _, value in pairs}, where
    return parse_yaml(text, where), where


def _execution(store: RunStore, judges: Sequence[Spec], given: dict[str, Any]) -> ExecutionConfig:
    """The run's execution with what the options change; judges that only read text stay in this process."""
    from dsprobe.config import ExecutionConfig
    from dsprobe.judges import beside_generation
    from dsprobe.registry import validated

    changes = {name: value for name, value in given.items() if value is not None}
    if "executor" not in changes and len(beside_generation(judges)) == len(judges):
        changes["executor"] = "local"
    return validated(ExecutionConfig, store.manifest()["config"]["execution"] | changes, "execution of the judges")


def _added(
    store: RunStore, judges: Sequence[Spec], execution: ExecutionConfig, *, cached: bool, quiet: bool
) -> list[ScoredJudge]:
    """Judge, and add what was finished to the tables, whatever happens to a later judge."""
    from dsprobe.storage.compaction import compact

    scored: list[ScoredJudge] = []
    try:
        for judge in _judged(store, judges, execution, cached=cached, quiet=quiet):
            scored.append(judge)
    except KeyboardInterrupt:
        print("Interrupted. Verdicts in the cache are kept; the same command asks for the rest.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        if scored:
            compact(store)
    return scored


def _judged(
    store: RunStore, judges: Sequence[Spec], execution: ExecutionConfig, *, cached: bool, quiet: bool
) -> Iterator[ScoredJudge]:
    """One judge after the other."""
    from dsprobe.actors.scoring import run_replies, score_judge
    from dsprobe.judges.cache import VerdictCache

    if not judges:
        return
    replies = run_replies(store)
    with VerdictCache() if cached else nullcontext() as cache:
        for judge in judges:
            with show_counts(f"replies judged by {judge.key}", quiet=quiet) as progress:
                scored = score_judge(store, replies, judge, execution, cache=cache, progress=progress)
            yield scored


def _conclude(store: RunStore, scored: Sequence[ScoredJudge], path: str | None, as_json: bool) -> None:
    from dsprobe.experiment.judge_agreement import agreements, calibrations
    from dsprobe.storage.human_labels import read_labels
    from dsprobe.storage.query import read_table, run_judges

    table, judges = read_table(store, "trajectories"), run_judges(store)
    labels = read_labels(store, table)
    agreement, labelled = agreements(table, judges, labels), calibrations(table, judges, labels)
    if as_json:
        emit({"run_id": store.run_id, "url": store.url, "judges": [judge.to_dict() for judge in scored],
              "agreement": {question: found.to_dict() for question, found in agreement.items()},
              "labels": [judge.to_dict() for judge in labelled], "report": path})  # fmt: skip
        return
    for judge in scored:
        print(line(judge))
    print_terminal(sheets(agreement, labelled))
    print(f"Tables: {store.url}/tables")
    if path is not None:
        print(f"Report: {path}")
