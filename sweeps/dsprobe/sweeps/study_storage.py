"""Optuna storages with one owner: journal files and databases."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from dsprobe.errors import ConfigError, StorageError

STALE_SECONDS: Final = 3
"""Optuna's own lock on a journal, held for milliseconds, is taken over after this time: its holder was killed."""


@contextlib.contextmanager
def open_storage(storage: str) -> Iterator[BaseStorage]:
    """Open a storage for this process alone.

    Args:
        storage: Path of a journal file (its folder is made), or an RDB URL.

    Raises:
        ConfigError: Another process owns it, or the URL is none.
        StorageError: The journal is damaged.
    """
    if "://" in storage:
        with _database(storage) as opened:
            yield opened
    else:
        # An absolute path: Optuna's lock is a symbolic link to the journal, and a stale relative one never expires.
        path = Path(storage).expanduser().resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        with owner(path.with_name(path.name + ".owner"), str(path)):
            cut_torn_line(path)
            lock = JournalFileSymlinkLock(str(path), grace_period=STALE_SECONDS)
            yield _journal(JournalFileBackend(str(path), lock_obj=lock), path)


def _journal(backend: JournalFileBackend, path: Path) -> JournalStorage:
    try:
        return JournalStorage(backend)
    # Optuna replays the journal without checking it, so what is wrong with a record shows as any of these.
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError) as error:
        raise StorageError(f"Study journal `{path}` is damaged: {type(error).__name__}: {error}.") from None


@contextlib.contextmanager
def _database(storage: str) -> Iterator[BaseStorage]:
    try:
        url = make_url(storage)
        url.get_dialect()
    except ArgumentError as error:
        raise ConfigError(
            f"Study storage `{storage}`: {error}. Allowed: a journal file's path, or a URL such as `sqlite:///study.db`."
        ) from None
    with owner(_lock_path(url), url.render_as_string(hide_password=True)):
        opened = RDBStorage(storage)
        try:
            yield opened
        finally:
            opened.remove_session()
            opened.engine.dispose()


def _lock_path(url: URL) -> Path:
    """Beside a SQLite file; for servers in this machine's temporary folder, so other machines are not kept out."""
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + ".owner")
    digest = hashlib.sha256(url.render_as_string(hide_password=True).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"dsprobe-study-{digest}.owner"


@contextlib.contextmanager
def owner(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process dies, however it dies.

    Args:
        path: The lock file; it stays behind, and holds the number of its last owner.
        what: What is owned, for the message.

    Raises:
        ConfigError: Another owner holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number = os.read(descriptor, 32).decode().strip()
            raise ConfigError(
                f"Study storage `{what}` is in use by process {number or '(unknown)'}: one process owns a study. Wait "
                "for it, stop it, or give `search.storage` another place."
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def cut_torn_line(path: Path) -> None:
    """Cut the last line of a journal where it has no end: its writer was killed, and nothing after it could be read."""
    if not path.exists():
        return
    with path.open("rb+") as journal:
        text = journal.read()
        if text and not text.endswith(b"\n"):
            journal.truncate(text.rfind(b"\n") + 1)
