"""`dsprobe status` on real runs: finished, under way, killed, and one whose status cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tests.command_line import dsprobe

from dsprobe.actors.executor import PoolState, Progress
from dsprobe.storage import status as status_module
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.status import driver_statuses, reporting, told
from dsprobe.sweeps.search import SearchProgress

CONFIG = """
name: watched
models: [toy-diffusion]
prompts: [{source: toy, name: restricted, split: restricted, limit: 4}]
decodings: [{steps: 8, reply_length: 42}]
judges: [toy_oracle]
execution: {executor: local, shard_size: 4}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "watched.yaml").write_text(CONFIG)
    return tmp_path


def run_id(folder):
    (run,) = (folder / "runs").iterdir()
    return run.name


def status_of(folder, *options):
    code, out, err = dsprobe("status", run_id(folder), "--json", *options, cwd=folder)
    assert not err
    return code, json.loads(out)


def test_a_finished_run_is_complete(folder):
    assert dsprobe("run", "watched.yaml", "--no-report", cwd=folder)[0] == 0
    code, found = status_of(folder)
    assert code == 0
    assert (found["state"], found["shards_done"], found["shards_total"], found["tables"]) == ("complete", 1, 1, True)
    (driver,) = found["drivers"]
    assert (driver["command"], driver["state"], driver["counts"]["trajectories_done"]) == ("run", "complete", 4)


def test_what_is_shown_names_run_progress_and_driver(folder):
    dsprobe("run", "watched.yaml", "--no-report", cwd=folder)
    code, out, _ = dsprobe("status", run_id(folder), "--svg", "shown.svg", cwd=folder)
    assert code == 0
    for words in (run_id(folder), "complete", "1 of 1 shards", "4 of 4 trajectories", "dsprobe run on"):
        assert words in out
    assert run_id(folder) in (folder / "shown.svg").read_text()


