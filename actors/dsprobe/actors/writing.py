"""The way of a shard into the store, the same under every executor. Neither Ray nor models here."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

from dsprobe.errors import DSProbeError, StorageError
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.reducer import ReducerState
from dsprobe.telemetry.logs import log_context
from dsprobe.telemetry.spans import span

LOGGER = logging.getLogger("dsprobe.actors.writing")


class ShardSink(Protocol):
    """One attempt at a shard, as `dsprobe.storage.shard_writer.ShardWriter` gives it."""

    @property
    def state(self) -> ReducerState:
        """Statistics of what was added."""

    @property
    def bytes_written(self) -> Mapping[str, int]:
        """Bytes of the attempt's finished files by kind."""

    def add(self, batch: EvaluatedBatch) -> None:
        """Take the shard's next batch; its arrays are read-only."""

    def commit(self) -> bool:
        """Make the attempt count; False when another attempt already does."""

    def abort(self) -> None:
        """Drop the attempt."""


class Store(Protocol):
    """What executors need of `dsprobe.storage.run_store.RunStore`; picklable."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""

    def committed_ids(self) -> Collection[str]:
        """Ids of committed shards."""

    def is_committed(self, shard_id: str) -> bool:
        """Whether a shard is committed; asked of the store anew."""

    def open_attempt(self, shard_id: str) -> ShardSink:
        """Begin an attempt under a fresh name."""


class Written(NamedTuple):
    """A shard that is committed now."""

    state: ReducerState
    """Its statistics, the same from any attempt."""
    won: bool
    """False where another driver's attempt was first, and counts."""
    bytes: Mapping[str, int]
    """Of its files, by kind."""


def write_shard(store: Store, shard_id: str, batches: Iterable[EvaluatedBatch]) -> Written:
    """Write a shard's batches as a fresh attempt and commit it.

    A shard that someone else committed meanwhile is fine: attempts hold the same bytes and the first one counts.

    Raises:
        StorageError: The store refused; errors of the generating side pass through unchanged.
    """
    with _storage_errors(shard_id):
        writer = store.open_attempt(shard_id)
    number = 0
    try:
        for batch in batches:  # enumerate() would keep the last one
            with log_context(shard=shard_id, batch=number), span("write"), _storage_errors(shard_id):
                writer.add(batch)
            del batch  # its memory is free before the next one is asked for
            number += 1
        with log_context(shard=shard_id), span("commit"), _storage_errors(shard_id):
            won = writer.commit()
            size = writer.bytes_written
            LOGGER.info("Committed, %d bytes" if won else "Another attempt was first, %d bytes", sum(size.values()))
    except BaseException:
        with suppress(OSError, StorageError):  # what stays behind was never committed, so nobody reads it
            writer.abort()
        raise
    return Written(writer.state, won, size)


@contextmanager
def _storage_errors(shard_id: str) -> Iterator[None]:
    """Tell failures of the store from failures of the shard: only the first are worth another attempt."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Shard `{shard_id}` could not be written: {error}") from error


def describe(error: BaseException) -> str:
    """One line for the user: a message raised on purpose as it is, any other with its class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, DSProbeError) else f"{type(error).__name__}: {text}"


def without_text(reason: str) -> str:
    """What `describe` said, fit for logs and statuses.

    Of an unexpected error the class alone is left: its message may quote a prompt or a reply.
    """
    return re.sub(r"^([A-Za-z_]\w*): .*", r"\1", reason, flags=re.DOTALL)
