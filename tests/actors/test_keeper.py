"""A pool is ended once it was idle for long enough, never under somebody's hands, and can be had again."""

from __future__ import annotations

import time

import pytest
import ray
from ray.exceptions import ActorDiedError, RayError
from tests.actors.actor_world import shout

from dsprobe.actors import pool as pools
from dsprobe.actors.keeper import ensure_keeper
from dsprobe.actors.names import keeper_name
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.session import NAMESPACE
from dsprobe.config import ExecutionConfig, ModelConfig

IDLE_S = 2.0
EXECUTION = ExecutionConfig(replicas=2, num_cpus=0.5, pool_idle_s=IDLE_S)
MODEL = ModelConfig(name="scripted")


@pytest.fixture(autouse=True)
def as_on_a_cluster(scripted_ray, monkeypatch):
    monkeypatch.setattr(pools, "is_private", lambda: False)
    yield
    for name in ReplicaPool.running():
        ReplicaPool.connect(name).stop()


def names():
    return {
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE
    }


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.05)


def busy_for(model, seconds):
    time.sleep(seconds)
    return str(model)


def test_an_idle_pool_gives_its_resources_back_and_one_that_is_half_busy_does_not():
    pool = ReplicaPool.get_or_create("kept", EXECUTION, [MODEL])
    wait_for(lambda: keeper_name("kept") in names())
    assert ReplicaPool.running() == ["kept"]  # the keeper is no replica
    assert len(ReplicaPool.connect("kept").replicas) == 2
    assert ReplicaPool.connect("kept").idle_s == IDLE_S
    began = time.monotonic()
    assert ray.get(pool.submit_to(0, MODEL, busy_for, 2.5 * IDLE_S)) == "scripted"
    assert time.monotonic() - began > 2 * IDLE_S
    assert len(pool.info()) == 2  # the other one was idle for longer than the limit, and is there
    ended = time.monotonic()
    wait_for(lambda: not names())
    assert time.monotonic() - ended > 0.5 * IDLE_S
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    with pytest.raises(ActorDiedError):
        ray.get(pool.submit(MODEL, shout, "hi"))
    pool.replace(0)  # as every caller does that sees a replica die
    assert ray.get(pool.submit_to(0, MODEL, shout, "hi"))[0] == "scripted: HI"
    wait_for(lambda: keeper_name("kept") in names())  # and it is kept again
    wait_for(lambda: not names())


def test_whoever_comes_while_a_pool_is_ended_gets_one_that_lives():
    """Around the moment of the end: every pool that is handed out answers, the old one or a new one."""
    one = EXECUTION.model_copy(update={"replicas": 1, "pool_idle_s": 1.0})
    pids = set()
    for late in (0.95, 1.0, 1.05, 1.1, 1.15):
        pool = ReplicaPool.get_or_create("race", one, [MODEL])
        text, pid = ray.get(pool.submit(MODEL, shout, "hi"))
        assert text == "scripted: HI"
        pids.add(pid)
        time.sleep(late)
    assert ReplicaPool.get_or_create("race", one).info()[0].pid


@pytest.mark.slow
def test_a_replica_that_leaves_is_no_trap_where_the_keeper_is_lost_half_way():
    """A call that comes after the replica agreed to leave waits, and then sees a death, which callers handle."""
    pool = ReplicaPool.get_or_create("trap", EXECUTION.model_copy(update={"replicas": 1, "pool_idle_s": 900.0}))
    assert not ray.get(pool.replicas[0].leave.remote(60.0))
    assert ray.get(pool.replicas[0].leave.remote(0.0))
    begin = time.monotonic()
    with pytest.raises(RayError):
        ray.get(pool.submit(MODEL, shout, "hi"))
    assert time.monotonic() - begin < 40
    pool.replace(0)
    assert ray.get(pool.submit(MODEL, shout, "hi"))[0] == "scripted: HI"


@pytest.mark.slow
def test_a_keeper_that_dies_is_restarted_and_stopping_a_pool_ends_it():
    one = EXECUTION.model_copy(update={"replicas": 1})
    pool = ReplicaPool.get_or_create("orphan", one)
    wait_for(lambda: keeper_name("orphan") in names())
    ray.kill(ensure_keeper("orphan", IDLE_S), no_restart=False)
    wait_for(lambda: not names())
    pool = ReplicaPool.get_or_create("orphan", one)
    wait_for(lambda: keeper_name("orphan") in names())
    pool.stop()
    assert not names()


def test_nothing_keeps_a_pool_that_ends_with_its_instance(monkeypatch):
    monkeypatch.undo()
    assert ReplicaPool.get_or_create("private", EXECUTION.model_copy(update={"replicas": 1})).idle_s == 0
