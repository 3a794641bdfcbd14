"""Backpressure by bytes: how much finished work may wait between generation and storage. No Ray here."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields

import numpy as np

from dsprobe.experiment.evaluated import EvaluatedBatch


def batch_bytes(batch: EvaluatedBatch) -> int:
    """Bytes of a batch's arrays, which is what it takes of the object store; texts and ids are left out."""
    rows = batch.trajectories
    values = [getattr(rows, field.name) for field in fields(rows)]
    values += [*batch.fhs_B.values(), *batch.fhs_event_B.values(), *batch.tri_B.values(), batch.kl_slope_B]
    values += [state for value in values if isinstance(value, dict) for state in value.values()]
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowStats:
    """What passed through a window so far."""

    waiting_bytes: int
    """Admitted and not yet written."""
    peak_bytes: int
    """The most that ever waited."""
    batches: int
    """Written."""
    bytes: int
    """Written."""
    lag_mean_s: float
    """Seconds from admission to written, mean over batches; 0 before the first."""
    lag_max_s: float
    blocked_s: float
    """Seconds that streams waited for admission, summed over streams."""


class ByteWindow:
    """Admits batches of several streams while no more than so many bytes wait; a slow consumer blocks the producers.

    A batch larger than the whole window is admitted when nothing else waits, so that it can pass at all. What a stream
    admitted and never delivered is given back when the stream is closed. Safe to use from many threads.

    Args:
        limit: Bytes that may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: dict[str, list[tuple[int, float]]] = {}
        """Stream → size and time of admission of its batches that wait, oldest first."""
        self._peak = self._batches = self._bytes = 0
        self._lag_sum = self._lag_max = self._blocked = 0.0

    def open(self, stream: str) -> None:
        """Begin a stream."""
        with self._changed:
            self._waiting[stream] = []

    def admit(self, stream: str, size: int) -> bool:
        """Wait until a batch fits.

        Args:
            stream: An open stream.
            size: Bytes of the batch.

        Returns:
            True once it is admitted; False if the stream was closed, so that its producer can stop.
        """
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: stream not in self._waiting or self._fits(size))
            now = time.monotonic()
            self._blocked += now - began
            if stream not in self._waiting:
                return False
            self._waiting[stream].append((size, now))
            self._peak = max(self._peak, self._total())
        return True

    def written(self, stream: str) -> float:
        """Give back the bytes of a stream's oldest batch, which needs no memory any more.

        Returns:
            Seconds from its admission until now.
        """
        with self._changed:
            size, admitted = self._waiting[stream].pop(0)
            lag = time.monotonic() - admitted
            self._batches, self._bytes = self._batches + 1, self._bytes + size
            self._lag_sum, self._lag_max = self._lag_sum + lag, max(self._lag_max, lag)
            self._changed.notify_all()
        return lag

    def close(self, stream: str) -> None:
        """End a stream and give back what it never delivered."""
        with self._changed:
            self._waiting.pop(stream, None)
            self._changed.notify_all()

    def stats(self) -> WindowStats:
        """What passed so far."""
        with self._changed:
            return WindowStats(
                waiting_bytes=self._total(),
                peak_bytes=self._peak,
                batches=self._batches,
                bytes=self._bytes,
                lag_mean_s=self._lag_sum / max(self._batches, 1),
                lag_max_s=self._lag_max,
                blocked_s=self._blocked,
            )

    def _fits(self, size: int) -> bool:
        total = self._total()
        return total == 0 or total + size <= self._limit

    def _total(self) -> int:
        return sum(size for waiting in self._waiting.values() for size, _ in waiting)
