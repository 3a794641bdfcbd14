"""`dsprobe trace` on real runs, in this process and on Ray; with the logs that Ray's workers write meanwhile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import ray
import yaml
from tests.command_line import dsprobe
from tests.telemetry.test_spans import check_trace

from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig

CONFIG = {
    "name": "traced",
    "models": ["toy-diffusion"],
    "prompts": [{"source": "toy", "name": "restricted", "split": "restricted", "limit": 4}],
    "decodings": [{"steps": 8, "reply_length": 42}],
    "judges": ["toy_oracle"],
    "execution": {"executor": "local", "shard_size": 2},
}


def run(folder, **execution):
    content = CONFIG | {"execution": CONFIG["execution"] | execution}
    (folder / "traced.yaml").write_text(yaml.safe_dump(content))
    code, _, err = dsprobe("run", "traced.yaml", cwd=folder)
    assert code == 0, err
    (found,) = (folder / "runs").iterdir()
    return found.name


def traced(folder, name, out="trace.json"):
    code, said, err = dsprobe("trace", name, "--out", out, "--json", cwd=folder)
    assert code == 0, err
    data = (folder / out).read_bytes()
    content = json.loads(gzip.decompress(data) if out.endswith(".gz") else data)
    check_trace(content["traceEvents"])
    slices = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert json.loads(said)["spans"] == len(slices)
    return content["traceEvents"], slices


def processes(events):
    return {
        event["pid"]: event["args"]["name"].partition(" (")[0] for event in events if event["name"] == "process_name"
    }


def test_a_local_runs_trace_shows_all_its_stages(tmp_path):
    name = run(tmp_path)
    events, slices = traced(tmp_path, name, "trace.json.gz")
    assert list(processes(events).values()) == ["driver"]
    stages = {event["cat"] for event in slices}
    assert stages == {"plan", "load", "generate", "judge", "write", "commit", "compact", "report"}
    shards = {event["args"]["shard"] for event in slices if event["cat"] == "commit"}
    assert len(shards) == 2
    written = [event["args"]["batch"] for event in slices if event["cat"] == "write"]
    assert written
    assert set(written) == {event["args"]["batch"] for event in slices if event["name"] == "generate"}


def test_gc_and_verify_know_spans(tmp_path):
    name = run(tmp_path)
    assert list((tmp_path / "runs" / name / "telemetry" / "spans").glob("*.parquet"))
    assert json.loads(dsprobe("gc", name, "--json", cwd=tmp_path)[1])["unknown"]["count"] == 0
    assert dsprobe("verify", name, cwd=tmp_path)[0] == 0


def test_a_run_without_spans_and_a_wrong_place_are_named(tmp_path):
    name = run(tmp_path)
    for file in (tmp_path / "runs" / name / "telemetry" / "spans").iterdir():
        file.unlink()
    code, _, err = dsprobe("trace", name, cwd=tmp_path)
    assert (code, "holds no spans" in err) == (1, True)
    run(tmp_path)  # nothing is missing, but planning and reporting took time
    code, _, err = dsprobe("trace", name, "--out", "no/such/folder.json", cwd=tmp_path)
    assert (code, "--out: no/such/folder.json cannot be written" in err) == (2, True)


@pytest.fixture
def private_ray(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DSPROBE_LOG", "INFO")
    monkeypatch.setenv("DSPROBE_LOG_FORMAT", "json")
    with ray_session(ExecutionConfig(), include_dashboard=False):
        yield ray._private.worker._global_node.get_session_dir_path()


def test_on_ray_arrows_lead_from_replicas_to_reducers_and_logs_tell_where(tmp_path, private_ray):
    name = run(tmp_path, executor="ray", num_cpus=0.5)
    events, slices = traced(tmp_path, name)
    known = processes(events)
    roles = {pid: what.partition(" ")[0] for pid, what in known.items()}
    assert sorted(roles.values()) == ["driver", "reducer", "replica"]
    assert "replica dsprobe:0" in known.values()
    stages = {(roles[event["pid"]], event["cat"]) for event in slices}
    assert {("replica", "load"), ("replica", "generate"), ("replica", "wait")} <= stages
    assert {("reducer", "transfer"), ("reducer", "write"), ("reducer", "commit")} <= stages
    arrows = {(event["ph"], roles[event["pid"]]) for event in events if event["ph"] in "sf"}
    assert arrows == {("s", "replica"), ("f", "reducer")}

    lines = logged(private_ray)
    assert [line["replica"] for line in lines if line["message"] == "Started"] == ["dsprobe:0"]
    begun = [line for line in lines if line["message"].startswith("Begins with 2 trajectories")]
    committed = [line for line in lines if line["message"].startswith("Committed, ")]
    assert {line["run"] for line in begun + committed} == {name}
    shards = {line["shard"] for line in begun}
    assert shards == {line["shard"] for line in committed}
    assert len(shards) == 2
    assert all("replica" in line and line["batch"] == 0 for line in begun)
    assert all("reducer" in line for line in committed)
    assert sum(line["message"].startswith("Loaded model `toy-diffusion`: ") for line in lines) == 1


def logged(session):
    """Our lines in the workers' logs."""
    found = []
    for file in Path(session, "logs").glob("worker-*.err"):
        found += [json.loads(line) for line in file.read_text().splitlines() if line.startswith('{"level"')]
    return found
