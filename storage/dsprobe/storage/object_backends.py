"""What an object store must be able to do, done on any fsspec file system and, atomically, in memory.

`dsprobe.storage.objects.ObjectStore` is the only caller; names here are full paths as the file system wants them.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from dsprobe.errors import StorageError

_MEMORY_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """What a listing says of an object."""

    name: str
    """Relative to the store."""
    bytes: int
    modified: datetime
    """When it was written, by the store's clock; aware, UTC."""
    etag: str = ""
    """The store's name for this content; empty where it gives none."""

    @property
    def version(self) -> str:
        """Another text when the content is another: the ETag, else the time of writing."""
        return self.etag or self.modified.isoformat()


class Backend(Protocol):
    """The operations of one kind of store. All raise OSError; a missing object is a FileNotFoundError."""

    fs: Any
    """The fsspec file system, for readers outside such as DuckDB."""

    def read(self, path: str) -> bytes:
        """The whole object."""

    def read_range(self, path: str, start: int, stop: int, etag: str) -> bytes:
        """Some bytes of an object; on a store that gives ETags an OSError where it has another one by now."""

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""

    def entries(self, path: str) -> Iterator[ObjectEntry]:
        """All objects below a folder, under full paths, in any order; none where there is no folder."""

    def open(self, path: str) -> AbstractContextManager[Any]:
        """A seekable binary file that reads nothing ahead."""

    def remove(self, path: str) -> None:
        """Delete an object; a FileNotFoundError is fine."""

    def create(self, path: str) -> AbstractContextManager[Any]:
        """A binary file that becomes the object when the block ends without an error."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write atomically unless there is such an object; see `ObjectStore.put_if_absent`."""


class FsspecObjects:
    """Any file system that fsspec knows. It has no atomic create that could be trusted, so it cannot hold a run."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def read(self, path: str) -> bytes:
        """The whole object."""
        data: bytes = self.fs.cat_file(path)
        return data

    def read_range(self, path: str, start: int, stop: int, etag: str) -> bytes:
        """Some bytes of an object, whatever its ETag."""
        data: bytes = self.fs.cat_file(path, start=start, end=stop)
        return data

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        return bool(self.fs.exists(path))

    def entries(self, path: str) -> Iterator[ObjectEntry]:
        """All objects below a folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(path, detail=True)
        except FileNotFoundError:
            return
        for name, facts in found.items():
            yield ObjectEntry(name=name, bytes=facts["size"], modified=_modified(facts))

    def open(self, path: str) -> AbstractContextManager[Any]:
        """A seekable binary file."""
        source: AbstractContextManager[Any] = self.fs.open(path, "rb", cache_type="none")
        return source

    def remove(self, path: str) -> None:
        """Delete an object."""
        self.fs.rm_file(path)

    @contextmanager
    def create(self, path: str) -> Iterator[Any]:
        """The object is written in one piece at the end."""
        buffer = io.BytesIO()
        yield buffer
        self.fs.pipe_file(path, buffer.getvalue())

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Refused."""
        kind = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        raise StorageError(
            f"{self.fs.unstrip_protocol(path)}: a `{kind}` store has no atomic create that dsprobe knows, so commits "
            "would not be safe. Use s3://, or a local folder."
        )


class MemoryObjects(FsspecObjects):
    """``memory://``: for tests in one process."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """One writer at a time."""
        with _MEMORY_LOCK:
            if self.fs.exists(path):
                return False
            self.fs.pipe_file(path, data)
            return True


def _modified(facts: Mapping[str, Any]) -> datetime:
    """The time of writing, under the name that the file system gives it; the epoch where it keeps none."""
    for name in ("LastModified", "created", "mtime"):
        written = facts.get(name)
        if isinstance(written, datetime):
            return written.astimezone(UTC)
        if isinstance(written, int | float):
            return datetime.fromtimestamp(written, UTC)
    return datetime.fromtimestamp(0, UTC)
