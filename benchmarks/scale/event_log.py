"""What happened when, written by many processes and read after the run: one file of JSON lines a process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

GENERATED: Final = "generated"
"""A replica worked on a batch of `bytes` from `start` to `end`."""
DROPPED: Final = "dropped"
"""It worked from `start` to `end` and was told to stop."""
ADMITTED: Final = "admitted"
"""It waited with a batch of `bytes` from `start` to `end`, until it could hand it over."""
WRITTEN: Final = "written"
"""A reducer wrote a batch, `emitted` by its replica at that time, from `start` to `end` with `cpu` seconds."""
COMMITTED: Final = "committed"
"""A reducer committed an attempt from `start` to `end`."""

Event = dict[str, Any]

_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class EventLog:
    """A folder of events; picklable.

    Args:
        folder: Exists.
        epoch: Time zero of all events, in epoch seconds.
    """

    folder: str
    epoch: float

    def now(self) -> float:
        """Seconds since time zero; the same clock in all processes of a machine."""
        return time.time() - self.epoch

    def add(self, kind: str, **values: Any) -> None:
        """Append an event to this process's file; threads take turns."""
        line = json.dumps({"kind": kind, **values}) + "\n"
        with _LOCK, (Path(self.folder) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(line)

    def read(self) -> dict[str, list[Event]]:
        """Events by kind, in order of their ends; a line that is being written is left out."""
        events: dict[str, list[Event]] = defaultdict(list)
        for path in Path(self.folder).glob("*.jsonl"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    event = json.loads(line)
                    events[event.pop("kind")].append(event)
        for listed in events.values():
            listed.sort(key=lambda event: float(event["end"]))
        return events

    def clear(self) -> None:
        """Forget what happened; nobody may be writing."""
        for path in Path(self.folder).glob("*.jsonl"):
            path.unlink()
