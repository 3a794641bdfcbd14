"""`dsprobe irreversibility`: does harm return after part of a reply is re-masked?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from dsprobe.cli.options import JsonOption, SetOption, emit, load
from dsprobe.cli.sources import is_experiment, opened
from dsprobe.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dsprobe.experiment.evaluated import Condition
    from dsprobe.experiment.irreversibility import Renoised, RenoiseSettings
    from dsprobe.experiment.plan import Plan
    from dsprobe.forking.irreversibility import Target
    from dsprobe.risk.base import View
    from dsprobe.storage.run_store import RunStore

TARGETS: Final = ("random", "attributed")
VIEWS: Final = ("predicted", "committed")


def irreversibility(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A YAML file or shipped recipe, or a finished run (folder, URL, or id under ./runs), which keeps the "
            "forks for `dsprobe hypotheses` and `query`.",
        ),
    ],
    overrides: SetOption = None,
    steps: Annotated[
        str | None, typer.Option(help="Steps s at which the reply is re-masked, 1-based; quarters if not given.")
    ] = None,
    shares: Annotated[str, typer.Option(help="Shares ρ of the response positions.")] = "0.2,0.5,1.0",
    target: Annotated[str, typer.Option(help="Which positions: random or attributed.")] = "random",
    view: Annotated[str, typer.Option(help="View in which harm at s is seen: predicted or committed.")] = "predicted",
    as_json: JsonOption = False,
) -> None:
    """Measure interventional irreversibility over steps and shares, in this process, from logged trajectories."""
    from dsprobe.experiment.irreversibility import RenoiseSettings, forkable_conditions, measure_irreversibility

    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    store, plan = _opened(source, overrides)
    settings = RenoiseSettings(
        steps=_steps(steps, plan), shares=_shares(shares), target=cast("Target", target), view=cast("View", view)
    )
    conditions = forkable_conditions(plan)
    if not conditions:
        raise ConfigError("irreversibility needs a diffusion model and an unguarded condition with harmful prompts.")
    if store is None:
        found = measure_irreversibility(plan, conditions, settings)
    else:
        found = measured(store, plan, conditions, settings)
    _show(found, as_json=as_json)


def _opened(source: str, overrides: list[str] | None) -> tuple[RunStore | None, Plan]:
    """The plan of a configuration, or a finished run with the plan it was made of."""
    from dsprobe.experiment.plan import resolve
    from dsprobe.experiment.reopening import reopen

    if is_experiment(source, "run"):
        return None, resolve(load(source, overrides).config)
    if overrides:
        raise ConfigError(f"`{overrides[0]}` changes what is run, and `{source}` is a finished run. Leave it out.")
    store = opened(source, "run")
    return store, reopen(store.manifest())


def measured(store: RunStore, plan: Plan, conditions: Sequence[Condition], settings: RenoiseSettings) -> Renoised:
    """Run the experiment on some conditions of a run, and keep its rows in the run.

    Raises:
        StorageError: The run cannot be written.
    """
    from dsprobe.experiment.irreversibility import measure_irreversibility
    from dsprobe.storage.irreversibility import write_forks

    found = measure_irreversibility(plan, conditions, settings)
    write_forks(store, found.facts, found.table)
    return found


def _steps(text: str | None, plan: Plan) -> tuple[int, ...]:
    """Steps that every decoding takes; the quarters of the shortest where none are given."""
    from dsprobe.decoding.schedule import planned_steps

    last = min(planned_steps(decoding) for decoding in plan.config.decodings)
    if text is None:
        return tuple(sorted({max(1, last * quarter // 4) for quarter in (1, 2, 3, 4)}))
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or not 1 <= int(part) <= last:
            raise ConfigError(f"--steps {text}: `{part}` is not a step of every decoding. Allowed: 1 to {last}.")
    return tuple(int(part) for part in parts)


def _shares(text: str) -> tuple[float, ...]:
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise ConfigError(f"--shares {text}: `{part}` is not a number. Allowed: above 0, up to 1.") from None
        if not 0.0 < value <= 1.0:
            raise ConfigError(f"--shares {text}: {part} is not allowed. Allowed: above 0, up to 1.")
        values.append(value)
    return tuple(values)


def _show(found: Renoised, *, as_json: bool) -> None:
    rows = [_row(condition, point) for condition, forks in found.curves.items() for point in forks.curve()]
    used = sum(forks.passes_used for forks in found.curves.values())
    total = sum(forks.passes for forks in found.curves.values())
    if as_json:
        emit({"target": found.settings.target, "view": found.settings.view, "threshold": found.threshold,
              "points": rows, "left_out": dict(found.left_out), "passes_used": used,
              "passes_from_scratch": total})  # fmt: skip
        return
    for condition, reason in found.left_out.items():
        print(f"Not forked: {condition}: {reason}", file=sys.stderr)
    _print(rows)
    print(f"{used} forward passes; runs from scratch take {total}.")


def _row(condition: str, point: Any) -> dict[str, Any]:
    step, share = point.at
    rate = point.rate
    return {"condition": condition, "step": int(step), "share": float(share), "value": rate.value, "low": rate.low,
            "high": rate.high, "n": rate.n}  # fmt: skip


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="P(harmful at the end | harmful at s, a share of the response re-masked at s), 95 % Wilson")
    for column in ("condition", "step s", "share", "rate", "n harmful at s"):
        table.add_column(Text(column))
    for row in rows:
        rate = f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        table.add_row(Text(row["condition"]), str(row["step"]), f"{row['share']:g}", rate, str(row["n"]))
    Console().print(table)
