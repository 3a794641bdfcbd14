"""`dsprobe irreversibility`: does harm return after part of a reply is re-masked?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dsprobe.cli.options import ConfigArgument, JsonOption, SetOption, emit, load
from dsprobe.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dsprobe.experiment.evaluated import Condition
    from dsprobe.experiment.plan import Plan
    from dsprobe.forking.irreversibility import Forks, Target
    from dsprobe.models.base import DiffusionModel

TARGETS = ("random", "attributed")
VIEWS = ("predicted", "committed")


def irreversibility(
    config: ConfigArgument,
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
    from dsprobe.experiment.plan import resolve

    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    plan = resolve(load(config, overrides).config)
    step_list = _steps(steps, plan)
    share_list = _shares(shares)
    found: dict[str, Forks] = {}
    for name in plan.models:
        if plan.models[name].kind == "diffusion":
            found |= _of_model(plan, name, step_list, share_list, target, view)
    if not found:
        raise ConfigError("irreversibility needs a diffusion model and an unguarded condition with harmful prompts.")
    rows = [_row(condition, forks, point) for condition, forks in found.items() for point in forks.curve()]
    if as_json:
        emit({"target": target, "view": view, "threshold": plan.config.risk.threshold, "points": rows,
              "passes_used": sum(forks.passes_used for forks in found.values()),
              "passes_from_scratch": sum(forks.passes for forks in found.values())})  # fmt: skip
    else:
        _print(rows, found)


def _steps(text: str | None, plan: Plan) -> list[int]:
    """Steps that every decoding takes; the quarters of the shortest where none are given."""
    from dsprobe.decoding.schedule import planned_steps

    last = min(planned_steps(decoding) for decoding in plan.config.decodings)
    if text is None:
        return sorted({max(1, last * quarter // 4) for quarter in (1, 2, 3, 4)})
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdigit() or not 1 <= int(part) <= last:
            raise ConfigError(f"--steps {text}: `{part}` is not a step of every decoding. Allowed: 1 to {last}.")
    return [int(part) for part in parts]


def _shares(text: str) -> list[float]:
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise ConfigError(f"--shares {text}: `{part}` is not a number. Allowed: above 0, up to 1.") from None
        if not 0.0 < value <= 1.0:
            raise ConfigError(f"--shares {text}: {part} is not allowed. Allowed: above 0, up to 1.")
        values.append(value)
    return values


def _of_model(plan: Plan, name: str, steps: list[int], shares: list[float], target: str, view: str) -> dict[str, Forks]:
    """Curves of a model's unguarded conditions with harmful prompts."""
    from dsprobe.config import UNGUARDED
    from dsprobe.models.load import load_model

    conditions = [
        condition
        for condition in plan.conditions
        if condition.model == name
        and condition.guardrail == UNGUARDED
        and any(prompt.harmful for prompt in plan.prompt_sets[condition.prompts].prompts)
    ]
    if not conditions:
        return {}
    model = cast("DiffusionModel", load_model(plan.model(conditions[0])))
    return {c.id: _forks(plan, c, model, steps, shares, cast("Target", target), view) for c in conditions}


def _forks(
    plan: Plan,
    condition: Condition,
    model: DiffusionModel,
    steps: list[int],
    shares: list[float],
    target: Target,
    view: Any,
) -> Forks:
    from dsprobe.attacks import ATTACKS
    from dsprobe.decoding.records import RowKey
    from dsprobe.decoding.schedule import planned_steps
    from dsprobe.forking.engine import ForkEngine
    from dsprobe.forking.irreversibility import renoise_forks
    from dsprobe.forking.segment import ForkRow
    from dsprobe.guardrails.base import Signal

    decoding, spec = plan.decoding(condition), plan.attack(condition)
    # A reply that is re-masked as a whole needs as many steps again as were planned.
    extra = max(decoding.max_extra_steps, planned_steps(decoding))
    engine = ForkEngine(
        model,
        decoding.model_copy(update={"max_extra_steps": extra}),
        seed=plan.config.seed,
        batch_size=plan.config.execution.batch_size,
    )
    attack = ATTACKS.build(spec.name, spec.params)
    rows = [
        ForkRow(rendered=attack.render(prompt, model, decoding.reply_length), key=RowKey(prompt.id, 0))
        for prompt in plan.prompt_sets[condition.prompts].prompts
        if prompt.harmful
    ]
    risk = plan.config.risk
    signal = Signal(scorer=risk.scorer, view=view)
    return renoise_forks(engine, rows, steps, shares, signal=signal, threshold=risk.threshold, target=target)


def _row(condition: str, forks: Forks, point: Any) -> dict[str, Any]:
    step, share = point.at
    rate = point.rate
    return {"condition": condition, "step": int(step), "share": float(share), "value": rate.value, "low": rate.low,
            "high": rate.high, "n": rate.n}  # fmt: skip


def _print(rows: list[dict[str, Any]], found: dict[str, Forks]) -> None:
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
    used = sum(forks.passes_used for forks in found.values())
    total = sum(forks.passes for forks in found.values())
    print(f"{used} forward passes; runs from scratch take {total}.")
