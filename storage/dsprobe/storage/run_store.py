"""One run in an object store: its manifest, its attempts and its commits.

<root>/runs/<run_id>/
manifest.json                 put once, before any work
commits/<shard_id>.json       put if absent: names the attempt that counts and the digests of its files
revoked/                      commit records of damaged shards, taken back by `dsprobe verify --repair`
shards/<shard_id>/<attempt>/  an attempt's files; without a commit record they do not exist for any reader
tables/                       see `dsprobe.storage.compaction`
reduced/                      see `dsprobe.storage.reduced`
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from dsprobe.config import RunConfig, S3Config
from dsprobe.errors import DamagedError, StorageError
from dsprobe.experiment.manifest import MANIFEST_VERSION, check_manifest
from dsprobe.registry import validated
from dsprobe.storage.commit_record import REPAIR, CommitRecord, WriterOptions
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import check_version
from dsprobe.storage.upgrade import read_parquet
from dsprobe.untrusted import parse_facts

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan
    from dsprobe.storage.shard_writer import ShardWriter

READERS: Final = 16
"""Commit records read at a time: on S3 each costs a round trip."""

MANIFEST: Final = "manifest.json"
COMMITS: Final = "commits"
REVOKED: Final = "revoked"
"""Folder of the commit records that `dsprobe verify --repair` took back."""

PLAN_KEYS: Final = ("run_id", "shards")
"""What must agree for two manifests to describe the same plan; everything else may change between invocations."""


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The part of a manifest that storage itself needs.

    Returns:
        ``run_id``, ``shards`` (ids in canonical order) and ``config`` (the resolved configuration).
    """
    return {
        "run_id": plan.run_id,
        "shards": [shard.id for shard in plan.shards],
        "config": plan.config.model_dump(mode="json"),
    }


