"""Where actors go: replicas over the nodes, and what needs no GPU beside them.

Several replicas on fractions of a GPU fill one card before the next, which is Ray's own rule within a node.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dsprobe.actors.draining import draining_nodes


def spread() -> dict[str, Any]:
    """Options of an actor of which each node shall have as few as possible."""
    return {"scheduling_strategy": "SPREAD"}


def without_gpu(turn: int, num_cpus: float) -> dict[str, Any]:
    """Options of an actor that needs no GPU: it prefers a node that has none, and takes any other if there is no such.

    Args:
        turn: Counts such actors; they go to those nodes in turn. The head node is one of them.
        num_cpus: What the actor takes.
    """
    nodes = cpu_nodes()
    if not nodes:
        return spread()
    # Without the private flag, a node that is full but not dead would be waited for. An actor that takes nothing fits
    # any node, and with a soft affinity Ray 2.60 puts it on any; if its node goes first, it counts as lost like others.
    soft = num_cpus > 0
    place = NodeAffinitySchedulingStrategy(nodes[turn % len(nodes)], soft=soft, _spill_on_unavailable=soft)
    return {"scheduling_strategy": place}


def cpu_nodes() -> list[str]:
    """Ids of the nodes that are up, stay, and have no GPU, sorted."""
    leaving = draining_nodes()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    kept = [node for node in nodes if node["Alive"] and node["NodeID"] not in leaving]
    return sorted(node["NodeID"] for node in kept if not node["Resources"].get("GPU"))
