"""The object store on a real S3 server: atomic creates, uploads, listings, settings, and errors that help."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.s3.rados_gateway import S3Server
from tests.storage import test_storage_objects as promises

from dsprobe.config import RunConfig, S3Config
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError, StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.s3_objects import PART_BYTES

# What every store promises, on a real server: these tests take the `root` of this folder.
test_one_winner_among_threads = promises.test_put_if_absent_has_one_winner_among_threads
test_create_shows_nothing_until_it_is_complete = promises.test_create_shows_nothing_until_it_is_complete
test_missing_objects_are_named = promises.test_missing_objects_are_named_and_removal_is_idempotent
test_probe_passes_and_leaves_nothing = promises.test_probe_passes_and_leaves_nothing
test_stores_travel_between_processes = promises.test_stores_travel_between_processes


def unfinished(gateway: S3Server, root: str) -> list[str]:
    """Keys of uploads that were begun below a root and neither completed nor aborted."""
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    found = gateway.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", ())]


def test_the_content_tells_whose_object_it_is(root: str) -> None:
    """RADOS Gateway's refusal becomes another exception in s3fs than moto's; only its status is the same."""
    store = ObjectStore(root)
    store.put("commits/x.json", b"theirs")
    assert store.put_if_absent("commits/x.json", b"ours") is False
    assert store.put_if_absent("commits/x.json", b"theirs") is True
    assert store.read("commits/x.json") == b"theirs"


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 77])
def test_objects_of_every_size_come_back_whole(gateway: S3Server, root: str, size: int) -> None:
    store, data = ObjectStore(root), os.urandom(size)
    with store.create("object") as sink:
        for start in range(0, size, 3_000_001):
            sink.write(data[start : start + 3_000_001])
        assert sink.tell() == size
        assert not store.exists("object")
    assert store.read("object") == data
    (entry,) = store.entries("")
    assert (entry.name, entry.bytes) == ("object", size)
    assert abs(entry.modified.timestamp() - time.time()) < 120
    assert unfinished(gateway, root) == []


def test_an_upload_that_fails_leaves_nothing(gateway: S3Server, root: str) -> None:
    store = ObjectStore(root)

    def fail() -> None:
        with store.create("object") as sink:
            sink.write(os.urandom(PART_BYTES + 1))
            assert len(unfinished(gateway, root)) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.entries("") == []
    assert unfinished(gateway, root) == []


KILLED_WRITER = """
import os, sys, time
from dsprobe.storage.objects import ObjectStore

with ObjectStore(sys.argv[1]).create("object") as sink:
    sink.write(os.urandom(17 << 20))
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_upload_shows_nothing(gateway: S3Server, root: str) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED_WRITER, root], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert ObjectStore(root).entries("") == []
    assert len(unfinished(gateway, root)) == 1  # what `dsprobe gc` sweeps


def test_more_keys_than_a_page(gateway: S3Server, root: str) -> None:
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    client, names = gateway.client(), [f"many/{number:04d}" for number in range(2500)]
    with ThreadPoolExecutor(8) as pool:
        puts = pool.map(lambda name: client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"x"), names)
        assert sum(1 for _ in puts) == 2500
    store = ObjectStore(root)
    store.put("many-others/x", b"")  # has the folder's name as a prefix, and is not in it
    assert store.list("many") == names
    assert sum(entry.bytes for entry in store.entries("many")) == 2500


def test_parquet_is_read_by_ranges(root: str) -> None:
    store = ObjectStore(root)
    table = pa.table({"x": pa.array(range(100_000)), "y": pa.array([float(i) for i in range(100_000)])})
    with store.create("t.parquet") as sink:
        pq.write_table(table, sink, row_group_size=10_000)
    with store.open("t.parquet") as source:
        parquet = pq.ParquetFile(source)
        assert parquet.num_row_groups == 10
        assert parquet.read_row_group(7, columns=["x"])["x"].to_pylist() == list(range(70_000, 80_000))


def test_endpoint_and_region_come_from_the_configuration(
    gateway: S3Server, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    settings = S3Config(endpoint_url=gateway.url, region="eu-west-3", deadline_s=30)
    run = RunStore(root, "r", s3=settings)
    run.probe()
    copy = pickle.loads(pickle.dumps(run))
    copy.probe()
    assert copy.objects.s3 == settings
    assert copy.objects.fs.s3.meta.region_name == "eu-west-3"
    assert RunStore.at(run.url, settings).objects.list("") == []


def test_a_profile_holds_credentials_and_endpoint(
    gateway: S3Server, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text(
        f"[profile lab]\naws_access_key_id = {gateway.access_key}\naws_secret_access_key = {gateway.secret_key}\n"
        f"endpoint_url = {gateway.url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    ObjectStore(root, S3Config(profile="lab")).probe()
    with pytest.raises(StorageError, match=r"profile \(home\).*`output\.s3\.profile`"):
        ObjectStore(root, S3Config(profile="home")).probe()
    with pytest.raises(StorageError, match=r"no complete credentials found.*AWS_ACCESS_KEY_ID"):
        ObjectStore(root, S3Config(endpoint_url=gateway.url)).probe()


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_fail_at_once_and_are_not_shown(
    root: str, wrong: str, gateway: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gateway.name == "moto":
        pytest.skip("moto accepts any credentials")
    monkeypatch.setenv(wrong, "not-the-key-0123456789")
    begin = time.monotonic()
    with pytest.raises(StorageError, match="does not accept these credentials") as caught:
        ObjectStore(root).put_if_absent("commits/x.json", b"1")
    assert time.monotonic() - begin < 10
    assert f"{root}/commits/x.json cannot be written" in str(caught.value)
    assert "not-the-key" not in str(caught.value)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.parametrize(
    "operation",
    [
        ObjectStore.probe,
        lambda store: store.list(""),
        lambda store: store.read("x"),
        lambda store: store.put("x", b"1"),
        lambda store: store.put("x", bytes(PART_BYTES + 1)),
        lambda store: store.remove("x"),
    ],
    ids=["probe", "list", "read", "put", "upload", "remove"],
)
def test_a_missing_bucket_is_no_empty_folder(root: str, operation: Callable[[ObjectStore], object]) -> None:
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/.* no such bucket; create it"):
        operation(ObjectStore("s3://no-such-bucket/results"))
    assert time.monotonic() - begin < 10


def test_credentials_have_no_place_in_configuration_or_url(tmp_path: Path) -> None:
    text = "models: [toy-diffusion]\nprompts: [{source: toy, name: restricted}]\noutput: {s3: {secret: hunter2}}\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"`output\.s3` has no key `secret`.*AWS_SECRET_ACCESS_KEY") as caught:
        load_config(str(tmp_path / "c.yaml"), schema=RunConfig)
    assert "hunter2" not in str(caught.value)
    for endpoint, message in {"http://me:hunter2@host": "must not hold credentials", "host:80": "http://"}.items():
        with pytest.raises(ValueError, match=message) as refused:
            S3Config(endpoint_url=endpoint)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="holds no keys") as refused:
        ObjectStore("s3://AKIA:hunter2@bucket/x")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="names no place"):
        ObjectStore("s3://")
