"""What a Ray cluster has, what of it is free, and whether replicas fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import ray

from dsprobe.actors.replica import ReplicaSpec
from dsprobe.config import ExecutionConfig
from dsprobe.errors import PrerequisiteError

PRIVATE_ROOM_LIMIT_S: Final = 3.0
"""A private instance does not grow; the wait covers the stop of an earlier pool."""
CLUSTER_ROOM_LIMIT_S: Final = 120.0
"""Patience with a shared cluster: others may be finishing, or its autoscaler may be adding nodes."""


def room_limit(execution: ExecutionConfig) -> float:
    """Seconds to wait for resources before giving up."""
    return PRIVATE_ROOM_LIMIT_S if execution.address == "local" else CLUSTER_ROOM_LIMIT_S


def await_room(
    whose: str, spec: ReplicaSpec, replicas: int, missing: Callable[[], int], *, limit_s: float, remedy: str
) -> None:
    """Wait until replicas fit: a pending actor would wait without an end and without a word.

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


def capacity(spec: ReplicaSpec) -> float:
    """Replicas that fit on the live nodes when these are empty; infinite for replicas that ask for nothing."""
    return sum(
        min(
            _units(node["Resources"].get("CPU", 0.0), spec.num_cpus),
            _units(node["Resources"].get("GPU", 0.0), spec.num_gpus),
        )
        for node in _live_nodes()
    )


def is_free(spec: ReplicaSpec, replicas: int) -> bool:
    """Whether that many more replicas find their resources unused, summed over the nodes."""
    free = _available()
    wanted = {"CPU": spec.num_cpus * replicas, "GPU": spec.num_gpus * replicas}
    return all(free.get(resource, 0.0) >= amount for resource, amount in wanted.items())


def describe_room(spec: ReplicaSpec, replicas: int) -> str:
    """Say what was asked of the cluster, what it has, and what of that is free."""
    free = _available()
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    has = ", ".join(f"{total.get(kind, 0.0):g} {kind} ({free.get(kind, 0.0):g} free)" for kind in ("CPU", "GPU"))
    return (
        f"Asked for {replicas} replica(s) with num_gpus={spec.num_gpus:g} and num_cpus={spec.num_cpus:g} each; "
        f"the cluster has {has} on {len(_live_nodes())} node(s)."
    )


def _units(amount: float, each: float) -> float:
    return amount // each if each else math.inf


def _available() -> dict[str, float]:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free


def _live_nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
