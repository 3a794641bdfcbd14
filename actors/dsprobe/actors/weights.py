"""Weights behind a URL, once per machine: one process fetches them, and all share them.

In the cache folder (``$DSPROBE_WEIGHTS``, else ``dsprobe/weights`` in the user's cache folder) each version of a model
has a key, the digest over what the store tells of its files:

* ``KEY/``: all files that loading reads; it has this name only when they are whole and checked,
* ``KEY.partial/``: the same while they are fetched; after a kill the next process goes on with it,
* ``KEY.outline/``: for planning, see `dsprobe.models.remote.WeightSource.outline`,
* ``KEY.lock``, ``KEY.used``: who fetches it, and who lives with it.

``$DSPROBE_WEIGHTS_GIB`` bounds the folder, see `dsprobe.actors.weight_room`.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dsprobe.actors.weight_room import (
    FOLDER,
    LOGGER,
    OUTLINE,
    PARTIAL,
    WeightRoom,
    default_folder,
    default_limit,
    unwritten,
)
from dsprobe.errors import CheckpointError, PrerequisiteError, StorageError
from dsprobe.models.checkpoint_files import weight_names
from dsprobe.models.hub import ALLOWED_FILES, WEIGHTS
from dsprobe.models.remote import LocalCopy
from dsprobe.storage.downloading import download, partial_of, reserve
from dsprobe.storage.objects import ObjectEntry, ObjectStore

_HEADER_GUESS: Final = 1 << 20
_HEADER_LIMIT: Final = 100_000_000
"""Bytes of a safetensors header, as its library bounds them."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """One version of a model, as its store lists it."""

    objects: ObjectStore
    entries: Mapping[str, ObjectEntry]
    digest: str

    @property
    def key(self) -> str:
        return self.digest[:32]


class WeightCache:
    """A `dsprobe.models.remote.WeightSource` over object stores, with local copies in one folder.

    Args:
        folder: The cache folder; `$DSPROBE_WEIGHTS` or the user's cache folder unless given.
        limit_bytes: The most that it may take; `$DSPROBE_WEIGHTS_GIB` unless given.

    Raises:
        ConfigError: `$DSPROBE_WEIGHTS_GIB` is no number above 0.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        self._room = WeightRoom(folder or default_folder(), default_limit() if limit_bytes is None else limit_bytes)

    def outline(self, url: str) -> LocalCopy:
        """See `WeightSource`: one listing, and for a new version the small files and the headers.

        Raises:
            CheckpointError: There is no model, or a weight file has no readable header.
            StorageError: The store fails.
            PrerequisiteError: The disk has no room.
        """
        version = _listed(url)
        with self._kept(url):
            return LocalCopy(folder=self._outlined(version), digest=version.digest)

    def fetch(self, url: str) -> LocalCopy:
        """See `WeightSource`. Waits while another process fetches the same.

        Raises:
            CheckpointError: There is no model.
            StorageError: The store fails, or a file arrived damaged twice.
            PrerequisiteError: The disk, or what `$DSPROBE_WEIGHTS_GIB` leaves of it, has no room.
        """
        version = _listed(url)
        target = self._room.folder / version.key
        with self._kept(url), self._room.locked(version.key):
            if not target.is_dir():
                self._fetch(version, target)
            self._room.hold(version.key)
        return LocalCopy(folder=target, digest=version.digest)

    def _outlined(self, version: _Version) -> Path:
        name = f"{version.key}{OUTLINE}"
        target = self._room.folder / name
        with self._room.locked(name):
            if not target.is_dir():
                new = self._room.unfinished(name)
                try:
                    _write_outline(version, new)
                    new.rename(target)
                except CheckpointError as error:
                    raise CheckpointError(str(error).replace(str(new), version.objects.url)) from None
                finally:
                    shutil.rmtree(new, ignore_errors=True)
        return target

    def _fetch(self, version: _Version, target: Path) -> None:
        outline, began = self._outlined(version), time.monotonic()
        wanted = [version.entries[file.name] for file in sorted(outline.iterdir())]
        new = self._room.folder / f"{version.key}{PARTIAL}"
        with self._room.locked("room"):
            new.mkdir(exist_ok=True)
            size = sum(entry.bytes for entry in wanted)
            self._room.make_room(version.key, size, f"The model at {version.objects.url}")
            for entry in wanted:
                if not fnmatch.fnmatchcase(entry.name, WEIGHTS):
                    _copy(outline / entry.name, new / entry.name)
                reserve(entry, new / entry.name)
        missing = unwritten(new)
        for entry in wanted:
            download(version.objects, entry, new / entry.name)
        if _listed(version.objects.url).digest != version.digest:
            raise StorageError(f"{version.objects.url} was replaced while it was fetched; run the same command again.")
        new.rename(target)
        seconds = time.monotonic() - began
        LOGGER.info(
            "Fetched %s: %.0f MB in %.1f s, %.0f MB/s",
            version.objects.url, missing / 1e6, seconds, missing / 1e6 / max(seconds, 1e-3),
        )  # fmt: skip

    @contextmanager
    def _kept(self, url: str) -> Iterator[None]:
        """Have the folder; that its disk is full or refuses is the user's to know."""
        try:
            self._room.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            reason = "the disk is full" if error.errno in _FULL else str(error)
            raise PrerequisiteError(
                f"{url} cannot be kept in {self._room.folder}: {reason}. Let {FOLDER} name a folder on a larger local "
                "disk; in this one, the next attempt goes on with what is here."
            ) from error


