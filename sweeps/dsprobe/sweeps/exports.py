"""A sweep's results as files: tables as Parquet, the front as JSON, every point as a guardrail for `dsprobe run`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dsprobe.config import GuardrailConfig
from dsprobe.errors import DamagedError
from dsprobe.metrics.intervals import Interval
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import SCHEMA_VERSION, open_writer
from dsprobe.sweeps.front import passes_used
from dsprobe.sweeps.front_records import Estimates, Front, FrontPoint
from dsprobe.sweeps.records import TrialRecord
from dsprobe.untrusted import parse_facts, parse_json, parse_record

FRONT_VERSION: Final = 1
"""Version of ``front.json``."""

FOLDER: Final = "sweep"
TRIALS: Final = f"{FOLDER}/trials.parquet"
FRONT_TABLE: Final = f"{FOLDER}/front.parquet"
FRONT: Final = f"{FOLDER}/front.json"
GUARDRAILS: Final = f"{FOLDER}/guardrails"

_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""A folder beside the sweep's own, and no way out of there."""

PARAMETER_PREFIX: Final = "parameters."
"""Columns of single parameters: this and the dotted path; null where the parameter does not exist."""

_BOUNDS: Final = {"value": "", "low": "_low", "high": "_high"}
"""Part of an estimate → what its column's name has behind the objective's."""

Row = dict[str, Any]


def write_front(front: Front, trials: Sequence[TrialRecord], objects: ObjectStore) -> None:
    """Write ``trials.parquet``, ``front.parquet``, ``guardrails/<label>.yaml`` and, last, ``front.json``.

    Files of an earlier front are replaced; guardrails of labels that are gone are removed.

    Args:
        front: From `compute_front`.
        trials: All trials.
        objects: The sweep's own folder, ``<root>/runs/<sweep_id>``.

    Raises:
        StorageError: The store failed.
    """
    labels = {number: point.label for point in front.points for number in (point.trial, *point.equivalent)}
    ordered = sorted(trials, key=lambda trial: trial.number)
    rows = [_trial_row(trial, front, labels.get(trial.number)) for trial in ordered]
    _write_table(TRIALS, rows, _trial_schema(front), [t.parameters for t in ordered], front, objects)
    points = [_point_row(point, front) for point in front.points]
    _write_table(FRONT_TABLE, points, _front_schema(front), [p.parameters for p in front.points], front, objects)
    for point in front.points:
        objects.put(f"{GUARDRAILS}/{point.label}.yaml", guardrail_yaml(point, front).encode())
    objects.put(FRONT, (json.dumps(front_json(front), indent=2, allow_nan=False) + "\n").encode())
    kept = {f"{GUARDRAILS}/{point.label}.yaml" for point in front.points}
    for name in objects.list(GUARDRAILS):
        if name not in kept:
            objects.remove(name)


def front_json(front: Front) -> Row:
    """The front as JSON values; undefined numbers are null."""
    unseen = front.baseline_validation
    return {
        "version": FRONT_VERSION,
        "sweep_id": front.sweep_id,
        "objectives": list(front.objectives),
        "directions": ["minimize"] * len(front.objectives),
        "reference": dict(front.reference),
        "confidence": front.confidence,
        "hypervolume": _estimate(front.hypervolume),
        "knee": front.knee,
        "baseline": {
            "objectives": _estimates(front.baseline),
            "validation": None if unseen is None else _estimates(unseen),
        },
        "points": [_point_json(point) for point in front.points],
        "attainment": [
            {
                "trials": step.trials,
                "hypervolume": _finite(step.hypervolume),
                "passes_used": step.passes_used,
                "passes_from_scratch": step.passes_from_scratch,
            }
            for step in front.attainment
        ],
        "validation_run": front.validation_run,
        "importances": {name: dict(shares) for name, shares in (front.importances or {}).items()},
        "importances_note": front.importances_note,
    }


