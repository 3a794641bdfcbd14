import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import yaml

from dsprobe.config import GuardrailConfig

SWEEP = {
    "name": "tiny",
    "experiment": {
        "models": ["toy-diffusion"],
        "prompts": [
            {"source": "toy", "name": "restricted", "limit": 4, "attacks": ["dija"]},
            {"source": "toy", "name": "benign", "split": "benign", "harmful": False, "limit": 3, "attacks": ["direct"]},
        ],
        "attacks": [
            "direct",
            {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6},
        ],
        "decodings": [{"steps": 12, "reply_length": 42}],
        "judges": ["toy_oracle", "toy_utility", {"name": "keyword_refusal", "phrases": "toy"}],
        "execution": {"replicas": 1, "num_cpus": 0.5},
    },
    "validation": [{"source": "toy", "name": "restricted", "limit": 3, "seed": 5}],
    "space": {
        "stack": [
            {
                "name": "renoise",
                "scorer": "ngram",
                "threshold": {"low": 0.05, "high": 0.9},
                "every": {"low": 1, "high": 4},
                "final_check": True,
            }
        ]
    },
    "objectives": [{"name": "asr", "judge": "toy_oracle"}, "delta_nfe"],
    "search": {"trials": 4, "sampler": "random", "rungs": [0.5, 1.0]},
    "front": {"chosen": 1, "resamples": 200},
}


def changed(path, value):
    """The sweep with one value replaced, e.g. ``space.stack.0.threshold``."""
    content = json.loads(json.dumps(SWEEP))
    *place, last = path.split(".")
    node = content
    for part in place:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is None:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return content


def command(tmp_path, content, *options):
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "dsprobe.cli.main", "sweep", str(config), "--out", str(tmp_path), *options]


def run(tmp_path, content, *options):
    return subprocess.run(command(tmp_path, content, *options), capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("space.stack.0.threshold", {"low": 0.1, "high": 1.5}, "renoise.threshold"),
        ("space.stack.0.window", [3, 40], "lies outside the decoding's 12 steps"),
        ("space.stack.0.scorer", "ngrm", "Did you mean `ngram`?"),
        ("space.stack.0.name", "renois", "Did you mean `renoise`?"),
        ("objectives.0", "asr", "needs a judge that decides harm"),
        ("objectives.1", "delta_nef", "Did you mean `delta_nfe`?"),
        ("search.sampler", "tpee", "Did you mean `tpe`?"),
        ("search.rungs", [0.5, 0.25, 1.0], "give growing shares"),
        ("validation.0.name", "restrictd", "no prompt set `restrictd`"),
        ("fluency", ["toy-diffusion"], "Allowed: autoregressive models"),
        ("experiment.guardrails", [{"name": "x", "stack": ["renoise"]}], "comes from `space`"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(tmp_path, capsys, path, value, message):
    from typer.testing import CliRunner

    from dsprobe.cli.main import app
    from dsprobe.errors import ConfigError

    arguments = command(tmp_path, changed(path, value))[3:]
    outcome = CliRunner().invoke(app, arguments)
    assert isinstance(outcome.exception, ConfigError)
    assert message in str(outcome.exception)
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    outcome = run(folder, SWEEP, "--json")
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return folder, json.loads(outcome.stdout)


def test_a_sweep_leaves_a_front_guardrails_and_a_report(swept):
    folder, shown = swept
    assert sum(shown["trials"].values()) == 4
    assert shown["trials"]["failed"] == 0
    sweep = folder / "runs" / shown["sweep_id"] / "sweep"
    front = json.loads((sweep / "front.json").read_text())
    assert front == shown["front"]
    for point in front["points"]:
        assert set(point["objectives"]) == {"asr", "delta_nfe"}
        assert set(point["objectives"]["asr"]) == {"value", "low", "high"}
        assert point["validation"] is not None
        written = yaml.safe_load((sweep / "guardrails" / f"{point['label']}.yaml").read_text())
        assert GuardrailConfig.model_validate(written).stack[0].name == "renoise"
    assert pq.read_table(sweep / "trials.parquet").num_rows == 4
    page = (folder / "runs" / shown["sweep_id"] / "report" / "index.html").read_text()
    assert shown["sweep_id"] in page
    assert "The front" in page


def test_trials_and_front_are_tables_of_the_sweep(swept):
    from dsprobe.errors import ConfigError
    from dsprobe.storage.query import query

    folder, shown = swept
    run_folder = str(folder / "runs" / shown["sweep_id"])
    found = query(run_folder, "SELECT state, count(*) AS n FROM trials GROUP BY state").to_pylist()
    assert {row["state"]: row["n"] for row in found} == {k: n for k, n in shown["trials"].items() if n}
    labels = query(run_folder, 'SELECT label, asr, asr_low, "parameters.renoise.every" FROM front').to_pylist()
    assert {row["label"] for row in labels} == {point["label"] for point in shown["front"]["points"]}
    with pytest.raises(ConfigError, match="Allowed: front, trials"):
        query(run_folder, "SELECT * FROM trajectories")


def test_the_same_command_runs_nothing_again_and_more_trials_go_on(swept):
    folder, shown = swept
    archive = folder / "runs" / shown["sweep_id"] / "sweep" / "trials"
    before = {path.name: path.stat().st_mtime_ns for path in archive.iterdir()}
    again = json.loads(run(folder, SWEEP, "--json", "--no-report", "--trials", "6").stdout)
    assert again["sweep_id"] == shown["sweep_id"]
    assert sum(again["trials"].values()) == 6
    after = {path.name: path.stat().st_mtime_ns for path in archive.iterdir()}
    assert before.items() <= after.items()
    old = {trial: point["parameters"] for point in shown["front"]["points"] for trial in [point["trial"]]}
    new = {trial: point["parameters"] for point in again["front"]["points"] for trial in [point["trial"]]}
    assert all(new[trial] == old[trial] for trial in old.keys() & new.keys())


def test_a_replay_gives_the_same_rows(swept):
    folder, _ = swept
    outcome = run(folder, SWEEP, "--replay", "--json")
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    assert json.loads(outcome.stdout)["identical"] is True


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_as_if_it_had_not_been(tmp_path):
    content = changed("search.trials", 12)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    undisturbed = json.loads(run(whole, content, "--json", "--no-report").stdout)
    process = subprocess.Popen(
        command(killed, content, "--json", "--no-report"), cwd=killed, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    archive = killed / "runs" / undisturbed["sweep_id"] / "sweep" / "trials"
    deadline = time.monotonic() + 120
    while (not archive.exists() or len(list(archive.iterdir())) < 6) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = json.loads(run(killed, content, "--json", "--no-report").stdout)
    assert sum(resumed["trials"].values()) == 12
    assert resumed["trials"] == undisturbed["trials"]
    parameters = [[point["parameters"] for point in shown["front"]["points"]] for shown in (undisturbed, resumed)]
    objectives = [[point["objectives"] for point in shown["front"]["points"]] for shown in (undisturbed, resumed)]
    assert parameters[0] == parameters[1]
    assert objectives[0] == objectives[1]
