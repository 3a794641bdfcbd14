"""What Ray's object stores hold, hand out and spill, summed over the nodes of the connected cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTotals:
    """Bytes; the first is of now, the others since the start."""

    used: int
    created: int
    """Of all objects, copies on other nodes included."""
    spilled: int


class ObjectStores:
    """Asks every node's raylet."""

    def __init__(self) -> None:
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._nodes = [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes if node["Alive"]]

    def totals(self) -> StoreTotals:
        """Ask."""
        from ray._private.internal_api import node_stats  # Ray has no public name for these numbers

        ask: Any = node_stats  # untyped
        answers = [ask(*node, include_memory_info=False).store_stats for node in self._nodes]
        return StoreTotals(
            used=sum(answer.object_store_bytes_used for answer in answers),
            created=sum(answer.cumulative_created_bytes for answer in answers),
            spilled=sum(answer.spilled_bytes_total for answer in answers),
        )
