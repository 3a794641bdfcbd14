"""Objects under a URL: the few operations the run store needs, with a put that happens at most once.

Data files have unique names and are never overwritten. What makes them count is one small `put_if_absent`; only the
three ways below are known to be atomic, any other store is refused instead of being trusted:

* local folders: a complete temporary file, hard-linked to its name (`dsprobe.storage.local_objects`),
* S3: one single-part PUT with ``If-None-Match: *`` (`dsprobe.storage.s3_objects`),
* ``memory://``: a lock, for tests in one process.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import fsspec
from fsspec.core import url_to_fs

from dsprobe.config import S3Config
from dsprobe.errors import ConfigError, DSProbeError, PrerequisiteError, StorageError, missing_package, unknown_name
from dsprobe.storage.local_objects import LocalObjects
from dsprobe.storage.names import inside, safe_name
from dsprobe.storage.object_backends import Backend, FsspecObjects, MemoryObjects, ObjectEntry
from dsprobe.untrusted import has_password, redacted

__all__ = ["ObjectEntry", "ObjectStore"]

_S3_SCHEMES: Final = ("s3", "s3a")

_BACKENDS: Final[Mapping[str, Callable[[Any], Backend]]] = {"file": LocalObjects, "memory": MemoryObjects}

_PROBE_DEADLINE_S: Final = 20.0
"""Before any work a server that does not answer is more likely misspelt than restarting."""


class ObjectStore:
    """A folder of objects at an fsspec URL; picklable.

    Args:
        url: ``s3://bucket/prefix``, ``memory://name``, ``file:///path`` or a local path.
        s3: How to reach an S3 server; what is not given comes from botocore's usual chain.

    Raises:
        ConfigError: Unknown URL scheme, no place behind it, or credentials in the URL.
        PrerequisiteError: The package for the scheme is not installed.
    """

    def __init__(self, url: str, s3: S3Config | None = None) -> None:
        self.url = url.rstrip("/") or "/"
        if "://" in url and self.url.endswith(":"):
            raise ConfigError(f"`{url}` names no place. Give s3://bucket/prefix or the path of a folder.")
        self.s3 = s3 or S3Config()
        self.kind, self._backend, self.root = _connect(self.url, self.s3)

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str, S3Config]]:
        return ObjectStore, (self.url, self.s3)

    @property
    def fs(self) -> Any:
        """The fsspec file system, for readers outside such as DuckDB."""
        return self._backend.fs

    def path(self, name: str) -> str:
        """The path of an object as `fs` wants it; every name passes here.

        Raises:
            StorageError: The name leads out of the store, see `dsprobe.storage.names`.
        """
        path = f"{self.root}/{safe_name(name)}"
        return inside(self.root, name) if self.kind == "file" else path

    def address(self, name: str) -> str:
        """The path of an object for messages and for readers outside: a local path or a URL."""
        return f"{self.root if self.kind == 'file' else self.url}/{name}"

    def probe(self) -> None:
        """Check before any work that this place can be written and honours conditional writes.

        Raises:
            StorageError: It cannot or does not; the message names the URL.
        """
        deadline_s = min(self.s3.deadline_s, _PROBE_DEADLINE_S)
        hasty = ObjectStore(self.url, self.s3.model_copy(update={"deadline_s": deadline_s}))
        name = f"_probe-{uuid.uuid4().hex}"
        with self.named("cannot be written"):
            first = hasty.put_if_absent(name, b"1")
            second = hasty.put_if_absent(name, b"2")
            hasty.remove(name)
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
            return self._backend.read(self.path(name))

    def read_range(self, entry: ObjectEntry, start: int, stop: int) -> bytes:
        """Read some bytes of an object that was listed.

        Args:
            entry: From `entries`.
            start: First byte.
            stop: Byte after the last one, at most the object's length and above `start`.

        Raises:
            StorageError: The store failed, or the object has been replaced or cut short since it was listed.
        """
        with self.named("cannot be read", entry.name):
            data = self._backend.read_range(self.path(entry.name), start, stop, entry.etag)
        if len(data) != stop - start:
            raise StorageError(
                f"{self.address(entry.name)}: {len(data)} bytes instead of {stop - start} from byte {start} on; it has "
                "changed since it was listed."
            )
        return data

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        with self.named("cannot be read", name):
            return self._backend.exists(self.path(name))

    def list(self, folder: str) -> list[str]:
        """Names of all objects below a folder, relative to the store, sorted; temporary files left out."""
        return [entry.name for entry in self.entries(folder) if not entry.name.endswith(".tmp")]

    def entries(self, folder: str) -> Sequence[ObjectEntry]:
        """All objects below a folder with size and age, sorted by name; temporary files included."""
        with self.named("cannot be listed", folder):
            found = sorted(self._backend.entries(self.path(folder)), key=lambda entry: entry.name)
        return [replace(entry, name=entry.name[len(self.root) :].lstrip("/")) for entry in found]

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open an object for reading here and there, e.g. by `pyarrow.parquet.ParquetFile`; nothing is read ahead.

        Yields:
            A seekable binary file object.

        Raises:
            StorageError: It does not exist, or the store failed.
        """
        with self.named("cannot be read", name), self._backend.open(self.path(name)) as source:
            yield source

    def remove(self, name: str) -> None:
        """Delete an object; fine if it is gone already."""
        with self.named("cannot be removed", name):
            try:
                self._backend.remove(self.path(name))
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
            StorageError: The store failed. Nothing is left under the name, unless the message says that this is
                unknown; the same object may then be created again.
        """
        with self.named("cannot be written", name), self._backend.create(self.path(name)) as sink:
            yield sink

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
        with self.named("cannot be written", name):
            return self._backend.put_if_absent(self.path(name), data)

    @contextmanager
    def named(self, problem: str, name: str = "") -> Iterator[None]:
        """Say which place failed; errors that say so already pass through."""
        try:
            yield
        except DSProbeError:
            raise
        except (OSError, ValueError) as error:
            place = self.address(name) if name else self.url
            raise StorageError(f"{place} {problem}: {type(error).__name__}: {error}") from error


def _connect(url: str, s3: S3Config) -> tuple[str, Backend, str]:
    """Kind, backend, and the path of the folder."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    if scheme not in fsspec.available_protocols():
        raise unknown_name("URL scheme", scheme, ("file", "memory", "s3"))
    if has_password(url):
        raise ConfigError(
            f"{redacted(url)}: a storage URL holds no keys, since it is written into manifests and logs. Give them by "
            "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or a credentials file."
        )
    if scheme in _S3_SCHEMES:
        return "s3", *_connect_s3(url, s3)
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise PrerequisiteError(f"Storage at {url}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{url} is not a usable storage URL: {error}") from error
    kind = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return kind, _BACKENDS.get(kind, FsspecObjects)(fs), root.rstrip("/")


def _connect_s3(url: str, settings: S3Config) -> tuple[Backend, str]:
    try:
        from dsprobe.storage.s3_objects import S3Objects, connect
    except ImportError as error:
        raise missing_package(f"Storage at {url}", "s3") from error
    fs = connect(settings)
    return S3Objects(fs), str(fs._strip_protocol(url)).rstrip("/")
