"""Objects under a URL: the few operations the run store needs, with a put that happens at most once.

Data files have unique names and are never overwritten. What makes them count is one small `put_if_absent`; only the
three ways below are known to be atomic, any other store is refused instead of being trusted:

* local folders: a complete temporary file, hard-linked to its name (fails if the name exists),
* S3: one single-part PUT with ``If-None-Match: *`` (a conditional multipart completion is ignored by some servers),
* ``memory://``: a lock, for tests in one process.
"""

from __future__ import annotations

import io
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.core import url_to_fs

from dsprobe.errors import ConfigError, DSProbeError, PrerequisiteError, StorageError, missing_package, unknown_name

_MEMORY_LOCK: Final = threading.Lock()

_CONFLICT_RETRIES: Final = 5
"""Attempts after HTTP 409: another conditional PUT of the same name was under way."""

_EXTRAS: Final = {"s3": "s3", "s3a": "s3"}
"""URL scheme → optional dependencies of this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """What a listing says of an object."""

    name: str
    """Relative to the store."""
    bytes: int
    modified: datetime
    """When it was written, by the store's clock; aware, UTC."""


class ObjectStore:
    """A folder of objects at an fsspec URL; picklable.

    Args:
        url: ``s3://bucket/prefix``, ``memory://name``, ``file:///path`` or a local path.

    Raises:
        ConfigError: Unknown URL scheme.
        PrerequisiteError: The package for the scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        self.fs, self.root = _connect(self.url)
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else tuple(self.fs.protocol)
        self.kind = next((p for p in ("file", "s3", "memory") if p in protocols), protocols[0])

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return ObjectStore, (self.url,)

    def path(self, name: str) -> str:
        """The path of an object as `fs` wants it."""
        return f"{self.root}/{name}"

    def address(self, name: str) -> str:
        """The path of an object for messages and for readers outside: a local path or a URL."""
        return self.path(name) if self.kind == "file" else f"{self.url}/{name}"

    def probe(self) -> None:
        """Check before any work that this place can be written and honours conditional writes.

        Raises:
            StorageError: It cannot or does not; the message names the URL.
        """
        name = f"_probe-{uuid.uuid4().hex}"
        with self.named("cannot be written"):
            first = self.put_if_absent(name, b"1")
            second = self.put_if_absent(name, b"2")
            self.remove(name)
        if not first or second:
            raise StorageError(
                f"{self.url} ignores conditional writes (If-None-Match: *), so two attempts at one shard could both "
                "count. Use a store that honours them: AWS S3, Ceph, MinIO, or a local folder."
            )

    def read(self, name: str) -> bytes:
        """Read an object.

        Raises:
            StorageError: It does not exist, or the store failed.
        """
        with self.named("cannot be read", name):
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        with self.named("cannot be read", name):
            return bool(self.fs.exists(self.path(name)))

    def list(self, folder: str) -> list[str]:
        """Names of all objects below a folder, relative to the store, sorted; temporary files left out."""
        self.fs.invalidate_cache()
        with self.named("cannot be listed", folder):
            try:
                found = self.fs.find(self.path(folder))
            except FileNotFoundError:
                return []
        names = (path[len(self.root) :].lstrip("/") for path in found)
        return sorted(name for name in names if not name.endswith(".tmp"))

    def entries(self, folder: str) -> list[ObjectEntry]:
        """All objects below a folder with size and age, sorted by name; temporary files included."""
        self.fs.invalidate_cache()
        with self.named("cannot be listed", folder):
            try:
                found = self.fs.find(self.path(folder), detail=True)
            except FileNotFoundError:
                return []
        return [
            ObjectEntry(name=path[len(self.root) :].lstrip("/"), bytes=facts["size"], modified=_modified(facts))
            for path, facts in sorted(found.items())
        ]

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open an object for reading here and there, e.g. by `pyarrow.parquet.ParquetFile`; nothing is read ahead.

        Yields:
            A seekable binary file object.

        Raises:
            StorageError: It does not exist, or the store failed.
        """
        with self.named("cannot be read", name), self.fs.open(self.path(name), "rb") as source:
            yield source

    def remove(self, name: str) -> None:
        """Delete an object; fine if it is gone already."""
        with self.named("cannot be removed", name):
            try:
                self.fs.rm_file(self.path(name))
            except FileNotFoundError:
                return

    def put(self, name: str, data: bytes) -> None:
        """Write an object as a whole, replacing any of that name atomically."""
        with self.create(name) as sink:
            sink.write(data)

    @contextmanager
    def create(self, name: str) -> Iterator[Any]:
        """Stream a new object; it appears under its name only when the block ends without an error.

        Yields:
            A binary file object.

        Raises:
            StorageError: The store failed.
        """
        with self.named("cannot be written", name):
            if self.kind == "file":
                with _renamed_when_done(Path(self.path(name))) as sink:
                    yield sink
                return
            if self.kind == "memory":
                buffer = io.BytesIO()
                yield buffer
                self.fs.pipe_file(self.path(name), buffer.getvalue())
                return
            sink = self.fs.open(self.path(name), "wb")
            try:
                yield sink
            except BaseException:
                sink.discard()
                sink.closed = True  # or its finaliser would upload the rest
                raise
            sink.close()

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write a small object unless one of that name exists; of any number of writers exactly one succeeds.

        Args:
            name: Object name.
            data: Its content. Content that is unique to the writer makes a retried request safe: finding it in place
                after a lost answer counts as success.

        Returns:
            True if the object now holds this writer's data, False if another was first.

        Raises:
            StorageError: The store failed, or has no atomic create.
        """
        put = {"file": self._link, "s3": self._put_if_none_match, "memory": self._put_locked}.get(self.kind)
        if put is None:
            raise StorageError(
                f"{self.url}: a `{self.kind}` store has no atomic create that dsprobe knows, so commits would not be "
                "safe. Use s3://, or a local folder."
            )
        with self.named("cannot be written", name):
            return put(self.path(name), data)

    def _link(self, path: str, data: bytes) -> bool:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        try:
            _write_synced(temporary, data)
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def _put_locked(self, path: str, data: bytes) -> bool:
        with _MEMORY_LOCK:
            if self.fs.exists(path):
                return False
            self.fs.pipe_file(path, data)
            return True

    def _put_if_none_match(self, path: str, data: bytes) -> bool:
        bucket, _, key = path.partition("/")
        for attempt in range(_CONFLICT_RETRIES):
            try:
                self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except OSError as error:
                status = _http_status(error)
                if status == 412:
                    return bool(self.fs.cat_file(path) == data)
                if status != 409 or attempt == _CONFLICT_RETRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
            else:
                return True
        raise AssertionError("unreachable: the last attempt returns or raises")

    @contextmanager
    def named(self, problem: str, name: str = "") -> Iterator[None]:
        """Say which place failed; errors that say so already pass through."""
        try:
            yield
        except DSProbeError:
            raise
        except (OSError, ValueError) as error:
            place = self.address(name) if name else self.url
            raise StorageError(f"{place} {problem}: {_describe(error)}") from error


def _connect(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0] if "://" in url else "file"
    if scheme not in fsspec.available_protocols():
        raise unknown_name("URL scheme", scheme, ("file", "memory", "s3"))
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        if scheme in _EXTRAS:
            raise missing_package(f"Storage at {url}", _EXTRAS[scheme]) from error
        raise PrerequisiteError(f"Storage at {url}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{url} is not a usable storage URL: {error}") from error
    return fs, root.rstrip("/")


def _modified(facts: Mapping[str, Any]) -> datetime:
    """The time of writing, under the name that the file system gives it."""
    if "mtime" in facts:
        return datetime.fromtimestamp(facts["mtime"], UTC)
    written: datetime = facts["LastModified"] if "LastModified" in facts else facts["created"]
    return written.astimezone(UTC)


def _http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error; servers differ in the exception that s3fs makes of it."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        seen = seen.__cause__ or seen.__context__
    return None


def _describe(error: BaseException) -> str:
    status = _http_status(error)
    return f"{type(error).__name__}: {error}" + (f" (HTTP {status})" if status else "")


def _temporary(target: Path) -> Path:
    """A name in the same folder that no reader's pattern matches: no ``.parquet`` or ``.json`` at its end."""
    return target.with_name(f"_{target.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def _renamed_when_done(target: Path) -> Iterator[Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new name durable: fsync of the file does not cover its folder's entry."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
