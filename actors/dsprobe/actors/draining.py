"""Nodes that are about to go, such as spot machines that were given notice: which they are, and how to say so.

Ray has no public call for either. What is private to Ray 2.60 is used in this file alone.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any, Final

import ray
from ray.actor import ActorHandle

from dsprobe.actors.session import is_client

LEAVE_BEFORE_S: Final = 3.0
"""Seconds before a node's deadline at which work that has not ended there is given up and repeated elsewhere."""


def draining_nodes() -> dict[str, float]:
    """Ids of the nodes that are being drained, and when they go. None are seen through Ray client.

    Returns:
        Seconds since 1970 by node id; infinite without a deadline.
    """
    from ray._private.state import state

    if is_client():
        return {}
    found: dict[str, int] = state.get_draining_nodes()
    return {node: milliseconds / 1000 if milliseconds else math.inf for node, milliseconds in found.items()}


def free_resources() -> dict[str, float]:
    """What nothing uses on the nodes that stay, added up."""
    from ray._private.state import state

    if is_client():
        seen: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return seen
    leaving, found = draining_nodes(), defaultdict[str, float](float)
    by_node: dict[str, dict[str, float]] = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    for node, resources in by_node.items():
        if node not in leaving:
            for name, amount in resources.items():
                found[name] += amount
    return dict(found)


def node_of(actor: ActorHandle[Any]) -> str | None:
    """Id of the node on which an actor lives; `None` while it is coming up, when it is dead, and through Ray client."""
    from ray._private.state import state

    if is_client():
        return None
    facts: dict[str, Any] = state.actor_table(actor._actor_id.hex())
    # Before it is alive, Ray shows its owner's address in place of its own.
    return str(facts["Address"]["NodeID"]) if facts.get("State") == "ALIVE" else None


def drain(node_id: str, *, deadline: float, reason: str) -> None:
    """Announce that a node will be gone: nothing new is placed there, and dispatchers empty it.

    Ray kills nothing; the node's Ray processes end by themselves once nothing is left there. Needs a connection.

    Args:
        node_id: The node.
        deadline: When it goes, in seconds since 1970.
        reason: For Ray's log.

    Raises:
        RuntimeError: Ray refused.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why_not = client.drain_node(node_id, why, reason, int(deadline * 1000))
    if not accepted:
        raise RuntimeError(f"Ray refused to drain node {node_id}: {why_not}")


def is_due(leaves_at: float) -> bool:
    """Whether it is time to give up what still runs on a node that goes then (seconds since 1970)."""
    return time.time() > leaves_at - LEAVE_BEFORE_S
