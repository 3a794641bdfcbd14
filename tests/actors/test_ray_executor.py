"""Shards on real Ray actors: equal results, kills, isolation, backpressure."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.actors.actor_store import FileStore, events
from tests.actors.actor_world import make_plan

from dsprobe.actors.executor import ExecutionReport, Progress, execute
from dsprobe.actors.pool import ReplicaPool
from dsprobe.config import ExecutionConfig
from dsprobe.errors import PrerequisiteError
from dsprobe.experiment.plan import Plan

pytestmark = pytest.mark.usefixtures("scripted_ray")
RAY = ExecutionConfig(executor="ray", batch_size=2, replicas=2, retries=2, num_cpus=0.5)
LOCAL = ExecutionConfig(executor="local", batch_size=2)


@pytest.fixture(scope="module", autouse=True)
def stopped_pool(scripted_ray: None) -> Iterator[None]:
    yield
    ReplicaPool.connect(RAY.pool).stop()


def run(plan: Plan, store: FileStore) -> ExecutionReport:
    return execute(plan, store, progress=lambda progress: None)


def store_in(folder: Path, add_seconds: float = 0.0, refusals: int = 0) -> FileStore:
    folder.mkdir()
    return FileStore(folder, add_seconds, refusals)


def reference(folder: Path, *manners: str, shards: int, rows: int = 8) -> dict[str, Any]:
    """Commits of an undisturbed local run."""
    store = store_in(folder / "reference")
    assert run(make_plan(*manners, shards=shards, rows=rows, execution=LOCAL), store).complete
    return store.committed()


def kill_when(find: Callable[[], int | None], how: signal.Signals = signal.SIGKILL) -> threading.Thread:
    """Kill -9 a process, or do otherwise to it, as soon as `find` names it."""

    def hunt() -> None:
        deadline = time.monotonic() + 120  # a busy machine starts Ray in half a minute
        while time.monotonic() < deadline:
            pid = find()
            if pid is not None:
                os.kill(pid, how)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=hunt)
    thread.start()
    return thread


def test_same_commits_as_locally_and_the_pool_is_reused(tmp_path: Path) -> None:
    store = store_in(tmp_path / "ray")
    report = run(make_plan("steady", shards=6, execution=RAY), store)
    assert report.complete
    assert store.committed() == reference(tmp_path, "steady", shards=6)
    pids = {info.pid for info in ReplicaPool.connect(RAY.pool).info()}
    again = store_in(tmp_path / "again")
    assert run(make_plan("steady", shards=6, execution=RAY, run_id="run-2"), again).complete
    assert {info.pid for info in ReplicaPool.connect(RAY.pool).info()} == pids
    assert len(pids) == 2
    assert len({pid for pid, _ in events("load")} - {str(os.getpid())}) <= 2


def test_killed_replica_mid_shard(tmp_path: Path) -> None:
    store = store_in(tmp_path / "ray")

    def victim() -> int | None:
        batches = events("batch")
        return int(batches[-1][0]) if len(batches) >= 3 else None

    hunter = kill_when(victim)
    report = run(make_plan("slow", shards=4, execution=RAY), store)
    hunter.join()
    assert report.complete
    assert [f.reason.split(" (")[0] for f in report.retried] == ["replica lost"]  # one death, one charge
    assert store.committed() == reference(tmp_path, "slow", shards=4)
    assert len(ReplicaPool.connect(RAY.pool).info()) == 2  # the dead one was replaced


def test_killed_reducer_mid_shard(tmp_path: Path) -> None:
    store = store_in(tmp_path / "ray")
    hunter = kill_when(lambda: int(events("add")[-1][0]) if len(events("add")) >= 3 else None)
    report = run(make_plan("slow", shards=4, execution=RAY), store)
    hunter.join()
    assert report.complete
    assert report.retried
    assert {f.reason.split(" (")[0] for f in report.retried} == {"reducer lost"}
    assert store.committed() == reference(tmp_path, "slow", shards=4)


def test_mixed_fortunes(tmp_path: Path) -> None:
    """One run with a committed shard, two that raise, and a store that refuses once: each is told apart."""
    store = store_in(tmp_path / "ray", refusals=1)
    (store.folder / "steady-1.json").write_text("[]")
    report = run(make_plan("boom", "steady", shards=3, execution=RAY), store)
    assert report.skipped == ("steady-1",)
    assert set(report.done) == {"steady-0", "steady-2"}
    assert "steady-1" not in {shard for _, shard, _ in events("batch")}
    assert {f.shard_id for f in report.failed} == {"boom-0", "boom-1", "boom-2"}
    assert {f.reason for f in report.failed} == {"ValueError: two plus two is five"}
    assert {f.attempts for f in report.failed} == {1}
    assert all("actor_world.py" in f.traceback for f in report.failed)
    assert ["bucket is on holiday" in f.reason for f in report.retried] == [True]


def test_a_shard_that_kills_its_replica_is_given_up_and_spares_its_neighbours(tmp_path: Path) -> None:
    store = store_in(tmp_path / "ray")
    plan = make_plan("crash", "steady", shards=1, execution=RAY.model_copy(update={"retries": 1}))
    report = run(plan, store)
    assert report.done == ("steady-0",)
    assert [(f.shard_id, f.attempts) for f in report.failed] == [("crash-0", 2)]
    assert "replica lost" in report.failed[0].reason


@pytest.mark.parametrize(("window_mib", "waiting"), [(1, 1), (4, 5)])
def test_a_slow_store_stops_the_replica(tmp_path: Path, window_mib: int, waiting: int) -> None:
    """Generation stays a bounded number of bytes ahead of writing: a batch of `big` has 0.73 MiB."""
    store = store_in(tmp_path / "ray", add_seconds=0.05)
    execution = RAY.model_copy(update={"replicas": 1, "window_mib": window_mib})
    run(make_plan("big", shards=1, rows=40, execution=execution), store)
    ahead = worst = 0
    for line in Path(os.environ["ACTOR_WORLD_LOG"]).read_text().splitlines():
        kind = line.split()[0]
        if kind in {"batch", "add"}:
            ahead += 1 if kind == "batch" else -1
            worst = max(worst, ahead)
    assert ahead == 0
    # One more asks for admission, and one has been logged by the writer a moment after it left.
    assert waiting <= worst <= waiting + 2


def test_commits_that_go_elsewhere_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsprobe.actors.ray_executor.VISIBLE_LIMIT_S", 0.0)
    store = store_in(tmp_path / "ray")
    monkeypatch.setattr(FileStore, "is_committed", lambda self, shard_id: False)  # here, not in the reducer
    with pytest.raises(PrerequisiteError, match="not to the place that this process sees"):
        run(make_plan("steady", shards=1, execution=RAY), store)


def test_interrupt_frees_the_replicas(tmp_path: Path) -> None:
    plan, store = make_plan("slow", shards=6, rows=16, execution=RAY), store_in(tmp_path / "ray")

    def interrupt(progress: Progress) -> None:
        if progress.shards_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, store, progress=interrupt)
    committed = set(store.committed())
    assert committed
    deadline = time.monotonic() + 10
    pool = ReplicaPool.connect(RAY.pool)
    while any(info.shard_id for info in pool.info()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(info.shard_id is None for info in pool.info())
    before = set(store.committed())
    rest = run(plan, store)
    assert set(rest.skipped) == before >= committed
    assert set(rest.done) == {s.id for s in plan.shards} - before


@pytest.mark.parametrize("frozen", ["replica", "reducer"])
def test_a_frozen_process_is_found_and_replaced(tmp_path: Path, frozen: str) -> None:
    """SIGSTOP: alive for Ray, and silent."""
    expected = reference(tmp_path, "slow", shards=3, rows=40)
    Path(os.environ["ACTOR_WORLD_LOG"]).unlink()  # or this very process would be frozen
    store = store_in(tmp_path / "ray")
    kind = "batch" if frozen == "replica" else "add"
    hunter = kill_when(lambda: int(events(kind)[-1][0]) if len(events(kind)) >= 3 else None, signal.SIGSTOP)
    report = run(make_plan("slow", shards=3, rows=40, execution=RAY.model_copy(update={"stall_s": 2.0})), store)
    hunter.join()
    assert report.complete
    assert store.committed() == expected
    assert any(f"{frozen} lost" in failure.reason for failure in report.retried)


def test_a_replica_that_does_not_get_on_is_replaced_and_its_shard_given_up(tmp_path: Path) -> None:
    """It answers, and finishes no batch."""
    store = store_in(tmp_path / "ray")
    execution = RAY.model_copy(update={"stall_s": 2.0, "retries": 0})
    report = run(make_plan("stuck", "steady", shards=1, execution=execution), store)
    assert report.done == ("steady-0",)
    assert [failure.shard_id for failure in report.failed] == ["stuck-0"]
    assert "replica lost" in report.failed[0].reason


def test_the_merged_statistics_are_those_of_the_committed_shards(tmp_path: Path) -> None:
    plan = make_plan("steady", "slow", "big", shards=3, execution=LOCAL)
    here = run(plan, store_in(tmp_path / "local")).merged
    execution = RAY.model_copy(update={"replicas": 2})
    there = run(make_plan("steady", "slow", "big", shards=3, execution=execution), store_in(tmp_path / "ray")).merged
    assert here.shards == there.shards == {shard.id: shard.condition for shard in plan.shards}
    assert here.state is not None
    assert there.state is not None
    assert there.state.to_tables() == here.state.to_tables()


def test_statistics_of_several_reducers_are_merged_as_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsprobe.actors.ray_executor.REPLICAS_PER_REDUCER", 1)
    plan = make_plan("steady", "slow", "big", shards=4, execution=RAY.model_copy(update={"replicas": 3}))
    there = run(plan, store_in(tmp_path / "ray")).merged
    here = run(make_plan("steady", "slow", "big", shards=4, execution=LOCAL), store_in(tmp_path / "local")).merged
    assert there.shards == here.shards
    assert there.state is not None
    assert here.state is not None
    assert there.state.to_tables() == here.state.to_tables()
    assert len({pid for pid, _ in events("add")}) >= 2
