"""The scale benchmark stays runnable and honest: a tiny run of all suites, and the arithmetic behind its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale.case import Case
from benchmarks.scale.cluster import can_enclose
from benchmarks.scale.extrapolate import Assumptions, Projection, lines
from benchmarks.scale.figure import draw, scale_data
from benchmarks.scale.figures_of import Span, waiting
from benchmarks.scale.table import tables
from benchmarks.scale.work import ModelledGpu, Work, batches_of, simulated_shards

ROOT = Path(__file__).parents[1]
# A batch of more than 100 kB: Ray keeps smaller ones out of its object store.
SHAPE = ["--rows", "8", "--steps", "16", "--length", "32", "--prompt-length", "32", "--step-ms", "25"]
TINY = [*SHAPE, "--replicas", "1,2", "--seconds", "3", "--nodes", "1"]
WORK = Work(rows=4, steps=8, length=16, prompt_length=8, step_ms=10.0)

enclosed = pytest.mark.skipif(not can_enclose(), reason="needs root for a process namespace")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("scale") / "scale.json"
    command = [sys.executable, "-m", "benchmarks.scale", *TINY, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    assert done.stdout.strip() == tables(result)
    return result


@enclosed
@pytest.mark.slow
@pytest.mark.timeout(600)  # of which the first one spends most in the fixture
def test_replicas_scale_and_everything_is_measured(figures: dict[str, Any], tmp_path: Path) -> None:
    one, two = figures["scaling"]
    for case in (one, two):
        assert 0.5 < case["efficiency"] <= 1.01
        assert 0 <= case["lag_s"]["p50"] <= case["lag_s"]["max"]
        assert case["object_store_mb_per_s"] >= 0.9 * case["written_mb_per_s"]
        assert case["spilled_mb"] == 0
        assert case["cpu_s_per_batch"]["reducers"] >= 0.5 * case["writer_cpu_s_per_batch"]["add"]
    assert two["trajectories_per_s"] > 1.3 * one["trajectories_per_s"]
    draw(scale_data(figures), tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert len(lines(figures, Assumptions())) > 15


@enclosed
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_store_slows_generation_within_its_window(figures: dict[str, Any]) -> None:
    fast, slow = figures["store"]
    assert slow["trajectories_per_s"] < 0.75 * slow["modelled_trajectories_per_s"]
    assert slow["waited_for_reducer"] > 0.1
    for case in (fast, slow):
        assert 0 < case["window_peak_mb"] <= case["window_mib"] * 2**20 / 1e6
    for role in ("reducers", "replicas", "driver"):
        assert slow["memory_mib"][f"{role}_own"] < 1.25 * fast["memory_mib"][f"{role}_own"]


@enclosed
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_is_flat_over_fifty_times_the_data(figures: dict[str, Any]) -> None:
    small, large = figures["memory"]
    assert large["shards"] == 50 * small["shards"]
    # Merged statistics fill up with the float16 values that occur, of which there are 15 thousand in [0, 1].
    for role, filling_up_mib in {"reducers": 64, "replicas": 0, "driver": 0}.items():
        assert large["memory_mib"][f"{role}_own"] < 1.25 * small["memory_mib"][f"{role}_own"] + filling_up_mib
    assert large["object_store_peak_mb"] < 32


def test_the_modelled_gpu_is_two_flop_a_weight_and_token() -> None:
    gpu = ModelledGpu(parameters=1e9, layers=0, flops=1e12, share=0.5)
    assert gpu.step_ms(rows=2, tokens=10) == pytest.approx(2 * 1e9 * 20 / 0.5e12 * 1e3)
    assert ModelledGpu().step_ms(2, 256) == pytest.approx(2 * ModelledGpu().step_ms(1, 256))
    assert ModelledGpu().step_ms(1, 256) > ModelledGpu(layers=0).step_ms(1, 256)


def test_shards_hold_real_batches_of_every_row_once() -> None:
    shards = simulated_shards("run", WORK, count=5, batches=3, per_condition=2)
    assert [shard.condition.attack for shard in shards] == ["attack-000"] * 2 + ["attack-001"] * 2 + ["attack-002"]
    batches = [batch for shard in shards[:2] for batch in batches_of(shard)]
    keys = [key.prompt_id for batch in batches for key in batch.trajectories.keys]
    assert len(set(keys)) == len(keys) == 2 * 3 * WORK.rows
    assert all((batch.trajectories.num_steps_B == WORK.steps).all() for batch in batches)
    seconds = [WORK.seconds(shards[0].id, number) for number in range(200)]
    assert seconds == [WORK.seconds(shards[0].id, number) for number in range(200)]
    assert sum(seconds) / 200 == pytest.approx(WORK.batch_s, rel=0.05)


def test_more_time_means_more_shards_than_can_be_done() -> None:
    case = Case(name="x", replicas=3, work=WORK, seconds=10.0)
    fastest = 10.0 / (case.batches_per_shard * WORK.batch_s * (1 - WORK.jitter))
    assert case.num_shards >= 3 * fastest


def test_only_what_lies_in_the_steady_part_counts() -> None:
    span = Span(10.0, 20.0)
    assert [span.part({"start": a, "end": b}) for a, b in ((5, 12), (12, 13), (19, 30), (1, 2), (0, 40))] == [
        2,
        1,
        1,
        0,
        10,
    ]
    made = [{"end": at, "bytes": 1e6} for at in (5.0, 11.0, 12.0)]
    done = [{"end": at, "bytes": 1e6} for at in (10.0, 14.0, 25.0)]
    # 1 until 10 s, 0 until 11 s, 1 until 12 s, 2 until 14 s, 1 from there on.
    assert waiting({"generated": made, "written": done}, span) == pytest.approx({"mean": (1 + 4 + 6) / 10, "peak": 2.0})


def test_the_extrapolation_adds_up() -> None:
    """Against the same numbers worked out by hand."""
    case = {
        "replicas": 4, "reducers": 2, "window_mib": 256, "batch_mb": 5.0, "written_mb_per_s": 10.0,
        "object_store_mb_per_s": 20.0, "memory_mib": {"reducers_own": 400.0},
        "cpu_s_per_batch": {"reducers": 0.1, "replicas": 0.01, "ray": 0.02, "driver": 0.004},
    }  # fmt: skip
    figures = {
        "scaling": [case | {"replicas": 1}, case],
        "settings": {"work": {"rows": 10, "steps": 50, "length": 100, "step_ms": 100.0}},
        "plan": {"bytes_per_trajectory": 100.0, "pickled_bytes_per_trajectory": 20.0},
        "stored": {
            "shards": 10,
            "trajectories": 200,
            "files": 50,
            "bytes": {"positions.parquet": 6000, "steps.parquet": 4000},
        },
        "compaction": {"cpu_s": 1.0},
    }
    projected = Projection(figures, Assumptions(log_tb=1.2, row_bytes=24.0, gpus=8, shard_size=40))
    assert projected.trajectories == pytest.approx(1e7)  # 1.2 TB / (24 B × 50 × 100)
    assert projected.batches_per_s == pytest.approx(8 / 5)  # 5 s a batch
    assert projected.seconds == pytest.approx(1e7 / 16)
    assert projected.reducers == pytest.approx(4)
    assert projected.cores("reducers") == pytest.approx(0.16)
    assert projected.created_bytes == pytest.approx(1.6 * 5e6 * 2)
    assert projected.shards == pytest.approx(2.5e5)
    assert projected.puts == pytest.approx(1.5e6)
    assert projected.shard_bytes == pytest.approx(2.5e5 * 600 + 1e7 * 20)
    assert projected.compaction_s == pytest.approx(projected.shard_bytes / 10_000)
