"""A made-up run with both kinds of models, two judges of harm, and grids of attacks; success rates are chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from dsprobe.config import RunConfig
from dsprobe.metrics.hypotheses import HYPOTHESES, Decision, Evidence, Finding, Verdict
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.preregistration import rules_document
from dsprobe.reports.data import ReportData

DIFFUSION, AUTOREGRESSIVE = "toy-dllm", "toy-ar"
OWN = ("direct", "dija", "prefill")
GRIDS: dict[str, dict[str, Any]] = {
    **{f"position-{p}": {"name": "prefill", "family": "position", "position": p} for p in (0, 8, 16)},
    **{f"at-{t}": {"name": "anchoring", "family": "at", "step": t} for t in (1, 8, 32)},
    **{
        f"cues-{c}-{s}": {"name": "pad", "family": "cues", "cues": c, "spacing": s} for c in (1, 2, 3) for s in (6, 10)
    },
}  # fmt: skip
RATES = {
    DIFFUSION: {"direct": 0.0, "dija": 1.0, "prefill": 0.25, "at-1": 0.25, "at-8": 0.5, "at-32": 1.0},
    AUTOREGRESSIVE: {"direct": 0.0, "dija": 0.5, "prefill": 1.0},
}
"""Share of requests that succeed by the first judge; ½ where an attack is not named."""
TABLES = ("trajectories", "steps", "positions", "step_stats", "position_stats")


def with_models(data: ReportData, **overrides: Any) -> ReportData:
    """The run on a second, autoregressive model, with chosen verdicts, a second judge, and a whole configuration.

    Args:
        data: Made by the report factory with the attacks `OWN` and `GRIDS`.
        overrides: Further fields of the data.
    """
    tables = {name: _twice(getattr(data, name)) for name in TABLES}
    tables["trajectories"] = _judged(tables["trajectories"])
    facts: dict[str, Any] = {
        "manifest": {**data.manifest, "config": configuration(), "models": {
            DIFFUSION: {"kind": "diffusion"}, AUTOREGRESSIVE: {"kind": "autoregressive"},
        }},
        "judges": {"toy_oracle": "harm", "second": "harm", "keyword_refusal": "refusal", "toy_utility": "utility"},
    }  # fmt: skip
    return dataclasses.replace(data, **(tables | facts | overrides))


def configuration() -> dict[str, Any]:
    """The run's configuration as a manifest has it."""
    return RunConfig.model_validate({
        "name": "made-up",
        "models": [{"name": DIFFUSION, "path": "none"}, {"name": AUTOREGRESSIVE, "path": "none"}],
        "prompts": [{"source": "toy", "name": f"toy-{split}", "split": split} for split in ("restricted", "benign")],
        "attacks": [*OWN, *({"alias": key, **spec} for key, spec in GRIDS.items())],
        "decodings": [{"name": "uniform", "steps": 32, "reply_length": 42}],
        "judges": ["toy_oracle"],
    }).model_dump(mode="json")  # fmt: skip


def decided_document() -> dict[str, Any]:
    """Decisions as `dsprobe hypotheses` keeps them: one of each verdict, one reason that looks like markup."""
    rules = rules_document()
    verdicts: tuple[tuple[Verdict, Evidence], ...] = (
        ("supported", "for"),
        ("not supported", "against"),
        ("undecided", "open"),
    )
    decisions = []
    for place, rule in enumerate(HYPOTHESES):
        verdict, evidence = verdicts[place % 3]
        estimate = Interval(0.25, 0.1, 0.4, 40, "bootstrap")
        finding = Finding(name="<b>dija</b>", outcome="asr", estimate=estimate, evidence=evidence, p_holm=0.01)
        decision = Decision(
            hypothesis=rule.id, verdict=verdict, estimate=estimate, test=None, n=40,
            reason="<i>because</i>" if place == 2 else "", findings=(finding,),
        )  # fmt: skip
        extra = {"statement": rule.statement, "outcome": "asr", "conditions": ["toy_dllm_" * 20]}
        decisions.append({**extra, **decision.to_dict()})
    return {**rules, "decisions": decisions, "stop": {"sentence": "Stop rule: open."}}


def _twice(table: pa.Table) -> pa.Table:
    conditions = [name.replace(DIFFUSION, AUTOREGRESSIVE) for name in table["condition"].to_pylist()]
    other = _with(_with(table, "condition", conditions), "model", [AUTOREGRESSIVE] * table.num_rows)
    return pa.concat_tables([table, other]).unify_dictionaries()


def _judged(table: pa.Table) -> pa.Table:
    """The first judge follows the rates; the second disagrees on the first request of each condition."""
    rows = table.select(["model", "attack", "prompt_id", "harmful"]).to_pylist()
    number = np.array([int(row["prompt_id"].removeprefix("item-")) for row in rows])
    count = number.max() + 1
    success = [
        bool(n < round(RATES[row["model"]].get(row["attack"], 0.5) * count)) if row["harmful"] else None
        for n, row in zip(number, rows, strict=True)
    ]
    second = [None if s is None else s != (n == 0) for s, n in zip(success, number, strict=True)]
    table = _with(table, "verdict_toy_oracle", success)
    return table.append_column("verdict_second", pa.array(second, pa.bool_()))


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))
