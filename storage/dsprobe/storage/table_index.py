"""Which files are a run's tables: numbered indexes, of which the highest counts.

``tables/_index-<n>.json`` is put if absent, so of two compactions that began from the same index one is told that the
other was first. Runs of earlier versions have ``tables/_current.json``, which is generation 0. Only files that an older
index names and the new one does not are deleted; what no index names is left to `dsprobe gc`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from dsprobe.errors import DamagedError, StorageError
from dsprobe.judges.base import Decides
from dsprobe.storage.names import safe_name
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import TABLES, TableKind, check_version
from dsprobe.untrusted import parse_json, parse_record

INDEX_VERSION: Final = 2
"""Version of the index."""

FIRST_INDEX: Final = "tables/_current.json"
"""The only index of runs that were compacted before there were generations."""

KEPT_INDEXES: Final = 3
"""Newest indexes that stay, for readers that have just listed them."""

_INDEX: Final = re.compile(r"tables/_index-([0-9]{8,})\.json")
_TABLE_FILE: Final = re.compile(r"tables/[a-z_]+/(?:[^/]+/)*[^/]+\.parquet")
_ATTEMPTS: Final = 10

FileEntry = dict[str, Any]
"""``path`` relative to the run, ``bytes``, ``sha256`` and ``rows`` of one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableIndex:
    """The tables of a run as one compaction left them."""

    generation: int
    """0 is `FIRST_INDEX`."""
    run_id: str
    tables: dict[TableKind, list[FileEntry]]
    scored: dict[str, Decides] = field(default_factory=dict)
    """Judges whose scores are columns of the tables: judge key → question."""
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    """Partition → table → digest of what it was made of: attempts and scores."""

    @property
    def name(self) -> str:
        """Where it lies, relative to the run."""
        return index_name(self.generation)

    def entries(self, kind: TableKind, partition: str) -> list[FileEntry]:
        """The files of one partition of a table, in order."""
        folder = f"tables/{kind}/{partition}"
        return [entry for entry in self.tables[kind] if entry["path"].rpartition("/")[0] == folder]

    def files(self) -> set[str]:
        """Names of all its files."""
        return {entry["path"] for entries in self.tables.values() for entry in entries}

    def same_tables(self, other: TableIndex) -> bool:
        """Whether two compactions made the same tables of the same data."""
        return (self.tables, self.scored, self.sources) == (other.tables, other.scored, other.sources)

    def to_json(self) -> bytes:
        """Serialise."""
        facts = {
            "version": INDEX_VERSION,
            "generation": self.generation,
            "run_id": self.run_id,
            "tables": self.tables,
            "scored": self.scored,
            "sources": self.sources,
        }
        return json.dumps(facts, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str, generation: int) -> TableIndex:
        """Parse.

        Raises:
            DamagedError: It cannot be read.
            StorageError: Of a newer version.
        """
        remedy = "Delete it and compact the run again: dsprobe compact RUN."
        try:
            raw = parse_json(data)
            check_version(raw["version"], "table index", where, INDEX_VERSION)
            tables = {kind: [_entry(entry) for entry in raw["tables"][kind]] for kind in TABLES}
            # Indexes made before there were scores say nothing of them, and hold none.
            scored = dict(sorted(raw.get("scored", {}).items()))
            sources = {place: dict(made) for place, made in raw.get("sources", {}).items()}
        except KeyError as error:
            raise DamagedError(f"{where} is damaged: it does not name `{error.args[0]}`. {remedy}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where} is damaged: {type(error).__name__}: {error}. {remedy}") from error
        run_id = str(raw.get("run_id", ""))
        return cls(generation=generation, run_id=run_id, tables=tables, scored=scored, sources=sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: str
    bytes: int
    sha256: str
    rows: int


def _entry(raw: Any) -> FileEntry:
    entry = parse_record(_Entry, {name: raw[name] for name in ("path", "bytes", "sha256", "rows")})
    if not _TABLE_FILE.fullmatch(safe_name(entry.path)):
        # Files that an older index names are deleted, so it must not name anything else.
        raise ValueError(f"{entry.path[:80]!a} is no file of a table")
    return asdict(entry)


def index_name(generation: int) -> str:
    """Where the index of a generation lies, relative to the run."""
    return f"tables/_index-{generation:08d}.json" if generation else FIRST_INDEX


def newest_generation(objects: ObjectStore) -> int | None:
    """The generation that counts, None before the first compaction."""
    return max(_generations(objects), default=None)


def _generations(objects: ObjectStore) -> dict[int, str]:
    """Generation → name of the indexes that exist."""
    names = objects.list("tables")
    found = {int(match[1]): name for name in names if (match := _INDEX.fullmatch(name))}
    return found | ({0: FIRST_INDEX} if FIRST_INDEX in names else {})


def newest_index(objects: ObjectStore) -> TableIndex | None:
    """The index that counts, None before the first compaction.

    Raises:
        StorageError: Damaged, or of a newer version.
    """
    for attempt in range(_ATTEMPTS):
        generations = _generations(objects)
        if not generations:
            return None
        generation = max(generations)
        try:
            return _read(objects, generation, generations[generation])
        except StorageError as error:
            # Newer ones may have replaced it since it was listed.
            if not isinstance(error.__cause__, FileNotFoundError) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _read(objects: ObjectStore, generation: int, name: str) -> TableIndex:
    return TableIndex.from_json(objects.read(name), objects.address(name), generation)


def put_index(objects: ObjectStore, index: TableIndex) -> bool:
    """Make an index count, unless another of its generation exists already.

    Returns:
        True if it counts now.

    Raises:
        StorageError: The store failed.
    """
    return objects.put_if_absent(index.name, index.to_json())


def remove_superseded(objects: ObjectStore, index: TableIndex) -> None:
    """Delete the files that older indexes name and `index` does not, and all but the latest of these indexes.

    Does nothing where a newer index exists: its compaction removes these too.

    Raises:
        StorageError: The store failed, or an older index is damaged.
    """
    names = set(objects.list("tables"))
    generations = _generations(objects)
    if max(generations) != index.generation:
        return
    older = {number: name for number, name in generations.items() if number < index.generation}
    for number, name in sorted(older.items()):
        try:
            superseded = _read(objects, number, name)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return  # a newer compaction is doing this
            raise
        for file in sorted((superseded.files() & names) - index.files()):
            objects.remove(file)
        if number <= index.generation - KEPT_INDEXES or name == FIRST_INDEX:
            objects.remove(name)


def referenced_files(objects: ObjectStore) -> set[str]:
    """Names of the table files that the index that counts names, relative to the run.

    Raises:
        StorageError: The index is damaged or of a newer version.
    """
    index = newest_index(objects)
    return set() if index is None else index.files()


def current_index(objects: ObjectStore) -> TableIndex:
    """The index that counts.

    Raises:
        StorageError: The run has not been compacted, or by a newer version.
    """
    index = newest_index(objects)
    if index is None:
        raise StorageError(
            f"{objects.url} has no tables yet; they are made when the run is compacted: dsprobe compact RUN."
        )
    return index


def current_files(objects: ObjectStore, kind: TableKind) -> list[FileEntry]:
    """The files of a table: their ``path`` relative to the run, ``bytes``, ``sha256`` and ``rows``.

    Raises:
        StorageError: The run has not been compacted, or by a newer version.
    """
    return list(current_index(objects).tables[kind])


def scored_judges(objects: ObjectStore) -> dict[str, Decides]:
    """Judges whose scores are columns of the tables: judge key → question, sorted by key.

    Raises:
        StorageError: The run has not been compacted, or by a newer version.
    """
    return dict(current_index(objects).scored)