class RunStore:
    """The durable truth of one run; picklable, safe to use from many processes at once.

    Args:
        root: fsspec URL or local path; the run lives at ``<root>/runs/<run_id>``.
        run_id: Name of the run.
        options: What shards hold; taken from the manifest's configuration when not given.
        s3: How to reach an S3 server, see `ObjectStore`.
    """

    def __init__(
        self, root: str, run_id: str, options: WriterOptions | None = None, s3: S3Config | None = None
    ) -> None:
        self.run_id = run_id
        self.objects = ObjectStore(f"{root.rstrip('/')}/runs/{run_id}", s3)
        self._options = options

    @classmethod
    def at(cls, url: str, s3: S3Config | None = None) -> RunStore:
        """Open the run in a folder, whatever the folders above it are called.

        Args:
            url: The run's own folder.
            s3: How to reach an S3 server, see `ObjectStore`.
        """
        store = cls.__new__(cls)
        store.run_id, store.objects, store._options = url.rstrip("/").rpartition("/")[2], ObjectStore(url, s3), None
        return store

    @property
    def url(self) -> str:
        """Where the run lives."""
        return self.objects.url

    def probe(self) -> None:
        """Check before any work that the place can be written; see `ObjectStore.probe`."""
        self.objects.probe()

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write the manifest; must come before any attempt. A manifest of the same plan that exists already is kept.

        The place is probed first, so that a run fails before its first model is loaded and not at its first commit.

        Args:
            manifest: JSON-serialisable; holds at least what `plan_facts` returns.

        Raises:
            StorageError: `run_id` or `shards` are missing, the run exists with a different plan, or the place cannot be
                written safely.
        """
        absent = [key for key in PLAN_KEYS if key not in manifest]
        if absent:
            raise StorageError(f"A manifest needs `{absent[0]}`; build it on `plan_facts(plan)`.")
        self.probe()
        data = json.dumps(manifest, indent=1, sort_keys=True).encode()
        if self.objects.put_if_absent(MANIFEST, data):
            return
        existing = self.manifest()
        for key in PLAN_KEYS:
            if existing.get(key) != manifest[key]:
                raise StorageError(
                    f"{self.url} holds a run with other `{key}`. Give this run another name or another root."
                )

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            DamagedError: It cannot be read.
            StorageError: There is none, or it is of a newer version.
        """
        if not self.objects.exists(MANIFEST):
            raise StorageError(f"{self.url} holds no run: `{MANIFEST}` is missing.")
        where = self.objects.address(MANIFEST)
        try:
            manifest = parse_facts(self.objects.read(MANIFEST))
            check_version(manifest.get("version", MANIFEST_VERSION), "manifest", where, MANIFEST_VERSION)
            check_manifest(manifest)
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"{where} is damaged: {type(error).__name__}: {error}. Delete it and run the same `dsprobe run` again, "
                "which writes it anew; committed shards stay."
            ) from error
        return manifest

    def committed(self) -> dict[str, CommitRecord]:
        """All committed shards: shard id → record. Reads the ``commits/`` folder only, many records at a time.

        Raises:
            StorageError: A record is damaged or newer than this version.
        """
        with ThreadPoolExecutor(READERS) as pool:
            return dict(pool.map(self._record, sorted(self.committed_ids())))

    def committed_ids(self) -> set[str]:
        """Ids of the committed shards, by the names of their records, which are not read.

        Raises:
            StorageError: The store failed.
        """
        names = self.objects.list(COMMITS)
        return {name.removeprefix(f"{COMMITS}/").removesuffix(".json") for name in names if name.endswith(".json")}

    def _record(self, shard_id: str) -> tuple[str, CommitRecord]:
        name = commit_name(shard_id)
        record = CommitRecord.from_json(self.objects.read(name), self.objects.address(name))
        if record.shard_id != shard_id:
            raise DamagedError(f"{self.objects.address(name)} is damaged: it names another shard. {REPAIR}")
        return shard_id, record

    def is_committed(self, shard_id: str) -> bool:
        """Whether a shard has a commit record; asked of the store anew.

        Raises:
            StorageError: The store failed.
        """
        return self.objects.exists(commit_name(shard_id))

    def open_attempt(self, shard_id: str) -> ShardWriter:
        """Begin an attempt at a shard, under a fresh name.

        Raises:
            StorageError: The run has no manifest.
        """
        from dsprobe.storage.shard_writer import ShardWriter

        return ShardWriter(self, shard_id, self._writer_options())

    def read_shard(self, record: CommitRecord, name: str) -> pa.Table:
        """Read one file of a committed shard and check it against its record.

        Args:
            record: From `committed`.
            name: File name, e.g. ``steps.parquet``.

        Returns:
            The table in the present schema, whatever version wrote it.

        Raises:
            DamagedError: The file is missing or damaged; the message names it and says what to do.
            StorageError: The file is newer than this version, or the store failed.
        """
        path = f"{shard_folder(record.shard_id, record.attempt)}/{name}"
        where = self.objects.address(path)
        try:
            data = self.objects.read(path)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise DamagedError(f"{where} is missing, though its shard is committed. {REPAIR}") from error
            raise
        expected = record.files[name]
        if len(data) != expected.bytes or hashlib.sha256(data).hexdigest() != expected.sha256:
            raise DamagedError(
                f"{where} is damaged: its commit record says {expected.bytes} bytes with SHA-256 "
                f"{expected.sha256[:12]}…, found {len(data)} bytes. {REPAIR}"
            )
        return read_parquet(pa.BufferReader(data), where)

    def revoke(self, shard_id: str, label: str, data: bytes) -> str | None:
        """Take a commit record back, so that the next `dsprobe run` runs the shard again; the record is kept aside.

        Args:
            shard_id: The shard.
            label: What to keep it as: its attempt, or something else unique where it cannot be read.
            data: The record as it was read; any other one that is in its place by now stays.

        Returns:
            Where the record is kept, relative to the run; `None` where another one is in its place, or none.

        Raises:
            StorageError: The store failed.
        """
        name, kept = commit_name(shard_id), f"{REVOKED}/{shard_id}-{label}.json"
        if not self.objects.exists(name) or self.objects.read(name) != data:
            return None
        self.objects.put(kept, data)
        self.objects.remove(name)
        return kept

    def _writer_options(self) -> WriterOptions:
        if self._options is None:
            manifest = self.manifest()
            if "config" not in manifest:
                raise StorageError(f"{self.objects.address(MANIFEST)} has no `config`; build it on `plan_facts(plan)`.")
            config = validated(RunConfig, manifest["config"], self.objects.address(MANIFEST))
            self._options = WriterOptions.of(config, len(manifest["shards"]))
        return self._options


def shard_folder(shard_id: str, attempt: str) -> str:
    """Where an attempt's files lie, relative to the run."""
    return f"shards/{shard_id}/{attempt}"


def commit_name(shard_id: str) -> str:
    """Where a shard's commit record lies, relative to the run."""
    return f"{COMMITS}/{shard_id}.json"
