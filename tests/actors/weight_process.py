"""Processes that fetch weights, forked from a server that has imported what they need, so that they begin at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from dsprobe.actors.weights import WeightCache
from dsprobe.errors import DSProbeError
from dsprobe.storage import downloading

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class Fetcher:
    """A process that fetches a URL into a cache folder, in this process's environment.

    Args:
        url: What to fetch.
        cache: Where to.
        part_bytes: Bytes of a request; those of the program unless given.
    """

    def __init__(self, url: str, cache: Path, part_bytes: int = downloading.PART_BYTES) -> None:
        self._end, other = FORKS.Pipe()
        self.process = FORKS.Process(target=_fetch, args=(url, cache, part_bytes, dict(os.environ), other), daemon=True)
        self.process.start()
        other.close()

    def folder(self) -> Path:
        """Where the weights are; the process lives on with them."""
        assert self._end.poll(120), "no answer"
        answer = self._end.recv()
        assert isinstance(answer, Path), answer
        return answer

    def finish(self) -> Path:
        """Where the weights are; the process has ended."""
        folder = self.folder()
        self._end.close()
        self.process.join(60)
        return folder

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.join(60)


def _fetch(url: str, cache: Path, part_bytes: int, environment: Mapping[str, str], end: Connection) -> None:
    os.environ.update(environment)
    downloading.PART_BYTES = part_bytes
    try:
        end.send(WeightCache(cache).fetch(url).folder)
        end.poll(None)  # until the other end is closed
    except (DSProbeError, OSError) as error:
        end.send(repr(error))
