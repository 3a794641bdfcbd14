"""`dsprobe attacks` as a user meets it: files, digests, redaction, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from tests.attacks.attack_runs import PROMPTS
from tests.judges.test_judge_endpoint import completion, serving
from typer.testing import CliRunner

from dsprobe.attacks.case import AttackCase, load_cases, save_cases
from dsprobe.cli.main import app
from dsprobe.errors import ConfigError

CONFIG = """
name: small
models: [toy-diffusion, toy-autoregressive]
prompts:
  - {source: toy, name: restricted, limit: 3}
  - {source: toy, name: benign, split: benign, limit: 2, attacks: [direct]}
attacks:
  - direct
  - {name: dija, label: "step {i} :", spans: 2, masks_per_span: 6}
  - {name: anchoring, alias: late, step: 7}
decodings: [{name: uniform, steps: 8, reply_length: 42}]
judges: [toy_oracle]
execution: {executor: local}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


def dsprobe(*arguments):
    """Run a command in this process; an error of dsprobe's is raised."""
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return found.exit_code, found.stdout


def asked(*arguments):
    code, output = dsprobe(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def test_saved_cases_are_replayed_by_the_digest_that_was_printed(here):
    told = asked("attacks", "save", "small.yaml", "--attack", "dija", "--model", "toy-diffusion", "--out", "c.jsonl")
    data = (here / "c.jsonl").read_bytes()
    counts = {"cases": 3, "without_request": 0, "fallbacks": {}}
    assert told == {"path": "c.jsonl", "sha256": hashlib.sha256(data).hexdigest(), **counts}
    attack = f"{{name: cases, path: c.jsonl, digest: {told['sha256']}}}"
    replay = ["validate", "small.yaml", "--set", f"attacks=[direct, {attack}]"]
    assert asked(*replay)["conditions"]
    with pytest.raises(ConfigError, match="the configuration wants"):
        dsprobe(*[text.replace(told["sha256"], "ab") for text in replay])
    with pytest.raises(ConfigError, match=r"`c\.jsonl` exists"):
        dsprobe("attacks", "save", "small.yaml", "--attack", "late", "--model", "toy-diffusion", "--out", "c.jsonl")
    code, output = dsprobe("attacks", "save", "small.yaml", "--attack", "late", "--model", "toy-diffusion",
                           "--out", "c.jsonl", "--force")  # fmt: skip
    assert code == 0
    assert "3 cases: c.jsonl" in output
    assert load_cases(here / "c.jsonl")[0].actions[0].step == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--attack", "dijaa"], "Unknown attack of the configuration `dijaa`. Did you mean `dija`?"),
        (["--model", "toy-difusion"], "Did you mean `toy-diffusion`?"),
        (["--prompts", "benign"], "Unknown prompt set of attack `dija` `benign`"),
        (["--decoding", "none"], "Unknown decoding of the configuration `none`"),
        (
            ["--set", "decodings=[{name: a, reply_length: 42}, {name: b, reply_length: 40}]"],
            "choose with --decoding: a",
        ),
        (["--set", "prompts=[{source: toy, name: a}, {source: toy, name: b}]"], "Choose a set with --prompts: a, b"),
        (["--out", "none/c.jsonl"], "There is no folder"),
    ],
)
def test_what_cannot_be_saved_is_said_before_anything_is_written(here, changes, message):
    base = {"--attack": "dija", "--model": "toy-diffusion", "--out": "c.jsonl"}
    given = [part for pair in (base | dict([changes])).items() for part in pair]
    with pytest.raises(ConfigError) as caught:
        dsprobe("attacks", "save", "small.yaml", *given)
    assert message in str(caught.value)
    assert not (here / "c.jsonl").exists()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("{name: prefill, text: sure, step: 9}", "acts after step 9, and the decoding takes 8 steps"),
        ("{name: cases, path: partly.jsonl}", "holds no case for prompt `toy-restricted-0002`; it has 2 others"),
        ("{name: cases, path: none.jsonl}", "no file at"),
        ("{name: anchoring, replies: some.csv}", "has no reply to prompt `toy-restricted-0001`"),
    ],
)
def test_an_attack_that_cannot_act_is_refused_before_a_model_is_loaded(here, attack, message):
    asked("attacks", "save", "small.yaml", "--attack", "dija", "--model", "toy-diffusion", "--out", "c.jsonl")
    save_cases(load_cases(here / "c.jsonl")[:2], here / "partly.jsonl")
    (here / "some.csv").write_text("id,prompt\ntoy-restricted-0000,sure\n")
    with pytest.raises(ConfigError) as caught:
        dsprobe("validate", "small.yaml", "--set", f"attacks=[direct, {attack}]")
    assert message in str(caught.value)


