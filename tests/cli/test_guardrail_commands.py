"""Guardrails on the command line: what is listed, what a plan shows, and what is refused before any model is loaded."""

from __future__ import annotations

import json
import sys

import pytest

from dsprobe.cli.main import main

GUARDED = """
name: guarded
models: [toy-diffusion]
prompts: [{source: toy, name: restricted, limit: 2}]
attacks: [{name: dija, placement: reply, label: "step {i} :", spans: 4, masks_per_span: 6}]
decodings: [{name: uniform, steps: 32, reply_length: 42}]
guardrails:
  - none
  - {name: ban, stack: [{name: renoise, threshold: 0.3, scorer: ngram, every: 4, final_check: true}]}
  - {name: end-only, stack: [{name: refuse, threshold: 0.5, window: end, text: "i can not help with that ."}]}
judges: [toy_oracle]
execution: {executor: local}
"""


@pytest.fixture
def dsprobe(monkeypatch, capsys):
    """The entry point in this process: exit code, standard output, standard error. No model can be loaded."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("dsprobe.models.load.load_model", refuse)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dsprobe", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "guarded.yaml").write_text(GUARDED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_guardrails_are_listed_with_their_published_source(dsprobe):
    code, out, _ = dsprobe("list", "guardrails", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["guardrails"]}
    assert {"renoise", "refuse", "gate", "policy", "self_reminder", "diffuguard", "eos_stop"} <= set(rows)
    assert all(row["source"].strip() and row["summary"].strip() for row in rows.values())
    assert "2509.24296" in rows["diffuguard"]["source"]
    printed = dsprobe("list", "guardrails")[1]
    assert rows["renoise"]["source"][:40] in " ".join(printed.split())


def test_weightings_are_listed(dsprobe):
    names = {row["name"] for row in json.loads(dsprobe("list", "weightings", "--json")[1])["weightings"]}
    assert {"constant", "linear", "cosine", "exponential", "window", "piecewise_linear"} <= names


def test_a_plan_names_the_guardrail_of_every_condition_and_loads_no_model(folder, dsprobe):
    code, out, _ = dsprobe("validate", "guarded.yaml")
    assert code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    assert [row[4:] for row in rows if row[0] == "toy-diffusion"] == [["none", "2"], ["ban", "2"], ["end-only", "2"]]
    assert "guardrail" in out
    plan = json.loads(dsprobe("validate", "guarded.yaml", "--json")[1])
    cell = "toy-diffusion/restricted/dija/uniform"
    assert plan["conditions"] == [cell, f"{cell}/ban", f"{cell}/end-only"]


@pytest.mark.parametrize(
    ("setting", "messages"),
    [
        ("guardrails.1.stack.0.threshold=1.5", ["guardrail `renoise`", "threshold", "less than or equal to 1", "1.5"]),
        ("guardrails.1.stack.0.threshold=-0.1", ["guardrail `renoise`", "threshold", "greater than or equal to 0"]),
        ("guardrails.1.stack.0.window=[20,40]", ["window [20, 40]", "outside", "1 to 32"]),
        ("guardrails.1.stack.0.window=[9,4]", ["window [9, 4]", "first may not follow the last"]),
        ("guardrails.1.stack.0.window=lat", ["guardrail `renoise`", "window", "'late'"]),
        ("guardrails.1.stack.0.scorer=ngrm", ["`ngrm`", "Did you mean `ngram`", "toy_lexicon"]),
        ("guardrails.1.stack.0.name=renoize", ["`renoize`", "Did you mean `renoise`", "refuse"]),
        ("guardrails.1.stack.0.thresold=0.3", ["`thresold`", "Did you mean `threshold`"]),
        ("guardrails.1.stack.0.weighting=cosin", ["`cosin`", "Did you mean `cosine`"]),
        ("guardrails.2.name=ban", ["`ban` is used twice"]),
    ],
)
def test_bad_guardrails_are_refused_before_a_model_is_loaded(folder, dsprobe, setting, messages):
    for arguments in (["validate", "guarded.yaml"], ["run", "guarded.yaml", "--no-report"]):
        code, _, err = dsprobe(*arguments, "--set", setting)
        assert code == 2, err
        for message in messages:
            assert message in err
        assert not (folder / "runs").exists()
