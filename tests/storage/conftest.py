"""Stores of every kind, and a run made of synthetic batches."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from dsprobe.storage.commit_record import WriterOptions
from dsprobe.storage.compaction import compact
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.testing import synthetic_batch, synthetic_condition

OPTIONS = WriterOptions(threshold=0.5, sample_positions=3, extreme_positions=2)
RUN_ID = "synthetic-00000000"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/results"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def local_root(tmp_path: Path) -> str:
    return str(tmp_path / "results")


@pytest.fixture
def memory_root() -> Iterator[str]:
    name = f"memory://{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["local", "s3", "memory"])
def root(request: pytest.FixtureRequest) -> str:
    """A place for runs, of each kind in turn."""
    value: str = request.getfixturevalue(f"{request.param}_root")
    return value


SHARDS = [f"{attack}-{part}" for attack in ("direct", "dija") for part in range(3)]


def write_shard(store: RunStore, shard_id: str) -> bool:
    """One attempt at a shard of two batches; the same shard id gives the same rows."""
    attack, part = shard_id.split("-")
    with store.open_attempt(shard_id) as writer:
        for half in range(2):
            number = 2 * int(part) + half
            seed = number + (100 if attack == "dija" else 0)
            writer.add(
                synthetic_batch(seed, condition=synthetic_condition(attack), rows=4, steps=5, first_prompt=2 * number)
            )
        return writer.commit()


@pytest.fixture
def make_run() -> Callable[..., RunStore]:
    """Make a compacted run: `make_run(root, order=…)`; shards may come in any order and more than once."""

    def make(root: str, order: list[str] | None = None) -> RunStore:
        store = RunStore(root, RUN_ID, OPTIONS)
        store.write_manifest({"run_id": RUN_ID, "shards": SHARDS})
        for shard_id in order or SHARDS:
            write_shard(store, shard_id)
        compact(store)
        return store

    return make


@pytest.fixture
def empty_run() -> Callable[[str], RunStore]:
    """A run with a manifest and no shards."""

    def make(root: str) -> RunStore:
        store = RunStore(root, RUN_ID, OPTIONS)
        store.write_manifest({"run_id": RUN_ID, "shards": SHARDS})
        return store

    return make


@pytest.fixture
def attempt() -> Callable[[RunStore, str], bool]:
    """Write one attempt at a shard and commit it."""
    return write_shard


@pytest.fixture
def copied(fixtures: Path, tmp_path: Path) -> Callable[[str], RunStore]:
    """A run that an earlier version wrote, as a copy: `copied("schema-1")`."""

    def copy(name: str) -> RunStore:
        return RunStore.at(str(shutil.copytree(fixtures / "runs" / name, tmp_path / name)))

    return copy
