"""Finding step logs: those of a run, or any Parquet and Arrow files with their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from dsprobe.errors import DSProbeError, StorageError, unknown_name
from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.names import given_place
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import MANIFEST, RunStore, shard_folder

LOG_KINDS: Final = ("step_log", "position_log")

LABELS: Final = tuple(part.name for part in fields(Condition))
"""Columns that say which condition a row belongs to."""

SUFFIXES: Final = (".parquet", ".arrow", ".feather")

Where = Mapping[str, Sequence[str]]
"""Part of a condition (or ``condition`` itself) → the values wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """A file that may hold a step log."""

    name: str
    """Relative to the store."""
    bytes: int
    sha256: str | None = None
    """What the file must be, where a commit record says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """Step logs of one place."""

    objects: ObjectStore
    files: tuple[LogFile, ...]
    run: RunStore | None = None
    """The run they are of; `None` for files from elsewhere."""
    threshold: float | None = None
    """Harm threshold of the run."""
    dropped: int = 0
    """Trajectories of the run whose step logs had no room in `recording.raw.max_bytes`."""


def find_logs(url: str, where: Where) -> Logs:
    """Find the step logs of a run, of a folder or prefix, or one file.

    Args:
        url: A run (folder, URL, or its id below ``./runs``), or any place or file.
        where: Conditions wanted; of a run, only files that hold them are listed.

    Raises:
        ConfigError: `where` names no part of a condition.
        StorageError: Nothing is there.
    """
    for key in where:
        if key not in (*LABELS, "condition"):
            raise unknown_name("part of a condition", key, (*LABELS, "condition"))
    url = given_place(url)
    if url.endswith(SUFFIXES):
        folder, _, name = url.rpartition("/")
        return _only(ObjectStore(folder), name)
    objects = ObjectStore(url)
    return _of_run(RunStore.at(url), where) if objects.exists(MANIFEST) else _of_folder(objects)


def wanted(condition: Condition, where: Where) -> bool:
    """Whether a condition is one of those asked for."""
    return all(
        (condition.id if key == "condition" else getattr(condition, key)) in values for key, values in where.items()
    )


def _of_run(run: RunStore, where: Where) -> Logs:
    records = [record for _, record in sorted(run.committed().items())]
    if not records:
        raise StorageError(f"{run.url} has no committed shards yet.")
    chosen = [record for record in records if wanted(record.condition, where)]
    if not chosen:
        raise no_such_condition(where, {record.condition for record in records})
    files = []
    for record in chosen:
        logs = {kind: [n for n in sorted(record.files) if n.startswith(f"raw/{kind}-")] for kind in LOG_KINDS}
        if not all(logs.values()):
            raise StorageError(
                f"{run.url} holds no raw step logs of shard `{record.shard_id}`, so there is nothing to compute new "
                "statistics from. Runs keep them with `recording.raw.keep: [steps]`. To rebuild the tables from the "
                f"committed shards: dsprobe compact {run.url}"
            )
        folder = shard_folder(record.shard_id, record.attempt)
        for name in [name for names in logs.values() for name in names]:
            entry = record.files[name]
            files.append(LogFile(name=f"{folder}/{name}", bytes=entry.bytes, sha256=entry.sha256))
    return Logs(
        objects=run.objects,
        files=tuple(files),
        run=run,
        threshold=chosen[0].options.threshold,
        dropped=sum(record.raw_dropped.get("steps", 0) for record in chosen),
    )


def _of_folder(objects: ObjectStore) -> Logs:
    entries = [entry for entry in objects.entries("") if not _hidden(entry.name)]
    run = next((entry.name for entry in entries if Path(entry.name).name == MANIFEST), None)
    if run is not None:
        raise StorageError(
            f"{objects.url} holds a run at `{run.removesuffix(MANIFEST)}`, whose attempts that do not count must not "
            "be read. Give the folder of one run."
        )
    files = [LogFile(name=entry.name, bytes=entry.bytes) for entry in entries if entry.name.endswith(SUFFIXES)]
    if not files:
        raise StorageError(f"{objects.url} holds no step logs: no file ends with {', '.join(SUFFIXES)}.")
    return Logs(objects=objects, files=tuple(files))


def _only(objects: ObjectStore, name: str) -> Logs:
    files = [LogFile(name=entry.name, bytes=entry.bytes) for entry in objects.entries("") if entry.name == name]
    if not files:
        raise StorageError(f"{objects.address(name)} does not exist.")
    return Logs(objects=objects, files=tuple(files))


def _hidden(name: str) -> bool:
    """Temporary files and those that readers are to ignore."""
    return name.endswith(".tmp") or any(part.startswith(("_", ".")) for part in name.split("/"))


def no_such_condition(where: Where, found: Iterable[Condition]) -> DSProbeError:
    """The error for conditions that are not there.

    Args:
        where: What was asked for.
        found: The conditions that there are.
    """
    found = set(found)
    for key, values in where.items():
        known = {condition.id if key == "condition" else getattr(condition, key) for condition in found}
        for value in values:
            if value not in known:
                return unknown_name(key, value, known, of_file=True)
    asked = ", ".join(f"{key}={'|'.join(values)}" for key, values in where.items())
    return StorageError(f"No condition has {asked} together; there are: {', '.join(sorted(c.id for c in found))}.")
