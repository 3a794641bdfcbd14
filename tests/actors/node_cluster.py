"""A real Ray cluster of several nodes on this machine whose workers live in `actor_world`; cards are made up."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.actors import actor_store
from tests.actors.actor_world import make_batch
from tests.actors.conftest import ROOT, keep_auth_mode

from dsprobe.experiment.plan import Plan

STORE_BYTES = 80 * 2**20
_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}


class Nodes:
    """The cluster's nodes, which come and go; on the main thread only."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.head: str = cluster.head_node.node_id
        self.address: str = cluster.address
        self._nodes: dict[str, Any] = {}

    def add(self, gpus: float = 1, cpus: float = 2) -> str:
        """Start a node and return its id."""
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def kill(self, node: str) -> None:
        """End a node at once."""
        self._cluster.remove_node(self._nodes.pop(node), allow_graceful=False)

    @property
    def workers(self) -> list[str]:
        """Ids of the nodes that were added and not killed."""
        return list(self._nodes)


@contextmanager
def node_cluster(folder: Path, *, head_gpus: float = 0) -> Iterator[Nodes]:
    """A head with a driver's connection; nodes are added by the caller."""
    keep_auth_mode()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ[actor_store.LOG] = str(folder / "events.log")
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 4, "num_gpus": head_gpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": _HEALTH})
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        ray.init(
            address=cluster.address,
            namespace="dsprobe",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={
                "worker_process_setup_hook": "tests.actors.actor_store.install",
                "env_vars": {"PYTHONPATH": path, actor_store.LOG: os.environ[actor_store.LOG]},
            },
        )
        yield Nodes(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()
        del os.environ[actor_store.LOG]


def undisturbed(plan: Plan, folder: Path) -> dict[str, Any]:
    """Commits of a run to which nothing happens, without the time that its shards take."""
    (folder / "reference").mkdir()
    store, size = actor_store.FileStore(folder / "reference"), plan.config.execution.batch_size
    for shard in plan.shards:
        writer = store.open_attempt(shard.id)
        for start in range(0, len(shard.rows), size):
            writer.add(make_batch(shard, shard.rows[start : start + size], 16))
        writer.commit()
    return store.committed()