def _listed(url: str) -> _Version:
    objects = ObjectStore(url)
    entries = {
        entry.name: entry
        for entry in objects.entries("")
        if "/" not in entry.name and any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in ALLOWED_FILES)
    }
    if "config.json" not in entries:
        raise CheckpointError(f"{url} has no config.json; a model's `path` is the folder that its files are in.")
    unknown = [name for name, entry in entries.items() if not entry.etag and not entry.modified.timestamp()]
    if unknown:
        raise CheckpointError(
            f"{url}: this store tells neither checksum nor time of {unknown[0]}, so other weights could not be told "
            "from these. Use s3://, a local folder, or a hub id with `revision`."
        )
    lines = [f"{name}:{entries[name].bytes}:{entries[name].version}\n" for name in sorted(entries)]
    return _Version(objects=objects, entries=entries, digest=hashlib.sha256("".join(lines).encode()).hexdigest())


def _write_outline(version: _Version, folder: Path) -> None:
    for name, entry in version.entries.items():
        if not fnmatch.fnmatchcase(name, WEIGHTS):
            download(version.objects, entry, folder / name)
    for name in weight_names(folder):
        if name not in version.entries:
            raise CheckpointError(f"{version.objects.url} has no {name}; weights are read from safetensors alone.")
        entry = version.entries[name]
        with (folder / name).open("wb") as file:
            file.write(_header(version.objects, entry))
            file.truncate(entry.bytes)
            os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    """Copy a small file; neither a kill nor a power failure leaves one that is cut short."""
    with partial_of(target).open("wb") as file:
        file.write(source.read_bytes())
        os.fsync(file.fileno())
    partial_of(target).replace(target)


def _header(objects: ObjectStore, entry: ObjectEntry) -> bytes:
    """The first bytes of a safetensors file: length of the header, and the header."""
    data = objects.read_range(entry, 0, min(entry.bytes, _HEADER_GUESS)) if entry.bytes else b""
    length = 8 + int.from_bytes(data[:8], "little")
    if not 8 < length <= min(_HEADER_LIMIT, entry.bytes):
        raise CheckpointError(f"{objects.address(entry.name)}: damaged or not a safetensors file.")
    return (data if length <= len(data) else data + objects.read_range(entry, len(data), length))[:length]
