"""Jobs on a cluster, over Ray's own job server: submit, list, follow, stop.

A job belongs to the cluster, not to the machine that submitted it. What is sent is in `dsprobe.actors.job_request`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dsprobe.actors.job_request import PREFIX, JobRequest, next_id, submission
from dsprobe.actors.job_server import connect, reaching
from dsprobe.errors import ConfigError, PrerequisiteError
from dsprobe.untrusted import redacted

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

EXIT_INTERRUPTED: Final = 130
_KNOWN_EXITS: Final = (0, 1, 2, EXIT_INTERRUPTED)
_POLL_S: Final = 0.5
_RECONNECT_S: Final = 2.0
_PATIENCE_S: Final = 120.0
"""How long a server that does not answer is asked again while a job is followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What the cluster says of a job. Texts are untrusted: whoever may submit wrote them."""

    id: str
    status: str
    """``PENDING``, ``RUNNING``, ``STOPPED``, ``SUCCEEDED`` or ``FAILED``."""
    metadata: dict[str, str]
    entrypoint: str
    message: str
    started: float | None
    """Unix time in seconds."""
    ended: float | None
    driver_exit: int | None

    @property
    def finished(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def exit_code(self) -> int:
        """Exit code for the command that waited for it: the job's own where `dsprobe` has that code, else 1 or 130."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return EXIT_INTERRUPTED
        return self.driver_exit if self.driver_exit in _KNOWN_EXITS and self.driver_exit else 1

    def fact(self, key: str) -> str:
        """An entry of its metadata that dsprobe wrote; empty where it did not."""
        return self.metadata.get(PREFIX + key, "")

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        names = ("id", "status", "entrypoint", "message", "started", "ended", "metadata")
        return {name: getattr(self, name) for name in names} | {"driver_exit_code": self.driver_exit}


class Jobs:
    """A cluster's job server.

    Args:
        address: ``http(s)://host:port`` of the dashboard.

    Raises:
        PrerequisiteError: Nothing answers there, or not a Ray dashboard, or it wants another token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = connect(address)

    def submit(self, request: JobRequest, *, job_id: str | None = None, again: bool = False) -> str:
        """Start a job.

        Args:
            request: What is to run.
            job_id: Its id; `None` makes ``dsprobe-<kind>-<run id>-<n>``.
            again: Start it although the same work is under way.

        Returns:
            Its id.

        Raises:
            ConfigError: The same work is under way, the id is taken, or a text holds a secret.
            PrerequisiteError: The server does not answer, or refuses.
        """
        earlier = self.list()
        running = [job for job in earlier if not job.finished and job.fact("id") == request.id]
        running = [job for job in running if job.fact("kind") == request.kind]
        if running and not again:
            raise ConfigError(
                f"Job `{running[0].id}` ({running[0].status}) does the same: {request.kind} {request.id}. Follow it "
                f"with `dsprobe jobs logs {running[0].id} --follow`, or give --again for a second one."
            )
        chosen = job_id or next_id(request, [job.id for job in earlier])
        if any(job.id == chosen for job in earlier):
            raise ConfigError(f"There is a job `{chosen}` on {self.address}; give another --id.")
        content = submission(request, chosen)
        with reaching(self.address):
            return str(self._client.submit_job(**content))

    def list(self, *, everything: bool = False) -> list[JobRecord]:
        """Jobs of dsprobe, the latest last.

        Args:
            everything: Those that something else submitted too.
        """
        with reaching(self.address):
            found = [_record(job) for job in self._client.list_jobs() if job.submission_id]
        found.sort(key=lambda job: job.started or 0.0)
        return [job for job in found if everything or job.fact("kind")]

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            ConfigError: There is none of that id.
        """
        with reaching(self.address, job_id):
            return _record(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """Everything that it has written.

        Raises:
            ConfigError: There is none of that id.
        """
        with reaching(self.address, job_id):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> bool:
        """Ask a job to end.

        Returns:
            Whether it was running.

        Raises:
            ConfigError: There is none of that id.
        """
        with reaching(self.address, job_id):
            return bool(self._client.stop_job(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobRecord:
        """Pass on what a job writes until it has ended; a lost connection is made again.

        Args:
            job_id: The job.
            write: Called with each piece of text, which is untrusted.

        Returns:
            The finished job.

        Raises:
            ConfigError: There is none of that id.
            PrerequisiteError: The server is gone.
        """
        shown = 0
        self.get(job_id)
        while True:
            shown = asyncio.run(self._tail(job_id, shown, write))
            record = self._get_again(job_id)
            if record.finished:
                rest = self.logs(job_id)[shown:]
                if rest:
                    write(rest)
                return record
            time.sleep(_RECONNECT_S if shown else _POLL_S)

    def _get_again(self, job_id: str) -> JobRecord:
        """One job; a tunnel that is down for a while is waited for."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.get(job_id)
            except PrerequisiteError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RECONNECT_S)

    async def _tail(self, job_id: str, shown: int, write: Callable[[str], None]) -> int:
        """Follow one connection; returns the characters passed on so far, those of earlier connections included."""
        import aiohttp

        seen = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                fresh = text[max(shown - seen, 0) :]
                seen += len(text)
                if fresh:
                    write(fresh)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            logging.getLogger(__name__).debug("Following %s: %s", job_id, error)
        return max(shown, seen)


def _record(job: JobDetails) -> JobRecord:
    return JobRecord(
        id=job.submission_id or "",
        status=str(job.status.value),
        metadata=dict(job.metadata or {}),
        entrypoint=job.entrypoint,
        message=redacted(job.message or ""),
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        driver_exit=job.driver_exit_code,
    )
