"""Comparing the levels of one axis of a finished run: which conditions pair up, and what is estimated on each pair.

Two conditions form a pair when they differ in one label only (the axis) and hold trajectories of the same prompts and
samples. What is estimated is in `dsprobe.metrics.paired`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from dsprobe.config import UNGUARDED
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.judges.base import VERDICT_PREFIX
from dsprobe.metrics.comparisons import holm
from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, Interval
from dsprobe.metrics.outputs import ratio_of_means
from dsprobe.metrics.paired import PairedEstimate, compare_rates, compare_times
from dsprobe.metrics.summary import VIEWS
from dsprobe.storage.query import read_table
from dsprobe.storage.run_store import RunStore

AXES: Final = ("guardrail", "decoding", "attack", "model")
DEFAULT_AXES: Final = ("guardrail", "decoding")
"""Axes that are compared when none is named, where they have several levels."""
LABELS: Final = ("model", "prompts", "attack", "decoding", "guardrail")
ALPHA: Final = 0.05
"""Family-wise error level of the conclusion."""

_ON_HARMFUL: Final = {"harm": True, "refusal": False, "utility": False}
"""What a judge decides → whether it is compared on harmful or on benign requests."""

Columns = dict[str, npt.NDArray[Any]]
Cell = tuple[tuple[str, str], ...]
"""The labels that two conditions share: (label name, label) in the order of `LABELS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is compared: a verdict, or the First Harmful Step in one view. Each outcome is one family of tests."""

    name: str
    """``harm``, ``refusal``, ``utility`` or ``fhs``."""
    by: str
    """Judge key; the view for ``fhs``."""
    harmful: bool
    """Compared on harmful requests, or on benign ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One level against the baseline in one cell, for one outcome."""

    outcome: Outcome
    cell: Cell
    level: str
    estimate: PairedEstimate
    unmatched: int
    """Rows of either condition whose prompt and sample the other does not have."""
    p_holm: float = math.nan
    """Holm-adjusted over all comparisons of the outcome."""

    @property
    def supported(self) -> bool:
        """Whether the difference survives Holm's correction at `ALPHA`."""
        return self.p_holm <= ALPHA


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Forward passes × canvas positions of a level over those of the baseline, on all rows of a cell."""

    cell: Cell
    level: str
    ratio: Interval
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisComparison:
    """All levels of an axis against its baseline."""

    axis: str
    baseline: str
    levels: tuple[str, ...]
    """All levels, the baseline included, in the configuration's order."""
    comparisons: tuple[Comparison, ...]
    costs: tuple[Cost, ...]
    longest: Mapping[Cell, Mapping[str, int]]
    """Cell → level → steps of its longest trajectory; the largest is the horizon of the cell's restricted means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is compared, with every default filled in."""

    baselines: Mapping[str, str]
    """Axis → its baseline level."""
    judges: Mapping[str, str]
    """Question → the judge that answers it."""


def choose(
    config: Mapping[str, Any],
    run_judges: Mapping[str, str],
    axis: str | None = None,
    baseline: str | None = None,
    judges: Sequence[str] = (),
) -> Choice:
    """Check what is asked for against what an experiment has; needs no results.

    Args:
        config: The experiment's configuration as JSON values.
        run_judges: Judge key → the question it decides.
        axis: One of `AXES`; `None` takes every one of `DEFAULT_AXES` that has several levels.
        baseline: Level that the others are compared with; `None` is ``none`` for guardrails and the first level of
            every other axis.
        judges: Judges to use, at most one for each question; the first judge of a question unless given.

    Raises:
        ConfigError: Unknown axis, level or judge, an axis with a single level, or no judges.
    """
    levels = {name: _levels(config, name) for name in AXES}
    axes = _axes(axis, levels)
    if baseline is not None and len(axes) > 1:
        raise ConfigError(f"--baseline `{baseline}` needs --by: {' and '.join(axes)} both have several levels.")
    return Choice(
        baselines={name: _baseline(name, baseline, levels[name]) for name in axes},
        judges=_judges(run_judges, judges),
    )


def _levels(config: Mapping[str, Any], axis: str) -> list[str]:
    """Labels of an axis in the configuration's order; a run of an older version has no guardrails."""
    return [entry.get("alias") or entry["name"] for entry in config.get(f"{axis}s", [{"name": UNGUARDED}])]


def _axes(axis: str | None, levels: Mapping[str, list[str]]) -> list[str]:
    if axis is not None and axis not in AXES:
        raise unknown_name("axis", axis, AXES)
    candidates = DEFAULT_AXES if axis is None else (axis,)
    axes = [name for name in candidates if len(levels[name]) > 1]
    if not axes:
        several = [f"--by {name}" for name in AXES if len(levels[name]) > 1]
        single = " and of ".join(f"{name} (`{'`, `'.join(levels[name])}`)" for name in candidates)
        allowed = f"Allowed: {', '.join(several)}." if several else "No axis of this experiment has several."
        raise ConfigError(f"There is only one level of {single}: nothing to compare. {allowed}")
    return axes


def _baseline(axis: str, given: str | None, levels: Sequence[str]) -> str:
    if given is None and axis == "guardrail" and UNGUARDED not in levels:
        raise ConfigError(
            f"There is no unguarded condition (`{UNGUARDED}`) to compare with. Choose --baseline among: "
            f"{', '.join(levels)}."
        )
    chosen = given or (UNGUARDED if axis == "guardrail" else levels[0])
    if chosen not in levels:
        raise unknown_name(f"baseline {axis}", chosen, levels)
    return chosen


def _judges(run_judges: Mapping[str, str], chosen: Sequence[str]) -> dict[str, str]:
    """Question → judge, in the order of `_ON_HARMFUL`."""
    if not run_judges:
        raise ConfigError(
            "There are no judges, so there are no verdicts to compare. Add `judges:` to the configuration."
        )
    found: dict[str, str] = {}
    for judge in chosen:
        if judge not in run_judges:
            raise unknown_name("judge", judge, run_judges)
        other = found.setdefault(run_judges[judge], judge)
        if other != judge:
            raise ConfigError(f"Judges `{other}` and `{judge}` both decide {run_judges[judge]}; choose one of them.")
    for judge, question in run_judges.items():
        found.setdefault(question, judge)
    return {question: found[question] for question in _ON_HARMFUL if question in found}


def compare_run(store: RunStore, choice: Choice, confidence: float = DEFAULT_CONFIDENCE) -> list[AxisComparison]:
    """Compare the levels of a run's axes.

    Args:
        store: A run with tables.
        choice: From `choose`, on the run's configuration and judges.
        confidence: Two-sided level of all intervals.

    Raises:
        ConfigError: No two conditions have common rows.
        StorageError: The run has no tables.
    """
    config = store.manifest()["config"]
    columns = _read(store, list(choice.judges.values()))
    outcomes = [Outcome(name=name, by=judge, harmful=_ON_HARMFUL[name]) for name, judge in choice.judges.items()]
    if config["recording"]["enabled"]:
        outcomes += [Outcome(name="fhs", by=view, harmful=True) for view in VIEWS]
    return [
        _compare_axis(columns, axis, _levels(config, axis), baseline, outcomes, confidence)
        for axis, baseline in choice.baselines.items()
    ]


def _read(store: RunStore, judges: Sequence[str]) -> Columns:
    """The columns of `trajectories` that comparisons need, as arrays; undefined verdicts are NaN."""
    table = read_table(store, "trajectories")
    names = [*LABELS, "prompt_id", "sample", "harmful", "num_steps", "forward_passes"]
    names += [f"fhs_{view}{suffix}" for view in VIEWS for suffix in ("", "_event")]
    columns = {name: np.asarray(table[name].to_numpy()) for name in names}
    columns["positions"] = np.asarray(pc.list_value_length(table["canvas"]).to_numpy())
    for judge in judges:
        columns[VERDICT_PREFIX + judge] = np.array(table[VERDICT_PREFIX + judge].to_pylist(), np.float64)
    rows = zip(columns["sample"], columns["prompt_id"], strict=True)
    columns["row"] = np.array([f"{sample}:{prompt}" for sample, prompt in rows], np.str_)
    return columns


def _compare_axis(
    columns: Columns, axis: str, levels: Sequence[str], baseline: str, outcomes: Sequence[Outcome], confidence: float
) -> AxisComparison:
    comparisons: list[Comparison] = []
    costs: list[Cost] = []
    longest: dict[Cell, dict[str, int]] = {}
    for cell, by_level in _cells(columns, axis):
        if baseline not in by_level:
            continue
        present = [level for level in levels if level in by_level]
        longest[cell] = {level: int(columns["num_steps"][by_level[level]].max()) for level in present}
        for level in (level for level in present if level != baseline):
            pair = _Pair.of(columns, by_level[level], by_level[baseline])
            if len(pair.level_N):
                costs.append(pair.cost(columns, cell, level, confidence))
                horizon = max(1, *longest[cell].values())
                for outcome in outcomes:
                    comparisons += pair.compare(columns, outcome, cell, level, horizon, confidence)
    if not costs:
        raise ConfigError(
            f"No {axis} shares rows (prompt, sample) with the baseline `{baseline}` under otherwise equal labels: "
            "nothing to compare."
        )
    return AxisComparison(
        axis=axis,
        baseline=baseline,
        levels=tuple(levels),
        comparisons=_adjusted(comparisons, outcomes),
        costs=tuple(costs),
        longest=longest,
    )


def _cells(columns: Columns, axis: str) -> Iterator[tuple[Cell, dict[str, npt.NDArray[np.intp]]]]:
    """Every combination of the other labels, with the rows of each level; in order of the labels."""
    shared = [name for name in LABELS if name != axis]
    found: dict[Cell, dict[str, list[int]]] = {}
    keys = zip(*(columns[name].tolist() for name in (*shared, axis)), strict=True)
    for row, (*labels, level) in enumerate(keys):
        found.setdefault(tuple(zip(shared, labels, strict=True)), {}).setdefault(level, []).append(row)
    for cell in sorted(found):
        yield cell, {level: np.array(rows, np.intp) for level, rows in found[cell].items()}


@dataclass(frozen=True, slots=True)
class _Pair:
    """Row n of one condition beside the same prompt and sample of another."""

    level_N: npt.NDArray[np.intp]
    baseline_N: npt.NDArray[np.intp]
    unmatched: int

    @classmethod
    def of(cls, columns: Columns, level: npt.NDArray[np.intp], baseline: npt.NDArray[np.intp]) -> _Pair:
        row = columns["row"]
        common, first, second = np.intersect1d(row[level], row[baseline], assume_unique=True, return_indices=True)
        return cls(level[first], baseline[second], len(level) + len(baseline) - 2 * len(common))

    def compare(
        self, columns: Columns, outcome: Outcome, cell: Cell, level: str, horizon: int, confidence: float
    ) -> list[Comparison]:
        """One comparison, or none where the cell has no such requests."""
        kept = columns["harmful"][self.baseline_N] == outcome.harmful
        first, second = self.level_N[kept], self.baseline_N[kept]
        if not len(first):
            return []
        prompt = columns["prompt_id"][second]
        if outcome.name == "fhs":
            times = [(columns[f"fhs_{outcome.by}"][n], columns[f"fhs_{outcome.by}_event"][n]) for n in (first, second)]
            estimate = compare_times(times[0], times[1], prompt, horizon, confidence=confidence)
        else:
            verdict = columns[VERDICT_PREFIX + outcome.by]
            estimate = compare_rates(verdict[first], verdict[second], prompt, confidence=confidence)
        return [Comparison(outcome=outcome, cell=cell, level=level, estimate=estimate, unmatched=self.unmatched)]

    def cost(self, columns: Columns, cell: Cell, level: str, confidence: float) -> Cost:
        """Ratio of forward passes × canvas positions."""
        cost = columns["forward_passes"].astype(np.float64) * columns["positions"]
        prompt = columns["prompt_id"][self.baseline_N]
        ratio = ratio_of_means(cost[self.level_N], cost[self.baseline_N], prompt, confidence=confidence)
        return Cost(cell=cell, level=level, ratio=ratio, pairs=len(self.level_N))


def _adjusted(comparisons: Sequence[Comparison], outcomes: Sequence[Outcome]) -> tuple[Comparison, ...]:
    """Comparisons with their Holm-adjusted p-values, grouped by outcome: one family each."""
    adjusted: list[Comparison] = []
    for outcome in outcomes:
        family = [comparison for comparison in comparisons if comparison.outcome == outcome]
        p_values = holm([comparison.estimate.test.p_value for comparison in family])
        adjusted += [replace(c, p_holm=float(p)) for c, p in zip(family, p_values, strict=True)]
    return tuple(adjusted)
