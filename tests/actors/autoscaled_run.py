"""A run on a cluster without workers, under Ray's own autoscaler with its fake provider; prints what it saw as JSON.

For `test_autoscaling`, as a process of its own: `ray stop` at its end ends every process of Ray that it can see.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import AutoscalingCluster
from tests.actors import actor_store
from tests.actors.actor_world import make_plan

from dsprobe.actors import capacity, ray_executor
from dsprobe.actors.executor import Progress, execute
from dsprobe.actors.names import members
from dsprobe.config import ExecutionConfig

HEAD = "ray.head.default"
"""The name that the fake provider gives to the head's type."""
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
EMPTY_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip
WORKERS = {
    "gpu": {
        "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 << 20},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    }
}
EXECUTION = ExecutionConfig(
    executor="ray", address="auto", batch_size=2, replicas=2, min_replicas=1, num_cpus=0.5, num_gpus=1, pool_idle_s=4.0
)


class FakeCloud(AutoscalingCluster):  # type: ignore[misc]
    """Ray's test cluster; the package lacks the file that this class of it reads its configuration from."""

    def _generate_config(self, head_resources: Any, worker_node_types: Any, *_: Any, **more: Any) -> dict[str, Any]:
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "fake", "max_workers": 8, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1,
            "provider": PROVIDER, "docker": {}, "auth": {"ssh_user": "root"}, "file_mounts": {},
            "file_mounts_sync_continuously": False, **{name: [] for name in EMPTY_LISTS},
            "available_node_types": {**copy.deepcopy(worker_node_types), HEAD: head}, "head_node_type": HEAD, **more,
        }  # fmt: skip


def main(folder: Path) -> None:
    """Run, wait for the end of pool and nodes, and print."""
    os.environ[actor_store.LOG] = str(folder / "events.log")
    cloud = FakeCloud(head_resources={"CPU": 2}, worker_node_types=WORKERS)
    cloud.start()
    boot = folder / "bootstrap.yaml"
    boot.write_text(json.dumps({"head_node_type": HEAD, "max_workers": 8, "available_node_types": WORKERS}))
    capacity.BOOTSTRAP_FILE = boot  # type: ignore[misc]
    ray_executor.RELEASE_AFTER_S = 1.0
    variables = {"PYTHONPATH": os.environ["PYTHONPATH"], actor_store.LOG: os.environ[actor_store.LOG]}
    environment = {"worker_process_setup_hook": "tests.actors.actor_store.install", "env_vars": variables}
    ray.init("auto", namespace="dsprobe", log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    before, seen = cards(), set[tuple[int, int]]()

    def progress(now: Progress) -> None:
        if now.pool is not None:
            seen.add((now.pool.replicas_up, now.pool.replicas_pending))

    (folder / "store").mkdir()
    plan = make_plan("slow", shards=24, rows=64, execution=EXECUTION)
    report = execute(plan, actor_store.FileStore(folder / "store"), progress=progress)
    most, deadline = cards(), time.monotonic() + 180
    while (cards() or members(EXECUTION.pool)) and time.monotonic() < deadline:
        time.sleep(0.5)
    found = {"before": before, "most": most, "after": cards(), "seen": sorted(seen), "retried": len(report.retried)}
    print("FOUND " + json.dumps({**found, "complete": report.complete, "members": len(members(EXECUTION.pool))}))
    ray.shutdown()
    cloud.shutdown()


def cards() -> float:
    """GPUs of the nodes that are up."""
    return float(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
