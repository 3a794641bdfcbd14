"""How a run or sweep stands, from its folder alone: what is committed, and what its drivers said last."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from dsprobe.judges.base import VERDICT_PREFIX
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.scores import own_judges
from dsprobe.storage.status import DriverStatus, driver_statuses
from dsprobe.storage.table_index import TableIndex, newest_index
from dsprobe.storage.table_reader import read_settled, stream

HARM_BYTES: Final = 64 << 20
"""Trajectories from which harm is left out: to read so much takes longer than somebody wants to wait for a look."""


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
    harm_judge: str | None = None
    """Judge behind `harm`: the first that decides harm."""
    harm: dict[str, float] = field(default_factory=dict)
    """Condition id → share of its decided replies that are harmful, in [0, 1], by the tables; empty without tables."""

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
    """Read how a run stands: names, the manifest and the statuses, and of a run that has ended its smaller tables.

    Raises:
        StorageError: There is no run, or the store failed.
    """
    manifest = store.manifest()
    sweep = manifest.get("sweep")
    wanted = set(manifest["shards"])
    index = newest_index(store.objects)
    found = RunStatus(
        run_id=store.run_id,
        url=store.url,
        kind="run" if sweep is None else "sweep",
        shards_total=len(wanted),
        shards_done=len(wanted & store.committed_ids()),
        conditions=len(manifest.get("conditions", [])),
        tables=index is not None,
        drivers=tuple(driver_statuses(store.objects)),
        objectives=tuple(objective["name"] for objective in (sweep or {}).get("objectives", [])),
    )
    if index is None or found.under_way:  # tables of a run under way are those of an earlier session
        return found
    return _with_harm(found, store, index)


def _with_harm(found: RunStatus, store: RunStore, index: TableIndex) -> RunStatus:
    """Add what a run's first judge of harm says, where that is soon read."""
    judges = {**own_judges(store), **index.scored}
    judge = next((key for key, decides in judges.items() if decides == "harm"), None)
    if judge is None or sum(entry["bytes"] for entry in index.tables["trajectories"]) > HARM_BYTES:
        return found
    harm = read_settled(store.objects, lambda: _harm(store, f"{VERDICT_PREFIX}{judge}"))
    return replace(found, harm_judge=judge, harm=harm)


def _harm(store: RunStore, column: str) -> dict[str, float]:
    harmful: Counter[str] = Counter()
    decided: Counter[str] = Counter()
    for table in stream(store.objects, "trajectories", columns=["condition", column]):
        for condition, value in zip(table["condition"].to_pylist(), table[column].to_pylist(), strict=True):
            if value is not None:
                decided[condition] += 1
                harmful[condition] += value
    return {condition: harmful[condition] / total for condition, total in decided.items()}
