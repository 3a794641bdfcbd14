"""The cluster lab as a whole: three hosts, `ray up`, jobs, a host that is cut off, `ray down` (minutes; takes root)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.s3.rados_gateway import gateway_missing

from benchmarks.cluster_lab.__main__ import STEPS
from benchmarks.cluster_lab.hosts import CHECKOUT, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing()), reason=f"no cluster lab here: {missing()}"),
    pytest.mark.skipif(bool(gateway_missing()), reason=f"no S3 server here: {gateway_missing()}"),
]


def test_the_lab_goes_from_up_to_down(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    command = [sys.executable, "-m", "benchmarks.cluster_lab", "--logs", str(logs)]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=2900, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) < 60
    assert [line.split()[3] for line in lines] == ["lab", "file", *STEPS, "all"]
    figures = json.loads((logs / "figures.json").read_text())
    assert figures["cut"]["committed_at_cut"] < figures["cut"]["shards"]
    assert figures["cut"]["noticed_s"] > 0


def test_a_step_that_fails_fails_the_lab(tmp_path: Path) -> None:
    # Nothing can be asked of a cluster that is not up.
    command = [sys.executable, "-m", "benchmarks.cluster_lab", "--steps", "wheel", "--logs", str(tmp_path / "logs")]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)

    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert " FAIL  wheel" in ended.stdout
