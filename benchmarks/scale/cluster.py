"""A Ray cluster of several nodes on this machine, each with its own object store, in a process namespace of its own.

Nodes talk over loopback, so batches that change nodes are really copied; cores and memory bandwidth are shared.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

ENCLOSED: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
)
"""When the caller or the command ends, however it ends, so does every process that came of it."""


def can_enclose() -> bool:
    """Whether this user may make process namespaces; it takes root or its like."""
    try:
        return subprocess.run([*ENCLOSED, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def run_enclosed(arguments: Sequence[str], **variables: str) -> int:
    """Run this benchmark again as the first process of a new namespace, in a temporary folder that is then removed.

    Args:
        arguments: Of `python -m benchmarks.scale`.
        variables: Further environment variables.

    Returns:
        Its exit status.
    """
    if not can_enclose():
        sys.exit("`unshare --pid --mount-proc` is not allowed here: run as root, or in a container that may.")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the folder is removed
    # Socket paths below this folder must stay under 108 bytes.
    with tempfile.TemporaryDirectory(prefix="dsp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_TMPDIR": folder,
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",  # which workers inherit: 64 processes must not think that each has every core
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **variables,
        }
        command = [*ENCLOSED, sys.executable, "-m", "benchmarks.scale", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


@contextmanager
def cluster(nodes: int, gpus_per_node: int, store_mib: int) -> Iterator[None]:
    """Start nodes and connect to them; only inside `run_enclosed`.

    Args:
        nodes: Nodes with GPUs, beside a head without.
        gpus_per_node: GPUs that each claims to have.
        store_mib: MiB of each node's object store.
    """
    from ray.cluster_utils import Cluster

    from dsprobe.actors.session import ray_session
    from dsprobe.config import ExecutionConfig

    memory = store_mib << 20
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False},
    )
    for _ in range(nodes):
        made.add_node(wait=False, num_cpus=1, num_gpus=gpus_per_node, object_store_memory=memory)
    made.wait_for_nodes()
    try:
        with ray_session(ExecutionConfig(address=made.address)):
            yield
    finally:
        made.shutdown()  # type: ignore[no-untyped-call]
