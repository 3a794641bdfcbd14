"""Reading a whole run to see whether it still is what was written, and taking back what is not.

Files are hashed as they stream by, a few at a time, so memory does not depend on the run.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal

from dsprobe.errors import DamagedError, StorageError
from dsprobe.storage.commit_record import CommitRecord
from dsprobe.storage.compaction import compact
from dsprobe.storage.irreversibility import fork_record
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import COMMITS, MANIFEST, RunStore, shard_folder
from dsprobe.storage.scores import score_records
from dsprobe.storage.table_index import index_name, newest_generation, newest_index, referenced_files

READERS: Final = 4
"""Files read at once; hashing runs beside reading."""

BLOCK: Final = 4 << 20
"""Bytes read at a time."""

Part = Literal["manifest", "shard", "tables", "scores", "irreversibility"]

REMEDIES: Final[Mapping[Part, str]] = {
    "manifest": "Delete it and run the same `dsprobe run` again, which writes it anew; committed shards stay.",
    "shard": "`dsprobe verify RUN --repair` takes the shard's commit back; the same `dsprobe run` then runs it again.",
    "tables": "`dsprobe verify RUN --repair` or `dsprobe compact RUN --rebuild` makes them again from the shards.",
    "scores": "Score the run again: `dsprobe score RUN --judge … --replace`.",
    "irreversibility": "Run the experiment again: `dsprobe irreversibility …`.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file that is missing or is not what was written."""

    part: Part
    name: str
    """Relative to the run."""
    problem: str
    """A sentence that names the file by its address."""
    shard: str = ""
    """The shard it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    part: Part
    name: str
    sha256: str
    bytes: int | None
    """`None` where the record does not say."""
    shard: str = ""


@dataclass(slots=True)
class Verified:
    """What `verify` found and did."""

    files: int = 0
    """Files read and compared."""
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    """Where the commit records of damaged shards are now, relative to the run."""
    rebuilt: bool = False
    """Tables were made again."""

    @property
    def left(self) -> list[Damage]:
        """Damage that was not repaired."""
        taken_back = {name.rpartition("/")[2].rpartition("-")[0] for name in self.revoked}
        return [
            one
            for one in self.damage
            if not (one.shard in taken_back or (one.part == "tables" and (self.rebuilt or self.revoked)))
        ]


def verify(store: RunStore, *, repair: bool = False, watch: Callable[[int, int], None] | None = None) -> Verified:
    """Compare every file that a record names with its size and SHA-256.

    Args:
        store: The run.
        repair: Take the commit records of damaged shards back (they are kept in ``revoked/``), so that the same
            `dsprobe run` runs them again, which makes the tables again too. If only tables are damaged they are made
            again at once.
        watch: Called with the number of files compared and to compare.

    Raises:
        StorageError: Something is of a newer version, or the store failed.
    """
    found, commits = Verified(), _Commits(store)
    expected = [*commits.files(found), *_tables(store, found), *_scores(store, found), *_forks(store, found)]
    _manifest(store, found)
    with ThreadPoolExecutor(READERS) as pool:
        for number, (size, damage) in enumerate(pool.map(lambda one: _compare(store.objects, one), expected), start=1):
            found.files, found.bytes = number, found.bytes + size
            found.damage += [damage] if damage else []
            if watch is not None:
                watch(number, len(expected))
    _forget_replaced(store, found)
    if repair:
        _repair(store, found, commits)
    return found


def _compare(objects: ObjectStore, expected: _Expected) -> tuple[int, Damage | None]:
    """Bytes read, and what is wrong."""
    digest, size = hashlib.sha256(), 0
    try:
        with objects.open(expected.name) as source:
            while block := source.read(BLOCK):
                digest.update(block)
                size += len(block)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            problem = "is missing"
        elif getattr(error.__cause__, "errno", None) == errno.EIO:
            problem = "cannot be read: the disk reports an error"
        else:
            raise
    else:
        if expected.bytes not in (None, size):
            problem = f"has {size} bytes instead of {expected.bytes}"
        elif digest.hexdigest() != expected.sha256:
            problem = f"has other bytes: SHA-256 {digest.hexdigest()[:12]}… instead of {expected.sha256[:12]}…"
        else:
            return size, None
    sentence = f"{objects.address(expected.name)} {problem}."
    return size, Damage(part=expected.part, name=expected.name, problem=sentence, shard=expected.shard)


class _Commits:
    """The commit records as they were read.

    Args:
        store: The run.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._data: dict[str, bytes] = {}
        self._label: dict[str, str] = {}

    def files(self, found: Verified) -> Iterator[_Expected]:
        """Read the records; yield the files they name."""
        objects = self._store.objects
        for name in objects.list(COMMITS):
            if not name.endswith(".json"):
                continue
            shard, data = name.removeprefix(f"{COMMITS}/").removesuffix(".json"), objects.read(name)
            self._data[shard], self._label[shard] = data, hashlib.sha256(data).hexdigest()[:32]
            try:
                record = CommitRecord.from_json(data, objects.address(name))
            except DamagedError as error:
                found.damage.append(Damage(part="shard", name=name, problem=str(error), shard=shard))
                continue
            if record.shard_id != shard:
                problem = f"{objects.address(name)} is of another shard: {record.shard_id!a}."
                found.damage.append(Damage(part="shard", name=name, problem=problem, shard=shard))
                continue
            self._label[shard] = record.attempt
            for file, facts in record.files.items():
                path = f"{shard_folder(shard, record.attempt)}/{file}"
                yield _Expected(part="shard", name=path, sha256=facts.sha256, bytes=facts.bytes, shard=shard)

    def revoke(self, shard: str) -> str | None:
        """Take a shard's record back, unless another is in its place by now."""
        return self._store.revoke(shard, self._label[shard], self._data[shard])