def guardrail_yaml(point: FrontPoint, front: Front) -> str:
    """A point as the file that ``dsprobe run --guardrail FILE`` takes, with where it comes from in a comment."""
    found = ", ".join(f"{name} {format(point.objectives[name], '.3g')}" for name in front.objectives)
    sweep = f" of sweep {front.sweep_id}" if front.sweep_id else ""
    body = yaml.safe_dump(_guardrail(point.guardrail), sort_keys=False, allow_unicode=True)
    return f"# Trial {point.trial}{sweep}: {found}; {front.confidence:.0%} intervals\n{body}"


def read_front(objects: ObjectStore) -> Row:
    """``front.json`` of a sweep's folder.

    Raises:
        DamagedError: It is not what `front.json` of a sweep is.
        StorageError: It is not there.
    """
    where = objects.address(FRONT)
    try:
        content = parse_facts(objects.read(FRONT))
        run = content["validation_run"]
        if run is not None and not (isinstance(run, str) and _RUN_ID.fullmatch(run)):
            raise ValueError("`validation_run` is no run's id")
    except ValueError as error:
        raise DamagedError(f"{where} is damaged: {error}. Run the same `dsprobe sweep` again.") from None
    return content


def read_trials(objects: ObjectStore) -> list[Row]:
    """Rows of ``trials.parquet`` with `parameters` and `objectives` as mappings, as the report takes them.

    `objectives` maps each name to ``{value, low, high}`` and is `None` for a trial without outcomes.

    Raises:
        DamagedError: It is not what a sweep wrote.
        StorageError: The file is not there.
    """
    data = objects.read(TRIALS)
    try:
        table = pq.read_table(pa.BufferReader(data))
        names = parse_record(list[str], parse_json(table.schema.metadata[b"dsprobe.objectives"]))
        return [_nested(row, names) for row in table.to_pylist()]
    except (pa.ArrowException, LookupError, TypeError, ValueError, OSError) as error:
        where = objects.address(TRIALS)
        raise DamagedError(f"{where} is damaged: {error}. Run the same `dsprobe sweep` again.") from error


def _nested(row: Row, names: Sequence[str]) -> Row:
    columns = {name + end for name in names for end in _BOUNDS.values()}
    rest = {key: value for key, value in row.items() if key not in columns and not key.startswith(PARAMETER_PREFIX)}
    measured = row["passes_from_scratch"] is not None
    objectives = {name: {part: row[name + end] for part, end in _BOUNDS.items()} for name in names}
    return rest | {"parameters": parse_json(row["parameters"]), "objectives": objectives if measured else None}


def _trial_row(trial: TrialRecord, front: Front, label: str | None) -> Row:
    row: Row = {
        "number": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "digest": trial.digest,
        "rung": trial.rung,
        "point": label,
        "parameters": json.dumps(dict(trial.parameters), sort_keys=True),
        "guardrail": None if trial.guardrail is None else json.dumps(_guardrail(trial.guardrail)),
        "wall_seconds": trial.wall_seconds,
        "cached": trial.cached,
    }
    measures = front.measures.get(trial.number)
    if trial.outcomes is None or measures is None:
        return row
    row |= {"passes_used": passes_used(trial), "passes_from_scratch": int(trial.outcomes.passes.sum())}
    row |= {"feasible": measures.feasible}
    row |= {f"constraint_{name}": _finite(value) for name, value in measures.constraints.items()}
    row |= {f"{name}_empty": _finite(value) for name, value in measures.empty_shares.items()}
    return row | _flat(measures.objectives)


def _point_row(point: FrontPoint, front: Front) -> Row:
    row: Row = {
        "label": point.label,
        "trial": point.trial,
        "equivalent": list(point.equivalent),
        "attained": point.attained,
        "contribution": point.contribution,
        "parameters": json.dumps(dict(point.parameters), sort_keys=True),
        "guardrail": json.dumps(_guardrail(point.guardrail)),
    }
    row |= _flat(point.objectives) | _flat(point.change, "change_")
    row |= {f"{name}_empty": _finite(value) for name, value in point.empty_shares.items()}
    return row | (_flat(point.validation, "validation_") if point.validation is not None else {})


