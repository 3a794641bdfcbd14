"""How a run or sweep stands, from its folder alone: what is committed, and what its drivers said last."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dsprobe.storage.run_store import RunStore
from dsprobe.storage.status import DriverStatus, driver_statuses
from dsprobe.storage.table_index import newest_index


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How a run or sweep stands."""

    run_id: str
    url: str
    kind: Literal["run", "sweep"]
    shards_total: int
    """0 for a sweep, whose trials have no shards."""
    shards_done: int
    """Committed."""
    conditions: int
    tables: bool
    """Whether there are tables to query."""
    drivers: tuple[DriverStatus, ...]
    """The latest last."""
    objectives: tuple[str, ...]
    """Names of a sweep's objectives, in the order of `DriverStatus.front`."""

    @property
    def driver(self) -> DriverStatus | None:
        """Who spoke last; a driver that runs before one that has ended."""
        running = [driver for driver in self.drivers if driver.state == "running" and not driver.lost]
        return next(reversed(running or self.drivers), None)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing: of a run, all shards; of a sweep, its last driver's word."""
        if self.kind == "sweep":
            return self.driver is not None and self.driver.state == "complete"
        return self.shards_done >= self.shards_total

    @property
    def under_way(self) -> bool:
        """Whether a driver that was heard of lately works on it."""
        return self.driver is not None and self.driver.state == "running" and not self.driver.lost

    @property
    def word(self) -> str:
        """One word for it: complete, running, incomplete, interrupted, failed, lost, or `not started`."""
        if self.under_way:
            return "running"
        if self.complete:
            return "complete"
        if self.driver is None:
            return "incomplete" if self.shards_done else "not started"
        if self.driver.lost:
            return "lost"
        return "incomplete" if self.driver.state == "complete" else self.driver.state

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "state": self.word, "complete": self.complete}


def run_status(store: RunStore) -> RunStatus:
    """Read how a run stands; lists names and reads the manifest and the statuses, no commit record and no table.

    Raises:
        StorageError: There is no run, or the store failed.
    """
    manifest = store.manifest()
    sweep = manifest.get("sweep")
    wanted = set(manifest["shards"])
    return RunStatus(
        run_id=store.run_id,
        url=store.url,
        kind="run" if sweep is None else "sweep",
        shards_total=len(wanted),
        shards_done=len(wanted & store.committed_ids()),
        conditions=len(manifest.get("conditions", [])),
        tables=newest_index(store.objects) is not None,
        drivers=tuple(driver_statuses(store.objects)),
        objectives=tuple(objective["name"] for objective in (sweep or {}).get("objectives", [])),
    )
