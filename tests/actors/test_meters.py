"""Metrics of a real run, read over HTTP from the port that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray import cloudpickle

from dsprobe.actors import meters, scoring
from dsprobe.actors.executor import execute
from dsprobe.actors.session import ray_session
from dsprobe.config import RunConfig, Spec
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.registry import validated
from dsprobe.storage.retrying import RetryPolicy, TransientError
from dsprobe.storage.run_store import RunStore
from dsprobe.sweeps import pipeline
from dsprobe.sweeps.search import SearchProgress
from dsprobe.telemetry import metrics as catalogue

VISIBLE_LIMIT_S = 60
DIJA = {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}
PROMETHEUS = Path(__file__).parents[2] / "docs" / "cluster" / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((PROMETHEUS.parents[1] / "grafana" / "dsprobe.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
SEARCH = SearchProgress(
    trials_total=9, complete=4, stopped=2, failed=1, earlier=0, cached=1, passes_used=300, passes_from_scratch=1000,
    elapsed_s=1.0, front=((0.1, 0.2), (0.3, 0.1)),
)  # fmt: skip


class RefusingStore(RunStore):
    """A store that refuses its first commit."""

    def open_attempt(self, shard_id):
        writer = super().open_attempt(shard_id)
        mark = Path(self.url) / "refused"
        if not mark.exists():
            mark.touch()
            writer.commit = refuse
        return writer


def refuse():
    raise ConnectionError("bucket is on holiday")


def config(root, limit=8, **execution):
    return validated(
        RunConfig,
        {
            "models": ["toy-diffusion"],
            "prompts": [{"source": "toy", "name": "restricted", "split": "restricted", "limit": limit}],
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
    """Whether the last words of every process about a run have arrived."""
    run = ("run", plan.run_id)
    trajectories = found.get(catalogue.TRAJECTORIES.exported, {}).get((("model", "toy-diffusion"), run), 0)
    return (
        trajectories >= sum(len(shard.rows) for shard in plan.shards)
        and found.get(catalogue.SHARDS_COMMITTED.exported, {}).get((run,)) == len(plan.shards)
        and found.get(catalogue.REPLICAS.exported, {}).get((run, ("state", "up"))) == 0
    )


def look(found):
    """Take over what the port shows now: gauges stay there for two seconds after they were last set."""
    for name, values in scraped().items():
        found.setdefault(name, {}).update(values)


def settle(found, plan):
    deadline = time.monotonic() + VISIBLE_LIMIT_S
    while not settled(found, plan):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
        look(found)


@pytest.fixture(scope="module", name="run")
def fixture_run(tmp_path_factory):
    """Metrics after a run, and what the run really did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        plan, store = planned(config(tmp_path_factory.mktemp("run")), RunStore)
        faulty = planned(config(tmp_path_factory.mktemp("faulty"), limit=2), RefusingStore)
        with (
            ray_session(plan.config.execution, include_dashboard=False),
            prometheus(tmp_path_factory.mktemp("prometheus")) as address,
        ):
            cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
            found = {}
            for one in ((plan, store), faulty):
                assert execute(*one, progress=lambda progress: None).complete
                settle(found, one[0])
            elsewhere()
            time.sleep(2)  # a report and a scrape
            look(found)
            answers = None if address is None else asked(address)
    return plan, store, found, answers


def planned(configuration, kind):
    plan = resolve(configuration)
    store = kind(plan.config.output.root, plan.run_id)
    store.write_manifest(build_manifest(plan, {}))
    return plan, store


def elsewhere():
    """What other commands than a run count, by their own hooks; and what is counted while metrics are off."""
    pipeline._metered(lambda progress: None, "sweep")(SEARCH)
    pipeline._metered(lambda progress: None, "sweep")(SEARCH)  # a sweep that goes on: its own session's passes
    scoring._count("scored", Spec(name="rubric"), SimpleNamespace(asked=3, hits=5, repeated=0))
    meters.count_storage_retries("before")  # those of other tests in this process
    asyncio.run(RetryPolicy(deadline_s=30, first_wait_s=0.0).call(third_time, "test"))
    meters.count_storage_retries("slow")
    meters.count_storage_retries("slow")  # nothing new
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(meters.SWITCH, "0")
        meters.add(catalogue.SHARDS_COMMITTED, run="off")
        meters.put(catalogue.QUEUE_DEPTH, 7, run="off")
        meters.observe(catalogue.REDUCER_LAG_SECONDS, 7, run="off")


