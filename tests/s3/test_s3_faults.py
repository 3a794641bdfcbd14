"""Faults between a store and a real S3 server, caused by a proxy: success all the same, or a clear end in time."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator

import pytest
from tests.s3.fault_proxy import KINDS, FaultProxy
from tests.s3.rados_gateway import S3Server

from dsprobe.config import S3Config
from dsprobe.errors import StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.s3_objects import PART_BYTES

LARGE = os.urandom(2 * PART_BYTES + 77)


@pytest.fixture
def proxy(gateway: S3Server, root: str) -> Iterator[FaultProxy]:
    with FaultProxy(gateway.host, gateway.port, late_s=0.9) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, root: str) -> ObjectStore:
    """A store behind the proxy; a request that hangs is given up after 0.6 s, everything after 40."""
    store = ObjectStore(root, S3Config(endpoint_url=proxy.url, deadline_s=40))
    store.fs.config_kwargs["read_timeout"] = 0.6
    return store


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "damage"])  # found by checksums alone
def test_every_operation_survives_every_fault(proxy: FaultProxy, store: ObjectStore, kind: str) -> None:
    """The first request of each sort meets the fault, so that each operation has to make it twice at least."""
    orders = [("PUT", "commits"), ("GET", "commits"), ("HEAD", "commits"), ("GET", "list-type"), ("DELETE", "commits")]
    orders += [("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId"), ("GET", "large"), ("HEAD", "large")]
    for method, contains in orders:
        proxy.inject(kind, method=method, contains=contains)
    assert store.put_if_absent("commits/x.json", b"mine") is True
    assert store.put_if_absent("commits/x.json", b"other") is False
    assert store.read("commits/x.json") == b"mine"
    assert store.list("commits") == ["commits/x.json"]
    with store.create("large") as sink:
        sink.write(LARGE)
    with store.open("large") as source:
        source.seek(PART_BYTES - 10)
        assert source.read(20) == LARGE[PART_BYTES - 10 : PART_BYTES + 10]
    assert store.read("large") == LARGE
    assert store.exists("commits/x.json")
    store.remove("commits/x.json")
    assert not store.exists("commits/x.json")
    bodies = sum(method == "GET" for method, _ in orders)  # only an answer with a body can be cut short
    assert proxy.counts[kind] >= (bodies if kind == "truncate" else len(orders))


def test_a_storm_of_all_faults_changes_nothing(gateway: S3Server, root: str) -> None:
    rates = dict.fromkeys(("error_409", "error_500", "error_503", "reset", "lost", "truncate", "delay"), 0.05)
    noise = random.Random(1)
    with FaultProxy(gateway.host, gateway.port, seed=5, rates=rates, delay_s=0.05) as proxy:
        store, written = ObjectStore(root, S3Config(endpoint_url=proxy.url)), dict[str, bytes]()
        for number in range(60):
            name, data = f"objects/{number:03d}", noise.randbytes(noise.randrange(1, 5000))
            assert store.put_if_absent(name, data)
            assert not store.put_if_absent(name, data + b"!")
            written[name] = data
        with store.create("objects/large") as sink:
            sink.write(LARGE)
        written["objects/large"] = LARGE
        assert store.list("objects") == sorted(written)
        assert {name: store.read(name) for name in written} == written
    assert sum(proxy.counts.values()) > 60
    assert len(proxy.counts) == len(rates)


def test_a_lost_answer_to_a_commit_counts_as_success(proxy: FaultProxy, store: ObjectStore) -> None:
    proxy.inject("lost", method="PUT", contains="commits", times=3)
    assert store.put_if_absent("commits/x.json", b"mine") is True
    puts = [request.fault for request in proxy.requests if request.method == "PUT"]
    assert puts == ["lost", "lost", "lost", ""]
    assert store.put_if_absent("commits/x.json", b"other") is False


def test_a_lost_answer_to_the_end_of_an_upload_counts_as_success(proxy: FaultProxy, store: ObjectStore) -> None:
    proxy.inject("lost", method="POST", contains="uploadId", times=2)
    with store.create("large") as sink:
        sink.write(LARGE)
    assert store.read("large") == LARGE
    assert proxy.counts["lost"] == 2


@pytest.mark.parametrize("kind", ["error_503", "error_500", "reset", "lost", "late"])
def test_a_deadline_ends_in_a_clear_error_in_time(proxy: FaultProxy, root: str, kind: str) -> None:
    proxy.inject(kind, times=math.inf)
    store, begin = ObjectStore(root, S3Config(endpoint_url=proxy.url, deadline_s=2)), time.monotonic()
    with pytest.raises(StorageError, match=r"no success within 2 s \(\d+ attempts\)") as caught:
        store.put_if_absent("commits/x.json", b"1")
    assert time.monotonic() - begin < 12  # a busy machine may need seconds to say so
    assert str(caught.value).startswith(f"{root}/commits/x.json cannot be written")
    if kind != "error_503":  # which refuses: nothing was carried out
        assert "may or may not have been carried out; running the same command again is safe" in str(caught.value)
    proxy.clear()
    assert ObjectStore(root, S3Config(endpoint_url=proxy.url)).put_if_absent("commits/x.json", b"1") is True


def test_a_failed_upload_can_be_made_again(gateway: S3Server, proxy: FaultProxy, root: str) -> None:
    store = ObjectStore(root, S3Config(endpoint_url=proxy.url, deadline_s=40))
    proxy.inject("error_503", method="PUT", contains="partNumber=2", times=math.inf)

    def fail() -> None:
        with store.create("large") as sink:
            sink.write(LARGE[: PART_BYTES + 1])  # the first part is there
            store.fs.deadline_s = 1.0
            sink.write(LARGE[PART_BYTES + 1 :])

    with pytest.raises(StorageError, match=r"large cannot be written: DeadlineError: no success within 1 s "):
        fail()
    store.fs.deadline_s = 40.0
    assert not store.exists("large")
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    assert not gateway.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads")
    proxy.clear()
    store.put("large", LARGE)
    assert store.read("large") == LARGE


def test_a_probe_does_not_wait_long_for_a_server_that_is_not_there(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsprobe.storage.objects._PROBE_DEADLINE_S", 1.0)
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"no success within 1 s .*(Could not connect|no answer)") as caught:
        ObjectStore(root, S3Config(endpoint_url="http://127.0.0.1:9")).probe()
    assert time.monotonic() - begin < 15
    # On a busy machine the deadline may cut off a connection that was still being refused.
    assert ("may or may not" in str(caught.value)) == ("no answer" in str(caught.value))


def test_requests_are_not_multiplied_by_other_layers(proxy: FaultProxy, store: ObjectStore) -> None:
    """botocore and s3fs have retries of their own; one injected failure must cost one more request."""
    store.put("x", b"1")
    operations: dict[str, Callable[[], object]] = {
        "GET": lambda: store.read("x"),
        "HEAD": lambda: store.exists("x"),
        "PUT": lambda: store.put("x", b"2"),
        "DELETE": lambda: store.remove("x"),
    }
    for method, operation in operations.items():
        before = len(proxy.requests)
        proxy.inject("error_503", method=method, times=2)
        operation()
        assert len(proxy.requests) - before == 3, method
