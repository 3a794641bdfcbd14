"""`dsprobe pool start|list|stop` on a real Ray instance, whose pools outlive the command."""

from __future__ import annotations

import json
import time

import pytest
from tests.command_line import dsprobe

from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.turns import Tenant
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
    assert "idle for" in shown
    again = json.loads(dsprobe("pool", "start", "pool.yaml", "--json", cwd=folder)[1])["replicas"]
    assert [replica["pid"] for replica in again] == [replica["pid"] for replica in replicas]
    code, _, err = dsprobe("pool", "stop", "sharde", cwd=folder)
    assert code == 2
    assert "Did you mean `shared`?" in err
    assert dsprobe("pool", "stop", "shared", cwd=folder)[:2] == (0, "Pool `shared` is gone: 2 replicas.\n")
    assert listed(folder) == {}
    assert dsprobe("pool", "list", cwd=folder)[1] == "No pool runs.\n"


def test_a_pool_that_works_is_not_stopped_by_mistake(folder):
    pool = ReplicaPool.get_or_create("busy", ExecutionConfig(num_cpus=0.5))
    pool.tenant = Tenant("job-7", "ada\x1b[2J")
    pool.submit(_toy(), _hold)
    deadline = time.monotonic() + 30
    while pool.info()[0].turns.holder is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, _, err = dsprobe("pool", "stop", "busy", cwd=folder)
    assert code == 2
    assert "replica 0 for ada⟨001B⟩[2J (job job-7): a call. Wait, or --force." in err
    shown = dsprobe("pool", "list", cwd=folder, columns=200)[1]
    assert "ada⟨001B⟩[2J" in shown
    (replica,) = listed(folder)["busy"]
    assert replica["turns"]["holder"]["tenant"] == {"job": "job-7", "user": "ada\x1b[2J"}
    assert dsprobe("pool", "stop", "busy", "--force", cwd=folder)[0] == 0


def _toy():
    from dsprobe.config import ModelConfig

    return ModelConfig(name="toy-diffusion")


def _hold(model):
    """Somebody's work that takes long."""
    del model
    time.sleep(60)


def test_a_pool_by_name_takes_its_resources_from_options_and_says_when_it_ends(folder, monkeypatch):
    monkeypatch.setattr("dsprobe.actors.pool.is_private", lambda: False)
    asked = ("--replicas", 2, "--num-cpus", 0.25, "--model", "toy-autoregressive", "--idle-minutes", 3)
    code, out, err = dsprobe("pool", "start", "named", *asked, "--json", cwd=folder)
    assert (code, err) == (0, "")
    status = json.loads(out)
    assert (status["pool"], len(status["replicas"]), status["pending"]) == ("named", 2, 0)
    assert {replica["spec"]["num_cpus"] for replica in status["replicas"]} == {0.25}
    deadline = time.monotonic() + 30
    while [replica["models"] for replica in listed(folder)["named"]] != [["toy-autoregressive"]] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shown = dsprobe("pool", "list", cwd=folder)[1]
    assert "2 min" in shown
    assert "idle for" in shown
    code, _, err = dsprobe("pool", "start", "named", "--num-cpus", 0.5, cwd=folder)
    assert code == 2
    assert "runs with num_gpus=0, num_cpus=0.25" in err


def test_a_model_that_is_not_there_is_refused_before_anything_starts(folder):
    code, _, err = dsprobe("pool", "start", "typo", "--model", "toy-difusion", cwd=folder)
    assert code == 2
    assert "Did you mean `toy-diffusion`?" in err
    assert listed(folder) == {}


def test_a_private_instance_is_refused(folder):
    code, _, err = dsprobe("pool", "list", "--address", "local", cwd=folder)
    assert code == 2
    assert "ends with this command" in err
