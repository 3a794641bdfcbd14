"""`dsprobe pool start|list|stop` on a real Ray instance, whose pools outlive the command."""

from __future__ import annotations

import json
import time

import pytest
from tests.command_line import dsprobe

from dsprobe.actors.pool import ReplicaPool
from dsprobe.config import ExecutionConfig

pytestmark = pytest.mark.usefixtures("scripted_ray")

CONFIG = """
models: [toy-diffusion]
prompts: [{source: toy, name: restricted, split: restricted}]
execution: {pool: shared, replicas: 2, num_cpus: 0.5}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pool.yaml").write_text(CONFIG)
    yield tmp_path
    for name in ReplicaPool.running():
        ReplicaPool.connect(name).stop()


def listed(folder):
    code, out, err = dsprobe("pool", "list", "--json", cwd=folder)
    assert (code, err) == (0, "")
    return {pool["pool"]: pool["replicas"] for pool in json.loads(out)}


def test_a_started_pool_is_listed_with_its_models_until_it_is_stopped(folder):
    code, out, _ = dsprobe("pool", "start", "pool.yaml", cwd=folder)
    assert (code, out) == (0, "Pool `shared`: 2 replicas.\n")
    deadline = time.monotonic() + 30
    while [replica["models"] for replica in listed(folder)["shared"]] != [["toy-diffusion"]] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    replicas = listed(folder)["shared"]
    assert [replica["index"] for replica in replicas] == [0, 1]
    assert len({replica["pid"] for replica in replicas}) == 2
    shown = dsprobe("pool", "list", cwd=folder)[1]
    assert "shared" in shown
    assert "idle" in shown
    assert dsprobe("pool", "stop", "shared", cwd=folder)[:2] == (0, "Pool `shared` is gone: 2 replicas.\n")
    assert listed(folder) == {}
    assert dsprobe("pool", "list", cwd=folder)[1] == "No pool runs.\n"


def test_starting_again_keeps_the_replicas(folder):
    pids = []
    for _ in range(2):
        code, out, _ = dsprobe("pool", "start", "pool.yaml", "--name", "other", "--json", cwd=folder)
        assert code == 0
        pids.append([replica["pid"] for replica in json.loads(out)["replicas"]])
    assert pids[0] == pids[1]


def test_a_pool_that_is_not_there_is_named_with_the_nearest(folder):
    dsprobe("pool", "start", "pool.yaml", cwd=folder)
    code, _, err = dsprobe("pool", "stop", "sharde", cwd=folder)
    assert code == 2
    assert "Did you mean `shared`?" in err


def test_a_pool_that_works_is_not_stopped_by_mistake(folder):
    pool = ReplicaPool.get_or_create("busy", ExecutionConfig(num_cpus=0.5))
    pool.submit(_toy(), _hold_shard)
    deadline = time.monotonic() + 30
    while pool.info()[0].shard_id is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, _, err = dsprobe("pool", "stop", "busy", cwd=folder)
    assert code == 2
    assert "run a shard, e.g. held" in err
    assert dsprobe("pool", "stop", "busy", "--force", cwd=folder)[0] == 0


def _toy():
    from dsprobe.config import ModelConfig

    return ModelConfig(name="toy-diffusion")


def _hold_shard(model):
    """Pretend, in the replica's own process, that it runs a shard."""
    import gc

    from dsprobe.actors.replica import Replica

    del model
    for thing in gc.get_objects():
        if isinstance(thing, Replica):
            thing._shard_id = "held"
    time.sleep(20)


def test_a_private_instance_is_refused(folder):
    code, _, err = dsprobe("pool", "list", "--address", "local", cwd=folder)
    assert code == 2
    assert "ends with this command" in err
