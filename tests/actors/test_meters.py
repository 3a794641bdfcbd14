"""Metrics of a real run, read over HTTP from the port that Prometheus scrapes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dsprobe.actors.executor import execute
from dsprobe.actors.session import ray_session
from dsprobe.config import RunConfig
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.registry import validated
from dsprobe.storage.run_store import RunStore
from dsprobe.telemetry import metrics as catalogue

VISIBLE_LIMIT_S = 60
DIJA = {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}
PROMETHEUS = Path(__file__).parents[2] / "docs" / "cluster" / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((PROMETHEUS.parents[1] / "grafana" / "dsprobe.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
# No fault, no deferred judge, no sweep.
NOT_HERE = {catalogue.FAULTS_RETRIED, catalogue.VERDICTS, catalogue.TRIALS, catalogue.SWEEP_PASSES}
HERE = [metric.exported for metric in catalogue.CATALOGUE if metric not in NOT_HERE]
RENOISE = {"name": "renoise", "scorer": "toy_lexicon", "threshold": 0.3}


def config(root, **execution):
    return validated(
        RunConfig,
        {
            "models": ["toy-diffusion"],
            "prompts": [{"source": "toy", "name": "restricted", "split": "restricted", "limit": 8}],
            "attacks": [
                "direct",
                {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6},
            ],
            "decodings": [{"steps": 16, "reply_length": 42}],
            "guardrails": [
                {"name": "early", "stack": [{"name": "renoise", "scorer": "toy_lexicon", "threshold": 0.3}]}
            ],
            "risk": {"scorer": "toy_lexicon"},
            "judges": ["toy_oracle"],
            "output": {"root": str(root)},
            "execution": {"replicas": 1, "shard_size": 8, **execution},
        },
        "test",
    )


def scraped():
    """Own metrics as ``{name: {tags: value}}``, of all nodes."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_dsprobe"):
                    tags = tuple(sorted((k, v) for k, v in sample.labels.items() if k in OWN_TAGS))
                    values = found.setdefault(sample.name, {})
                    values[tags] = values.get(tags, 0.0) + sample.value
    return found


OWN_TAGS = {tag for metric in catalogue.CATALOGUE for tag in metric.tags}


def settled(found, plan):
    """Whether the last words of every process have arrived."""
    run = ("run", plan.run_id)
    trajectories = sum(found.get(catalogue.TRAJECTORIES.exported, {}).values())
    return (
        trajectories >= sum(len(shard.rows) for shard in plan.shards)
        and found.get(catalogue.SHARDS_COMMITTED.exported, {}).get((run,)) == len(plan.shards)
        and found.get(catalogue.REPLICAS.exported, {}).get((run, ("state", "up"))) == 0
    )


@pytest.fixture(scope="module", name="run")
def fixture_run(tmp_path_factory):
    """Metrics after a run, and what the run really did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        plan = resolve(config(tmp_path_factory.mktemp("run")))
        store = RunStore(plan.config.output.root, plan.run_id)
        store.write_manifest(build_manifest(plan, {}))
        with (
            ray_session(plan.config.execution, include_dashboard=False),
            prometheus(tmp_path_factory.mktemp("prometheus")) as address,
        ):
            report = execute(plan, store, progress=lambda progress: None)
            assert report.complete
            deadline = time.monotonic() + VISIBLE_LIMIT_S
            found = {}
            while not settled(found, plan):
                assert time.monotonic() < deadline, found
                time.sleep(0.5)
                for name, values in scraped().items():
                    found.setdefault(name, {}).update(values)
            time.sleep(2)  # one more scrape
            answers = None if address is None else {query: series(address, query) for query in QUERIES}
    return plan, store, found, answers


@contextmanager
def prometheus(folder):
    """The address of a real Prometheus that scrapes Ray every second; `None` where it is not installed."""
    if shutil.which("prometheus") is None:
        yield None
        return
    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    (folder / "nodes.json").write_text(json.dumps([{"targets": nodes}]))
    configured = yaml.safe_load(PROMETHEUS.read_text())
    configured["global"] = {"scrape_interval": "1s"}
    configured["rule_files"] = [str(PROMETHEUS.parent / "rules.yml")]
    configured["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(folder / "nodes.json")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configured))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, f"--storage.tsdb.path={folder}/data"], stdout=log, stderr=log)
    try:
        yield address
    finally:
        server.kill()
        server.wait()


def series(address, query):
    """How many series a query has found since the server started; Ray shows a gauge only while it is being set."""
    expression = f"max_over_time(({query.replace('$run', '.*')})[10m:1s])"
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=10) as reply:
        return len(json.load(reply)["data"]["result"])


def value(found, metric, **tags):
    return found[metric.exported][tuple(sorted(tags.items()))]


def test_counts_are_those_of_the_tables(run):
    import duckdb

    from dsprobe.storage.compaction import compact

    plan, store, found, _ = run
    compact(store)
    files = f"{store.url}/tables/trajectories/**/*.parquet"
    rows, steps, passes = duckdb.sql(
        f"SELECT count(*), sum(num_steps), sum(forward_passes) FROM read_parquet('{files}')"
    ).fetchall()[0]
    tags = {"run": plan.run_id, "model": "toy-diffusion"}
    assert value(found, catalogue.TRAJECTORIES, **tags) == rows == 16
    assert value(found, catalogue.DENOISING_STEPS, **tags) == steps
    assert value(found, catalogue.FORWARD_PASSES, **tags) == passes
    assert 0 < value(found, catalogue.TOKENS_COMMITTED, **tags) <= rows * 42


def test_interventions_are_counted_by_guardrail(run):
    plan, _, found, _ = run
    counted = found[catalogue.INTERVENTIONS.exported]
    assert {dict(tags)["guardrail"] for tags in counted} == {"early"}
    assert all(dict(tags)["run"] == plan.run_id for tags in counted)


def test_written_bytes_are_those_of_the_committed_files(run):
    plan, store, found, _ = run
    bytes_ = sum(file.bytes for record in store.committed().values() for file in record.files.values())
    assert value(found, catalogue.BYTES_WRITTEN, run=plan.run_id) == bytes_


def test_the_driver_ends_with_an_empty_queue(run):
    plan, _, found, _ = run
    assert value(found, catalogue.QUEUE_DEPTH, run=plan.run_id) == 0
    assert value(found, catalogue.SHARDS, run=plan.run_id, state="done") == len(plan.shards)
    assert value(found, catalogue.REPLICAS, run=plan.run_id, state="up") == 0


def test_every_metric_of_a_plain_run_is_exported_under_its_catalogued_name(run):
    _, _, found, _ = run
    for metric in set(catalogue.CATALOGUE) - NOT_HERE:
        name = metric.exported + ("_count" if metric.kind == "histogram" else "")
        assert name in found, metric.name


def test_prometheus_finds_data_for_every_panel_that_a_run_fills(run):
    answers = run[3]
    if answers is None:
        pytest.skip("prometheus is not installed (Debian package `prometheus`)")
    empty = [query for query, found in answers.items() if not found]
    assert {query for query in empty if any(name in query for name in HERE)} == set()
    assert len(empty) < len(answers)
