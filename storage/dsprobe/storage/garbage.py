"""Garbage of a run: what killed or late writers left behind, once it is older than a grace period.

Garbage is what this format writes under names of its own and what no record names: attempts that were never committed
or lost their race, temporary files and probes, tables that no index names, replaced scores and experiments, uploads to
S3 that were never completed. Everything else stays, known or not.

Safe beside running drivers: ages are differences between times of one clock, the store's, so neither a skewed nor a
jumping clock of this machine makes fresh files old; objects dated in the future are young. Records are read after the
listing; objects are listed and records read once more before a deletion, so what was written again or committed
meanwhile stays. What no clock can tell is how long a writer may sleep between its last file and its commit: the grace
period must be longer.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from dsprobe.errors import StorageError
from dsprobe.storage.commit_record import CommitRecord
from dsprobe.storage.irreversibility import fork_record
from dsprobe.storage.multipart import Upload, abort_upload, unfinished_uploads
from dsprobe.storage.objects import ObjectEntry, ObjectStore
from dsprobe.storage.run_store import MANIFEST, REVOKED, RunStore, commit_name
from dsprobe.storage.scores import score_records
from dsprobe.storage.table_index import referenced_files

GRACE: Final = timedelta(hours=24)
"""Longer than any writer sleeps between two writes of one shard."""

Kind = Literal["attempts", "temporaries", "probes", "tables", "scores", "irreversibility", "uploads"]

_ATTEMPT: Final = re.compile(r"shards/(?P<shard>[^/]+)/(?P<attempt>[0-9a-f]{32})/(?P<file>.+)")
_LOOSE: Final[dict[Kind, re.Pattern[str]]] = {
    "temporaries": re.compile(r"(.*/)?_[^/]+\.[0-9a-f]{32}\.tmp"),
    "probes": re.compile(r"_probe-[0-9a-f]{32}"),
    "tables": re.compile(r"tables/[a-z_]+/(.+/)?part-[0-9a-f]{16,64}\.parquet"),
    "scores": re.compile(r"scores/[^/]+/[0-9a-f]{16,64}\.parquet"),
    "irreversibility": re.compile(r"irreversibility/[0-9a-f]{16,64}\.parquet"),
}
_RECORDS: Final = re.compile(
    rf"{re.escape(MANIFEST)}|(commits|{REVOKED})/[^/]+\.json|tables/_[^/]+\.json|scores/[^/]+\.json"
    r"|(irreversibility|labels|hypotheses)\.json|(report|sweep|reduced)/.+|status/[^/]+\.json"
    r"|telemetry/spans/[^/]+\.parquet"
)


@dataclass(slots=True)
class Tally:
    """How many, and their bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count one more."""
        self.count += 1
        self.bytes += size


@dataclass(slots=True)
class Collected:
    """What `collect` found."""

    removed: dict[Kind, Tally] = field(default_factory=lambda: defaultdict(Tally))
    """Garbage past its grace period; still there after a dry run. An attempt's folder counts once."""
    waiting: dict[Kind, Tally] = field(default_factory=lambda: defaultdict(Tally))
    """Not named by any record, but younger: perhaps being written now."""
    unknown: Tally = field(default_factory=Tally)
    """Files that are not of this format; left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Garbage:
    """What is removed together."""

    kind: Kind
    names: tuple[str, ...] = ()
    """Objects."""
    bytes: int
    modified: datetime
    """Of the newest object."""
    shard: tuple[str, str] | None = None
    """Shard and attempt whose folder it is."""
    upload: Upload | None = None


def collect(store: RunStore, grace: timedelta = GRACE, *, dry_run: bool = False) -> Collected:
    """Remove a run's garbage; see the module.

    Args:
        store: The run.
        grace: Age from which garbage is removed.
        dry_run: Remove nothing. (One small object is written and removed all the same, to ask the store for its time.)

    Returns:
        What was removed, or would be; what is too young; what is unknown.

    Raises:
        StorageError: The store failed, or a record is damaged or of a newer version: then nothing was removed.
    """
    entries, now = _listing(store.objects)
    found = Collected()
    garbage = [*_unnamed(store, entries, found), *_uploads(store.objects, now - grace)]
    old = [item for item in garbage if now - item.modified >= grace]
    for item in garbage:
        if now - item.modified < grace:
            found.waiting[item.kind].add(item.bytes)
    written_now = {entry.name: entry.modified for entry in store.objects.entries("")} if old else {}
    named_now = _named(store) if old else set()
    for item in old:
        # A compaction gives equal tables equal names: it may just be writing one that a killed one left.
        again = any(written_now.get(name, item.modified) > item.modified for name in item.names)
        if not again and named_now.isdisjoint(item.names) and not _is_committed(store, item):
            if not dry_run:
                _remove(store.objects, item)
            found.removed[item.kind].add(item.bytes)
    return found


def _listing(objects: ObjectStore) -> tuple[list[ObjectEntry], datetime]:
    """All objects, and the store's time just before it listed them."""
    probe = f"_probe-{uuid.uuid4().hex}"
    objects.put(probe, b"1")
    try:
        entries = {entry.name: entry for entry in objects.entries("")}
    finally:
        objects.remove(probe)
    own = entries.pop(probe, None)
    if own is None:
        raise StorageError(f"{objects.url} does not list an object that it was just given, so nothing was removed.")
    return list(entries.values()), own.modified


