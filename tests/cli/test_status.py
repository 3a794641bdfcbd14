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

from dsprobe.storage import status as status_module
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.status import driver_statuses, reporting

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
