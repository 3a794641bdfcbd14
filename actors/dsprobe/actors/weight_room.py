"""The folder that keeps weights: who is at work in it, what it takes, and what goes when room is short.

Locks are the kernel's, on files of the folder: they go when their process dies, however it dies. Versions that were
asked for longest ago are removed first, and none that a living process has asked for.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dsprobe.errors import ConfigError, PrerequisiteError

LOGGER = logging.getLogger("dsprobe.actors.weights")

FOLDER: Final = "DSPROBE_WEIGHTS"
"""Environment variable that names the folder; put it on the machine's fastest local disk."""
LIMIT: Final = "DSPROBE_WEIGHTS_GIB"
"""Environment variable with the most GiB that the folder may take; no bound unless given."""
PARTIAL: Final = ".partial"
OUTLINE: Final = ".outline"
GONE: Final = ".gone-"
"""Before the random end of a folder's name that is being made or removed."""

_KEY: Final = re.compile(r"[0-9a-f]{32}")
_VERSION: Final = re.compile(rf"{_KEY.pattern}(?:{re.escape(PARTIAL)})?")
_FORGOTTEN_S: Final = 3600.0
"""Age at which a folder that is neither made nor removed any more has no process left."""

_held: dict[Path, int] = {}
"""This process's shared locks on what it uses, by path; kept for its life."""


class WeightRoom:
    """A folder of versions: ``KEY/``, ``KEY.partial/``, ``KEY.outline/`` and their locks.

    Args:
        folder: Made when it is first needed.
        limit_bytes: The most that it may take, holes of unfinished files included; `None` for no bound.
    """

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Be the only process, and the only thread, at work on something."""
        path = self.folder / f"{name}.lock"
        lock = _try_lock(path)
        if lock is None:
            LOGGER.info("Waits for another process, which has locked %s", path)
            lock = _lock(path, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(lock)

    def hold(self, key: str) -> None:
        """Mark a version as used by this process, now and for as long as it lives."""
        path = self.folder / f"{key}.used"
        if path not in _held:
            _held[path] = _lock(path, fcntl.LOCK_SH)
        os.utime(path)

    def unfinished(self, name: str) -> Path:
        """An empty folder to make something in, which then gets its name."""
        folder = self.folder / f"{name}{GONE}{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return folder

    def make_room(self, key: str, size: int, what: str) -> None:
        """Remove what was used longest ago until a version fits; only one process at a time may ask.

        Args:
            key: The version.
            size: Its bytes, of which some may be here already.
            what: Names it in the error.

        Raises:
            PrerequisiteError: It does not fit beside what living processes use.
        """
        self._sweep()
        others = sorted(self._others(key), key=self._last_use) if self.limit_bytes is not None else []
        over = 0 if self.limit_bytes is None else size + sum(map(_size, others)) - self.limit_bytes
        for folder in others:
            if over <= 0 and self._free(key, size) >= 0:
                break
            over -= self._remove(folder)
        if over > 0 or self._free(key, size) < 0:
            free = gib(shutil.disk_usage(self.folder).free)
            limited = f", and {LIMIT} allows it {gib(self.limit_bytes)}" if self.limit_bytes is not None else ""
            raise PrerequisiteError(
                f"{what} takes {gib(size)}. {self.folder} has {free} free{limited}; what living processes use stays. "
                f"Let {FOLDER} name a folder on a larger local disk, or give {LIMIT} a number that fits, so that old "
                "ones go."
            )

    def _sweep(self) -> None:
        for left in self.folder.glob(f"*{GONE}*"):
            with suppress(FileNotFoundError):  # whoever made it removes it
                if _KEY.match(left.name) and time.time() - left.stat().st_mtime > _FORGOTTEN_S:
                    shutil.rmtree(left, ignore_errors=True)

    def _free(self, key: str, size: int) -> int:
        """Bytes that are left when this version and all that others are fetching are there."""
        own = self.folder / f"{key}{PARTIAL}"
        others = [folder for folder in self.folder.glob(f"*{PARTIAL}") if folder != own]
        coming = sum(unwritten(folder) for folder in others if self._is_fetched(folder))
        here = _size(own) - unwritten(own) if own.is_dir() else 0
        return shutil.disk_usage(self.folder).free - coming - (size - here)

    def _is_fetched(self, folder: Path) -> bool:
        """Whether a process is at work on a version; what a killed one left asks for room again later."""
        lock = _try_lock(self.folder / f"{folder.stem}.lock")
        if lock is not None:
            os.close(lock)
        return lock is None

    def _others(self, key: str) -> Iterator[Path]:
        """Other versions, whole or not, and nothing else that may lie here; outlines take hardly any room."""
        for folder in self.folder.iterdir():
            if _VERSION.fullmatch(folder.name) and folder.is_dir() and folder.stem != key:
                yield folder

    def _last_use(self, folder: Path) -> float:
        for path in (self.folder / f"{folder.stem}.used", folder):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0  # removed or finished since it was listed

    def _remove(self, folder: Path) -> int:
        """Remove a version unless somebody fetches or uses it.

        Returns:
            Bytes that it took; 0 where it stays.
        """
        locks = [_try_lock(self.folder / f"{folder.stem}{end}") for end in (".lock", ".used")]
        try:
            if None in locks:
                return 0
            size, gone = _size(folder), folder.with_name(f"{folder.name}{GONE}{uuid.uuid4().hex[:8]}")
            folder.rename(gone)  # whoever looks from now on sees that it is not there
            shutil.rmtree(gone)
            LOGGER.info("Removed %s, %s, to make room", folder, gib(size))
            return size
        finally:
            for lock in locks:
                if lock is not None:
                    os.close(lock)


def default_folder() -> Path:
    """``$DSPROBE_WEIGHTS``, else ``dsprobe/weights`` in the user's cache folder (XDG).

    Raises:
        ConfigError: It is not absolute; each Ray job has a working folder of its own.
    """
    if named := os.environ.get(FOLDER):
        folder = Path(named).expanduser()
        if not folder.is_absolute():
            raise ConfigError(f"{FOLDER} is `{named[:200]}`. Allowed: an absolute path, the same for every job.")
        return folder
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsprobe" / "weights"


def default_limit() -> int | None:
    """``$DSPROBE_WEIGHTS_GIB`` in bytes; `None` where it is not set.

    Raises:
        ConfigError: It is no number above 0.
    """
    given = os.environ.get(LIMIT)
    if not given:
        return None
    try:
        limit = float(given)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e9:
        raise ConfigError(f"{LIMIT} is `{given[:40]}`. Allowed: a number of GiB above 0.")
    return int(limit * 2**30)


def unwritten(folder: Path) -> int:
    """Bytes of a folder's files that are holes."""
    return sum(max(0, facts.st_size - facts.st_blocks * 512) for facts in _facts(folder))


def gib(size: int | None) -> str:
    """A size for messages."""
    return f"{(size or 0) / 2**30:.3g} GiB"


def _size(folder: Path) -> int:
    """Bytes of a folder's files, holes included."""
    return sum(facts.st_size for facts in _facts(folder))


def _facts(folder: Path) -> list[os.stat_result]:
    """Of a folder's files, but for those that others rename or remove meanwhile."""
    found: list[os.stat_result] = []
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                found.append(file.stat())
    return found


def _lock(path: Path, kind: int) -> int:
    """Wait for a lock; it is held until the descriptor is closed, in this process alone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _try_lock(path: Path) -> int | None:
    """An exclusive lock; `None` where somebody else has one."""
    try:
        return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return None
