"""Latency of `put_if_absent` on a local disk and on S3, and the commit protocol's share of a run.

Run as ``python -m benchmarks.commit_latency [--commits 200] [--limit 4] [--folder .]``. The run is the demo with the
first ``limit`` prompts of each set, in one process. S3 is Ceph's RADOS Gateway in memory on this machine where it is
installed, otherwise moto's server; the figures name it. A local figure is that of the folder's disk: temporary folders
in memory sync in no time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tests.s3.rados_gateway import s3_server

from benchmarks.common import show
from dsprobe.actors.executor import execute
from dsprobe.cli.options import load
from dsprobe.cli.running import shorthands
from dsprobe.config import S3Config
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import Plan, resolve
from dsprobe.storage.compaction import compact
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.run_store import RunStore

RECORD = os.urandom(2048)
"""About as long as a commit record."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the local runs lie")
    parser.add_argument("--limit", type=int, default=4, help="prompts of each set of the demo")
    arguments = parser.parse_args()
    config = load("demo", shorthands(arguments.limit, None, "local", "demo", None)).config
    with tempfile.TemporaryDirectory(dir=arguments.folder.resolve()) as folder, s3_server() as server:
        settings = S3Config(endpoint_url=server.url, region="us-east-1")
        places = {"local disk": (folder, None), server.name: (f"s3://{server.new_bucket()}/bench", settings)}
        with mock.patch.dict(os.environ, server.environment()):
            for place, (root, s3) in places.items():
                show("commit_latency", {"store": place, **latency(ObjectStore(f"{root}/puts", s3), arguments.commits)})
            for place, (root, s3) in places.items():
                show("commit_overhead", {"store": place, **overhead(resolve(config), root, s3)})


def latency(store: ObjectStore, commits: int) -> dict[str, float]:
    """Milliseconds of one commit: the winner's, and that of another that comes too late."""
    store.probe()  # pools, connections
    names = [f"commits/{number:05d}.json" for number in range(commits)]
    won = [_milliseconds(partial(store.put_if_absent, name, RECORD)) for name in names]
    lost = [_milliseconds(partial(store.put_if_absent, name, RECORD[::-1])) for name in names]
    return {
        "commits": commits,
        "median_ms": float(np.median(won)),
        "p95_ms": float(np.quantile(won, 0.95)),
        "second_median_ms": float(np.median(lost)),
        "second_p95_ms": float(np.quantile(lost, 0.95)),
    }


def overhead(plan: Plan, root: str, s3: S3Config | None) -> dict[str, float]:
    """Seconds of a run, tables included, and the parts of them that the protocol takes.

    ``commit``: probe, manifest, commit records and the index of the tables. ``sync``: making the names and contents of
    all other local files durable.
    """
    _run(plan, f"{root}/warm", s3)  # the model is loaded, code imported
    inside: list[str] = []
    with _timed(ObjectStore, "put_if_absent", inside) as commits, _timed(os, "fsync", inside) as syncs:
        begin = time.perf_counter()
        _run(plan, f"{root}/measured", s3)
        total = time.perf_counter() - begin
    return {
        "run_s": total,
        "shards": len(plan.shards),
        "commit_s": sum(commits),
        "commit_share": sum(commits) / total,
        "syncs": len(syncs),
        "sync_s": sum(syncs),
        "sync_share": sum(syncs) / total,
    }


def _run(plan: Plan, root: str, s3: S3Config | None) -> None:
    store = RunStore(root, plan.run_id, s3=s3)
    store.write_manifest(build_manifest(plan, {}))
    execute(plan, store, progress=lambda progress: None).raise_if_incomplete()
    compact(store)


@contextmanager
def _timed(owner: Any, name: str, inside: list[str]) -> Iterator[list[float]]:
    """Seconds of each call of a function while the block lasts, calls inside another timed function left out."""
    seconds: list[float] = []
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        inside.append(name)
        begin = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            inside.pop()
            if not inside:
                seconds.append(time.perf_counter() - begin)

    with mock.patch.object(owner, name, timed):
        yield seconds


def _milliseconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
