"""A private Ray head with its job server and token authentication, as `ray start` makes it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
STARTING_S = 120.0


@dataclass(frozen=True)
class JobCluster:
    """How to reach it."""

    address: str
    token: Path

    @property
    def env(self):
        """What a user of this cluster has in the environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "RAY_ADDRESS": self.address}


def dsprobe_env(**more):
    """This process's environment, without what tests of other modules set for Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, **quiet, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1", **more}


def command(*arguments, cwd, env):
    """A finished `dsprobe` command in a process of its own, since Ray keeps the first token that it reads."""
    return subprocess.run(
        [BIN / "dsprobe", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, env=dsprobe_env(**env), check=False, timeout=240,
    )  # fmt: skip


@contextmanager
def job_cluster(*options):
    """Start a head, with more options of `ray start`, in a process namespace where allowed; ends all its processes."""
    with tempfile.TemporaryDirectory(prefix="dsj-", dir="/tmp") as folder:
        token = Path(folder, "token")
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        cluster = JobCluster(address=f"http://127.0.0.1:{free_port()}", token=token)
        alone = os.geteuid() == 0 and shutil.which("unshare")
        start = [*(["unshare", "-pf", "--mount-proc", "--kill-child"] if alone else []), BIN / "ray", "start", "--head",
                 "--block", "--port=0", f"--dashboard-port={cluster.address.rpartition(':')[2]}",
                 f"--temp-dir={folder}/r", "--num-cpus=4", "--object-store-memory=100000000", *options]  # fmt: skip
        # Ray's client server forks beside gRPC's threads, whose own handlers of forks end the child now and then.
        env = dsprobe_env(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), GRPC_ENABLE_FORK_SUPPORT="0")
        with Path(folder, "head.log").open("w") as log:
            head = subprocess.Popen(start, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True)  # fmt: skip
        try:
            _wait_for(cluster, head, Path(folder, "head.log"))
            yield cluster
        finally:
            head.send_signal(signal.SIGKILL if alone else signal.SIGTERM)
            head.wait(60)


def free_port():
    """A port that nothing listens on, outside Ray's worker ports (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10_002 <= port <= 19_999:
            return port


def _wait_for(cluster, head, log):
    deadline = time.monotonic() + STARTING_S
    port = int(cluster.address.rpartition(":")[2])
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"no dashboard after {STARTING_S:.0f} s: {log.read_text()}")


def wait_until(condition, seconds=120.0):
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.3)
