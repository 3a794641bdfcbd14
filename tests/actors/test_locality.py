"""Which shard a replica gets: of the model it has loaded, and of another one rather than none."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.actors.actor_store import FileStore, events
from tests.actors.actor_world import make_plan

from dsprobe.actors.executor import execute
from dsprobe.actors.locality import Locality
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.ray_executor import ShardDispatcher
from dsprobe.config import ExecutionConfig
from dsprobe.experiment.plan import Plan, Shard

MODELS = ("first", "second", "third")


def shards_of(plan: Plan, model: str) -> list[Shard]:
    return [
        replace(shard, id=f"{model}-{shard.id}", condition=replace(shard.condition, model=model))
        for shard in plan.shards
    ]


def plan_of(models: tuple[str, ...], shards: int, execution: ExecutionConfig, run_id: str) -> Plan:
    """A plan of as many slow shards for each model, model by model."""
    plan = make_plan("slow", shards=shards, execution=execution, run_id=run_id)
    parts = tuple(shard for model in models for shard in shards_of(plan, model))
    config = plan.config.model_copy(
        update={"models": tuple(plan.config.models[0].model_copy(update={"name": model}) for model in models)}
    )
    return replace(plan, config=config, shards=parts, conditions=tuple(dict.fromkeys(s.condition for s in parts)))


def queue(*models: str) -> deque[Shard]:
    plan = make_plan("slow", shards=1)
    return deque(shard for model in models for shard in shards_of(plan, model))


def test_a_replica_stays_with_its_model_and_then_helps() -> None:
    locality, pending = Locality(), queue("first", "second", "first", "second")
    locality.has(0, ["second"])
    taken = []
    while pending:
        shard = locality.take(0, pending, ahead=False)
        assert shard is not None
        taken.append(shard.condition.model)
        locality.has(0, [taken[-1]])
    assert taken == ["second", "second", "first", "first"]


def test_another_models_shard_is_not_reserved_ahead() -> None:
    locality, pending = Locality(), queue("first")
    locality.has(0, ["second"])
    assert locality.take(0, pending, ahead=True) is None
    assert len(pending) == 1
    assert locality.take(0, pending, ahead=False) is not None


def test_a_fresh_pool_is_shared_out_in_proportion_to_the_work() -> None:
    locality, pending = Locality(), queue(*["first"] * 30, *["second"] * 10)
    models = []
    for replica in range(8):
        shard = locality.take(replica, pending, ahead=False)
        assert shard is not None
        models.append(shard.condition.model)
        locality.has(replica, [models[-1]])
    assert (models.count("first"), models.count("second")) == (6, 2)


def test_a_replica_that_died_counts_for_no_model() -> None:
    locality = Locality()
    locality.has(0, ["first"])
    locality.has(1, ["second"])
    locality.forget(1)
    shard = locality.take(2, queue("first", "second"), ahead=False)
    assert shard is not None
    assert shard.condition.model == "second"


@given(
    models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=30),
    asks=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60),
)
def test_nothing_is_lost_repeated_or_starved(models: list[str], asks: list[tuple[int, bool]]) -> None:
    locality, pending = Locality(), queue(*models)
    expected, taken = list(pending), []
    for replica, ahead in [*asks, *[(0, False)] * len(models)]:
        if not pending:
            break
        waiting = {shard.condition.model for shard in pending}
        shard = locality.take(replica, pending, ahead=ahead)
        assert shard is not None or ahead, "a replica without work always gets some"
        if shard is not None:
            assert shard.condition.model in waiting
            taken.append(shard)
            locality.has(replica, [shard.condition.model])
    assert sorted(map(id, taken)) == sorted(map(id, expected))
    for model in MODELS:
        order = [shard for shard in taken if shard.condition.model == model]
        assert list(map(id, order)) == [id(shard) for shard in expected if shard.condition.model == model]


def in_order(dispatcher: ShardDispatcher, slot: object) -> Shard:
    return dispatcher.pending.popleft()


@pytest.mark.slow
@pytest.mark.usefixtures("scripted_ray")
def test_replicas_load_fewer_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models on two replicas: one load each, where shards in plan order cost two each."""
    execution = ExecutionConfig(executor="ray", batch_size=2, replicas=2, num_cpus=0.5)
    loads = {}
    for name in ("near", "order"):
        if name == "order":
            monkeypatch.setattr(ShardDispatcher, "take", in_order)
        (tmp_path / name).mkdir()
        before = len(events("load"))
        plan = plan_of(MODELS[:2], 5, execution.model_copy(update={"pool": name}), f"run-{name}")
        assert execute(plan, FileStore(tmp_path / name), progress=lambda progress: None).complete
        loads[name] = len(events("load")) - before
        ReplicaPool.connect(name).stop()
    assert loads["order"] == 4
    assert loads["near"] <= 3  # two, and one where a replica is done long before the other
