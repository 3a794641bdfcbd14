"""The run that is disturbed: 32 short trajectories in 16 shards, and how its tables are compared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from dsprobe.storage.garbage import collect
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import TABLES
from dsprobe.storage.table_index import current_files

POOL = "chaos"

CONFIG: dict[str, Any] = {
    "name": "chaos",
    "models": [{"name": "toy-diffusion"}],
    "prompts": [{"source": "toy", "limit": 4}],
    "attacks": ["direct", "prefill", "dija", "pad"],
    "decodings": [{"steps": 6}],
    "guardrails": ["none", {"name": "late", "stack": [{"name": "renoise", "window": "late"}]}],
    "recording": {"wall_seconds": False},
    "execution": {"shard_size": 2, "batch_size": 2, "replicas": 2, "num_cpus": 0.5, "pool": POOL},
}
"""Eight conditions, two shards each; without wall times, so that equal tables are equal bytes."""

SHARDS, TRAJECTORIES = 16, 32


def write_config(folder: Path) -> Path:
    """Write the configuration; JSON is YAML."""
    path = folder / "chaos.yaml"
    path.write_text(json.dumps(CONFIG, indent=1))
    return path


def run_folder(root: str) -> str:
    """The folder of the only run below an output root, which may not have begun yet (then an empty text)."""
    from dsprobe.storage.objects import ObjectStore

    manifests = [name for name in ObjectStore(root).list("runs") if name.endswith("/manifest.json")]
    return f"{root}/{manifests[0].rpartition('/')[0]}" if manifests else ""


def committed(root: str) -> int:
    """Shards that are committed below an output root."""
    folder = run_folder(root)
    return sum(name.endswith(".json") for name in RunStore.at(folder).objects.list("commits")) if folder else 0


def tables_of(root: str) -> dict[str, str]:
    """The files of a run's tables: name, made of a digest of the content, → SHA-256 of the bytes that are there.

    Raises:
        StorageError: There are no tables, or a file that their index names is missing.
    """
    objects = RunStore.at(run_folder(root)).objects
    paths = [entry["path"] for kind in TABLES for entry in current_files(objects, kind)]
    return {path: hashlib.sha256(objects.read(path)).hexdigest() for path in paths}


def sweep(root: str) -> tuple[dict[str, str], Counter[str]]:
    """Remove at once what killed processes left in a run, as `dsprobe gc` does a day later.

    Returns:
        All files that then lie among the tables, as `tables_of` gives them, and how much was removed of each kind.
    """
    store = RunStore.at(run_folder(root))
    removed = Counter({str(kind): tally.count for kind, tally in collect(store, timedelta(0)).removed.items()})
    paths = [name for name in store.objects.list("tables") if name.endswith(".parquet")]
    return {path: hashlib.sha256(store.objects.read(path)).hexdigest() for path in paths}, removed


def difference(expected: dict[str, str], found: dict[str, str]) -> str:
    """What differs between two runs' tables, in one line; empty when nothing does."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    parts = {"missing": missing, "surplus": surplus, "changed": changed}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)
