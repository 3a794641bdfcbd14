"""Commands that look without running: `validate`, `list`, `doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.options import ConfigArgument, JsonOption, SetOption, emit, load

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan
    from dsprobe.registry import Registry


class Kind(StrEnum):
    """What `dsprobe list` can list."""

    MODELS = "models"
    ATTACKS = "attacks"
    SCHEDULES = "schedules"
    ORDERINGS = "orderings"
    SCORERS = "scorers"
    JUDGES = "judges"
    GUARDRAILS = "guardrails"
    WEIGHTINGS = "weightings"
    PROMPTS = "prompts"
    RECIPES = "recipes"


def list_components(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; everything when omitted.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List models, attacks, schedules, orderings, scorers, judges, guardrails, weightings, prompt sets or recipes."""
    kinds = [kind] if kind else list(Kind)
    listing = {k.value: _LISTERS[k]() for k in kinds}
    if as_json:
        emit(listing)
        return
    from rich.console import Console
    from rich.table import Table

    for name, rows in listing.items():
        table = Table(title=name, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row.values())
        Console().print(table)


def _registry_rows(registry: Registry[Any]) -> list[dict[str, str]]:
    return [{"name": name, "summary": entry.summary} for name, entry in registry]


def _attacks() -> list[dict[str, str]]:
    """Attacks with their published source and what the attacker must be able to do."""
    from dsprobe.attacks import ATTACKS

    rows = _registry_rows(ATTACKS)
    return [{**row, "source": (kind := ATTACKS.get(row["name"])).source, "assumes": kind.assumes} for row in rows]


def _schedules() -> list[dict[str, str]]:
    from dsprobe.decoding.schedule import SCHEDULES

    return _registry_rows(SCHEDULES)


def _orderings() -> list[dict[str, str]]:
    from dsprobe.decoding.ordering import ORDERINGS

    return _registry_rows(ORDERINGS)


def _scorers() -> list[dict[str, str]]:
    from dsprobe.risk import SCORERS

    return _registry_rows(SCORERS)


def _judges() -> list[dict[str, str]]:
    """Judges with what they decide, and when they run."""
    from dsprobe.judges import JUDGES

    rows = []
    for row in _registry_rows(JUDGES):
        judge = JUDGES.get(row["name"])
        free = "decides" in judge.Config.model_fields  # type: ignore[attr-defined]
        when = "`dsprobe score`" if judge.deferred else "in the run"
        rows.append({**row, "decides": "as configured" if free else judge.decides, "runs": when})
    return rows


def _guardrails() -> list[dict[str, str]]:
    """Guardrails with their published source, which is written in their classes."""
    from dsprobe.guardrails import GUARDRAILS

    rows = _registry_rows(GUARDRAILS)
    return [{**row, "source": GUARDRAILS.get(row["name"]).source} for row in rows]


def _weightings() -> list[dict[str, str]]:
    from dsprobe.guardrails.weighting import WEIGHTINGS

    return _registry_rows(WEIGHTINGS)


def _models() -> list[dict[str, str]]:
    from dsprobe.toy.assets import EMBEDDED_MODELS

    embedded = [{"name": name, "summary": f"embedded: {text}"} for name, text in EMBEDDED_MODELS.items()]
    folders = [
        {"name": "dream", "summary": "path: a Dream folder or hub id (Dream-org/Dream-v0-Instruct-7B)"},
        {"name": "llada", "summary": "path: a LLaDA folder or hub id (GSAI-ML/LLaDA-8B-Instruct, LLaDA-1.5)"},
        {"name": "causal", "summary": "path: any causal language model that transformers knows"},
    ]
    return embedded + folders


