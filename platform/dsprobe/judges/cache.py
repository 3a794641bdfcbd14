"""Verdicts that were given before, so that no reply is paid for twice.

A key is a digest of the judge's identity, of the text it sees and of the reply; no text is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from dsprobe.errors import StorageError
from dsprobe.judges.base import Judge, Reply, Verdict

ENVIRONMENT: Final = "DSPROBE_CACHE"
"""Environment variable that names the cache file."""
WAIT_SECONDS: Final = 30.0
"""How long a writer waits for another one."""
_PART: Final = 500
"""Keys a query; SQLite bounds the number of its parameters."""
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS verdicts "
    "(key TEXT PRIMARY KEY, value INTEGER, score REAL, note TEXT NOT NULL) WITHOUT ROWID"
)


def default_path() -> Path:
    """``$DSPROBE_CACHE``, else ``dsprobe/verdicts.sqlite`` in the user's cache folder (XDG)."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsprobe" / "verdicts.sqlite"


def key(judge: Judge, reply: Reply) -> str:
    """Digest of everything that decides a verdict: SHA-256, in hexadecimal.

    The identity holds model, template and sampling, `rendered` the text that it sees; the reply is there whole,
    since a template may clip it.
    """
    parts = [judge.identity(), judge.question, judge.rendered(reply), reply.text]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """Verdicts by key in one SQLite file; several processes may read and write it.

    Use as a context manager.

    Args:
        path: The file; created with its folder when missing. `None` is `default_path`.

    Attributes:
        hits: How many keys were found so far.
        misses: How many were not.

    Raises:
        StorageError: The file cannot be opened, or is not such a file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self.hits = self.misses = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
            # Readers go on while one process writes.
            self._connection.execute("PRAGMA journal_mode=WAL")
            with self._connection:
                self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"Verdict cache {self.path} cannot be opened: {error}.") from error

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; verdicts that were put are in it."""
        self._connection.close()

    def get_many(self, keys: Iterable[str]) -> dict[str, Verdict]:
        """Verdicts of the keys that are there; the counters go up by one a distinct key.

        Raises:
            StorageError: The file cannot be read.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Verdict] = {}
        try:
            for start in range(0, len(wanted), _PART):
                part = wanted[start : start + _PART]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(
                    f"SELECT key, value, score, note FROM verdicts WHERE key IN ({marks})", part
                )
                found |= {name: _verdict(value, score, note) for name, value, score, note in rows}
        except sqlite3.Error as error:
            raise StorageError(f"Verdict cache {self.path} cannot be read: {error}.") from error
        self.hits += len(found)
        self.misses += len(wanted) - len(found)
        return found

    def put_many(self, verdicts: Mapping[str, Verdict]) -> None:
        """Keep verdicts, all or none of them; a key that is there already gets the new one.

        Raises:
            StorageError: The file cannot be written.
        """
        rows = [(name, v.value, v.score, v.note) for name, v in verdicts.items()]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise StorageError(f"Verdict cache {self.path} cannot be written: {error}.") from error


def _verdict(value: int | None, score: float | None, note: str) -> Verdict:
    return Verdict(None if value is None else bool(value), score, note)