def test_a_killed_driver_is_running_at_first_and_lost_later(folder, monkeypatch):
    command = [sys.executable, "-m", "dsprobe.cli.main", "run", "watched.yaml", "--set", "samples=500"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("runs/*/status/*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, found = status_of(folder)
    assert (code, found["state"]) == (0, "running")
    assert found["drivers"][0]["pid"] == process.pid
    monkeypatch.setattr(status_module, "LOST_S", 0.0)
    code, found = status_of(folder, "--live")  # ends at once: nobody works on it
    assert (code, found["state"], found["complete"]) == (1, "lost", False)
    assert "not heard of" in dsprobe("status", run_id(folder), cwd=folder)[1]


def test_conditions_are_shown_with_their_shards_and_harm(folder):
    dsprobe("run", "watched.yaml", "--no-report", cwd=folder)
    code, found = status_of(folder)
    (name,) = found["harm"]
    assert (code, name) == (0, "toy-diffusion/restricted/direct/default")
    rate = "SELECT avg(verdict_toy_oracle::int) AS harm FROM trajectories"
    (row,) = json.loads(dsprobe("query", run_id(folder), rate, "--json", cwd=folder)[1])
    assert found["harm"][name] == row["harm"]
    assert found["drivers"][0]["conditions"] == {name: [1, 1]}
    assert found["drivers"][0]["counts"]["bytes_written"] > 0
    shown = dsprobe("status", run_id(folder), cwd=folder)[1]
    assert "harmful by toy_oracle" in shown
    assert "1 of 1" in shown
    assert f"{row['harm']:.1%}" in shown


def tell(writer, objects, progress):
    """Tell a driver's status, and wait until it is written."""
    told(writer, lambda progress: None, "work")(progress)
    while not any(status.counts for status in driver_statuses(objects) if status.state == "running"):
        time.sleep(0.05)


PROGRESS = {
    "shards_total": 10, "shards_done": 4, "shards_skipped": 0, "shards_elsewhere": 0, "shards_failed": 1, "retries": 3,
    "trajectories_total": 100, "trajectories_done": 40, "trajectories_skipped": 0, "trajectories_failed": 10,
    "elapsed_s": 20.0, "bytes_written": 2_500_000, "lag_s": 1.5,
    "reasons": {"replica lost (ActorDiedError)": 3, "bucket [red]s3://me:pa55word@b\x1b[2J is gone": 1},
    "conditions": {"a/b/c/d": (4, 10)},
    "pool": PoolState(queued=3, inflight=2, replicas_up=2, replicas_pending=1, replicas_draining=1),
}  # fmt: skip


def test_a_run_under_way_shows_replicas_rate_time_left_and_reasons(folder, monkeypatch):
    monkeypatch.setattr(status_module, "EVERY_S", 0.1)
    dsprobe("run", "watched.yaml", "--no-report", cwd=folder)
    run = folder / "runs" / run_id(folder)
    for record in (run / "commits").iterdir():
        record.unlink()
    objects = ObjectStore(str(run))
    with reporting(objects, "run") as writer:
        tell(writer, objects, Progress(**PROGRESS))
        code, shown, _ = dsprobe("status", run_id(folder), cwd=folder)
        live = subprocess.Popen(
            [sys.executable, "-m", "dsprobe.cli.main", "status", str(run), "--live", "--every", "0.2"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = live.stdout.readline()
    rest = live.communicate(timeout=60)[0]
    assert code == 0
    for words in (
        "running", "2.0/s, about 25 s left", "2 up, 1 coming up or without room, 1 on nodes about to go",
        "3 waiting, 2 handed out", "1.5 s behind", "2.5 MB", "3 attempts repeated, 1 shards failed",
        "3 x replica lost (ActorDiedError)", "1 x bucket [red]s3://…@b⟨001B⟩[2J is gone", "4 of 10",
    ):  # fmt: skip
        assert words in shown
    assert "pa55word" not in (run / "status").joinpath(f"{writer._status.driver}.json").read_text()
    assert first.startswith(f"{run_id(folder)}: running, 0 of 1 shards, 40 of 100 trajectories")
    assert "incomplete" in rest  # the driver has ended, and the shard is missing
    assert live.returncode == 1


def test_a_sweeps_status_shows_trials_and_front(folder, monkeypatch):
    monkeypatch.setattr(status_module, "EVERY_S", 0.1)
    objects = ObjectStore(str(folder / "runs" / "s"))
    objects.put("manifest.json", json.dumps(SWEEP).encode())
    progress = SearchProgress(
        trials_total=20, complete=5, stopped=2, failed=1, earlier=0, cached=0, passes_used=100,
        passes_from_scratch=400, elapsed_s=9.0, front=((0.25, 1.5), (0.5, 1.25)), hypervolume=0.375,
    )  # fmt: skip
    with reporting(objects, "sweep") as writer:
        tell(writer, objects, progress)
        code, shown, _ = dsprobe("status", "s", cwd=folder)
    assert code == 0
    for words in ("8 of 20 trials, 1/4.0 of the passes", "1 trials failed", "Front so far: 2 settings", "0.375"):
        assert words in shown
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if "│" in line]
    assert rows == [["0.25", "1.5"], ["0.5", "1.25"]]


SWEEP = {
    "run_id": "s",
    "shards": [],
    "sweep": {"search": {"sampler": {"name": "random"}}, "objectives": [{"name": "harm"}, {"name": "perplexity"}]},
}


def test_a_store_that_refuses_statuses_does_not_stop_the_run(folder):
    assert dsprobe("run", "watched.yaml", "--no-report", "--limit", "2", cwd=folder)[0] == 0
    run = folder / "runs" / run_id(folder)
    for part in ("status", "commits", "tables"):
        subprocess.run(["rm", "-r", str(run / part)], check=True)
    (run / "status").write_text("in the way")
    assert dsprobe("run", "watched.yaml", "--no-report", "--limit", "2", cwd=folder)[0] == 0
    assert len(list((run / "commits").iterdir())) == 1


def test_an_interruption_and_an_error_are_told_apart(tmp_path):
    for error, state in ((KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")):
        objects = ObjectStore(str(tmp_path / state))
        with pytest.raises(error), reporting(objects, "run"):
            raise error
        (found,) = driver_statuses(objects)
        assert (found.state, found.pid) == (state, os.getpid())


def test_a_status_that_is_none_is_named(folder):
    dsprobe("run", "watched.yaml", "--no-report", cwd=folder)
    (folder / "runs" / run_id(folder) / "status" / "odd.json").write_text('{"driver": 7}')
    code, _, err = dsprobe("status", run_id(folder), cwd=folder)
    assert code == 1
    assert "odd.json is no status" in err


def test_there_is_no_status_without_a_run(tmp_path):
    code, _, err = dsprobe("status", "nothing", cwd=tmp_path)
    assert code == 1
    assert "No run at `nothing`" in err


def test_garbage_collection_leaves_statuses_alone(folder):
    dsprobe("run", "watched.yaml", "--no-report", cwd=folder)
    code, out, _ = dsprobe("gc", run_id(folder), "--json", cwd=folder)
    assert code == 0
    assert json.loads(out)["unknown"]["count"] == 0
