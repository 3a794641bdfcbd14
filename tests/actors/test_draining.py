"""Spot machines that are taken away mid-run: the notice, the drain, and what a run makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from tests.actors.actor_store import FileStore, events
from tests.actors.actor_world import make_plan
from tests.actors.metadata_server import Metadata, metadata_server
from tests.actors.node_cluster import Nodes, node_cluster, undisturbed

from dsprobe.actors.draining import drain, draining_nodes
from dsprobe.actors.executor import ExecutionReport, Progress, execute
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.spot import Ec2, Gcp, find_cloud, main, wait_for_notice
from dsprobe.actors.turns import Tenant
from dsprobe.config import ExecutionConfig
from dsprobe.errors import PrerequisiteError
from dsprobe.experiment.plan import Plan

CARDS = ExecutionConfig(executor="ray", address="auto", batch_size=2, replicas=2, num_cpus=0.5, num_gpus=1)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with metadata_server() as server:
        yield server


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head with two cards, and nodes that the tests add: replicas and reducers are where a test wants them."""
    with node_cluster(tmp_path_factory.mktemp("world"), head_gpus=1) as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsprobe.actors.dispatching.LOOK_EVERY_S", 0.2)


class Once:
    """A progress callback that does something once a condition holds, and remembers replicas that drained."""

    def __init__(self, condition: Callable[[], bool], act: Callable[[], object]) -> None:
        self._condition, self._act = condition, act
        self.done = False
        self.draining = 0

    def __call__(self, progress: Progress) -> None:
        if progress.pool is not None:
            self.draining = max(self.draining, progress.pool.replicas_draining)
        if not self.done and self._condition():
            self.done = True
            self._act()


def run(plan: Plan, folder: Path, progress: Once) -> ExecutionReport:
    (folder / "ray").mkdir()
    store = FileStore(folder / "ray")
    report = execute(plan, store, progress=progress)
    assert progress.done
    assert report.complete
    assert store.committed() == undisturbed(plan, folder)
    assert report.retried == ()  # nobody is to blame
    return report


def repeated_batches() -> int:
    """Batches that were generated more than once."""
    return sum(count - 1 for count in Counter((shard, start) for _, shard, start in events("batch")).values())


def place_of(pool: str, avoid: str) -> tuple[str, str]:
    """Node and process of a replica that is not on a certain node."""
    info = next(info for info in ReplicaPool.connect(pool).info() if info.node_id != avoid)
    return info.node_id, str(info.pid)


