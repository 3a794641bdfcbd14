"""The campaign itself: it spreads kinds as it says, sees what differs, and ends with the right exit code."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import lanes
from benchmarks.chaos.campaign import LOCAL_KINDS, RAY_KINDS
from benchmarks.chaos.lanes import SHARES, mix
from benchmarks.chaos.world import difference

ROOT = Path(__file__).parents[2]


def campaign(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--store", "folder", "--keep", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
    )


def test_the_mix_follows_its_shares_from_the_beginning() -> None:
    local, on_ray = mix(100, 0.2, None)
    assert Counter(local) == {"driver": 64, "compaction": 16}
    assert {kind: count / 20 for kind, count in Counter(on_ray).items()} == SHARES
    assert set(local[:5]) == set(LOCAL_KINDS)
    assert set(on_ray) == set(RAY_KINDS)
    assert mix(3, 0.2, ["node", "driver"]) == (["driver"], ["node", "node"])
    with pytest.raises(SystemExit, match="No fault `nod`"):
        mix(3, 0.2, ["nod"])


def test_differences_are_named() -> None:
    tables = {"tables/a": "1", "tables/b": "2"}
    assert difference(tables, dict(tables)) == ""
    assert difference(tables, {"tables/a": "1", "tables/b": "3"}) == "changed: tables/b"
    assert difference(tables, {"tables/a": "1", "tables/c": "2"}) == "missing: tables/b; surplus: tables/c"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("unshare") is None, reason="util-linux is not installed")
def test_everything_on_a_cluster_may_die(tmp_path: Path) -> None:
    only = [option for kind in RAY_KINDS for option in ("--only", kind)]
    done = campaign(tmp_path, "--runs", str(len(RAY_KINDS)), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tables identical to the undisturbed run's: yes" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_differs_is_told_kept_and_costs_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = lanes.reference

    def doctored(*arguments: Any) -> tuple[dict[str, str], float]:
        tables, seconds = honest(*arguments)
        return tables | {min(tables): "0" * 64}, seconds

    monkeypatch.setattr(lanes, "reference", doctored)
    (tmp_path / "work").mkdir()
    options = argparse.Namespace(
        runs=1, storage_faults=0, ray_share=0.0, jobs=1, seed=0, store="folder", only=["compaction"], first=7,
        keep=tmp_path / "kept",
    )  # fmt: skip
    assert lanes.run_campaign(options, tmp_path / "work") == 1
    shown = capsys.readouterr().out
    assert "DIFFERENT: changed: tables/" in shown
    assert "--first 7 --only 'compaction' --store folder" in shown
    kept = tmp_path / "kept" / "seed-0-run-007"
    assert (kept / "run-007.log").is_file()
    assert list(kept.glob("run/runs/*/commits/*.json"))
    assert list(kept.glob("undisturbed/runs/*/tables/*/*/*/part-*.parquet"))
