"""The irreversibility experiment of a run: one row a fork.

<run>/irreversibility/<digest>.parquet   the rows
<run>/irreversibility.json               put last, replaced as a whole: names the file that counts, and the settings

A killed writer leaves a file that no record names, and the earlier experiment stays what readers see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from dsprobe.errors import DamagedError, StorageError
from dsprobe.storage.content_files import ContentFile, open_checked
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import check_version, with_metadata
from dsprobe.storage.upgrade import read_parquet
from dsprobe.untrusted import parse_json, parse_record

FORKS_VERSION: Final = 1
"""Version of the record."""

_FOLDER: Final = "irreversibility"
_RECORD: Final = "irreversibility.json"
_NO_PART_OF_A_FORK: Final = frozenset({"judges", "execution", "output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRecord:
    """The experiment that counts."""

    version: int
    settings: dict[str, Any]
    """``steps``, ``shares``, ``target``, ``view``, ``threshold``, ``conditions``, ``left_out``: see
    `dsprobe.experiment.irreversibility.Renoised.facts`."""
    config_sha256: str
    """See `config_digest`."""
    file: str
    """Path relative to the run."""
    sha256: str
    rows: int

    def to_json(self) -> bytes:
        """Serialise."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


def write_forks(store: RunStore, settings: Mapping[str, Any], forks: pa.Table) -> ForkRecord:
    """Write the rows of the experiment and make them count; those of an earlier one are replaced.

    Args:
        store: The run.
        settings: See `ForkRecord`.
        forks: Columns of the table ``irreversibility``.

    Raises:
        StorageError: Columns are wrong, or the store failed.
    """
    table = with_metadata(forks, "irreversibility", store.run_id)
    file = ContentFile(table.schema)
    file.write(table)
    entry = file.publish(store.objects, _FOLDER)
    record = ForkRecord(
        version=FORKS_VERSION,
        settings=dict(settings),
        config_sha256=config_digest(store.manifest()),
        file=entry["path"],
        sha256=entry["sha256"],
        rows=entry["rows"],
    )
    store.objects.put(_RECORD, record.to_json())
    for name in store.objects.list(_FOLDER):
        if name != record.file:
            store.objects.remove(name)
    return record


def fork_record(objects: ObjectStore) -> ForkRecord | None:
    """The record of a run's experiment, `None` without one.

    Raises:
        StorageError: Damaged, or of a newer version.
    """
    if not objects.exists(_RECORD):
        return None
    where = objects.address(_RECORD)
    try:
        raw = parse_json(objects.read(_RECORD))
        check_version(raw["version"], "irreversibility record", where, FORKS_VERSION)
        return parse_record(ForkRecord, asdict(ForkRecord(**raw)))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def read_forks(store: RunStore) -> tuple[ForkRecord, pa.Table] | None:
    """A run's experiment, `None` without one.

    Raises:
        StorageError: Record or file are damaged, of a newer version, or belong to another configuration.
    """
    record = fork_record(store.objects)
    if record is None:
        return None
    remedy = f"Run the experiment again: dsprobe irreversibility {store.run_id}."
    if record.config_sha256 != config_digest(store.manifest()):
        raise StorageError(f"{store.objects.address(_RECORD)} belongs to another configuration. {remedy}")
    with open_checked(store.objects, {"path": record.file, "sha256": record.sha256}, remedy) as source:
        table = read_parquet(source, store.objects.address(record.file))
    return record, table


def config_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest's configuration says of the trajectories and their risk.

    Judges, execution and output change no fork.
    """
    config = {name: part for name, part in manifest["config"].items() if name not in _NO_PART_OF_A_FORK}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
