"""Objects on an S3 server. Every request is made under one retry policy: this file's, instead of botocore's and s3fs's.

`put_if_absent` is one single-part PUT with ``If-None-Match: *``, since some servers ignore the condition when a
multipart upload completes. Large objects are multipart uploads, which nobody sees before they are complete.
"""

from __future__ import annotations

import io
import logging
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC
from typing import Any, Final

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from dsprobe.config import S3Config
from dsprobe.storage.object_backends import ObjectEntry
from dsprobe.storage.retrying import DeadlineError, RetryPolicy
from dsprobe.storage.s3_errors import LIBRARY_ERRORS, http_status, translated

_LOG: Final = logging.getLogger(__name__)

PART_BYTES: Final = 8 << 20
"""Bytes of a part of an upload, held in memory; S3 takes 10 000 parts, so objects may have 78 GiB."""

_ABORT_DEADLINE_S: Final = 5.0
"""For telling the server to forget an upload, which it does by itself where its lifecycle rules say so."""

_UPLOAD_MARK: Final = "dsprobe-upload"
"""Metadata that tells a writer its own object after a lost answer."""

_WRITES: Final = frozenset({"put_object", "complete_multipart_upload", "delete_object"})


class RetryingS3FileSystem(S3FileSystem):  # type: ignore[misc]
    """s3fs with one retry policy and a deadline a request, and with checksums that every server understands.

    Args:
        deadline_s: Seconds for one request with all its retries and, for an object, its body.
        options: s3fs's.
    """

    retries = 1

    def __init__(self, *, deadline_s: float, **options: Any) -> None:
        super().__init__(**options)
        self.deadline_s = deadline_s

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        return await self._request(self.deadline_s, method, *akwarglist, **kwargs)

    async def _request(self, deadline_s: float, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        async def attempt() -> Any:
            try:
                await self.set_session()
                function = getattr(await self.get_s3(kwargs.get("Bucket")), method)
                answer = await function(**self._get_s3_method_kwargs(function, *akwarglist, **kwargs))
                if method == "get_object":
                    async with answer["Body"] as body:
                        answer["Body"] = _Body(await body.read())  # raises where it is shorter than announced
            except LIBRARY_ERRORS as error:
                raise translated(error) from error
            return answer

        what = f"{method} {kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
        try:
            return await RetryPolicy(deadline_s=deadline_s).call(attempt, what)
        except DeadlineError as error:
            if not error.unknown or method not in _WRITES:
                raise
            note = "the last request may or may not have been carried out; running the same command again is safe"
            raise DeadlineError(f"{error}; {note}", unknown=True) from error

    call_s3 = sync_wrapper(_call_s3)
    request = sync_wrapper(_request)


class _Body:
    """A body that was read in whole while its request could still be retried."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self) -> bytes:
        return self.data

    def close(self) -> None:
        """Nothing is open."""


def connect(settings: S3Config) -> RetryingS3FileSystem:
    """A file system for an S3 server; no request is made yet.

    Args:
        settings: What is not given there comes from botocore's usual chain.
    """
    patience = settings.deadline_s / 4  # a request that hangs leaves time for others
    return RetryingS3FileSystem(
        deadline_s=settings.deadline_s,
        endpoint_url=settings.endpoint_url,
        client_kwargs={"region_name": settings.region} if settings.region else {},
        config_kwargs={
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": min(5.0, patience),
            "read_timeout": min(30.0, patience),
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "max_pool_connections": 32,
            "tcp_keepalive": True,
        },
        default_cache_type="none",
        use_listings_cache=False,
        skip_instance_cache=True,  # an instance keeps the credentials it began with
        **({"profile": settings.profile} if settings.profile else {}),
    )


class S3Objects:
    """Objects on an S3 server; paths are ``bucket/key``."""

    def __init__(self, fs: RetryingS3FileSystem) -> None:
        self.fs = fs

    def read(self, path: str) -> bytes:
        """The whole object, as long as the server announced it."""
        data: bytes = self.fs.call_s3("get_object", **_place(path))["Body"].data
        return data

    def read_range(self, path: str, start: int, stop: int, etag: str) -> bytes:
        """Some bytes of an object, if it still has that ETag."""
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        answer = self.fs.call_s3("get_object", **_place(path), Range=f"bytes={start}-{stop - 1}", **condition)
        data: bytes = answer["Body"].data
        return data

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            self.fs.call_s3("head_object", **_place(path))
        except FileNotFoundError:
            return False
        return True

    def entries(self, path: str) -> Iterator[ObjectEntry]:
        """All objects below a folder, a thousand a request."""
        bucket, _, folder = path.partition("/")
        page: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{folder.rstrip('/')}/" if folder else ""}
        while True:
            answer = self.fs.call_s3("list_objects_v2", **page)
            for facts in answer.get("Contents", ()):
                if not facts["Key"].endswith("/"):  # a mark that some tools leave for a folder
                    name, modified = f"{bucket}/{facts['Key']}", facts["LastModified"].astimezone(UTC)
                    etag = facts.get("ETag", "").strip('"')
                    yield ObjectEntry(name=name, bytes=facts["Size"], modified=modified, etag=etag)
            if not answer.get("IsTruncated"):
                return
            page["ContinuationToken"] = answer["NextContinuationToken"]

    def open(self, path: str) -> AbstractContextManager[Any]:
        """A seekable binary file; each read is one range request of its own."""
        source: AbstractContextManager[Any] = self.fs.open(path, "rb")
        return source

    def remove(self, path: str) -> None:
        """Delete an object; the server does not say whether there was one."""
        self.fs.call_s3("delete_object", **_place(path))

    @contextmanager
    def create(self, path: str) -> Iterator[Any]:
        """A multipart upload; one PUT where the object fits into a part."""
        upload = _Upload(self.fs, path)
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """One conditional PUT. After a lost answer a retry is refused; the content then tells whose object it is."""
        try:
            self.fs.call_s3("put_object", **_place(path), Body=data, IfNoneMatch="*")
        except OSError as error:
            if http_status(error) != 412:
                raise
        else:
            return True
        try:
            return self.read(path) == data
        except FileNotFoundError:  # removed since
            return False


class _Upload(io.RawIOBase):
    """A binary file that becomes an object when it is finished."""

    def __init__(self, fs: RetryingS3FileSystem, path: str) -> None:
        super().__init__()
        self._fs, self._place, self._mark = fs, _place(path), uuid.uuid4().hex
        self._buffer, self._written = bytearray(), 0
        self._id, self._parts = "", list[dict[str, Any]]()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        taken = memoryview(data).nbytes
        self._buffer += data
        self._written += taken
        while len(self._buffer) > PART_BYTES:
            self._send()
        return taken

    def finish(self) -> None:
        """Make the object appear."""
        if not self._id:
            self._fs.call_s3("put_object", **self._place, Body=bytes(self._buffer))
            return
        self._send()
        try:
            self._fs.call_s3(
                "complete_multipart_upload", **self._place, UploadId=self._id, MultipartUpload={"Parts": self._parts}
            )
        except FileNotFoundError:
            if not self._is_in_place():
                raise

    def abort(self) -> None:
        """Have the parts forgotten; what went wrong before counts more than whether this works."""
        self._buffer.clear()
        if self._id:
            try:
                self._fs.request(_ABORT_DEADLINE_S, "abort_multipart_upload", **self._place, UploadId=self._id)
            except OSError as error:
                _LOG.warning("%s: an upload is left to the server's lifecycle rules: %s", self._place["Key"], error)

    def _send(self) -> None:
        if not self._id:
            begun = self._fs.call_s3("create_multipart_upload", **self._place, Metadata={_UPLOAD_MARK: self._mark})
            self._id = begun["UploadId"]
        number, data = len(self._parts) + 1, bytes(self._buffer[:PART_BYTES])
        sent = self._fs.call_s3("upload_part", **self._place, UploadId=self._id, PartNumber=number, Body=data)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        del self._buffer[:PART_BYTES]

    def _is_in_place(self) -> bool:
        """Whether an upload that the server does not know any more was completed by a request whose answer got lost."""
        head = self._fs.call_s3("head_object", **self._place)
        return bool(head.get("Metadata", {}).get(_UPLOAD_MARK) == self._mark)


def _place(path: str) -> dict[str, str]:
    bucket, _, key = path.partition("/")
    return {"Bucket": bucket, "Key": key}
