"""What `dsprobe reduce` writes: statistics and state of a scan of step logs, in a folder named after what was asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from dsprobe.errors import StorageError
from dsprobe.storage.log_files import Logs, no_such_condition
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.reducer import STATE_VERSION
from dsprobe.storage.scan import Scanned, ScanSettings, check_complete
from dsprobe.storage.schemas import write_parquet
from dsprobe.storage.statistics import finalise

FACTS: Final = "reduced.json"
"""Written last: a folder that has it is complete."""

_FOLDER: Final = "reduced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a scan's results go."""

    objects: ObjectStore
    folder: str = ""
    """In the store; its top unless given."""

    def name(self, file: str) -> str:
        """Name of a file in the store."""
        return f"{self.folder}/{file}" if self.folder else file

    @property
    def address(self) -> str:
        """For messages and readers outside."""
        return self.objects.address(self.folder).rstrip("/")


def settings_digest(logs: Logs, settings: ScanSettings) -> str:
    """A name for what is asked: the same logs and settings give the same one."""
    asked = {
        "state_version": STATE_VERSION,
        "threshold": settings.threshold,
        "where": {key: sorted(values) for key, values in settings.where.items()},
        "files": sorted([file.name, file.bytes, file.sha256 or ""] for file in logs.files),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def place_for(logs: Logs, settings: ScanSettings, out: str | None) -> Place:
    """Choose where results go.

    Args:
        logs: What is scanned.
        settings: What is computed.
        out: Folder or URL; unless given, ``reduced/<digest>`` in the run, or here for logs from elsewhere.
    """
    if out is not None:
        return Place(objects=ObjectStore(out))
    folder = f"{_FOLDER}/{settings_digest(logs, settings)}"
    return Place(objects=logs.run.objects if logs.run else ObjectStore("."), folder=folder)


def check_scanned(logs: Logs, settings: ScanSettings, scanned: Scanned) -> None:
    """Refuse scans whose statistics would be of nothing, or of half of the logs.

    Raises:
        ConfigError: No condition is the one asked for.
        StorageError: There are no step logs, or step and position logs do not belong together.
    """
    if len(scanned.other_files) == len(logs.files):
        raise StorageError(
            f"{logs.objects.url} holds no step logs: {scanned.other_files[0]} and {len(logs.files) - 1} others are not."
        )
    if not scanned.state.conditions and settings.where and scanned.conditions:
        raise no_such_condition(settings.where, scanned.conditions)
    if not scanned.step_rows:
        raise StorageError(f"{logs.objects.url} holds no rows of a `step_log`, which every statistic needs.")
    check_complete(scanned)


def write_reduced(logs: Logs, settings: ScanSettings, scanned: Scanned, place: Place) -> dict[str, Any]:
    """Write `step_stats`, `position_stats` and the state's tables as Parquet, then `FACTS`.

    Returns:
        The facts.

    Raises:
        StorageError: The store failed.
    """
    run_id = logs.run.run_id if logs.run else ""
    tables = {**finalise(scanned.state, run_id), **scanned.state.to_tables(run_id)}
    for kind, table in tables.items():
        extra = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        with place.objects.create(place.name(f"{kind}.parquet")) as sink:
            write_parquet(table, kind, sink, run_id=run_id, extra=extra)
    facts = {
        "source": logs.objects.url,
        "threshold": settings.threshold,
        "where": {key: sorted(values) for key, values in settings.where.items()},
        "conditions": sorted(condition.id for condition in scanned.state.conditions),
        "step_rows": scanned.step_rows,
        "position_rows": scanned.position_rows,
        "files": [asdict(file) for file in logs.files],
        "left_out": sorted(scanned.other_files),
        "trajectories_without_logs": logs.dropped,
    }
    place.objects.put(place.name(FACTS), json.dumps(facts, indent=1, sort_keys=True).encode())
    return facts
