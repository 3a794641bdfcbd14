"""Pages that come from code are current, and Prometheus understands every query in them."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dsprobe.telemetry.metrics import CATALOGUE

pytest.importorskip("grafana_foundation_sdk")

DOCS = Path(__file__).parents[1] / "docs"
RULES = DOCS / "cluster" / "prometheus" / "rules.yml"
EXPORTED = {metric.exported for metric in CATALOGUE}


@pytest.fixture(scope="module", name="generate")
def fixture_generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_reference_and_the_dashboard_are_what_the_catalogue_makes(generate):
    assert generate.REFERENCE.read_text() == generate.reference()
    assert generate.DASHBOARD.read_text() == generate.dashboard_json()


def panels():
    return json.loads((DOCS / "cluster" / "grafana" / "dsprobe.json").read_text())["panels"]


def queries():
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def test_panels_and_their_queries_can_be_told_apart():
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in (panel for panel in panels() if panel["type"] != "row"):
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert all(letters)
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def named(query):
    return {name.removesuffix("_bucket") for name in re.findall(r"(?<!:)\bray_dsprobe_\w+", query)}


def test_the_dashboard_shows_every_metric_that_changes_over_time():
    shown = set().union(*map(named, queries()))
    assert shown <= EXPORTED
    without_panel = {
        "ray_dsprobe_batches_written_total",
        "ray_dsprobe_shards_committed_total",
    }
    assert EXPORTED - shown == without_panel


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_alerts_name_metrics_of_the_catalogue():
    assert set().union(*(named(rule["expr"]) for rule in rules())) <= EXPORTED


def test_states_in_queries_and_alerts_are_those_of_the_catalogue():
    """A renamed state would leave an alert that never fires."""
    texts = [*queries(), *(rule["expr"] for rule in rules())]
    used = {found for text in texts for found in re.findall(r'(ray_dsprobe_\w+)\{(state|reason)="(\w+)"\}', text)}
    helps = {metric.exported: metric.help for metric in CATALOGUE}
    assert ("ray_dsprobe_replicas", "state", "pending") in used
    assert [fact for fact in used if not re.search(rf"\b{fact[2]}\b", helps[fact[0]])] == []


def series(name, values, **labels):
    marks = ",".join(f'{key}="{value}"' for key, value in {"run": "r", **labels}.items())
    return {"series": f"ray_dsprobe_{name}{{{marks}}}", "values": values}


WORKING = [
    series("shards", "10x60", state="total"), series("shards", "4x60", state="done"),
    series("shards", "1x60", state="failed"), series("replicas", "2x60", state="up"),
    series("replicas", "0x60", state="pending"),
]  # fmt: skip
OVER = [series("shards", "10x60", state="total"), series("shards", "9x60", state="done"),
        series("shards", "1x60", state="failed"), series("trajectories_total", "96x60", model="m")]  # fmt: skip
MOVES, STANDS = series("trajectories_total", "0+32x60", model="m"), series("trajectories_total", "96x60", model="m")
UNSTARTED = [series("replicas", "0x60", state="up"), series("replicas", "2x60", state="pending")]
SLOW = [series("reducer_lag_seconds_bucket", "0x60", le="30"), series("reducer_lag_seconds_bucket", "0+5x60", le="300"),
        series("reducer_lag_seconds_bucket", "0+5x60", le="+Inf")]  # fmt: skip
CASES = {
    "works": ([*WORKING, MOVES], set()),
    "over": (OVER, set()),
    "stands": ([*WORKING, STANDS], {"NoProgress"}),
    "never began": (WORKING, {"NoProgress"}),
    "no node": (UNSTARTED, {"NoReplica"}),
    "slow store": ([*WORKING, MOVES, *SLOW], {"ReducersFallBehind"}),
    "busy store": ([series("storage_retries_total", "0+120x60")], {"StoreIsAskedAgain"}),
    "lost replicas": ([series("faults_retried_total", "0+1x60", reason="replica")], {"FaultsRise"}),
    "one lost write": ([series("faults_retried_total", "0x20 1x40", reason="storage")], {"StorageErrors"}),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package `prometheus`)")
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    names = [rule["alert"] for rule in rules() if "alert" in rule]
    # A quarter of an hour after a lost write it is still told; after half an hour every wait is over.
    group = [
        {
            "interval": "1m", "name": case, "input_series": given,
            "alert_rule_test": [
                {"eval_time": "32m", "alertname": name, "exp_alerts": [{"exp_labels": labels(name)}] * (name in fired)}
                for name in names
            ],
        }
        for case, (given, fired) in CASES.items()
    ]  # fmt: skip
    without_texts = yaml.safe_load(RULES.read_text())
    for rule in without_texts["groups"][0]["rules"]:
        rule.pop("annotations", None)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(without_texts))
    test = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": group}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    checked = subprocess.run(["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert set(names) == set().union(*(fired for _, fired in CASES.values()))


def labels(name):
    return {"run": "r", **next(rule["labels"] for rule in rules() if rule.get("alert") == name)}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package `prometheus`)")
def test_prometheus_parses_every_query_alert_and_setting(tmp_path):
    records = [{"record": f"panel:{n}", "expr": query.replace("$run", ".*")} for n, query in enumerate(queries())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    for command in (
        ["check", "rules", str(tmp_path / "panels.yml")],
        ["check", "config", str(RULES.parent / "prometheus.yml")],
    ):
        checked = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
