"""Garbage that only S3 has: uploads that were begun and never completed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.s3.rados_gateway import S3Server

from dsprobe.storage.commit_record import WriterOptions
from dsprobe.storage.garbage import collect
from dsprobe.storage.multipart import abort_upload, unfinished_uploads
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.testing import synthetic_batch
from dsprobe.storage.verifying import verify

AT_ONCE, DAY = timedelta(0), timedelta(hours=24)


def _begin(server: S3Server, bucket: str, key: str) -> None:
    """Begin an upload as a killed writer leaves it: with one part."""
    client = server.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 1000)


def test_uploads_that_were_never_completed_are_aborted_once_old(root: str, gateway: S3Server) -> None:
    store = RunStore(root, "run", WriterOptions(threshold=0.5, sample_positions=1, extreme_positions=1))
    store.write_manifest({"run_id": "run", "shards": ["a"]})
    with store.open_attempt("a") as writer:
        writer.add(synthetic_batch(1))
        assert writer.commit()
    bucket, _, prefix = store.objects.root.partition("/")
    mine = [f"{prefix}/shards/x/{number:032x}/steps.parquet" for number in range(3)]
    for key in (*mine, f"{prefix}-other/steps.parquet"):
        _begin(gateway, bucket, key)
    young = collect(store, DAY)
    assert (young.waiting["uploads"].count, dict(young.removed)) == (3, {})
    tried = collect(store, AT_ONCE, dry_run=True)
    assert (tried.removed["uploads"].count, tried.removed["uploads"].bytes) == (3, 3000)
    found = collect(store, AT_ONCE)
    assert (found.removed["uploads"].count, found.removed["uploads"].bytes) == (3, 3000)
    pending = gateway.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)["Uploads"]
    assert [upload["Key"] for upload in pending] == [f"{prefix}-other/steps.parquet"]
    assert not verify(store).damage


def test_an_upload_may_be_gone_when_it_is_aborted(root: str, gateway: S3Server) -> None:
    store = RunStore(root, "run")
    bucket, _, prefix = store.objects.root.partition("/")
    _begin(gateway, bucket, f"{prefix}/a")
    (upload,) = unfinished_uploads(store.objects, datetime.now(UTC) + DAY)
    assert (upload.bytes, upload.key) == (1000, f"{prefix}/a")
    abort_upload(store.objects, upload)
    abort_upload(store.objects, upload)
    assert list(unfinished_uploads(store.objects, datetime.now(UTC) + DAY)) == []