def test_a_spot_node_with_notice_ends_its_shard_and_gets_no_other(
    nodes: Nodes, metadata: Metadata, tmp_path: Path
) -> None:
    """The whole way: the cloud's notice, the watcher, Ray, the run. There is time, so next to nothing is repeated."""
    spot = nodes.add()
    pool = ReplicaPool.get_or_create(CARDS.pool, CARDS)
    assert {info.node_id for info in pool.info()} == {nodes.head, spot}
    _, victim = place_of(CARDS.pool, nodes.head)
    nodes.add()  # where the successor goes
    watcher = subprocess.Popen(
        [sys.executable, "-m", "dsprobe.actors.spot", "--metadata", metadata.url, "--address", nodes.address,
         "--cloud", "ec2", "--every", "0.2", "--node-id", spot],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    plan = make_plan("slow", shards=20, rows=32, execution=CARDS)
    progress = Once(lambda: victim in {pid for pid, _, _ in events("batch")}, lambda: metadata.notice(120))
    run(plan, tmp_path, progress)
    _, told = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, told
    assert "is drained: it goes in" in told
    assert progress.draining == 1
    assert repeated_batches() <= 2  # the shard that was next may have begun
    processes = {pid for pid, _, _ in events("batch")}
    assert len(processes) == 3
    assert spot not in {info.node_id for info in ReplicaPool.connect(CARDS.pool).info()}
    deadline = time.monotonic() + 30
    while spot in draining_nodes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert spot not in draining_nodes()  # empty, so it has gone by itself
    pool.stop()


@pytest.mark.slow
def test_a_shard_that_cannot_end_in_time_is_run_elsewhere_and_charged_to_nobody(nodes: Nodes, tmp_path: Path) -> None:
    while len(nodes.workers) < 3:
        nodes.add()
    strict = CARDS.model_copy(update={"retries": 0, "pool": "strict"})
    ReplicaPool.get_or_create(strict.pool, strict)
    node, victim = place_of(strict.pool, nodes.head)
    plan = make_plan("slow", shards=4, rows=200, execution=strict)
    progress = Once(
        lambda: victim in {pid for pid, _, _ in events("batch")},
        lambda: drain(node, deadline=time.time() + 4, reason="test"),
    )
    run(plan, tmp_path, progress)
    lost = {shard for pid, shard, _ in events("batch") if pid == victim}
    assert len(lost) == 1
    assert 0 < repeated_batches() <= 100
    ReplicaPool.connect(strict.pool).stop()


def busy_for(model: Any, seconds: float) -> str:
    time.sleep(seconds)
    return "undisturbed"


@pytest.mark.slow
def test_anothers_work_on_a_node_that_goes_ends_in_peace(nodes: Nodes, tmp_path: Path) -> None:
    while len(nodes.workers) < 3:
        nodes.add()
    shared = CARDS.model_copy(update={"pool": "shared"})
    pool = ReplicaPool.get_or_create(shared.pool, shared)
    node, victim = place_of(shared.pool, nodes.head)
    place = [info.node_id for info in pool.info()].index(node)
    pool.tenant = Tenant("another", "ada")
    plan = make_plan("slow", shards=8, rows=16, execution=shared)
    calls: list[Any] = []

    def call_and_drain() -> None:
        # In turns with the run's batches: when its shard there has ended, the next call is under way.
        calls.extend(pool.submit_to(place, plan.config.models[0], busy_for, 1.5) for _ in range(4))
        while pool.tenant not in {work.tenant for work in pool.info()[place].turns.works}:
            time.sleep(0.05)
        drain(node, deadline=time.time() + 120, reason="test")

    run(plan, tmp_path, Once(lambda: victim in {pid for pid, _, _ in events("batch")}, call_and_drain))
    assert ray.get(calls, timeout=30) == ["undisturbed"] * 4
    ReplicaPool.connect(shared.pool).stop()


def test_a_reducer_on_a_node_that_goes_hands_over_what_it_knows(nodes: Nodes, tmp_path: Path) -> None:
    """The statistics of all shards are there at the end, and no stream was cut."""
    for _ in range(2):
        nodes.add(gpus=0)
    one = CARDS.model_copy(update={"replicas": 1, "pool": "reduced"})
    plan = make_plan("slow", shards=14, rows=24, execution=one)

    def drain_the_reducers_node() -> None:
        from ray._private.state import state

        found = [actor for actor in state.actor_table(None).values() if actor["ActorClassName"] == "Reducer"]
        living = [actor["Address"]["NodeID"] for actor in found if actor["State"] == "ALIVE"]
        assert len(living) == 1
        assert living[0] in nodes.workers
        drain(living[0], deadline=time.time() + 120, reason="test")

    report = run(plan, tmp_path, Once(lambda: len(events("add")) > 14, drain_the_reducers_node))
    assert set(report.merged.shards) == {shard.id for shard in plan.shards}
    assert repeated_batches() == 0
    writers = {pid for pid, _ in events("attempt")} - {str(os.getpid())}
    assert len(writers) == 2  # the first reducer and its successor
    ReplicaPool.connect(one.pool).stop()


def test_the_notice_of_ec2(metadata: Metadata) -> None:
    service = Ec2(metadata.url)
    assert service() is None
    assert service() is None
    assert (len(metadata.tokens), metadata.refused) == (1, 0)  # kept
    metadata.tokens.append("another")  # the service has forgotten the first
    assert service() is None
    assert (len(metadata.tokens), metadata.refused) == (3, 1)
    leaves_at = metadata.notice(120)
    assert service() == leaves_at
    for text in ("[]", "{}", "soon", '{"time": 3}', '{"time": "tomorrow"}'):
        metadata.text = text
        with pytest.raises(ValueError):  # noqa: PT011 - whatever the parser says
            service()


def test_the_notice_of_google(metadata: Metadata) -> None:
    service = Gcp(metadata.url)
    assert service() is None
    metadata.notice(120)
    assert service() == pytest.approx(time.time() + 30, abs=5)


def test_a_service_that_fails_for_a_while_is_asked_again(metadata: Metadata) -> None:
    service = Ec2(metadata.url)
    metadata.broken = True
    asked = 0

    def notice() -> float | None:
        nonlocal asked
        asked += 1
        if asked == 3:
            metadata.broken = False
            metadata.notice(60)
        return service()

    assert wait_for_notice(notice, 0.01) == metadata.leaves_at
    assert asked == 3


def test_the_cloud_is_found_by_who_answers(metadata: Metadata) -> None:
    nobody = Ec2("http://127.0.0.1:9")
    google = Gcp(metadata.url)
    assert find_cloud({"ec2": nobody, "gcp": google}, 0.01) is google
    with pytest.raises(PrerequisiteError, match="No metadata service of ec2 or gcp answers here"):
        main(["--metadata", "http://127.0.0.1:9", "--every", "0.01", "--node-id", "none"])
