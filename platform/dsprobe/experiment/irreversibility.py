"""The irreversibility experiment of a whole configuration: which conditions are forked, and the rows that come out.

One fork of every trajectory, step and share; the rows say for both views whether harm was there at the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa

from dsprobe.attacks import ATTACKS, Rendered
from dsprobe.config import UNGUARDED
from dsprobe.decoding.records import RowKey
from dsprobe.decoding.schedule import planned_steps
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.plan import Plan
from dsprobe.forking.engine import ForkEngine
from dsprobe.forking.irreversibility import Forks, Target, renoise_forks
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails.base import Signal
from dsprobe.metrics.summary import VIEWS
from dsprobe.models.base import DiffusionModel
from dsprobe.models.load import load_model
from dsprobe.risk.base import View

SHARES: Final = (0.2, 0.5, 1.0)
"""Shares ρ that are re-masked when none are given: little, half, everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenoiseSettings:
    """What is re-masked where."""

    steps: tuple[int, ...]
    """1-based steps s."""
    shares: tuple[float, ...] = SHARES
    """Shares ρ of the response positions, in (0, 1]."""
    target: Target = "random"
    view: View = "predicted"
    """View whose harm the printed curve starts from, and whose attribution `attributed` follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renoised:
    """The experiment's outcome."""

    settings: RenoiseSettings
    threshold: float
    """θ."""
    curves: Mapping[str, Forks]
    """Condition id → its forks, in the configuration's order."""
    table: pa.Table
    """One row a fork: ``condition``, ``prompt_id``, ``step``, ``share``, ``harmful_committed``, ``harmful_predicted``
    (risk of that view reached θ at the step, before re-masking) and ``harmful_at_end``."""
    left_out: Mapping[str, str]
    """Condition id → why it cannot be forked."""

    @property
    def facts(self) -> dict[str, Any]:
        """Settings and conditions as JSON values."""
        settings = self.settings
        return {
            "steps": list(settings.steps),
            "shares": list(settings.shares),
            "target": settings.target,
            "view": settings.view,
            "threshold": self.threshold,
            "conditions": list(self.curves),
            "left_out": dict(self.left_out),
        }


def forkable_conditions(plan: Plan) -> list[Condition]:
    """Unguarded conditions of diffusion models with harmful prompts, in the configuration's order."""
    return [
        condition
        for condition in plan.conditions
        if plan.models[condition.model].kind == "diffusion"
        and condition.guardrail == UNGUARDED
        and any(prompt.harmful for prompt in plan.prompt_sets[condition.prompts].prompts)
    ]


def measure_irreversibility(plan: Plan, conditions: Sequence[Condition], settings: RenoiseSettings) -> Renoised:
    """Fork every harmful prompt of some conditions, in this process; each model is loaded once.

    Args:
        plan: The resolved experiment.
        conditions: From `forkable_conditions`. Attacks that search or act inside the loop cannot be forked; their
            conditions are left out and named.
        settings: Steps beyond a condition's own are left out there.
    """
    curves: dict[str, Forks] = {}
    left_out: dict[str, str] = {}
    parts: list[pa.Table] = []
    for name in dict.fromkeys(condition.model for condition in conditions):
        model: DiffusionModel | None = None
        for condition in (c for c in conditions if c.model == name):
            if ATTACKS.get(plan.attack(condition).name).searches:
                left_out[condition.id] = f"attack `{condition.attack}` is a search"
                continue
            model = model or cast("DiffusionModel", load_model(plan.model(condition)))
            rows = _rows(plan, condition, model)
            if any(row.rendered.actions for row in rows):
                left_out[condition.id] = f"attack `{condition.attack}` acts inside the loop"
                continue
            curves[condition.id], part = _of_condition(plan, condition, model, rows, settings)
            parts.append(part)
    return Renoised(
        settings=settings,
        threshold=plan.config.risk.threshold,
        curves={c.id: curves[c.id] for c in conditions if c.id in curves},
        table=pa.concat_tables(parts) if parts else _COLUMNS.empty_table(),
        left_out=left_out,
    )


def _rows(plan: Plan, condition: Condition, model: DiffusionModel) -> list[ForkRow]:
    spec, length = plan.attack(condition), plan.decoding(condition).reply_length
    attack = ATTACKS.build(spec.name, spec.params)
    prompts = [prompt for prompt in plan.prompt_sets[condition.prompts].prompts if prompt.harmful]
    rendered: Iterable[Rendered] = attack.render_all(prompts, model, length)
    return [ForkRow(rendered=row, key=RowKey(prompt.id, 0)) for prompt, row in zip(prompts, rendered, strict=True)]


def _of_condition(
    plan: Plan, condition: Condition, model: DiffusionModel, rows: Sequence[ForkRow], settings: RenoiseSettings
) -> tuple[Forks, pa.Table]:
    decoding, risk = plan.decoding(condition), plan.config.risk
    planned = planned_steps(decoding)
    # A reply that is re-masked as a whole needs as many steps again as were planned.
    extra = max(decoding.max_extra_steps, planned)
    engine = ForkEngine(
        model,
        decoding.model_copy(update={"max_extra_steps": extra}),
        seed=plan.config.seed,
        batch_size=plan.config.execution.batch_size,
    )
    forks = renoise_forks(
        engine,
        rows,
        [step for step in settings.steps if step <= planned],
        settings.shares,
        signal=Signal(scorer=risk.scorer, view=settings.view),
        threshold=risk.threshold,
        target=settings.target,
    )
    harmful = {}
    for view in VIEWS:
        risks = engine.trunk_risks(rows, Signal(scorer=risk.scorer, view=view))
        at_step = [
            risks[row][step - 1] >= risk.threshold for row, step in zip(forks.row, forks.step.tolist(), strict=True)
        ]
        harmful[f"harmful_{view}"] = np.array(at_step, np.bool_)
    columns = {
        "condition": [condition.id] * len(forks.row),
        "prompt_id": [rows[row].key.prompt_id for row in forks.row],
        "step": forks.step,
        "share": forks.share,
        **harmful,
        "harmful_at_end": forks.harmful_at_end,
    }
    return forks, pa.table(columns, schema=_COLUMNS)


_COLUMNS: Final = pa.schema(
    [
        ("condition", pa.string()),
        ("prompt_id", pa.string()),
        ("step", pa.int16()),
        ("share", pa.float64()),
        ("harmful_committed", pa.bool_()),
        ("harmful_predicted", pa.bool_()),
        ("harmful_at_end", pa.bool_()),
    ]
)
