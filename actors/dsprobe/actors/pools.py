"""What the pools of a cluster are doing, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dsprobe.actors.names import members
from dsprobe.actors.pool import ReplicaPool, infos
from dsprobe.actors.replica import ReplicaInfo
from dsprobe.actors.turns import Work
from dsprobe.errors import ConfigError, unknown_name

ANSWER_S: Final = 5.0
"""How long a look waits for replicas that do not answer; those without room never do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A pool as it is now."""

    name: str
    replicas: Mapping[int, ReplicaInfo]
    """Those that are up, by number."""
    pending: int
    """Replicas that do not answer: they are coming up, wait for room, or are frozen."""

    @property
    def idle_s(self) -> float:
        """Seconds since its last use; 0 while there is work, or while no replica is up."""
        return min((info.turns.idle_s for info in self.replicas.values()), default=0.0)

    @property
    def ends_in_s(self) -> float | None:
        """Seconds until it is ended if nobody comes; `None` where that is never."""
        limit = min((info.pool_idle_s for info in self.replicas.values() if info.pool_idle_s), default=None)
        return None if limit is None else max(0.0, limit - self.idle_s)

    @property
    def works(self) -> dict[int, tuple[Work, ...]]:
        """Work of the replicas that have any: the holder of the turn first, then who has begun, then who waits."""
        return {number: info.turns.works for number, info in self.replicas.items() if info.turns.works}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; replicas in order, without the models' full configurations."""
        replicas = [
            {key: value for key, value in asdict(info).items() if key != "configs"} | {"index": number}
            for number, info in self.replicas.items()
        ]
        return {
            "pool": self.name,
            "pending": self.pending,
            "idle_s": self.idle_s,
            "ends_in_s": self.ends_in_s,
            "replicas": replicas,
        }


def describe_work(work: Work) -> str:
    """Who does what, in a few words."""
    what = f"shard {work.shard} of {work.run}" if work.kind == "shard" else f"a {work.kind}"
    return f"{work.tenant.user} (job {work.tenant.job}): {what}"


def pool_status(name: str) -> PoolStatus:
    """Look at one pool of the connected cluster.

    Raises:
        ConfigError: No pool of that name runs; the message lists those that do.
    """
    found = members(name)
    if not found:
        raise unknown_name("replica pool", name, ReplicaPool.running())
    replicas = infos(found, limit_s=ANSWER_S)
    return PoolStatus(name=name, replicas=replicas, pending=len(found) - len(replicas))


def pool_statuses() -> list[PoolStatus]:
    """Look at every pool of the connected cluster, in the order of their names."""
    found = []
    for name in ReplicaPool.running():
        try:
            found.append(pool_status(name))
        except ConfigError:  # gone since it was listed
            continue
    return found
