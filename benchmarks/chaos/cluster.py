"""A Ray cluster on one machine whose worker nodes can be killed whole: each lives in a PID namespace of its own.

The head carries no replica. Health checks find a dead node sooner than by default, and leave one that waits for a core
in peace.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.processes import RAYLET, REPLICA, kill, matching

NODES = 2

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_LOGGER_LEVEL": "ERROR",
}
_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}
_STORE_BYTES = 100 * 2**20
_START_ATTEMPTS = 4
_START_LIMIT_S = 60.0


class Cluster:
    """A head and `NODES` worker nodes of one CPU each; from `cluster`.

    Args:
        environment: Variables for every process of the cluster, and so for replicas and reducers.
        folder: Ray's temporary folder; short.
    """

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = RAY_ENVIRONMENT | environment
        self._ray = str(Path(sys.executable).with_name("ray"))
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        port, client = _free_port(), _free_port()
        self._start("--head", f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=0",
                    "--include-dashboard=false", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1",
                    f"--system-config={json.dumps(_HEALTH)}")  # fmt: skip
        self.address = f"127.0.0.1:{port}"
        for index in range(NODES):
            self.start_node(f"127.0.0.{index + 2}")

    @property
    def nodes(self) -> list[str]:
        """Addresses of the worker nodes, sorted."""
        return sorted(self._nodes)

    def raylet(self, node: str) -> list[int]:
        """Process id of a worker node's raylet, if it runs."""
        return matching(RAYLET, f"--node_ip_address={node}")

    def start_node(self, node: str) -> None:
        """Start a worker node, or start it again; ready on return.

        Raises:
            RuntimeError: It did not come up.
        """
        for _ in range(_START_ATTEMPTS):
            self.kill_node(node)
            self._nodes[node] = self._node_process(node)
            # Two nodes that start at once trip over each other's files, so this one is waited for.
            output = self._nodes[node].stdout
            assert output is not None
            ready, _, _ = select.select([output], [], [], _START_LIMIT_S)  # `ray start` may wait for ever
            if ready and output.readline() == b"up\n":
                return
        self.close()
        raise RuntimeError(f"Ray node {node} did not come up in {_START_ATTEMPTS} attempts.")

    def _node_process(self, node: str) -> subprocess.Popen[bytes]:
        ray = f"'{self._ray}' start --address={self.address} --num-cpus=1 --object-store-memory={_STORE_BYTES}"
        # The shell is the node's init: it outlives a killed raylet and buries orphans.
        script = f"{ray} --node-ip-address={node} >/dev/null 2>&1 && echo up || exit; while sleep 1; do :; done"
        return subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill_node(self, node: str) -> None:
        """Kill every process of a worker node at one blow."""
        process = self._nodes.pop(node, None)
        if process is not None:
            process.kill()  # and with it, by --kill-child, the namespace's init, and with that everything in it
            process.wait()

    def mend(self) -> None:
        """Start again what faults have killed, and end the pool, so that each run begins as the first did."""
        for pid in matching(REPLICA):
            kill(pid)
        for index in range(NODES):
            node = f"127.0.0.{index + 2}"
            if node not in self._nodes or not self.raylet(node):
                self.start_node(node)

    def close(self) -> None:
        """End all nodes; and of the head's processes those that name its folder, which all of them do."""
        for node in self.nodes:
            self.kill_node(node)
        for pid in matching(str(self._folder)):
            kill(pid)

    def _start(self, *options: str) -> None:
        done = subprocess.run(
            [self._ray, "start", f"--object-store-memory={_STORE_BYTES}", *options],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.close()
            raise RuntimeError(f"The Ray head did not start:\n{done.stdout}{done.stderr}")


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    """Start a cluster, and end it.

    Raises:
        RuntimeError: It did not come up; Ray gives its processes half a minute, which a loaded machine may exceed.
    """
    with tempfile.TemporaryDirectory(prefix="dspc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for attempt in range(_START_ATTEMPTS):  # short paths: a socket's has 107 bytes
            try:
                started = Cluster(environment, Path(folder) / str(attempt))
                break
            except RuntimeError:
                if attempt == _START_ATTEMPTS - 1:
                    raise
        try:
            yield started
        finally:
            started.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
