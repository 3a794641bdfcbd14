"""From no weights on the machine to the first step: what each stage of a replica's start takes a gigabyte.

Run as ``python -m benchmarks.replica_start [--layers 6] [--cpus 2]``. The model is random, about 1 GB in float32, made
here and put on an S3 server on this machine: Ceph's RADOS Gateway in memory where it is installed, otherwise moto's
server; the figures name it. So the network costs nothing, and server and client share the cores. Files were written a
moment ago and come from memory. Every stage is a fresh process; the two replicas are Ray actors on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.s3.rados_gateway import S3Server, s3_server

from benchmarks.common import show

POSITIONS = 64
"""Of the row that is decoded for one step."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="0.15 GB each")
    parser.add_argument("--cpus", type=int, default=2, help="of both replicas together")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        import dsprobe.actors  # noqa: F401  it reaches URLs

        print(json.dumps(STAGES[arguments.stage](arguments.path)))
        return
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        path = _write_model(Path(folder) / "model", arguments.layers)
        gigabytes = sum(file.stat().st_size for file in path.iterdir()) / 1e9
        url = _upload(server, path)
        with mock.patch.dict(os.environ, {**server.environment(), "DSPROBE_WEIGHTS": f"{folder}/one"}):
            facts = {"store": server.name, "gigabytes": gigabytes}
            show("replica_start", {"stage": "plan", **facts, **_measure("plan", url)})
            for stage, place in (("fetch", url), ("load_url", url), ("load_folder", str(path))):
                show("replica_start", {"stage": stage, **facts, **_per_gb(_measure(stage, place), gigabytes)})
            os.environ["DSPROBE_WEIGHTS"] = f"{folder}/two"
            show("replica_start", {"stage": "two_replicas", **facts, **two_replicas(url, arguments.cpus, gigabytes)})


def plan(url: str) -> dict[str, float]:
    """Look at a URL as a plan does."""
    from dsprobe.models.checkpoint import inspect_checkpoint

    return _seconds(lambda: inspect_checkpoint(_config(url)))


def fetch(url: str) -> dict[str, float]:
    """Fetch it into an empty cache, sums and all."""
    from dsprobe.actors.weights import WeightCache

    return _seconds(lambda: WeightCache().fetch(url))


def load(path: str) -> dict[str, float]:
    """Load it from this machine's disk, and take the first step."""
    from dsprobe.models.load import load_model

    models: list[Any] = []
    figures = _seconds(lambda: models.append(load_model(_config(path))))
    return figures | {"first_step_s": _seconds(lambda: first_step(models[0]))["s"]}


STAGES = {"plan": plan, "fetch": fetch, "load_url": load, "load_folder": load}


def two_replicas(url: str, cpus: int, gigabytes: float) -> dict[str, Any]:
    """A pool of two replicas on one machine that has nothing yet."""
    import ray

    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.actors.session import ray_session
    from dsprobe.config import ExecutionConfig

    execution = ExecutionConfig(replicas=2, threads=max(1, cpus // 2), address="local")
    with ray_session(execution, include_dashboard=False):
        began = time.perf_counter()
        pool = ReplicaPool.get_or_create("start", execution, room_limit_s=60)
        up = time.perf_counter()
        waiting = [pool.submit(_config(url), first_step) for _ in pool.replicas]
        done = []
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=600)
            done += [time.perf_counter() - up for _ in ray.get(ready)]
    copies = [entry for entry in Path(os.environ["DSPROBE_WEIGHTS"]).iterdir() if entry.is_dir() and not entry.suffix]
    return {
        "actors_up_s": up - began,
        "first_steps_s": [round(seconds, 2) for seconds in done],
        "last_s_per_gb": done[-1] / gigabytes,
        "copies": len(copies),
    }


def first_step(model: Any) -> float:
    """One forward pass over a row of masks; runs beside the model."""
    import torch

    tokens_BL = torch.full((1, POSITIONS), model.info.mask_token_id)
    with torch.inference_mode():
        return float(model.head(model.hidden(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))).sum())


def _seconds(function: Callable[[], Any]) -> dict[str, float]:
    """Wall seconds, and CPU seconds of this process: on a machine that others use the second says more."""
    began, worked = time.perf_counter(), time.process_time()
    function()
    return {"s": time.perf_counter() - began, "cpu_s": time.process_time() - worked}


def _measure(stage: str, path: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.replica_start", "--stage", stage, "--path", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _per_gb(figures: dict[str, float], gigabytes: float) -> dict[str, float]:
    return figures | {"s_per_gb": figures["s"] / gigabytes, "mb_per_s": 1e3 * gigabytes / figures["s"]}


def _config(path: str) -> Any:
    from dsprobe.config import ModelConfig

    return ModelConfig(name="random", path=path, device="cpu")


def _write_model(folder: Path, layers: int) -> Path:
    from dsprobe.models.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(folder, "dream", vocab_size=4096, hidden_size=2048, num_layers=layers)


def _upload(server: S3Server, folder: Path) -> str:
    """In parts of 8 MiB, as command-line clients do."""
    bucket, client = server.new_bucket(), server.client()
    for file in folder.iterdir():
        client.upload_file(str(file), bucket, f"models/random/{file.name}")
    return f"s3://{bucket}/models/random"


if __name__ == "__main__":
    main()
