"""What the sweep section is made from: the front, the trials and the search, as plain checked data.

The laboratory knows neither Optuna nor the sweep's files. Whoever builds a report reads ``front.json``, the rows of
``trials.parquet`` and the facts of the search, and hands them over as dictionaries.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from dsprobe.reports.sweep_checks import STATES, check_parts
from dsprobe.visible_text import visible

FEW_TRIALS_PER_PARAMETER: Final = 10
"""Below so many complete trials per parameter, importances are shown with a warning. A rule of thumb."""

_OBJECTIVES: Final = {
    "asr": "attack success rate",
    "over_refusal": "over-refusal",
    "invalidity": "invalid replies",
    "delta_nfe": "ΔNFE",
}
"""Words for objectives whose names alone would not be read aloud."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its bounds; NaN where undefined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{decimal(self.value)} [{decimal(self.low)}, {decimal(self.high)}]"

    def to_dict(self) -> dict[str, float | None]:
        """JSON values; NaN becomes None."""
        return {name: _finite(getattr(self, name)) for name in ("value", "low", "high")}


Estimates = Mapping[str, Estimate]
"""Objective → estimate."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One non-dominated setting."""

    label: str
    """``knee`` or ``p01`` …; made visible, also the name of the guardrail file."""
    trial: int
    parameters: Mapping[str, Any]
    guardrail: Mapping[str, Any]
    objectives: Estimates
    validation: Estimates | None
    """The same objectives on prompts that the search never saw."""
    attained: float
    """Share of the bootstrap resamples in which the point is non-dominated."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial."""

    number: int
    state: str
    reason: str
    digest: str
    parameters: Mapping[str, Any]
    objectives: Estimates | None
    """On the prompts of its last rung; `None` for a failed trial."""


@dataclass(frozen=True)
class SweepData:
    """A finished sweep. All objectives are minimised. Build it with `from_parts`, which checks the keys.

    Attributes:
        front: Parsed ``front.json``.
        trials: Rows of ``trials.parquet``; ``parameters`` and ``objectives`` are mappings.
        search: ``sampler``, ``trials`` (asked for), ``rungs``, ``seed``, ``concurrency``.
    """

    front: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    search: Mapping[str, Any]

    @classmethod
    def from_parts(cls, front: dict[str, Any], trials: list[dict[str, Any]], search: dict[str, Any]) -> SweepData:
        """Check the parts of a sweep and put them together.

        Args:
            front: Parsed ``front.json``.
            trials: Rows of ``trials.parquet``.
            search: Facts of the search.

        Raises:
            StorageError: A key or an objective is missing, the front was written by a newer version, or the knee
                is not one of the points.
        """
        check_parts(front, trials, search)
        return cls(front, trials, search)

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, harm first."""
        return tuple(self.front["objectives"])

    @cached_property
    def points(self) -> tuple[FrontPoint, ...]:
        """The front, in order of the first objective, then the second."""
        points = [_point(raw, self.objectives) for raw in self.front["points"]]
        return tuple(sorted(points, key=lambda p: [p.objectives[name].value for name in self.objectives]))

    @property
    def knee(self) -> FrontPoint | None:
        """The front's point of best trade; `None` for an empty front."""
        return next((p for p in self.points if p.label == visible(str(self.front["knee"]))), None)

    @property
    def baseline(self) -> tuple[Estimates, Estimates | None]:
        """The unguarded model on the search's and on the validation prompts."""
        raw = self.front["baseline"]
        unseen = raw.get("validation")
        return _estimates(raw["objectives"], self.objectives), _estimates(unseen, self.objectives) if unseen else None

    @cached_property
    def finished(self) -> tuple[Trial, ...]:
        """All trials by number."""
        trials = [
            Trial(
                row["number"], row["state"], visible(str(row["reason"])) if row["reason"] else "", row["digest"],
                row["parameters"] or {}, _estimates(row["objectives"], self.objectives) if row["objectives"] else None,
            )
            for row in self.trials
        ]  # fmt: skip
        return tuple(sorted(trials, key=lambda trial: trial.number))

    @cached_property
    def off_front(self) -> tuple[Trial, ...]:
        """Trials with objectives that are not on the front; repeats of a front point's setting are left out."""
        numbers = {point.trial for point in self.points}
        digests = {trial.digest for trial in self.finished if trial.number in numbers}
        return tuple(t for t in self.finished if t.objectives is not None and t.digest not in digests)

    @property
    def confidence(self) -> str:
        """Nominal coverage of the intervals, for print."""
        return f"{100 * self.front['confidence']:g} %"

    @property
    def states(self) -> dict[str, int]:
        """State → number of trials, in the order of `STATES`."""
        found = Counter(trial.state for trial in self.finished)
        return {state: found[state] for state in STATES}

    @property
    def failures(self) -> list[tuple[str, int]]:
        """Reasons of failed trials with their number, the most frequent first."""
        return Counter(
            trial.reason or "no reason given" for trial in self.finished if trial.state == "failed"
        ).most_common()

    @property
    def passes(self) -> tuple[int, int]:
        """Forward passes used, and those that the same trials take from scratch."""
        if steps := self.front["attainment"]:
            return int(steps[-1]["passes_used"]), int(steps[-1]["passes_from_scratch"])
        used, scratch = ([row[name] or 0 for row in self.trials] for name in ("passes_used", "passes_from_scratch"))
        return sum(used), sum(scratch)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Dotted names of all parameters, sorted."""
        names = {name for trial in self.finished for name in trial.parameters}
        return tuple(sorted(names | {name for point in self.points for name in point.parameters}, key=_natural))

    @property
    def caveat(self) -> str:
        """Why the importances should not be believed yet; empty where there are enough trials."""
        complete, needed = self.states["complete"], FEW_TRIALS_PER_PARAMETER * len(self.parameters)
        if complete >= needed:
            return ""
        return (
            f"Only {complete} complete trials for {len(self.parameters)} parameters: the order of the bars may change "
            f"with more trials ({needed} or more would be comfortable)."
        )


def decimal(value: float) -> str:
    """A number for tables: three decimals, fewer for large ones; an en dash when undefined."""
    if not math.isfinite(value):
        return "–"
    if value != 0 and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def objective_label(name: str) -> str:
    """An objective in words."""
    return _OBJECTIVES.get(name, visible(name.replace("_", " ")))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Parameter names without the dotted start that all of them share."""
    split = {name: name.split(".") for name in names}
    shared = 0
    shortest = min((len(parts) for parts in split.values()), default=1)
    while shared < shortest - 1 and len({parts[shared] for parts in split.values()}) == 1:
        shared += 1
    return {name: visible(".".join(parts[shared:])) for name, parts in split.items()}


def setting_text(value: object) -> str:
    """A parameter's value in a few characters, one line, as YAML would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return visible(value)
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def _point(raw: Mapping[str, Any], objectives: Sequence[str]) -> FrontPoint:
    unseen = raw["validation"]
    return FrontPoint(
        visible(str(raw["label"])), raw["trial"], raw["parameters"], raw["guardrail"],
        _estimates(raw["objectives"], objectives), _estimates(unseen, objectives) if unseen else None,
        _number(raw["attained"]),
    )  # fmt: skip


def _estimates(raw: Mapping[str, Any], objectives: Sequence[str]) -> dict[str, Estimate]:
    return {name: Estimate(*(_number(raw[name][key]) for key in ("value", "low", "high"))) for name in objectives}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `stack.2` before `stack.10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
