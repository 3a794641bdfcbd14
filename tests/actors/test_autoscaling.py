"""Ray's own autoscaler: a run on a cluster without workers gets them, and they go when nobody uses its pool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.actors.conftest import ROOT

NETWORK = (
    "ip link set lo up && ip link add up0 type veth peer name up1 && ip link set up1 up && ip link set up0 up && "
    'ip address add 192.0.2.1/24 dev up0 && ip route add default dev up0 && exec "$0" "$@"'
)
"""A network of its own, because the ports of a head are fixed; Ray finds its address by the default route."""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs namespaces of its own")
def test_nodes_come_for_replicas_and_go_with_the_pool(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
                   "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    alone = ["unshare", "-pfn", "--mount-proc", "--kill-child", "sh", "-c", NETWORK, sys.executable]
    command = [*alone, "-m", "tests.actors.autoscaled_run", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True,
                          timeout=600, check=False)  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    assert line is not None, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["complete"]
    assert (found["before"], found["after"], found["members"]) == (0, 0, 0)
    assert [0, 2] in found["seen"]  # the demand that the autoscaler sees
    assert any(up == 2 for up, _ in found["seen"])
    assert found["retried"] == 0
