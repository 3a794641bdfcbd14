"""Scanning step logs with many processes: a task per file or few small ones, merged pairwise as they finish.

Merges are commutative, so any order gives the same state, bit for bit. No more scans are under way than there is room
for, so unmerged states stay few, whatever the size of the logs; the driver fetches the last one only.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig
from dsprobe.errors import DSProbeError, StorageError
from dsprobe.storage.log_files import LogFile, Logs
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.scan import Scanned, ScanSettings, scan_files

PART_BYTES: Final = 64 << 20
"""Small files that one task reads, all together; a larger file is a task of its own."""

TASKS_PER_CPU: Final = 2
"""Scans under way: one works, the next one waits."""

RETRIES: Final = 3
"""How often a task is repeated whose process died."""

Progress = Callable[[int, int], None]
"""Called with the numbers of finished and of all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who scans."""

    executor: Literal["ray", "local"] = "ray"
    """`local`: threads of this process."""
    address: str = "local"
    """Ray address; `local` starts a private instance."""
    num_cpus: int | None = None
    """Files scanned at a time; all of the machine's or cluster's CPUs unless given."""


def scan_logs(logs: Logs, settings: ScanSettings, workers: Workers, progress: Progress | None = None) -> Scanned:
    """Reduce log files.

    Args:
        logs: From `dsprobe.storage.log_files.find_logs`.
        settings: What to compute.
        workers: Who does it; never changes the result.
        progress: Told what is done.

    Raises:
        DamagedError: A file is damaged; the message names it.
        StorageError: A file cannot be used, the store failed, or processes die again and again.
        PrerequisiteError: No Ray cluster answers at the address.
    """
    progress = progress or (lambda done, total: None)
    if workers.executor == "local":
        return _in_threads(logs, settings, workers.num_cpus or os.cpu_count() or 1, progress)
    execution = ExecutionConfig(address=workers.address)
    with ray_session(execution, include_dashboard=False):
        return _on_ray(logs, settings, workers.num_cpus, progress)


def parts_of(files: Sequence[LogFile], workers: int) -> list[list[LogFile]]:
    """Share files out to tasks: few enough bytes each for all workers to have some, but not one task a tiny file."""
    total = sum(file.bytes for file in files)
    room = min(PART_BYTES, total // (TASKS_PER_CPU * workers) + 1)
    parts: list[list[LogFile]] = []
    taken = 0
    for file in files:
        if not parts or taken + file.bytes > room:
            parts.append([])
            taken = 0
        parts[-1].append(file)
        taken += file.bytes
    return parts


def _in_threads(logs: Logs, settings: ScanSettings, workers: int, progress: Progress) -> Scanned:
    """Decoding and arithmetic on whole columns run outside of Python's lock."""
    total = Scanned(state=ReducerState(settings.threshold))
    parts = parts_of(logs.files, workers)
    left = iter(parts)
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        running: set[Future[Scanned]] = set()
        try:
            while running := running | _submitted(pool, logs, left, settings, TASKS_PER_CPU * workers - len(running)):
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    total.merge(future.result())
                    done += 1
                    progress(done, len(parts))
        finally:
            pool.shutdown(cancel_futures=True)
    return total


def _submitted(
    pool: ThreadPoolExecutor, logs: Logs, left: Iterator[list[LogFile]], settings: ScanSettings, count: int
) -> set[Future[Scanned]]:
    return {pool.submit(scan_files, logs.objects, part, settings) for part in islice(left, count)}


def _on_ray(logs: Logs, settings: ScanSettings, num_cpus: int | None, progress: Progress) -> Scanned:
    import ray  # after the session has set Ray's environment

    workers = num_cpus or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    tree = _Tree(logs, settings, parts_of(logs.files, workers), TASKS_PER_CPU * workers)
    try:
        return tree.run(progress)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DSProbeError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise StorageError(
            f"Processes that scan {logs.objects.url} died {RETRIES + 1} times ({type(error).__name__}). Where memory "
            "is short, give a smaller --num-cpus."
        ) from error
    finally:
        tree.cancel()


class _Tree:
    """Scans and merges under way on Ray.

    A task returns a word about itself and its state; the driver fetches the word only, which raises what the task
    raised.
    """

    def __init__(self, logs: Logs, settings: ScanSettings, parts: list[list[LogFile]], limit: int) -> None:
        import ray

        options = {"num_cpus": 1, "num_returns": 2, "max_retries": RETRIES}
        self._scan: Any = ray.remote(_scan_task).options(**options)
        self._merge: Any = ray.remote(_merge_task).options(**options)
        self._objects, self._settings = logs.objects, settings
        self._parts, self._left, self._limit = parts, deque(parts), limit
        self._running: dict[Any, Any] = {}
        self._finished: list[Any] = []

    def run(self, progress: Progress) -> Scanned:
        """Work until one state is left, and fetch it."""
        import ray

        done, merges = 0, max(0, len(self._parts) - 1)
        while self._left or self._running or len(self._finished) > 1:
            self._submit()
            ready, _ = ray.wait(list(self._running))
            for word in ready:
                ray.get(word)
                self._finished.append(self._running.pop(word))
                done += 1
                progress(done, len(self._parts) + merges)
        if not self._finished:
            return Scanned(state=ReducerState(self._settings.threshold))
        last: Scanned = ray.get(self._finished[0])
        return last

    def cancel(self) -> None:
        """End what is under way; a cluster that is shared would go on with it."""
        import ray

        for word in self._running:
            ray.cancel(word, force=True)

    def _submit(self) -> None:
        while len(self._finished) > 1:  # first, because a merge makes room
            word, state = self._merge.remote(self._finished.pop(), self._finished.pop())
            self._running[word] = state
        while self._left and len(self._running) < self._limit:
            word, state = self._scan.remote(self._objects, self._left.popleft(), self._settings)
            self._running[word] = state


def _scan_task(objects: ObjectStore, files: list[LogFile], settings: ScanSettings) -> tuple[None, Scanned]:
    return None, scan_files(objects, files, settings)


def _merge_task(first: Scanned, second: Scanned) -> tuple[None, Scanned]:
    first.merge(second)
    return None, first