def _repair(store: RunStore, found: Verified, commits: _Commits) -> None:
    for shard in sorted({damage.shard for damage in found.damage if damage.shard}):
        kept = commits.revoke(shard)
        found.revoked += [kept] if kept else []
    broken = [damage for damage in found.damage if damage.part == "tables"]
    for damage in broken:
        store.objects.remove(damage.name)  # or a file of that name and other content could be taken for the right one
    if broken and not found.revoked and not any(damage.part == "scores" for damage in found.damage):
        compact(store, rebuild=True)
        found.rebuilt = True


def _forget_replaced(store: RunStore, found: Verified) -> None:
    """A compaction may have replaced tables while they were being read."""
    if any(damage.part == "tables" and damage.name.endswith(".parquet") for damage in found.damage):
        named = referenced_files(store.objects)
        found.damage = [one for one in found.damage if one.part != "tables" or one.name in named]


def _tables(store: RunStore, found: Verified) -> Iterator[_Expected]:
    try:
        index = newest_index(store.objects)
    except DamagedError as error:
        name = index_name(newest_generation(store.objects) or 0)
        found.damage.append(Damage(part="tables", name=name, problem=str(error)))
        return
    for entry in [entry for entries in index.tables.values() for entry in entries] if index else ():
        yield _Expected(part="tables", name=entry["path"], sha256=entry["sha256"], bytes=entry["bytes"])


def _scores(store: RunStore, found: Verified) -> Iterator[_Expected]:
    try:
        records = score_records(store.objects)
    except DamagedError as error:
        found.damage.append(Damage(part="scores", name="scores", problem=str(error)))
        return
    for record in records.values():
        yield _Expected(part="scores", name=record.file, sha256=record.sha256, bytes=None)


def _forks(store: RunStore, found: Verified) -> Iterator[_Expected]:
    try:
        record = fork_record(store.objects)
    except DamagedError as error:
        found.damage.append(Damage(part="irreversibility", name="irreversibility.json", problem=str(error)))
        return
    if record is not None:
        yield _Expected(part="irreversibility", name=record.file, sha256=record.sha256, bytes=None)


def _manifest(store: RunStore, found: Verified) -> None:
    try:
        store.manifest()
    except DamagedError as error:
        found.damage.append(Damage(part="manifest", name=MANIFEST, problem=str(error)))
