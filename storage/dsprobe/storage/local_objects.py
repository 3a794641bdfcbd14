"""Objects in a local folder: complete and on the disk before they have their name."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dsprobe.errors import StorageError
from dsprobe.storage.object_backends import ObjectEntry

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What `link` says on file systems without hard links."""


class LocalObjects:
    """A local folder. `put_if_absent` hard-links a complete temporary file to its name, which fails if that exists."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def read(self, path: str) -> bytes:
        """The whole file."""
        return Path(path).read_bytes()

    def read_range(self, path: str, start: int, stop: int, etag: str) -> bytes:
        """Some bytes of a file; files have no ETag."""
        with Path(path).open("rb") as source:
            source.seek(start)
            return source.read(stop - start)

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return Path(path).exists()

    def entries(self, path: str) -> Iterator[ObjectEntry]:
        """All files below a folder; one that vanishes meanwhile, such as a temporary of another writer, is left out."""
        for folder, _, names in os.walk(path):
            for name in names:
                full = f"{folder}/{name}"
                try:
                    facts = Path(full).stat()
                except FileNotFoundError:
                    continue
                modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                yield ObjectEntry(name=full, bytes=facts.st_size, modified=modified)

    def open(self, path: str) -> AbstractContextManager[Any]:
        """The file."""
        return Path(path).open("rb")

    def remove(self, path: str) -> None:
        """Delete a file."""
        Path(path).unlink()

    @contextmanager
    def create(self, path: str) -> Iterator[Any]:
        """Write under a temporary name, sync, rename."""
        target = Path(path)
        _make_folder(target.parent)
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

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Link; of any number of writers one succeeds."""
        target = Path(path)
        _make_folder(target.parent)
        temporary = _temporary(target)
        try:
            with temporary.open("xb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            _link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True


def _temporary(target: Path) -> Path:
    """A name in the same folder that no reader's pattern matches: no ``.parquet`` or ``.json`` at its end."""
    return target.with_name(f"_{target.name}.{uuid.uuid4().hex}.tmp")


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise StorageError(
            f"{target.parent}: this file system has no hard links, so two attempts at one shard could both count. Use "
            "another local disk, or an object store that honours conditional writes (s3://)."
        ) from error


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: a commit must not outlive the folder of what it names."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in reversed(missing):
        _sync_folder(part.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name durable: fsync of the file does not cover its folder's entry."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
