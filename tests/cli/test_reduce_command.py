"""`dsprobe reduce` on a real run and on loose files, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dsprobe.storage.query import read_table

CONFIG = """
name: logged
models: [toy-diffusion]
prompts: [{source: toy, name: restricted, limit: 3}]
attacks: [direct, {name: dija, placement: reply, label: "step {i} :", spans: 4, masks_per_span: 6}]
decodings: [{name: short, steps: 6, reply_length: 42}]
recording: {raw: {keep: [steps]}}
execution: {executor: local, shard_size: 2}
"""


def dsprobe(*arguments, cwd):
    command = [sys.executable, "-m", "dsprobe.cli.main", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False, timeout=240)


def reduce(*arguments, cwd):
    done = dsprobe("reduce", *arguments, "--executor", "local", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reduce")
    (folder / "logged.yaml").write_text(CONFIG)
    shown = dsprobe("run", "logged.yaml", "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    (url,) = (folder / "runs").iterdir()
    return folder, url


def test_the_run_s_own_threshold_gives_the_run_s_own_tables(run):
    folder, url = run
    facts = reduce(url.name, cwd=folder)
    assert facts["url"].startswith(f"{url}/reduced/")
    for kind in ("step_stats", "position_stats"):
        ours, tables = pq.read_table(f"{facts['url']}/{kind}.parquet"), read_table(str(url), kind)
        keys = [
            (name, "ascending") for name in ("condition", "step", "position", "quantity") if name in tables.schema.names
        ]
        assert ours.cast(tables.schema).sort_by(keys).to_pylist() == tables.sort_by(keys).to_pylist()
    shown = dsprobe("query", url, "SELECT count(*) AS n FROM step_stats", "--json", cwd=folder)
    assert json.loads(shown.stdout)[0]["n"] > 0  # the run is read as before


def test_threshold_and_conditions_are_chosen(run):
    folder, url = run
    facts = reduce(url, "--threshold", 0.25, "--where", "attack=dija", "--out", folder / "chosen", cwd=folder)
    assert facts["threshold"] == 0.25
    assert [condition.split("/")[2] for condition in facts["conditions"]] == ["dija"]
    assert {path.name for path in (folder / "chosen").iterdir()} == {
        "step_stats.parquet", "position_stats.parquet", "reducer_counts.parquet", "reducer_sums.parquet", "reduced.json"
    }  # fmt: skip
    wrong = dsprobe("reduce", url, "--where", "attack=dia", "--executor", "local", cwd=folder)
    assert wrong.returncode == 2
    assert "Did you mean `dija`" in wrong.stderr


def test_loose_files_need_a_threshold(run):
    folder, url = run
    loose = folder / "loose"
    loose.mkdir()
    for number, path in enumerate(sorted(url.glob("shards/*/*/raw/*.parquet"))):
        shutil.copy(path, loose / f"{number}-{path.name}")
    refused = dsprobe("reduce", loose, "--executor", "local", cwd=folder)
    assert refused.returncode == 2
    assert "--threshold" in refused.stderr
    facts = reduce(loose, "--threshold", 0.5, cwd=folder)
    assert Path(facts["url"]).parent == folder / "reduced"
    assert facts["step_rows"] == reduce(url, cwd=folder)["step_rows"]


def test_a_run_without_logs_says_what_keeps_them(run, fixtures):
    folder, _ = run
    done = dsprobe("reduce", fixtures / "runs" / "schema-1", cwd=folder)
    assert done.returncode == 1
    assert "recording.raw.keep: [steps]" in done.stderr
    assert "dsprobe compact" in done.stderr
