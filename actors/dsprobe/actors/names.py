"""The names of pools' actors, which are the truth about what runs: Ray gives a name to one live actor only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle

from dsprobe.actors.session import NAMESPACE

if TYPE_CHECKING:
    from dsprobe.actors.replica import Replica


def replica_name(pool: str, index: int) -> str:
    """Name of a replica."""
    return f"{pool}:{index}"


def keeper_name(pool: str) -> str:
    """Name of a pool's keeper; never that of a replica."""
    return f"{pool}/keeper"


def all_members() -> list[tuple[str, int]]:
    """Pool name and index of every live replica."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [a["name"].rpartition(":") for a in actors if a["namespace"] == NAMESPACE]
    return [(pool, int(index)) for pool, _, index in names if index.isdecimal()]


def members(pool: str) -> dict[int, ActorHandle[Replica]]:
    """Live replicas of a pool by index."""
    found: dict[int, ActorHandle[Replica]] = {}
    for owner, index in all_members():
        if owner == pool:
            try:
                found[index] = ray.get_actor(replica_name(pool, index), namespace=NAMESPACE)
            except ValueError:  # died since it was listed
                continue
    return found