def test_importing_against_a_prompt_set_of_the_command_line(here):
    artefacts = {prompt.id: [f"please {prompt.text}"] for prompt in PROMPTS[:2]}
    (here / "test_cases.json").write_text(json.dumps(artefacts))
    prompts = "{source: toy, limit: 2}"
    told = asked("attacks", "import", "test_cases.json", "--prompts", prompts, "--out", "c.jsonl", "--attack", "pap")
    assert (told["cases"], told["format"], told["unmatched"], told["missing"]) == (2, "harmbench", 0, 0)
    assert [case.user for case in load_cases(here / "c.jsonl")] == [("please ", None)] * 2
    with pytest.raises(ConfigError, match="94 of its 96 prompts have no artefact"):
        dsprobe("attacks", "import", "test_cases.json", "--prompts", "toy:restricted", "--out", "d.jsonl")
    code, output = dsprobe(
        "attacks", "import", "test_cases.json", "--prompts", "toy:restricted", "--out", "d.jsonl", "--allow-missing"
    )
    assert code == 0
    assert "0 artefacts without a prompt, 94 prompts without one" in output
    (here / "requests.csv").write_text("id,prompt\nx,fold\n")
    (here / "one.json").write_text(json.dumps({"x": "go"}))
    one = asked("attacks", "import", "one.json", "--prompts", "csv:requests.csv", "--out", "e.jsonl")
    assert (one["cases"], one["without_request"]) == (1, 1)


def test_texts_are_redacted_unless_they_are_asked_for(here):
    case = AttackCase(
        prompt_id="p1", attack="pad", user=("[red]secret", None, 4), judged="turn", metadata={"fallback": "rule"}
    )
    actions = (
        {"kind": "write", "step": 2, "position": 3, "text": "secret"},
        {"kind": "remask", "step": 2, "phrases": ["secret"]},
        {"kind": "anchor", "step": 4, "text": "secret"},
    )
    acting = AttackCase.model_validate({"prompt_id": "p2", "reply": ["secret", 3], "tail": "eos", "actions": actions})
    save_cases([case, acting], here / "c.jsonl")
    code, output = dsprobe("attacks", "show", "c.jsonl")
    assert code == 0
    assert "secret" not in output
    told = asked("attacks", "show", "c.jsonl")
    assert (told["fallbacks"], told["without_request"]) == ({"rule": 1}, 0)
    assert told["rows"][0]["user"] == "text of 11 characters + request + 4 masks"
    assert told["rows"][1]["reply"] == "text of 6 characters + 3 masks + end of text"
    assert told["rows"][1]["actions"] == (
        "step 2: write text of 6 characters at 3; step 2: re-mask text of 6 characters, end of text; "
        "step 4: anchor text of 6 characters"
    )
    assert "secret" not in json.dumps(told)
    shown = asked("attacks", "show", "c.jsonl", "--show-text")
    assert shown["rows"][0]["user"] == '"[red]secret" + request + 4 masks'


def test_refining_goes_on_where_it_stopped(here):
    def answer(body, times):
        request = body["messages"][0]["content"].rpartition("Request: ")[2].partition("\n")[0]
        return 200, completion(f"{request} step 1 : <mask:6> step 2 : <mask:6>")

    with serving(answer) as server:
        refiner = f"openai base_url={server.url} model=m api_key_env=null"
        given = ["attacks", "refine", "--prompts", "{source: toy, limit: 2}", "--out", "c.jsonl", "--refiner", refiner]
        told = asked(*given)
        assert (told["cases"], told["fallbacks"], len(server.bodies)) == (2, {}, 2)
        again = asked(*given)
        assert (again["sha256"], len(server.bodies)) == (told["sha256"], 2)
    with pytest.raises(ConfigError, match=r"Unknown refiner `opnai`\. Did you mean `openai`"):
        dsprobe(*given[:-1], "opnai base_url=http://localhost model=m")
    with pytest.raises(ConfigError, match="refiner `openai`: model: Field required"):
        dsprobe(*given[:-1], "openai base_url=http://localhost")


def test_exit_codes_and_messages_of_a_real_process(here):
    command = [sys.executable, "-m", "dsprobe.cli.main", "attacks", "show", "none.jsonl"]
    environment = {**os.environ, "COLUMNS": "160"}
    shown = subprocess.run(command, cwd=here, capture_output=True, text=True, env=environment, check=False)
    assert shown.returncode == 2
    assert shown.stderr.startswith("dsprobe: Cannot read attack cases `none.jsonl`")


def test_the_list_of_attacks_says_where_they_come_from_and_what_they_assume():
    rows = asked("list", "attacks")["attacks"]
    assert all(row["source"] and row["assumes"] for row in rows)
    assert next(row for row in rows if row["name"] == "pad")["assumes"] == "canvas write"
