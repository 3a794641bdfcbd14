"""The light half of the actors' test world: the log, a store, and the hook that Ray workers run first.

Reducers import this and no torch, as in real life.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
import types
import uuid
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from dsprobe.decoding.records import TrajectoryBatch
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.storage.reducer import ReducerState

LOG = "ACTOR_WORLD_LOG"


def log(event: str, *values: object) -> None:
    path = os.environ.get(LOG)
    if path:
        with Path(path).open("a") as file:
            file.write(" ".join(map(str, (event, os.getpid(), *values))) + "\n")


def events(kind: str) -> list[list[str]]:
    """Logged lines of one kind, as ``[pid, *values]``."""
    path = Path(os.environ[LOG])
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1:] for line in lines if line.startswith(kind + " ")]


@dataclass
class FileStore:
    """A store of one file per commit that holds a digest of what was added; slow or refusing on demand."""

    folder: Path
    add_seconds: float = 0.0
    refusals: int = 0
    """How many commits are refused before the first is accepted."""

    @property
    def url(self) -> str:
        return str(self.folder)

    def committed(self) -> dict[str, Any]:
        return {p.stem: json.loads(p.read_text()) for p in sorted(self.folder.glob("*.json"))}

    def committed_ids(self) -> set[str]:
        return set(self.committed())

    def is_committed(self, shard_id: str) -> bool:
        return (self.folder / f"{shard_id}.json").exists()

    def open_attempt(self, shard_id: str) -> FileWriter:
        log("attempt", shard_id)
        return FileWriter(self, shard_id)


@dataclass
class FileWriter:
    store: FileStore
    shard_id: str
    digests: list[str] = field(default_factory=list)
    state: ReducerState = field(default_factory=lambda: ReducerState(0.5))
    bytes_written: dict[str, int] = field(default_factory=dict)

    def add(self, batch: EvaluatedBatch) -> None:
        time.sleep(self.store.add_seconds)
        digest = hashlib.sha256(repr((batch.condition, batch.texts, batch.prompts)).encode())
        for part in fields(TrajectoryBatch):
            value = getattr(batch.trajectories, part.name)
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        self.digests.append(digest.hexdigest())
        self.state.update(batch)
        log("add", self.shard_id)

    def commit(self) -> bool:
        marks = list(self.store.folder.glob("refused-*"))
        if len(marks) < self.store.refusals:
            (self.store.folder / f"refused-{uuid.uuid4().hex}").touch()
            raise ConnectionError("bucket is on holiday")
        draft = self.store.folder / f"draft-{uuid.uuid4().hex}"
        draft.write_text(json.dumps(self.digests))
        try:  # a link appears whole or not at all, so a reader never meets half a record
            (self.store.folder / f"{self.shard_id}.json").hardlink_to(draft)
        except FileExistsError:
            return False
        return True

    def abort(self) -> None:
        log("abort", self.shard_id)


def install() -> None:
    """Put the scripted runner and loader where a worker would import the real ones, on first use."""
    for name, attribute, stand_in in (
        ("dsprobe.experiment.shard", "ShardRunner", "ScriptedRunner"),
        ("dsprobe.models.load", "load_model", "scripted_model"),
    ):
        module: Any = types.ModuleType(name)
        module.__getattr__ = _lazy(attribute, stand_in)
        sys.modules[name] = module


def _lazy(attribute: str, stand_in: str) -> Any:
    def get(name: str) -> Any:
        if name != attribute:
            raise AttributeError(name)
        return getattr(importlib.import_module("tests.actors.actor_world"), stand_in)

    return get
