"""A shard that needs more memory than there is: the kernel kills its replica, the shard is reported, others go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.actors.actor_store import FileStore, events
from tests.actors.actor_world import make_plan
from tests.actors.conftest import quiet_ray
from tests.actors.hungry_world import GROUP

from dsprobe.actors.executor import execute
from dsprobe.config import ExecutionConfig

LIMIT = 1 << 30
"""Bytes; a replica of the scripted world has a quarter of it."""


@pytest.fixture(scope="module")
def small_memory() -> Iterator[Path]:
    """A control group with little memory, for processes that enter it."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / f"dsprobe-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(LIMIT))
            os.environ[GROUP] = str(group)
            yield group
            del os.environ[GROUP]
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no control group with a memory limit can be made here")


@pytest.fixture(scope="module")
def hungry_ray(small_memory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from quiet_ray("tests.actors.hungry_world.install", tmp_path_factory.mktemp("world"))


def test_a_replica_without_memory_costs_its_shard_and_no_other(
    hungry_ray: None, small_memory: Path, tmp_path: Path
) -> None:
    execution = ExecutionConfig(replicas=1, num_cpus=0.5, batch_size=2, retries=1, pool="hungry")
    store = FileStore(tmp_path)
    plan = make_plan("hungry", "steady", shards=1, execution=execution)
    report = execute(plan, store, progress=lambda progress: None)
    assert report.done == ("steady-0",)
    assert [(failure.shard_id, failure.attempts) for failure in report.failed] == [("hungry-0", 2)]
    assert "replica lost" in report.failed[0].reason
    assert [failure.shard_id for failure in report.retried] == ["hungry-0"]
    assert events("ate") == []
    assert set(store.committed()) == {"steady-0"}
