"""The command line as a user meets it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsprobe.models.tiny import write_tiny_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = """
name: small
models: [toy-diffusion, toy-autoregressive]
prompts:
  - {source: toy, name: restricted, limit: 6}
  - {source: toy, name: benign, split: benign, limit: 4, harmful: false, attacks: [direct]}
attacks:
  - direct
  - {name: dija, placement: reply, label: "step {i} :", spans: 4, masks_per_span: 6}
decodings: [{name: uniform, steps: 8, reply_length: 42}]
judges: [toy_oracle, {name: keyword_refusal, phrases: toy}, toy_utility]
execution: {executor: local, shard_size: 4, batch_size: 4}
"""


UNREADABLE = {
    "name": "rubric",
    "decides": "harm",
    "template_file": "/no/such",
    "parse": {"json_key": "harm"},
    "backend": {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"},
}


def dsprobe(*arguments, cwd, env=None):
    command = [sys.executable, "-m", "dsprobe.cli.main", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **(env or {})}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False, timeout=240)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished small run: its working folder and what `--json` printed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(SMALL)
    shown = dsprobe("run", "small.yaml", "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    return folder, json.loads(shown.stdout)


def test_run_writes_a_report_and_says_where(run):
    folder, outcome = run
    assert outcome["complete"]
    assert outcome["shards_done"] == 10
    page = Path(outcome["report"])
    assert "<script" in page.read_text()
    assert (page.parent / "summary.json").is_file()
    assert (page.parent / "figures").is_dir()
    manifest = json.loads((Path(outcome["url"]) / "manifest.json").read_text())
    assert manifest["sources"]["execution.shard_size"].startswith("file")
    assert manifest["sources"]["seed"] == "default"
    assert str(folder) in outcome["url"]


def test_running_again_runs_nothing_and_a_lost_shard_alone_is_run_again(run):
    folder, outcome = run
    again = json.loads(dsprobe("run", "small.yaml", "--json", "--no-report", cwd=folder).stdout)
    assert (again["shards_done"], again["shards_skipped"]) == (0, 10)
    next((Path(outcome["url"]) / "commits").iterdir()).unlink()
    repaired = json.loads(dsprobe("run", "small.yaml", "--json", "--no-report", cwd=folder).stdout)
    assert (repaired["shards_done"], repaired["shards_skipped"]) == (1, 9)


def test_query_compact_and_report_take_a_run(run):
    folder, outcome = run
    sql = "SELECT attack, count(*) AS n, avg(verdict_toy_oracle::INT) AS asr FROM trajectories WHERE harmful GROUP BY 1"
    rows = json.loads(dsprobe("query", outcome["run_id"], sql, "--json", cwd=folder).stdout)
    assert {row["attack"]: row["n"] for row in rows} == {"direct": 12, "dija": 12}
    assert next(row["asr"] for row in rows if row["attack"] == "dija") > 0.8
    table = dsprobe("query", outcome["run_id"], "SELECT 1 AS one", cwd=folder)
    assert "one" in table.stdout
    assert dsprobe("compact", outcome["url"], cwd=folder).returncode == 0
    report = dsprobe("report", outcome["url"], cwd=folder)
    assert report.stdout.strip().endswith("index.html")


def test_a_query_error_is_a_usage_error_with_the_nearest_table(run):
    folder, outcome = run
    shown = dsprobe("query", outcome["run_id"], "SELECT * FROM trajectory", cwd=folder)
    assert shown.returncode == 2
    assert "trajectories" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "dmeo"], 2, "Did you mean `demo`"),
        (["run", "no/such.yaml"], 2, "no/such.yaml"),
        (["validate", "demo", "--set", "attacks.1.name=dijja"], 2, "Did you mean `dija`"),
        (["validate", "demo", "--set", "decodings.0.schedule.name=cosin"], 2, "Did you mean `cosine`"),
        (["validate", "demo", "--set", "risk.threshold=2"], 2, "risk.threshold"),
        (["validate", "demo", "--set", "models.0.name=toy-difusion"], 2, "toy-diffusion"),
        (["validate", "demo", "--set", f"models.0.path={FIXTURES / 'dream-tiny'}"], 1, "has no tokenizer"),
        (["validate", "demo", "--set", "attacks.3.position=40"], 2, "position 40 needs"),
        (["validate", "demo", "--set", "decodings.0.reply_length=9"], 2, "reply"),
        (["validate", "demo", "--set", 'judges=[{"name":"harmbench_classifier","path":"/no/such"}]'], 2, "/no/such"),
        (["validate", "demo", "--set", f"judges=[{json.dumps(UNREADABLE)}]"], 2, "template_file `/no/such`"),
        (["query", "nowhere", "SELECT 1"], 1, "nowhere"),
        (["list", "atacks"], 2, "attacks"),
    ],
)
def test_bad_input_is_one_message_and_an_exit_code(arguments, code, message, tmp_path):
    shown = dsprobe(*arguments, cwd=tmp_path)
    assert shown.returncode == code, shown.stderr
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


WITHOUT_WEIGHTS = """
import sys, transformers
def refuse(*args, **kwargs): raise SystemExit("a model was loaded")
transformers.PreTrainedModel.from_pretrained = refuse
from dsprobe.cli.main import main
sys.argv = ["dsprobe", "validate", "c.yaml", "--json"]
main()
"""


def test_validate_prints_plan_and_estimate_without_loading_a_model(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "tiny", "dream", texts=["x"])
    (tmp_path / "c.yaml").write_text(
        f"models: [{{name: tiny, path: {folder}}}]\nprompts: [{{source: csv, path: p.csv}}]\nattacks: [direct, dija]\n"
    )
    (tmp_path / "p.csv").write_text("prompt\nwrite a poem\nname a colour\n")
    command = [sys.executable, "-c", WITHOUT_WEIGHTS]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    plan = json.loads(shown.stdout)
    assert plan["estimate"]["trajectories"] == 4
    assert plan["estimate"]["forward_passes"] == 4 * 32


KINDS = [
    "models", "attacks", "schedules", "orderings", "scorers", "judges", "guardrails", "weightings", "prompts",
    "recipes",
]  # fmt: skip


WITHOUT_TORCH = """
import sys
from dsprobe.cli.main import app
from dsprobe.judges import JUDGES
app(["list", "judges", "--json"], standalone_mode=False)
backend = {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
JUDGES.build("jailbreakbench", {"backend": backend})
import dsprobe.actors.judge_replica
sys.exit(", ".join({"torch", "transformers"} & set(sys.modules)) or None)
"""


def test_judges_are_listed_and_endpoints_built_without_torch(tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "harmbench_classifier" in {row["name"] for row in json.loads(shown.stdout)["judges"]}


@pytest.mark.parametrize("what", KINDS)
def test_list_names_every_kind(what, tmp_path):
    shown = dsprobe("list", what, "--json", cwd=tmp_path)
    rows = json.loads(shown.stdout)[what]
    assert rows
    assert all(row["name"] and row["summary"] for row in rows)


def test_doctor_finds_this_machine_fit(tmp_path):
    shown = dsprobe("doctor", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stdout
    assert {check["name"] for check in json.loads(shown.stdout)} >= {"python", "torch", "embedded models"}


def test_parity_counts_identical_trajectories_and_fails_at_the_first_that_differs(tmp_path):
    folder = FIXTURES / "llada-tiny"
    good = dsprobe("parity", folder, folder / "goldens.json", cwd=tmp_path)
    assert good.returncode == 0
    assert "30 of 30 trajectories identical" in good.stdout
    spoiled = json.loads((folder / "goldens.json").read_text())
    spoiled["cases"][1]["canvases"][2][0][-1] += 1
    (tmp_path / "bad.json").write_text(json.dumps(spoiled))
    bad = dsprobe("parity", folder, "bad.json", cwd=tmp_path)
    assert bad.returncode == 1
    assert "at step 2" in bad.stdout


def test_an_interrupt_keeps_committed_shards_and_exits_130(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "dsprobe.cli.main", "run", "small.yaml", "--no-report"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/commits/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "resumes" in shown
    committed = len(list(tmp_path.glob("runs/*/commits/*.json")))
    outcome = json.loads(dsprobe("run", "small.yaml", "--json", "--no-report", cwd=tmp_path).stdout)
    assert outcome["shards_skipped"] == committed
    assert outcome["complete"]


def test_a_run_lives_on_s3_and_is_queried_there(tmp_path):
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        ).create_bucket(Bucket="probe")
        (tmp_path / "small.yaml").write_text(SMALL)
        shown = dsprobe("run", "small.yaml", "--json", "--out", "s3://probe/lab", cwd=tmp_path, env=env)
        assert shown.returncode == 0, shown.stderr
        outcome = json.loads(shown.stdout)
        assert outcome["url"].startswith("s3://probe/lab/runs/small-")
        sql = "SELECT count(*) AS n FROM trajectories"
        rows = json.loads(dsprobe("query", outcome["url"], sql, "--json", cwd=tmp_path, env=env).stdout)
        assert rows == [{"n": 32}]
        missing = dsprobe("run", "small.yaml", "--out", "s3://no-such-bucket/x", cwd=tmp_path, env=env)
        assert missing.returncode == 1
        assert "no-such-bucket" in missing.stderr
        assert "Traceback" not in missing.stderr
    finally:
        server.stop()