async def third_time(seen=[]):  # noqa: B006 - kept on purpose
    seen.append(1)
    if len(seen) < 3:
        raise TransientError("busy", unknown=False)


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


def asked(address):
    """Query → series found; growth is seen after the second scrape."""
    deadline = time.monotonic() + VISIBLE_LIMIT_S
    while True:
        answers = {query: series(address, query) for query in QUERIES}
        if all(answers.values()) or time.monotonic() > deadline:
            return answers
        time.sleep(1)


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
    assert plan.run_id in {dict(tags)["run"] for tags in counted}


def test_written_bytes_are_those_of_the_committed_files(run):
    plan, store, found, _ = run
    bytes_ = sum(file.bytes for record in store.committed().values() for file in record.files.values())
    counted = {
        dict(t)["kind"]: v for t, v in found[catalogue.BYTES_WRITTEN.exported].items() if dict(t)["run"] == plan.run_id
    }
    assert sum(counted.values()) == bytes_
    assert {"trajectories", "steps", "positions"} <= counted.keys()
    names = {name for record in store.committed().values() for name in record.files}
    assert all(any(name.startswith(kind) for name in names) for kind in counted)


def test_the_driver_ends_with_an_empty_queue(run):
    plan, _, found, _ = run
    assert value(found, catalogue.QUEUE_DEPTH, run=plan.run_id) == 0
    assert value(found, catalogue.SHARDS, run=plan.run_id, state="done") == len(plan.shards)
    assert value(found, catalogue.REPLICAS, run=plan.run_id, state="up") == 0


def test_faults_are_counted_by_what_failed(run):
    plan, _, found, _ = run
    counted = found[catalogue.FAULTS_RETRIED.exported]
    assert [(dict(tags)["reason"], count) for tags, count in counted.items()] == [("storage", 1)]
    assert plan.run_id not in {dict(tags)["run"] for tags in counted}


def test_other_commands_count_what_they_did(run):
    _, _, found, _ = run
    assert value(found, catalogue.TRIALS, run="sweep", state="complete") == 4
    assert value(found, catalogue.FRONT_POINTS, run="sweep") == 2
    assert value(found, catalogue.SWEEP_PASSES, run="sweep", kind="used") == 600
    assert value(found, catalogue.SWEEP_PASSES, run="sweep", kind="saved") == 1400
    judged = {"run": "scored", "judge": "rubric"}
    assert value(found, catalogue.VERDICTS, **judged, source="asked") == 3
    assert value(found, catalogue.VERDICTS, **judged, source="cached") == 5
    assert value(found, catalogue.STORAGE_RETRIES, run="slow") == 2


def test_nothing_is_counted_while_metrics_are_off(run):
    _, _, found, _ = run
    assert "off" not in {dict(tags).get("run") for values in found.values() for tags in values}


def test_without_ray_nothing_happens_and_none_is_started(run):
    assert not ray.is_initialized()
    meters.add(catalogue.SHARDS_COMMITTED, run="none")
    meters.put(catalogue.QUEUE_DEPTH, 1, run="none")
    assert not ray.is_initialized()


def test_states_that_are_exported_are_those_that_the_reference_names(run):
    _, _, found, _ = run
    for metric in (catalogue.SHARDS, catalogue.REPLICAS, catalogue.TRIALS, catalogue.FAULTS_RETRIED):
        tag = metric.tags[-1]
        for tags in found[metric.exported]:
            assert re.search(rf"\b{dict(tags)[tag]}\b", metric.help), (metric.name, tags)


def test_every_metric_is_exported_under_its_catalogued_name(run):
    _, _, found, _ = run
    for metric in catalogue.CATALOGUE:
        name = metric.exported + ("_count" if metric.kind == "histogram" else "")
        assert name in found, metric.name


def test_prometheus_finds_data_for_every_panel(run):
    answers = run[3]
    if answers is None:
        pytest.skip("prometheus is not installed (Debian package `prometheus`)")
    assert answers
    assert [query for query, found in answers.items() if not found] == []
