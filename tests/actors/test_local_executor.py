from __future__ import annotations

import itertools
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.actors.actor_store import FileStore, FileWriter
from tests.actors.actor_world import make_plan

from dsprobe.actors.executor import Ledger, Progress, execute, missing_shards
from dsprobe.config import ExecutionConfig
from dsprobe.errors import IncompleteRunError
from dsprobe.experiment.evaluated import EvaluatedBatch

LOCAL = ExecutionConfig(executor="local", batch_size=2, retries=2)


def quiet(progress: Progress) -> None:
    pass


def test_runs_everything_then_nothing(tmp_path: Path) -> None:
    plan, store = make_plan("steady", shards=3, execution=LOCAL), FileStore(tmp_path)
    first = execute(plan, store, progress=quiet)
    assert first.complete
    assert set(first.done) == {s.id for s in plan.shards} == set(store.committed())
    second = execute(plan, store, progress=quiet)
    assert second.done == ()
    assert set(second.skipped) == set(first.done)


def test_an_exception_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    plan, store = make_plan("boom", "steady", execution=LOCAL), FileStore(tmp_path)
    report = execute(plan, store, progress=quiet)
    assert set(report.done) == {"steady-0", "steady-1"}
    assert [f.shard_id for f in report.failed] == ["boom-0", "boom-1"]
    failure = report.failed[0]
    assert failure.reason == "ValueError: two plus two is five"
    assert failure.attempts == 1  # a deterministic error is not worth a second attempt
    assert "in run" in failure.traceback
    assert failure.condition == "scripted/toy/boom/default"
    assert not set(store.committed()) & {"boom-0", "boom-1"}
    with pytest.raises(IncompleteRunError, match="2 x ValueError: two plus two is five"):
        report.raise_if_incomplete()


def test_a_store_that_refuses_is_tried_again(tmp_path: Path) -> None:
    plan, store = make_plan("steady", shards=1, execution=LOCAL), FileStore(tmp_path, refusals=2)
    report = execute(plan, store, progress=quiet)
    assert report.complete
    assert [f.attempts for f in report.retried] == [1, 2]
    assert "bucket is on holiday" in report.retried[0].reason


def test_two_drivers_share_the_shards(tmp_path: Path) -> None:
    """The other driver is always a little faster at first; who was too late goes on from the other end."""
    plan, store = make_plan("steady", shards=6, execution=LOCAL), FileStore(tmp_path)

    def other(progress: Progress) -> None:
        if not added:
            (tmp_path / "steady-1.json").write_text("[]")  # found committed before it is begun

    def faster(self: FileWriter, batch: EvaluatedBatch) -> None:
        added.append(self.shard_id)
        if self.shard_id == "steady-0":
            (tmp_path / "steady-0.json").write_text("[]")  # committed while it was generated here
        real(self, batch)

    added: list[str] = []
    real = FileWriter.add
    with mock.patch.object(FileWriter, "add", faster):
        report = execute(plan, store, progress=other)
    assert report.complete
    assert set(report.elsewhere) == {"steady-0", "steady-1"}
    assert report.done == ("steady-5", "steady-4", "steady-3", "steady-2")
    assert "steady-1" not in added
    assert set(report.skipped) == set(report.elsewhere)


def test_an_own_commit_whose_answer_was_lost_is_not_taken_for_another_driver(tmp_path: Path) -> None:
    plan, store = make_plan("steady", shards=1, execution=LOCAL), FileStore(tmp_path)
    real = FileWriter.commit

    def lost(self: FileWriter) -> bool:
        real(self)
        raise ConnectionError("the answer was lost")

    with mock.patch.object(FileWriter, "commit", lost):
        report = execute(plan, store, progress=quiet)
    assert (report.done, report.elsewhere, len(report.retried)) == (("steady-0",), (), 1)


def test_retries_are_bounded(tmp_path: Path) -> None:
    plan, store = make_plan("steady", shards=1, execution=LOCAL), FileStore(tmp_path, refusals=99)
    report = execute(plan, store, progress=quiet)
    assert [f.attempts for f in report.failed] == [3]
    assert len(report.retried) == 2


def test_interrupt_keeps_what_is_committed(tmp_path: Path) -> None:
    plan, store = make_plan("steady", shards=3, execution=LOCAL), FileStore(tmp_path)

    def interrupt(progress: Progress) -> None:
        if progress.shards_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, store, progress=interrupt)
    assert [shard.id for shard in missing_shards(plan, store)] == ["steady-2"]
    assert execute(plan, store, progress=quiet).done == ("steady-2",)


def test_progress_adds_up(tmp_path: Path) -> None:
    plan, store = make_plan("steady", "boom", shards=3, execution=LOCAL), FileStore(tmp_path)
    (tmp_path / "steady-1.json").write_text("[]")
    seen: list[Progress] = []
    execute(plan, store, progress=seen.append)
    assert seen[0].shards_skipped == 1
    assert seen[0].eta_s is None
    last = seen[-1]
    assert (last.shards_done, last.shards_skipped, last.shards_failed) == (2, 1, 3)
    assert (last.trajectories_done, last.trajectories_skipped, last.trajectories_failed) == (16, 8, 24)
    assert last.trajectories_total == 48
    assert last.eta_s == 0
    assert last.rate > 0
    assert all(a.shards_done <= b.shards_done for a, b in itertools.pairwise(seen))


@given(st.lists(st.sampled_from(["done", "raised", "lost", "innocent"]), max_size=60), st.integers(0, 3))
def test_ledger_settles_every_shard_once(script: list[str], retries: int) -> None:
    """Whatever happens in whatever order, a shard is pending, done or failed, and never two of these."""
    plan = make_plan("steady", shards=5, execution=ExecutionConfig(retries=retries))
    ledger = Ledger(plan, plan.shards, lambda progress: None)
    for event in script:
        if not ledger.pending:
            break
        shard = ledger.pending.popleft()
        if event == "done":
            ledger.done(shard)
        elif event == "innocent":
            ledger.requeue(shard)
        else:
            ledger.failed(shard, event, retry=event == "lost")
    report = ledger.report()
    settled = [*report.done, *(f.shard_id for f in report.failed), *(s.id for s in ledger.pending)]
    assert sorted(settled) == sorted(s.id for s in plan.shards)
    assert all(f.attempts <= retries + 1 for f in report.failed)
