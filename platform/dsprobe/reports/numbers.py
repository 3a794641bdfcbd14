"""The report's tables: every measure of every condition with its interval, all computed by `dsprobe.metrics`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dsprobe.config import UNGUARDED
from dsprobe.experiment.evaluated import Condition
from dsprobe.judges.base import Decides
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.summary import NEAR_TIE, RATES, VIEWS
from dsprobe.reports.data import KEYS, ReportData
from dsprobe.reports.text import by_group, member_label, part
from dsprobe.visible_text import visible

Measures = dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Cell:
    """One shown estimate."""

    value: str
    detail: str = ""
    """Interval, and n where it differs from the row's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One condition."""

    label: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Group:
    """Conditions of one model and prompt set."""

    title: str
    """Sub-heading; empty where the run has a single model and prompt set."""
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class NumberTable:
    """A table ready to be printed."""

    title: str
    note: str
    columns: list[Cell]
    """Headings, each with the judge or view it stands for."""
    groups: list[Group]


def measures(data: ReportData, condition: Condition) -> Measures:
    """All measures of one condition by name; rates without a single row to count are left out."""
    rates = ("empty", *RATES)
    found = data.summaries[condition].measures()
    return {name: interval for name, interval in found.items() if interval.n > 0 or name.split(":")[0] not in rates}


def all_measures(data: ReportData) -> dict[Condition, Measures]:
    """`measures` of every condition, in reading order."""
    return {condition: measures(data, condition) for condition in data.conditions}


def numbers_json(data: ReportData, found: Mapping[Condition, Measures]) -> list[dict[str, Any]]:
    """All measures as JSON values: value, bounds, n, method and confidence level each."""
    return [
        {
            "condition": visible(condition.id),
            **{key: visible(getattr(condition, key)) for key in KEYS[1:]},
            "n": data.summaries[condition].n,
            "measures": {visible(name): interval.to_dict() for name, interval in values.items()},
        }
        for condition, values in found.items()
    ]


@dataclass(frozen=True, slots=True)
class _Column:
    """How one measure is printed."""

    heading: str
    detail: str
    """Judge or view."""
    measure: str
    spec: str
    """Format of the estimate and its bounds."""


_PERCENT: Final = ".1%"
_FHS_COLUMNS: Final = [
    _Column(heading, f"{view} view", f"{measure}_{view}", spec)
    for view in VIEWS
    for heading, measure, spec in (
        ("P(cross) ↓", "crossing", _PERCENT),
        ("median step ↑", "fhs_median", ".0f"),
        ("restricted mean ↑", "fhs_restricted_mean", ".1f"),
    )
]
_TIME_COLUMNS: Final = [
    *(_Column("TRI ↓", f"{view} view", f"tri_{view}", ".3f") for view in VIEWS),
    *(_Column("irreversibility ↓", f"{view} view", f"irr_observational_{view}", _PERCENT) for view in VIEWS),
    _Column("KL slope", "median, nats", "kl_slope", ".2f"),
    _Column("forward passes ↓", "mean", "forward_passes", ".1f"),
    _Column("near-ties", f"margin < {NEAR_TIE:g} nats", "near_ties", _PERCENT),
]
_GUARDRAIL_COLUMNS: Final = [
    _Column("intervened on", "trajectories", "intervened", _PERCENT),
    _Column("interventions", "mean", "interventions", ".2f"),
    _Column("extra steps ↓", "mean", "extra_steps", ".1f"),
    _Column("ΔNFE ↓", "ratio", "delta_nfe", ".2f"),
]
_HEADINGS: Final[dict[Decides, tuple[tuple[str, str], ...]]] = {
    "harm": (("ASR ↓", "asr"),),
    "refusal": (("refusal", "refusal"), ("over-refusal ↓", "over_refusal")),
    "utility": (("utility ↑", "utility"),),
    "validity": (("well-formed ↑", "validity"),),
}
_OUTCOME_NOTE: Final = (
    "Wilson intervals. ASR and refusal are shares of harmful requests, over-refusal and utility of benign ones. Harm "
    "and refusal are two verdicts, not complements."
)
_FHS_NOTE: Final = (
    "First step at which the risk reaches the threshold, from the Kaplan–Meier estimate; trajectories that never reach "
    "it are censored. The restricted mean is the number of steps spent unharmed. ∞: not reached."
)
_TIME_NOTE: Final = (
    "TRI is the time-average of the risk (bootstrap interval). Irreversibility is the share of trajectories that end "
    "harmful among those harmful at an earlier step (Wilson). The KL slope is per unit of s/S. Near-ties are rows "
    "whose smallest decision margin is so small that another batch shape or device could flip a token."
)

_GUARDRAIL_NOTE: Final = (
    "What the guardrails did and what it cost, paired with the same rows of the unguarded condition: extra steps are "
    "the difference in denoising steps, ΔNFE the ratio of forward passes × canvas positions (bootstrap intervals over "
    "prompts). An en dash means that the run has no unguarded condition to compare with."
)


def number_tables(data: ReportData, found: Mapping[Condition, Measures]) -> list[NumberTable]:
    """Outcomes, first harmful step, risk over time with cost, and guardrails where there are any."""
    outcome = [
        _Column(heading, visible(judge), f"{measure}:{judge}", _PERCENT)
        for decides, headings in _HEADINGS.items()
        for heading, measure in headings
        for judge, what in data.judges.items()
        if what == decides
    ]
    outcome.append(_Column("empty ↓", "", "empty", _PERCENT))
    tables = [
        _table(data, found, "Outcomes", _OUTCOME_NOTE, outcome),
        _table(data, found, "First harmful step", _FHS_NOTE, _FHS_COLUMNS),
        _table(data, found, "Risk over time, and cost", _TIME_NOTE, _TIME_COLUMNS),
    ]
    if data.guarded:
        guarded = {c: values for c, values in found.items() if c.guardrail != UNGUARDED}
        tables.append(_table(data, guarded, "Guardrails", _GUARDRAIL_NOTE, _GUARDRAIL_COLUMNS))
    return tables


def _table(
    data: ReportData, found: Mapping[Condition, Measures], title: str, note: str, columns: Sequence[_Column]
) -> NumberTable:
    groups = []
    compared = data.compares_guardrails
    for heading, members in by_group(list(found)):
        rows = []
        for condition in members:
            n = data.summaries[condition].n
            cells = [_cell(found[condition].get(column.measure), column.spec, n) for column in columns]
            guardrail = [Cell(part(condition, "guardrail"))] if compared else []
            rows.append(Row(member_label(condition, data.conditions), [*guardrail, Cell(str(n)), *cells]))
        groups.append(Group(heading, rows))
    headings = [Cell("guardrail")] if compared else []
    return NumberTable(title, note, [*headings, Cell("n"), *(Cell(c.heading, c.detail) for c in columns)], groups)


def _cell(interval: Interval | None, spec: str, n: int) -> Cell:
    if interval is None or math.isnan(interval.value):
        return Cell("–")
    shown = format(interval, spec).replace("inf", "∞")
    value, _, bounds = shown.partition(" ")
    return Cell(value, bounds if interval.n == n else f"{bounds} n = {interval.n}")
