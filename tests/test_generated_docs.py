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


def queries():
    board = json.loads((DOCS / "cluster" / "grafana" / "dsprobe.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def named(query):
    return {name.removesuffix("_bucket") for name in re.findall(r"ray_dsprobe_\w+", query)}


def test_the_dashboard_shows_every_metric_that_changes_over_time():
    shown = set().union(*map(named, queries()))
    assert shown <= EXPORTED
    without_panel = {
        "ray_dsprobe_model_load_seconds",
        "ray_dsprobe_batches_written_total",
        "ray_dsprobe_shards_committed_total",
    }
    assert EXPORTED - shown == without_panel


def test_alerts_name_metrics_of_the_catalogue():
    alerts = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert alerts
    assert set().union(*map(named, alerts)) <= EXPORTED


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
