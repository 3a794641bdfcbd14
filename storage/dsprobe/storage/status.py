"""What drivers say of themselves while they work: ``status/<driver>.json`` in the run's folder.

A view for people and never a truth: what is done is what is committed. A driver writes every few seconds from a thread
of its own, so a slow store does not slow the run, and a store that refuses is logged and no more. The same thread
writes the run's spans (`dsprobe.storage.spans`), more rarely.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any, Final, Literal

from dsprobe.errors import StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.spans import keep_spans
from dsprobe.untrusted import parse_json, parse_record, redacted

LOGGER = logging.getLogger("dsprobe.storage.status")

FOLDER: Final = "status"
EVERY_S: Final = 5.0
"""Seconds between two writes; on S3 each is one PUT."""
SPANS_EVERY: Final = 12
"""Statuses after which the spans so far are written, too."""
LOST_S: Final = 60.0
"""A driver that has said nothing for so long is taken for lost."""

REASONS: Final = 5
"""Different reasons that are kept."""
REASON_LENGTH: Final = 300

State = Literal["running", "complete", "incomplete", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStatus:
    """One driver's last words."""

    driver: str
    """Unique to the process."""
    command: str
    """``run``, ``sweep``, …"""
    host: str
    pid: int
    job: str | None
    """Submission id on a Ray cluster."""
    version: str
    started: float
    """Seconds since 1970, by the driver's clock, as all times here."""
    updated: float
    state: State
    stage: str
    """What it is doing, in a few words."""
    counts: dict[str, float | None]
    """Fields of `dsprobe.actors.executor.Progress` and its `PoolState` while a plan is run, of the search's progress in
    a sweep."""
    front: tuple[tuple[float, ...], ...] = ()
    """Objectives of the non-dominated trials so far, of a sweep."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why attempts were repeated or shards given up → how often; the most frequent ones."""
    conditions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Condition id → shards committed, of how many; empty for large plans."""

    @property
    def silent_s(self) -> float:
        """Seconds since it was heard of, by this machine's clock; at least 0."""
        return max(0.0, time.time() - self.updated)

    @property
    def lost(self) -> bool:
        """Whether it says that it is running, and has not been heard of for `LOST_S`."""
        return self.state == "running" and self.silent_s > LOST_S


class StatusWriter:
    """Keeps one driver's status up to date; made by `reporting`.

    Args:
        objects: The run's folder.
        command: Name of the command.
    """

    def __init__(self, objects: ObjectStore, command: str) -> None:
        now = time.time()
        self._objects, self._lock, self._stopped = objects, threading.Lock(), threading.Event()
        self._status = DriverStatus(
            driver=uuid.uuid4().hex,
            command=command,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=_submission_id(),
            version=version("dsprobe"),
            started=now,
            updated=now,
            state="running",
            stage="starting",
            counts={},
        )
        self._thread = threading.Thread(target=self._keep_writing, name="dsprobe-status", daemon=True)
        self._thread.start()

    def tell(
        self, *, stage: str | None = None, counts: Mapping[str, float | None] | None = None,
        front: tuple[tuple[float, ...], ...] | None = None, reasons: Mapping[str, int] | None = None,
        conditions: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        """Take note; it is written within `EVERY_S`."""
        with self._lock:
            now = self._status
            self._status = replace(
                now,
                stage=now.stage if stage is None else stage,
                counts=now.counts if counts is None else dict(counts),
                front=now.front if front is None else front,
                reasons=now.reasons if reasons is None else _most_frequent(reasons),
                conditions=now.conditions if conditions is None else dict(conditions),
            )

    def end(self, state: State) -> None:
        """Write the last status and stop."""
        self._stopped.set()
        self._thread.join()
        with self._lock:
            self._status = replace(self._status, state=state)
        self._write()
        keep_spans(self._objects)

    def _keep_writing(self) -> None:
        self._write()
        for number in itertools.count(1):
            if self._stopped.wait(EVERY_S):
                return
            self._write()
            if number % SPANS_EVERY == 0:
                keep_spans(self._objects)

    def _write(self) -> None:
        with self._lock:
            status = self._status = replace(self._status, updated=time.time())
        try:
            self._objects.put(f"{FOLDER}/{status.driver}.json", json.dumps(asdict(status), default=float).encode())
        except StorageError as error:
            LOGGER.warning("The status of this run cannot be written: %s", error)


@contextmanager
def reporting(objects: ObjectStore, command: str) -> Iterator[StatusWriter]:
    """Report a driver's status while the block runs.

    The block's end counts as complete, an interruption as interrupted and any other exception as failed.
    """
    writer = StatusWriter(objects, command)
    state: State = "failed"
    try:
        yield writer
        state = "complete"
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM, as of a job that is stopped, into the second
        state = "interrupted"
        raise
    finally:
        writer.end(state)


def told(writer: StatusWriter, show: Callable[[Any], None], stage: str) -> Callable[[Any], None]:
    """A progress callback that tells the status, too.

    Args:
        writer: From `reporting`.
        show: The callback that draws.
        stage: What the progress is of.
    """

    def both(progress: Any) -> None:
        counts = asdict(progress)
        shown = {name: counts.pop(name, None) for name in ("front", "reasons", "conditions")}
        counts |= counts.pop("pool", None) or {}
        writer.tell(stage=stage, counts=counts, **shown)
        show(progress)

    return both


def _submission_id() -> str | None:
    """Id of the Ray job that this process is the entry point of; Ray 2.60 tells it in the job's configuration alone."""
    told = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    found = json.loads(told).get("metadata", {}).get("job_submission_id") if told else None
    return None if found is None else str(found)


def _most_frequent(reasons: Mapping[str, int]) -> dict[str, int]:
    return {redacted(reason)[:REASON_LENGTH]: times for reason, times in Counter(reasons).most_common(REASONS)}


def driver_statuses(objects: ObjectStore) -> list[DriverStatus]:
    """All drivers' last words, the latest last.

    Raises:
        StorageError: The store failed, or a status is not one.
    """
    found = []
    for name in objects.list(FOLDER):
        try:
            found.append(parse_record(DriverStatus, parse_json(objects.read(name))))
        except ValueError as error:
            raise StorageError(
                f"{objects.address(name)} is no status: {error}. Delete it; nothing depends on it."
            ) from None
    return sorted(found, key=lambda status: status.updated)
