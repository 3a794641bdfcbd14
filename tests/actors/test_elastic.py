"""Pools that grow and shrink with a real cluster of several nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.actors.actor_store import FileStore, events
from tests.actors.actor_world import make_plan
from tests.actors.node_cluster import Nodes, node_cluster, undisturbed

from dsprobe.actors.executor import PoolState, Progress, execute
from dsprobe.actors.placement import cpu_nodes, without_gpu
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.room import may_grow
from dsprobe.config import ExecutionConfig
from dsprobe.errors import ConfigError, PrerequisiteError
from dsprobe.experiment.plan import Plan
from dsprobe.registry import validated

ELASTIC = ExecutionConfig(
    executor="ray", address="auto", batch_size=2, replicas=2, min_replicas=1, num_cpus=0.5, num_gpus=1
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with node_cluster(tmp_path_factory.mktemp("world")) as found:
        found.add()
        yield found


@pytest.fixture(autouse=True)
def no_pool(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "nodes" in request.fixturenames:
        for name in ReplicaPool.running():
            ReplicaPool.connect(name).stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsprobe.actors.dispatching.LOOK_EVERY_S", 0.2)
    monkeypatch.setattr("dsprobe.actors.ray_executor.RELEASE_AFTER_S", 0.5)


class Seen:
    """What a run's driver was told, and what is done to the cluster once so many batches were generated."""

    def __init__(self, batches: int = 0, act: Callable[[], object] | None = None) -> None:
        self.states: list[PoolState] = []
        self._batches, self._act = batches, act

    def __call__(self, progress: Progress) -> None:
        if self._act is not None and len(events("batch")) > self._batches:
            act, self._act = self._act, None
            act()
        if progress.pool is not None and progress.pool not in self.states[-1:]:
            self.states.append(progress.pool)

    @property
    def replicas(self) -> list[tuple[int, int]]:
        """Replicas up and pending, as they changed."""
        found = [(state.replicas_up, state.replicas_pending) for state in self.states]
        return [pair for index, pair in enumerate(found) if index == 0 or pair != found[index - 1]]


def run(plan: Plan, folder: Path, seen: Seen) -> dict[str, Any]:
    folder.mkdir()
    store = FileStore(folder)
    report = execute(plan, store, progress=seen)
    assert report.complete
    assert report.failed == ()
    return store.committed()


def nodes_of(pool: str) -> set[str]:
    return {info.node_id for info in ReplicaPool.connect(pool).info()}


def busy_processes() -> set[str]:
    return {pid for pid, _, _ in events("batch")}


def test_replicas_join_when_there_is_a_node_for_them_and_go_when_there_is_no_work(
    nodes: Nodes, tmp_path: Path, quick: None
) -> None:
    """The run begins on one node; a second one comes, is used, and is left before the last shard has ended."""
    seen = Seen(6, nodes.add)
    plan = make_plan("slow", shards=22, rows=24, execution=ELASTIC)
    assert run(plan, tmp_path / "ray", seen) == undisturbed(plan, tmp_path)
    assert (1, 1) in seen.replicas  # one works, the other waits for room
    assert (2, 0) in seen.replicas[seen.replicas.index((1, 1)) :]
    assert max(state.inflight for state in seen.states) > 2
    assert len(busy_processes()) == 2
    again = ReplicaPool.get_or_create(ELASTIC.pool, ELASTIC.model_copy(update={"min_replicas": 2}))
    assert nodes_of(again.name) == set(nodes.workers)  # one on each


@pytest.mark.slow
def test_a_replica_that_others_need_no_more_is_given_back(nodes: Nodes, tmp_path: Path, quick: None) -> None:
    while len(nodes.workers) < 2:
        nodes.add()
    seen = Seen()
    everything = ELASTIC.model_copy(update={"min_replicas": 2})
    ReplicaPool.get_or_create(everything.pool, everything)
    run(make_plan("slow", shards=1, rows=100, execution=ELASTIC), tmp_path / "ray", seen)
    assert seen.replicas[-1] == (1, 0)
    assert len(ReplicaPool.connect(ELASTIC.pool).info()) == 1
    ReplicaPool.get_or_create(everything.pool, everything)  # the next run grows it again
    assert len(ReplicaPool.connect(ELASTIC.pool).info()) == 2


