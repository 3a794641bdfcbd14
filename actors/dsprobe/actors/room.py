"""What a Ray cluster has, what of it is free, whether replicas fit, and how long nodes are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import ray

from dsprobe.actors.capacity import ROUNDING, autoscaler_limits, room
from dsprobe.actors.draining import draining_nodes, free_resources
from dsprobe.actors.replica import ReplicaSpec
from dsprobe.actors.session import is_client
from dsprobe.config import ExecutionConfig
from dsprobe.errors import PrerequisiteError

PRIVATE_ROOM_LIMIT_S: Final = 3.0
"""A private instance does not grow; the wait covers the stop of an earlier pool."""
CLUSTER_ROOM_LIMIT_S: Final = 120.0
"""Patience with a shared cluster: others may be finishing."""
GROWTH_LIMIT_S: Final = 1800.0
"""Patience with an autoscaler: a machine is found, boots, installs and joins, minutes even where all goes well."""


def room_limit(execution: ExecutionConfig) -> float:
    """Seconds to wait for resources before giving up."""
    return PRIVATE_ROOM_LIMIT_S if execution.address == "local" else CLUSTER_ROOM_LIMIT_S


def may_grow(execution: ExecutionConfig) -> bool:
    """Whether an autoscaler may add nodes on which replicas fit, as far as can be seen from here; needs a connection.

    Raises:
        StorageError: The cluster file of `ray up` cannot be read.
    """
    if execution.address == "local" or is_client():
        return False
    limits = autoscaler_limits()
    return limits is not None and any(kind.addable > 0 and room(kind.resources, execution) > 0 for kind in limits.types)


def await_room(
    whose: str, spec: ReplicaSpec, replicas: int, missing: Callable[[], int], *, limit_s: float, remedy: str
) -> None:
    """Wait until replicas fit on a cluster that does not grow: there, no pending actor changes anything.

    Args:
        whose: Whose replicas, for the message.
        spec: What each is given.
        replicas: All of them.
        missing: How many of them are not there yet.
        limit_s: Seconds before giving up.
        remedy: What to do where there is no room; a sentence.

    Raises:
        PrerequisiteError: There is no room.
    """
    deadline = time.monotonic() + limit_s
    while (wanted := missing()) > 0 and not (capacity(spec) >= replicas and is_free(spec, wanted)):
        if time.monotonic() > deadline:
            raise PrerequisiteError(f"No room for {whose}. {describe_room(spec, replicas)} {remedy}")
        time.sleep(0.25)


def capacity(spec: ReplicaSpec) -> int:
    """Replicas that fit on the live nodes when these are empty."""
    return sum(room(node["Resources"], spec) for node in _live_nodes())


def is_free(spec: ReplicaSpec, replicas: int) -> bool:
    """Whether that many more replicas find their resources unused, summed over the nodes."""
    free = free_resources()
    wanted = {"CPU": spec.num_cpus * replicas, "GPU": spec.num_gpus * replicas}
    return all(free.get(resource, 0.0) + ROUNDING >= amount for resource, amount in wanted.items())


def describe_room(spec: ReplicaSpec, replicas: int) -> str:
    """Say what was asked of the cluster, what it has, and what of that is free."""
    free = free_resources()
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    has = ", ".join(f"{total.get(kind, 0.0):g} {kind} ({free.get(kind, 0.0):g} free)" for kind in ("CPU", "GPU"))
    return (
        f"Asked for {replicas} replica(s) with num_gpus={spec.num_gpus:g} and num_cpus={spec.num_cpus:g} each; "
        f"the cluster has {has} on {len(_live_nodes())} node(s)."
    )


def _live_nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    leaving = draining_nodes()
    return [node for node in nodes if node["Alive"] and node["NodeID"] not in leaving]
