"""Uploads to S3 that were begun and neither completed nor aborted: invisible to listings, but stored and paid for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dsprobe.storage.objects import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An unfinished multipart upload."""

    key: str
    """Name in the bucket."""
    id: str
    bytes: int
    """Of the parts that arrived; 0 where they were not asked for."""
    modified: datetime
    """When its last part arrived, by the store's clock; when it was begun, where there are none."""


def unfinished_uploads(objects: ObjectStore, before: datetime) -> Iterator[Upload]:
    """Unfinished uploads below a store's URL; none on stores other than S3.

    Args:
        objects: The store.
        before: Only of uploads begun before this time are the parts looked at, one request each.

    Raises:
        StorageError: The store failed.
    """
    if objects.kind != "s3":
        return
    bucket, _, prefix = objects.root.partition("/")
    for page in _pages(objects, "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/"):
        for begun in page.get("Uploads", ()):
            initiated = begun["Initiated"].astimezone(UTC)
            upload = Upload(key=begun["Key"], id=begun["UploadId"], bytes=0, modified=initiated)
            yield _with_parts(objects, upload) if initiated < before else upload


def abort_upload(objects: ObjectStore, upload: Upload) -> None:
    """Drop an unfinished upload and its parts; fine if it is gone already.

    Raises:
        StorageError: The store failed.
    """
    with objects.named("cannot be listed or aborted: unfinished upload", upload.key):
        try:
            objects.fs.call_s3("abort_multipart_upload", **_which(objects, upload))
        except FileNotFoundError:  # what s3fs makes of NoSuchUpload
            return


def _with_parts(objects: ObjectStore, upload: Upload) -> Upload:
    size, modified = 0, upload.modified
    for page in _pages(objects, "list_parts", **_which(objects, upload)):
        for part in page.get("Parts", ()):
            size += part["Size"]
            modified = max(modified, part["LastModified"].astimezone(UTC))
    return Upload(key=upload.key, id=upload.id, bytes=size, modified=modified)


def _which(objects: ObjectStore, upload: Upload) -> dict[str, Any]:
    return {"Bucket": objects.root.partition("/")[0], "Key": upload.key, "UploadId": upload.id}


def _pages(objects: ObjectStore, method: str, **request: Any) -> Iterator[dict[str, Any]]:
    """All pages of a listing; the answer's ``Next…Marker`` values are the next request's ``…Marker``."""
    markers: dict[str, Any] = {}
    while True:
        with objects.named("cannot be listed", request.get("Prefix", "")):
            try:
                page: dict[str, Any] = objects.fs.call_s3(method, **request, **markers)
            except FileNotFoundError:  # the upload was completed or aborted meanwhile
                return
        yield page
        if not page.get("IsTruncated"):
            return
        markers = {key.removeprefix("Next"): value for key, value in page.items() if key.startswith("Next")}