@pytest.mark.slow
def test_a_node_that_comes_back_is_used(nodes: Nodes, tmp_path: Path, quick: None) -> None:
    while len(nodes.workers) < 2:
        nodes.add()

    def cut() -> None:
        nodes.kill(nodes.workers[-1])
        nodes.add()

    everything = ELASTIC.model_copy(update={"min_replicas": 2})
    ReplicaPool.get_or_create(everything.pool, everything)
    seen = Seen(8, cut)
    plan = make_plan("slow", shards=22, rows=32, execution=everything)
    assert run(plan, tmp_path / "ray", seen) == undisturbed(plan, tmp_path)
    assert (1, 1) in seen.replicas
    assert seen.replicas[-1] == (2, 0)
    assert nodes_of(everything.pool) == set(nodes.workers)
    assert len(busy_processes()) == 3  # two to begin with, and the successor


def test_too_few_nodes_are_refused_and_nothing_stays_pending(nodes: Nodes) -> None:
    many = ELASTIC.model_copy(update={"replicas": 9, "min_replicas": 8})
    with pytest.raises(PrerequisiteError, match=r"Asked for 8 replica.*num_gpus=1"):
        ReplicaPool.get_or_create("many", many, room_limit_s=0.5)
    assert "many" not in ReplicaPool.running()


def test_an_autoscaler_is_waited_for_and_sees_what_is_missing(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cluster file of `ray up` that allows more nodes, replicas wait where without it they are refused."""
    limits = tmp_path / "bootstrap.yaml"
    limits.write_text(
        "max_workers: 9\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 4}}\n  card: {resources: {CPU: 2, GPU: 1}, max_workers: 9}\n"
    )
    assert not may_grow(ELASTIC)
    monkeypatch.setattr("dsprobe.actors.capacity.BOOTSTRAP_FILE", limits)
    assert may_grow(ELASTIC)
    assert not may_grow(ELASTIC.model_copy(update={"num_gpus": 2}))
    everywhere = len(nodes.workers) + 1
    more = ELASTIC.model_copy(update={"replicas": everywhere, "min_replicas": everywhere})

    def told(up: int, pending: int) -> None:
        if (up, pending, len(nodes.workers)) == (everywhere - 1, 1, everywhere - 1):
            nodes.add()

    pool = ReplicaPool.get_or_create("grown", more, room_limit_s=0.5, told=told)
    assert len(pool.replicas) == everywhere
    assert nodes_of("grown") == set(nodes.workers)
    monkeypatch.setattr("dsprobe.actors.pool.GROWTH_LIMIT_S", 3.0)
    with pytest.raises(PrerequisiteError, match=rf"{everywhere} of {everywhere + 1} replicas of pool `grown` came up"):
        ReplicaPool.get_or_create("grown", more.model_copy(update={"replicas": everywhere + 1, "min_replicas": None}))
    assert len(ReplicaPool.connect("grown").info()) == everywhere


def test_what_needs_no_card_keeps_away_from_cards(nodes: Nodes) -> None:
    import ray

    assert cpu_nodes() == [nodes.head]

    @ray.remote
    class Somewhere:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    sizes = [0, 0, 0, 1, 1, 2, 2]  # the last finds the head full
    actors = [Somewhere.options(num_cpus=cpus, **without_gpu(turn, cpus)).remote() for turn, cpus in enumerate(sizes)]
    found = ray.get([actor.node.remote() for actor in actors])
    assert set(found[:6]) == {nodes.head}
    assert found[6] in nodes.workers
    for actor in actors:
        ray.kill(actor)


def test_fewer_than_the_least_cannot_be_wanted() -> None:
    assert ExecutionConfig(replicas=3).least_replicas == 3
    assert ExecutionConfig(replicas=3, min_replicas=1).least_replicas == 1
    with pytest.raises(ConfigError, match=r"execution.min_replicas is 3. Allowed: 1 to 2"):
        validated(ExecutionConfig, {"replicas": 2, "min_replicas": 3}, "execution")