def _point_json(point: FrontPoint) -> Row:
    return {
        "label": point.label,
        "trial": point.trial,
        "equivalent": list(point.equivalent),
        "parameters": dict(point.parameters),
        "guardrail": _guardrail(point.guardrail),
        "objectives": _estimates(point.objectives),
        "validation": None if point.validation is None else _estimates(point.validation),
        "change": _estimates(point.change),
        "empty": {name: _finite(value) for name, value in point.empty_shares.items()},
        "attained": point.attained,
        "contribution": point.contribution,
    }


def _trial_schema(front: Front) -> dict[str, pa.DataType]:
    constraints = sorted({name for measures in front.measures.values() for name in measures.constraints})
    return {
        "number": pa.int64(),
        **dict.fromkeys(("state", "reason", "digest"), pa.string()),
        "rung": pa.float64(),
        "point": pa.string(),
        **dict.fromkeys(_estimate_columns(front.objectives), pa.float64()),
        **dict.fromkeys((f"{name}_empty" for name in front.objectives), pa.float64()),
        **dict.fromkeys((f"constraint_{name}" for name in constraints), pa.float64()),
        "feasible": pa.bool_(),
        "passes_used": pa.int64(),
        "passes_from_scratch": pa.int64(),
        "wall_seconds": pa.float64(),
        "cached": pa.bool_(),
        "parameters": pa.string(),
        "guardrail": pa.string(),
    }


def _front_schema(front: Front) -> dict[str, pa.DataType]:
    columns = [
        name for prefix in ("", "change_", "validation_") for name in _estimate_columns(front.objectives, prefix)
    ]
    return {
        "label": pa.string(),
        "trial": pa.int64(),
        "equivalent": pa.list_(pa.int64()),
        **dict.fromkeys(columns, pa.float64()),
        **dict.fromkeys((f"{name}_empty" for name in front.objectives), pa.float64()),
        **dict.fromkeys(("attained", "contribution"), pa.float64()),
        **dict.fromkeys(("parameters", "guardrail"), pa.string()),
    }


def _write_table(
    name: str,
    rows: Sequence[Row],
    columns: Mapping[str, pa.DataType],
    parameters: Sequence[Mapping[str, Any]],
    front: Front,
    objects: ObjectStore,
) -> None:
    table = {column: pa.array([row.get(column) for row in rows], dtype) for column, dtype in columns.items()}
    for path in sorted({path for given in parameters for path in given}):
        table[PARAMETER_PREFIX + path] = _parameter_column([given.get(path) for given in parameters])
    metadata = {
        "dsprobe.schema_version": str(SCHEMA_VERSION),
        "dsprobe.table": name.rpartition("/")[2].removesuffix(".parquet"),
        "dsprobe.run_id": front.sweep_id,
        "dsprobe.objectives": json.dumps(list(front.objectives)),
    }
    built = pa.table(table).replace_schema_metadata(metadata)
    with objects.create(name) as sink, open_writer(sink, built.schema) as writer:
        writer.write_table(built)


def _parameter_column(values: Sequence[Any]) -> pa.Array:
    """The narrowest type that holds all values; JSON text where they are of several kinds."""
    given = {type(value) for value in values if value is not None}
    kinds = ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()), (str, pa.string()))
    for kind, dtype in kinds:
        if given <= {kind}:
            return pa.array(values, dtype)
    if given <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _guardrail(guardrail: GuardrailConfig) -> Row:
    """Name and stack as plain data; aliases only where given."""
    stack = [spec.model_dump(mode="json", exclude_defaults=True) for spec in guardrail.stack]
    return {"name": guardrail.name, "stack": stack}


def _estimate_columns(names: Iterable[str], prefix: str = "") -> list[str]:
    return [prefix + name + end for name in names for end in _BOUNDS.values()]


def _flat(estimates: Estimates, prefix: str = "") -> Row:
    return {
        prefix + name + end: value[part]
        for name, value in _estimates(estimates).items()
        for part, end in _BOUNDS.items()
    }


def _estimates(estimates: Estimates) -> dict[str, dict[str, float | None]]:
    return {name: _estimate(interval) for name, interval in estimates.items()}


def _estimate(interval: Interval) -> dict[str, float | None]:
    return {part: _finite(getattr(interval, part)) for part in _BOUNDS}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
