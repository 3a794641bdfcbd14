"""The commit record of a shard: the attempt that counts, what its files were to hold, and their digests."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from dsprobe.config import RunConfig
from dsprobe.errors import DamagedError
from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.schemas import check_version
from dsprobe.untrusted import parse_json, parse_record

COMMIT_VERSION: Final = 2
"""Version of the commit record. Version 1 knew no raw logs; it is read with their defaults."""

REPAIR: Final = "Find all damage with `dsprobe verify RUN --repair`, then run the same `dsprobe run` again."
"""What to do about a damaged shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawOptions:
    """What a shard keeps raw; see `dsprobe.config.RawConfig`."""

    keep: tuple[str, ...] = ()
    extreme: int = 0
    """Trajectories with the largest temporal risk integral whose vectors are kept."""
    shard_bytes: int = 0
    """All raw files of the shard at most."""
    step_bytes: int = 0
    """Part of it that vectors leave to the step logs."""
    flush_bytes: int = 0
    """Size from which a file is closed."""

    @classmethod
    def of(cls, config: RunConfig, shards: int) -> RawOptions:
        """Take the options from a run's configuration and its number of shards."""
        raw = config.recording.raw
        if not raw.keep:
            return cls()
        from dsprobe.experiment.raw_rows import shard_budget, step_log_bytes

        return cls(
            keep=raw.keep,
            extreme=raw.extreme,
            shard_bytes=shard_budget(raw, shards),
            step_bytes=step_log_bytes(config),
            flush_bytes=raw.flush_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """The part of the configuration that decides what a shard's files hold."""

    threshold: float
    """Harm threshold θ of the temporal measures."""
    sample_positions: int
    """Trajectories per condition in the random sample of the positions table."""
    extreme_positions: int
    """Trajectories per condition with the largest temporal risk integral in that table."""
    raw: RawOptions = RawOptions()

    @classmethod
    def of(cls, config: RunConfig, shards: int = 1) -> WriterOptions:
        """Take the options from a run's configuration; its shards share the bytes that raw logs may take."""
        return cls(
            threshold=config.risk.threshold,
            sample_positions=config.recording.sample_positions,
            extreme_positions=config.recording.extreme_positions,
            raw=RawOptions.of(config, shards),
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> WriterOptions:
        """Parse what `dataclasses.asdict` gave; records of version 1 have no raw logs."""
        logs = raw.get("raw", {})
        return cls(**{**raw, "raw": RawOptions(**{**logs, "keep": tuple(logs.get("keep", ()))})})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What a commit record says about one file."""

    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """The attempt of a shard that counts."""

    version: int
    shard_id: str
    attempt: str
    condition: Condition
    options: WriterOptions
    files: dict[str, FileRecord]
    raw_dropped: dict[str, int] = field(default_factory=dict)
    """Trajectories that the raw logs had no room for: ``steps`` without step logs, ``vectors`` without those."""

    def to_json(self) -> bytes:
        """Serialise."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> CommitRecord:
        """Parse.

        Raises:
            DamagedError: It cannot be read; `dsprobe verify --repair` takes it back.
            StorageError: Of a newer version.
        """
        try:
            raw = parse_json(data)
            check_version(raw["version"], "commit record", where, COMMIT_VERSION)
            record = cls(
                version=raw["version"],
                shard_id=raw["shard_id"],
                attempt=raw["attempt"],
                condition=Condition(**raw["condition"]),
                options=WriterOptions.from_dict(raw["options"]),
                files={name: FileRecord(**record) for name, record in raw["files"].items()},
                raw_dropped=dict(raw.get("raw_dropped", {})),
            )
            return parse_record(cls, asdict(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where} is damaged: {type(error).__name__}: {error}. {REPAIR}") from error
