"""A writer that dies at any operation: no reader sees half a shard, and the next attempt ends with equal bytes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsprobe.errors import StorageError
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.commit_record import FileRecord
from dsprobe.storage.compaction import compact
from dsprobe.storage.garbage import collect
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.query import read_table
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.testing import synthetic_batch
from dsprobe.storage.verifying import verify

EmptyRun = Callable[[str], RunStore]

SHARD = "direct-0"
KILLED = 77
WATCHED = frozenset({"open", "os.mkdir", "os.rename", "os.link", "os.remove"})
"""Operations of the interpreter that change a folder."""


def _batch() -> EvaluatedBatch:
    """Rows that do not depend on a clock, so that equal attempts are equal bytes."""
    batch = synthetic_batch(3, rows=4, steps=3, length=8)
    batch.trajectories.wall_seconds_B[:] = np.nan
    return batch


def _attempt(store: RunStore) -> bool:
    with store.open_attempt(SHARD) as writer:
        writer.add(_batch())
        return writer.commit()


def _files(store: RunStore) -> dict[str, FileRecord]:
    return store.committed()[SHARD].files


def _attempt_that_dies(url: str, options: Any, last: int) -> None:
    """Make an attempt, and end this process without any tidying just before one of its operations on the run."""
    store = RunStore.at(url)
    store._options = options
    count = 0

    def step(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in WATCHED and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(url):
            count += 1
            if count == last:
                os._exit(KILLED)

    real = os.fsync

    def fsync(descriptor: int) -> None:
        step("open", (url,))
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(step)
    _attempt(store)


def test_a_writer_killed_before_any_operation_on_the_disk_leaves_a_sound_run(
    local_root: str, empty_run: EmptyRun
) -> None:
    calm = empty_run(f"{local_root}-calm")
    assert _attempt(calm)
    context = multiprocessing.get_context("fork")
    committed_at = None
    for last in range(1, 500):
        store = empty_run(f"{local_root}/{last}")
        process = context.Process(target=_attempt_that_dies, args=(store.url, store._options, last))
        process.start()
        process.join(60)
        records = store.committed()
        if records:
            committed_at = committed_at or last
        assert not verify(store).damage  # whatever is committed is whole
        won = _attempt(store)
        assert won == (not records)
        assert _files(store) == _files(calm)
        collect(store, timedelta(0))
        names = {f"shards/{SHARD}/{store.committed()[SHARD].attempt}/{name}" for name in _files(calm)}
        assert {entry.name for entry in store.objects.entries("shards")} == names
        if process.exitcode == 0:
            break
        assert process.exitcode == KILLED
    assert process.exitcode == 0  # the last round had no operation left to die at
    assert last > 30
    assert committed_at is not None
    assert committed_at > last - 4  # only removing the record's temporary and syncing its folder come after


class _FaultError(StorageError):
    pass


class _FaultyObjects(ObjectStore):
    """Fails at one operation, before it is carried out or after it: then only its answer is lost."""

    left, after = 0, False

    def _is_due(self) -> bool:
        self.left -= 1
        return self.left == 0

    @contextmanager
    def create(self, name: str) -> Iterator[Any]:
        with super().create(name) as sink:
            yield sink
            due = self._is_due()
            if due and not self.after:
                raise _FaultError("refused")
        if due:
            raise _FaultError("the answer was lost")

    def _call(self, operation: Callable[[], Any]) -> Any:
        due = self._is_due()
        if due and not self.after:
            raise _FaultError("refused")
        answer = operation()
        if due:
            raise _FaultError("the answer was lost")
        return answer

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return bool(self._call(lambda: ObjectStore.put_if_absent(self, name, data)))

    def remove(self, name: str) -> None:
        self._call(lambda: ObjectStore.remove(self, name))


@pytest.mark.parametrize("root", ["local", "memory"], indirect=True)
@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_fails_at_any_operation_loses_nothing(root: str, empty_run: EmptyRun, after: bool) -> None:
    calm = empty_run(f"{root}/calm")
    assert _attempt(calm)
    failures = 0
    for at in range(1, 100):
        store = empty_run(f"{root}/{at}")
        sound, faulty = store.objects, _FaultyObjects(store.url)
        faulty.left, faulty.after = at, after
        store.objects = faulty
        try:
            _attempt(store)
            done = True
        except _FaultError:
            done = False
            failures += 1
        store.objects = sound
        records = store.committed()
        assert not verify(store).damage
        _attempt(store)
        assert _files(store) == _files(calm)
        if records:  # the first attempt counts, and a later one changes nothing
            assert store.committed() == records
        if done:
            break
    assert failures >= 6


def test_attempts_at_one_shard_never_meet(root: str, empty_run: EmptyRun) -> None:
    store = empty_run(root)
    first, second = store.open_attempt(SHARD), store.open_attempt(SHARD)
    assert first.attempt != second.attempt
    for writer in (first, second):
        writer.add(_batch())
    assert [second.commit(), first.commit()] == [True, False]
    assert store.committed()[SHARD].attempt == second.attempt
    assert {name.split("/")[2] for name in store.objects.list("shards")} == {second.attempt}
    compact(store)
    assert read_table(store, "trajectories").num_rows == 4