def _prompts() -> list[dict[str, str]]:
    from dsprobe.prompts.layouts import BENCHMARKS, expected, official
    from dsprobe.prompts.load import SOURCES

    any_layout = "with a known benchmark's columns, `prompt`, or any others by `columns`"
    summaries = {
        "toy": "embedded: held-out requests about made-up items (`split: restricted`, `benign` or `oversensitive`)",
        "csv": f"a UTF-8 CSV file {any_layout}",
        "jsonl": f"a UTF-8 file of one JSON object a line {any_layout}",
        "parquet": f"a Parquet file {any_layout}",
        "hf": f"a Hugging Face dataset (pinned hub id, or a folder) {any_layout}",
    }
    summaries |= {name: f"{expected(name)}. {official(name)}" for name in BENCHMARKS}
    return [{"name": name, "summary": summaries[name]} for name in SOURCES]


def _recipes() -> list[dict[str, str]]:
    from dsprobe.sweeps.library import recipes, summary

    return [{"name": name, "summary": summary(text)} for name, text in sorted(recipes("run").items())]


_LISTERS: dict[Kind, Callable[[], list[dict[str, str]]]] = {
    Kind.MODELS: _models,
    Kind.ATTACKS: _attacks,
    Kind.SCHEDULES: _schedules,
    Kind.ORDERINGS: _orderings,
    Kind.SCORERS: _scorers,
    Kind.JUDGES: _judges,
    Kind.GUARDRAILS: _guardrails,
    Kind.WEIGHTINGS: _weightings,
    Kind.PROMPTS: _prompts,
    Kind.RECIPES: _recipes,
}


def validate(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a configuration and print its plan, and an estimate of work, disk and money, without loading a model."""
    from dsprobe.actors.scoring import deferred_judges
    from dsprobe.cli.preflight import work_lines
    from dsprobe.experiment.cost import Part, total_cost
    from dsprobe.experiment.estimate import estimate
    from dsprobe.experiment.plan import resolve

    loaded = load(config, overrides)
    plan = resolve(loaded.config)
    deferred_judges(plan.config.judges)  # the others were built with the plan
    work, cost = estimate(plan), total_cost([Part(plan=plan)])
    if as_json:
        emit({"run_id": plan.run_id, "conditions": [c.id for c in plan.conditions], "skipped": plan.skipped,
              "prompt_sets": {name: prompts.facts() for name, prompts in plan.prompt_sets.items()},
              "estimate": work.to_dict(), "cost": cost.to_dict(), "config": loaded.config.model_dump(mode="json"),
              "sources": loaded.sources})  # fmt: skip
        return
    _print_plan(plan)
    _print_prompt_sets(plan)
    first, *others = work_lines(work, cost)
    print("\n".join([f"{len(plan.shards)} shards, {first}", *others, "Valid."]))


def _print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Plan {plan.run_id}", title_justify="left")
    for column in ("model", "prompts", "attack", "decoding", "guardrail", "trajectories"):
        table.add_column(column, justify="right" if column == "trajectories" else "left")
    for condition in plan.conditions:
        rows = sum(len(shard.rows) for shard in plan.shards if shard.condition == condition)
        table.add_row(*astuple(condition), str(rows))
    Console().print(table)
    for reason in plan.skipped.values():
        print(f"Not run: {reason}")


def _print_prompt_sets(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Prompt sets", title_justify="left")
    for column in ("prompts", "source", "count", "harmful", "benign", "categories", "digest"):
        table.add_column(column, justify="right" if column in ("count", "harmful", "benign", "categories") else "left")
    for config in plan.config.prompts:
        facts = plan.prompt_sets[config.key].facts()
        numbers = (facts["count"], facts["harmful"], facts["benign"], len(facts["categories"]))
        table.add_row(config.key, config.source, *map(str, numbers), facts["digest"][:12])
    Console().print(table)


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, devices, packages, writable output. Exit 1 when something needed is missing."""
    from dsprobe.cli.diagnosis import diagnose

    checks = diagnose()
    if as_json:
        emit([check.to_dict() for check in checks])
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL' if check.required else 'none'}  {check.name}: {check.detail}")
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(1)
