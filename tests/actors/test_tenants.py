"""Two users on one replica: turns between batches, a short wait for one prompt, and tables as if each were alone."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import ray
from tests.actors.actor_store import LOG, FileStore, events, log
from tests.actors.actor_world import make_plan

from dsprobe.actors import ray_executor
from dsprobe.actors.executor import execute
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.turns import Tenant
from dsprobe.config import ExecutionConfig, ModelConfig

ONE = ExecutionConfig(executor="ray", batch_size=2, replicas=1, num_cpus=0.5, pool="shared")
LOCAL = ExecutionConfig(executor="local", batch_size=2)
MODEL = ModelConfig(name="scripted")


def run(plan, folder):
    folder.mkdir()
    store = FileStore(folder)
    report = execute(plan, store, progress=lambda progress: None)
    assert report.complete
    assert report.retried == ()
    return store.committed()


def note(model, name):
    """What a notebook asks for; runs beside the model."""
    log("called", name)
    time.sleep(0.01)


def plan_of(name, rows, execution):
    """One shard of many batches, or many shards of two."""
    return make_plan("slow", shards=120 // rows, rows=rows, execution=execution, run_id=f"run-{name}")


@pytest.fixture
def tenants(scripted_ray, monkeypatch):
    """Threads are tenants by their names."""
    job = ray.get_runtime_context().get_job_id()
    monkeypatch.setattr(ray_executor, "current_tenant", lambda: Tenant(job, threading.current_thread().name))
    pool = ReplicaPool.get_or_create(ONE.pool, ONE, [MODEL])
    pool.tenant = Tenant(job, "notebook")
    yield pool
    pool.stop()


@pytest.mark.slow
def test_sweeps_get_half_each_and_a_prompt_waits_for_a_batch(tenants, tmp_path):
    pool, found = tenants, {}

    def sweep(name, rows):
        found[name] = run(plan_of(name, rows, ONE), tmp_path / name)

    threads = [
        threading.Thread(target=sweep, args=(name, rows), name=name) for name, rows in (("long", 120), ("short", 4))
    ]
    for thread in threads:
        thread.start()
    while len(events("batch")) < 20:
        time.sleep(0.02)
    seen = pool.info()[0]
    for place in range(5):
        log("asked", place)
        ray.get(pool.submit(MODEL, note, place))
        time.sleep(0.1)
    for thread in threads:
        thread.join()

    users = {work.tenant.user for work in (seen.turns.holder, *seen.turns.begun, *seen.turns.waiting) if work}
    assert users == {"long", "short"}
    assert seen.shard_id is not None
    lines = Path(os.environ[LOG]).read_text()
    order = [line.split() for line in lines.splitlines() if line.split()[0] in ("batch", "asked", "called")]
    for place in range(5):
        begin = next(i for i, (kind, _, *rest) in enumerate(order) if kind == "asked" and rest == [str(place)])
        end = next(i for i, (kind, _, *rest) in enumerate(order) if kind == "called" and rest == [str(place)])
        assert end - begin <= 3, "a call waits for the batch under way, and for one that was ahead of it"
    batches = [rest[0] for kind, _, *rest in order if kind == "batch"]
    both = batches[10:100]  # both have work from the start to near the end
    ours = sum(shard == "slow-0" for shard in both)
    assert 0.35 <= ours / len(both) <= 0.65
    for name, rows in (("long", 120), ("short", 4)):
        assert found[name] == run(plan_of(name, rows, LOCAL), tmp_path / f"{name}-alone")
