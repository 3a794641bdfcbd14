"""Checks of what the sweep section is made from: are the keys, objectives and states there that it reads?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dsprobe.errors import StorageError

VERSION: Final = 1
"""Newest version of ``front.json`` that is understood."""

STATES: Final = ("complete", "stopped", "failed")

_FRONT_KEYS: Final = (
    "version", "sweep_id", "objectives", "reference", "confidence", "hypervolume", "knee", "baseline", "points",
    "attainment", "validation_run", "importances",
)  # fmt: skip
_POINT_KEYS: Final = ("label", "trial", "parameters", "guardrail", "objectives", "validation", "attained")
_TRIAL_KEYS: Final = (
    "number", "state", "reason", "digest", "rung", "parameters", "objectives", "passes_used", "passes_from_scratch",
    "wall_seconds", "cached",
)  # fmt: skip
_STEP_KEYS: Final = ("trials", "hypervolume", "passes_used", "passes_from_scratch")
_SEARCH_KEYS: Final = ("sampler", "trials", "rungs", "seed", "concurrency")


def check_parts(front: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], search: Mapping[str, Any]) -> None:
    """Refuse parts of a sweep that lack something.

    Args:
        front: Parsed ``front.json``.
        trials: Rows of ``trials.parquet``.
        search: Facts of the search.

    Raises:
        StorageError: A key or an objective is missing, the front was written by a newer version, or the knee
            is not one of the points.
    """
    _check_front(front)
    objectives = front["objectives"]
    for place, row in enumerate(trials):
        where = f"trials.parquet, row {place}"
        _check_keys(where, row, _TRIAL_KEYS)
        if row["state"] not in STATES:
            raise StorageError(f"{where}: state `{row['state']}` is not one of {', '.join(STATES)}.")
        if row["objectives"] is not None:
            _check_estimates(where, row["objectives"], objectives)
    _check_keys("The sweep's search", search, _SEARCH_KEYS)


def _check_front(front: Mapping[str, Any]) -> None:
    _check_keys("front.json", front, _FRONT_KEYS)
    if front["version"] > VERSION:
        raise StorageError(f"front.json has version {front['version']}; this program reads up to {VERSION}.")
    objectives = front["objectives"]
    if not objectives:
        raise StorageError("front.json names no objective.")
    _check_keys("front.json, hypervolume", front["hypervolume"], ("value", "low", "high"))
    _check_keys("front.json, reference", front["reference"], objectives)
    _check_keys("front.json, baseline", front["baseline"], ("objectives",))
    _check_estimates("front.json, baseline", front["baseline"]["objectives"], objectives)
    if front["baseline"].get("validation"):
        _check_estimates("front.json, baseline's validation", front["baseline"]["validation"], objectives)
    for place, point in enumerate(front["points"]):
        where = f"front.json, point {place}"
        _check_keys(where, point, _POINT_KEYS)
        _check_estimates(where, point["objectives"], objectives)
        if point["validation"] is not None:
            _check_estimates(f"{where}'s validation", point["validation"], objectives)
    for place, step in enumerate(front["attainment"]):
        _check_keys(f"front.json, attainment {place}", step, _STEP_KEYS)
    labels = [point["label"] for point in front["points"]]
    if labels and front["knee"] not in labels:
        raise StorageError(
            f"front.json: knee `{front['knee']}` is not one of the points {', '.join(map(str, labels))}."
        )


def _check_estimates(where: str, values: Mapping[str, Any], objectives: Sequence[str]) -> None:
    _check_keys(where, values, objectives)
    for name in objectives:
        _check_keys(f"{where}, `{name}`", values[name], ("value", "low", "high"))


def _check_keys(where: str, mapping: object, keys: Iterable[str]) -> None:
    if not isinstance(mapping, Mapping):
        raise StorageError(f"{where}: expected a mapping, found {type(mapping).__name__}.")
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise StorageError(f"{where} has no `{missing[0]}`. It has: {', '.join(map(str, mapping))}.")