def _unnamed(store: RunStore, entries: Iterable[ObjectEntry], found: Collected) -> Iterator[_Garbage]:
    """Garbage of any age; unknown files are counted."""
    committed, named = store.committed(), _named(store)
    folders: dict[tuple[str, str], list[ObjectEntry]] = defaultdict(list)
    revoked: dict[str, datetime] = {}
    for entry in entries:
        loose = next((kind for kind, pattern in _LOOSE.items() if pattern.fullmatch(entry.name)), None)
        attempt = _ATTEMPT.fullmatch(entry.name)
        if entry.name.startswith(f"{REVOKED}/"):
            revoked[entry.name] = entry.modified
        if attempt and not _counts(committed.get(attempt["shard"]), attempt["attempt"]):
            folders[attempt["shard"], attempt["attempt"]].append(entry)
        elif loose and entry.name not in named:
            yield _Garbage(kind=loose, names=(entry.name,), bytes=entry.bytes, modified=entry.modified)
        elif attempt and loose is None:
            if attempt["file"] not in committed[attempt["shard"]].files:
                found.unknown.add(entry.bytes)
        elif loose is None and not _RECORDS.fullmatch(entry.name):
            found.unknown.add(entry.bytes)
    for (shard, attempt_id), members in folders.items():
        since = revoked.get(f"{REVOKED}/{shard}-{attempt_id}.json")
        yield _Garbage(
            kind="attempts",
            names=tuple(entry.name for entry in members),
            bytes=sum(entry.bytes for entry in members),
            modified=max(time for time in (since, *(entry.modified for entry in members)) if time is not None),
            shard=(shard, attempt_id),
        )


def _named(store: RunStore) -> set[str]:
    """Content-named files that a record names at this moment."""
    forks = fork_record(store.objects)
    scores = (record.file for record in score_records(store.objects).values())
    return {*referenced_files(store.objects), *scores, *([forks.file] if forks else [])}


def _counts(record: CommitRecord | None, attempt: str) -> bool:
    return record is not None and record.attempt == attempt


def _is_committed(store: RunStore, item: _Garbage) -> bool:
    """Whether an attempt has been committed since the records were read."""
    if item.shard is None:
        return False
    shard, attempt = item.shard
    name = commit_name(shard)
    if not store.objects.exists(name):
        return False
    return _counts(CommitRecord.from_json(store.objects.read(name), store.objects.address(name)), attempt)


def _remove(objects: ObjectStore, item: _Garbage) -> None:
    for name in item.names:
        objects.remove(name)
    if item.upload is not None:
        abort_upload(objects, item.upload)


def _uploads(objects: ObjectStore, before: datetime) -> Iterator[_Garbage]:
    for upload in unfinished_uploads(objects, before):
        yield _Garbage(kind="uploads", bytes=upload.bytes, modified=upload.modified, upload=upload)
