"""H1 to H6 from a finished run: which conditions answer which, what is missing, what the document holds."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from dsprobe.config import RunConfig
from dsprobe.errors import ConfigError
from dsprobe.experiment.hypothesis_conditions import answers
from dsprobe.metrics.hypotheses import HYPOTHESES
from dsprobe.metrics.intervals import Interval
from dsprobe.metrics.preregistration import CONDITIONS, RULES_VERSION, decide_stop, rules_document
from dsprobe.reports.hypothesis_sheets import decided_sheets, rules_sheets

_spec = importlib.util.spec_from_file_location("hypothesis_world", Path(__file__).with_name("hypothesis_world.py"))
world = importlib.util.module_from_spec(_spec)
sys.modules["hypothesis_world"] = world
_spec.loader.exec_module(world)

PRIMARY = "diffusion/plain/dija/linear"
FORKED = [PRIMARY, "diffusion/plain/pad/linear"]
DIGESTS = {1: "553c7a0e44cca1e1f7ad9909d8343ea6b4a14a9f5312e672544ea4ea87cf9a1d"}
"""Version of the rules → their digest. A rule that changes gets a new version, beside the old ones."""


@pytest.fixture(scope="module")
def holding():
    """The world in which the hypotheses hold."""
    return world.decided(forked=world.forks(FORKED, ends=(1.0, 0.9, 0.2)))


def drop(kind, *names):
    def change(config):
        config[kind] = [part for part in config[kind] if part["name"] not in names]
        for prompts in config["prompts"]:
            if kind in prompts:
                prompts[kind] = [name for name in prompts[kind] if name not in names]

    return change


def test_the_configuration_chooses_the_conditions():
    config = world.configured()
    found = answers(RunConfig.model_validate(config), world.manifest_of(config))
    assert [condition.id for condition in found.risk] == [
        PRIMARY, "diffusion/plain/pad/linear", "diffusion/plain/prefill/linear", "diffusion/guarded/dija/linear",
    ]  # fmt: skip
    cell = "diffusion/guarded/dija/linear"
    assert found.windows.unguarded.id == cell
    assert {name: c.id for name, c in found.windows.windows.items()} == {
        "early": f"{cell}/first", "middle": f"{cell}/second", "late": f"{cell}/third",
    }  # fmt: skip
    assert found.windows.end_only.id == f"{cell}/filter"
    assert [c.guardrail for c in found.fronts.constant] == ["flat-2", "flat-4", "flat-6"]
    assert {name: len(settings) for name, settings in found.fronts.weighted.items()} == {"linear": 3, "cosine": 2}
    assert {name: (a.decoding, b.decoding) for name, (a, b) in found.schedules.items()} == dict.fromkeys(
        ("dija", "pad", "prefill"), ("dilated", "linear")
    )
    assert not found.missing


def test_a_manifest_that_does_not_say_which_prompts_are_harmful_is_refused():
    config = world.configured()
    manifest = world.manifest_of(config)
    first = min(manifest["prompt_sets"])
    del manifest["prompt_sets"][first]["harmful"]
    with pytest.raises(ConfigError, match=f"`{first}`"):
        answers(RunConfig.model_validate(config), manifest)


def test_where_the_hypotheses_hold_they_are_supported(holding):
    found = world.by_id(holding)
    assert list(found) == ["H1", "H2", "H3", "H4", "H5", "H6"]
    assert {name: decision.verdict for name, decision in found.items()} == dict.fromkeys(found, "supported")
    assert found["H1"].reason.startswith(PRIMARY)
    assert "in middle (asr)" in found["H3"].reason
    assert {f.name for f in found["H3"].findings if f.outcome == "asr against end-only"} == {"early", "middle", "late"}
    assert [f.evidence for f in found["H4"].findings] == ["for", "beside"]
    assert found["H5"].estimate.value == pytest.approx(0.9 - 0.5 / 0.9)
    assert not [name for name in holding.conditions["H5"] if "/direct/" in name]
    assert holding.conditions["H2"] == FORKED
    assert holding.judges == {"harm": "oracle", "validity": "valid"}


def test_a_search_with_a_surrogate_is_pooled_and_named():
    def searched(config):
        config["attacks"].append({"name": "gcg", "surrogate": "diffusion"})
        config["prompts"][1]["attacks"].append("gcg")

    found, plain = world.decided(searched), world.decided()
    used = [name.split("/")[2] for name in found.conditions["H5"]]
    assert sorted(set(used)) == ["dija", "gcg", "pad", "prefill"]
    estimates = [world.by_id(decided)["H5"].estimate.value for decided in (found, plain)]
    assert estimates[0] < estimates[1]  # what never carries over lowers the pooled index of its direction


def test_results_do_not_choose_conditions(holding):
    other = world.decided(forked=world.forks(FORKED, ends=(0.1, 0.1, 0.1)), verdict=world.uniform(0))
    assert other.conditions == holding.conditions


def test_where_guardrails_and_schedules_change_nothing_that_is_shown():
    def alike(condition, prompt):
        return prompt % 2 == 0

    forked = world.forks(FORKED, ends=(0.1, 0.1, 0.1))
    same = world.by_id(world.decided(verdict=alike, validity=alike, forked=forked))
    for name in ("H2", "H3", "H4", "H6"):
        assert same[name].verdict == "not supported", same[name].reason


@pytest.mark.parametrize(
    ("hypothesis", "change", "advice"),
    [
        ("H1", drop("attacks", "dija", "pad", "prefill"), "add an attack such as `dija`"),
        ("H2", drop("models", "diffusion"), "add an attack such as `dija`"),
        ("H3", drop("guardrails", "first", "second", "third"), "window: middle"),
        ("H4", drop("guardrails", *(f"{n}-{t}" for n in ("rising", "wave") for t in (2, 4, 6))), "weighting"),
        ("H5", drop("models", "causal"), "diffusion models only; add one of the other kind"),
        ("H5", drop("attacks", "prefill"), "`prefill`"),
        ("H6", drop("decodings", "dilated"), "schedule: dilated"),
    ],
)
def test_a_hypothesis_without_conditions_is_undecided_and_says_what_to_add(hypothesis, change, advice):
    decision = world.by_id(world.decided(change))[hypothesis]
    assert (decision.verdict, decision.n) == ("undecided", 0)
    assert advice in decision.reason


def test_without_judges_steps_or_forks_the_reason_says_so():
    found = world.by_id(world.decided(judges={"keyword": "refusal"}, steps=lambda table: table.slice(0, 0)))
    assert all(decision.verdict == "undecided" for decision in found.values())
    assert "recording: {enabled: true}" in found["H1"].reason
    assert "dsprobe irreversibility RUN" in found["H2"].reason
    for name in ("H3", "H4", "H5", "H6"):
        assert "no judge of harm" in found[name].reason
    assert "validity" in world.by_id(world.decided(judges={"oracle": "harm"}))["H4"].reason


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"step": 24}, "--steps 12 --shares 0.2,0.5,1"),
        ({"shares": (0.5, 1.0)}, "--shares 0.2,0.5,1"),
        ({"target": "attributed"}, "attributed positions"),
    ],
)
def test_forks_that_cannot_answer_h2_name_the_command_that_can(settings, advice):
    decision = world.by_id(world.decided(forked=world.forks(FORKED, ends=(1, 1, 1), **settings)))["H2"]
    assert decision.verdict == "undecided"
    assert advice in decision.reason


def test_schedules_of_different_lengths_are_compared_by_asr_only():
    def shorter(config):
        config["decodings"][1]["steps"] = 12

    findings = world.by_id(world.decided(shorter))["H6"].findings
    assert {finding.outcome for finding in findings} == {"asr"}


def test_an_unlike_dilated_decoding_has_no_baseline():
    def longer(config):
        config["decodings"][1]["reply_length"] = 64

    assert "otherwise equal uniform" in world.by_id(world.decided(longer))["H6"].reason


def test_the_document_is_json_and_its_shape_is_fixed(holding):
    document = json.loads(json.dumps(holding.to_dict(), allow_nan=False))
    assert document.keys() == {
        "rules_version", "rules_digest", "alpha", "rules", "stop_rule", "decisions", "stop", "judges", "theta",
        "irreversibility",
    }  # fmt: skip
    assert document["stop"].keys() == {"applies", "sentence", "ranges", "levels"}
    for decision in document["decisions"]:
        assert decision.keys() == {
            "hypothesis", "statement", "outcome", "conditions", "verdict", "estimate", "test", "n", "reason",
            "findings",
        }  # fmt: skip
        for finding in decision["findings"]:
            assert finding.keys() == {"name", "outcome", "estimate", "evidence", "p_holm", "reason"}
    outcomes = {decision["hypothesis"]: decision["outcome"] for decision in document["decisions"]}
    assert outcomes | {"H3": "", "H6": ""} == {
        "H1": "width", "H2": "irr_renoise", "H3": "", "H4": "hypervolume", "H5": "asymmetry", "H6": "",
    }  # fmt: skip
    assert outcomes["H3"] in ("asr", "fhs")


def test_the_tables_come_from_the_document(holding):
    document = json.loads(json.dumps(holding.to_dict()))
    overview, *sheets = decided_sheets(document)
    assert [row[2] for row in overview.rows] == ["supported"] * 6
    assert [sheet.title.split()[0] for sheet in sheets] == [rule.id for rule in HYPOTHESES]
    for sheet in (overview, *sheets, *rules_sheets(document)):
        assert all(len(row) == len(sheet.headings) for row in sheet.rows)


def test_a_changed_rule_needs_a_new_version():
    assert rules_document()["rules_digest"] == DIGESTS[RULES_VERSION]
    assert CONDITIONS.keys() == {rule.id for rule in HYPOTHESES}


def interval(low, high, n=64):
    return Interval((low + high) / 2, low, high, n, "made up")


@pytest.mark.parametrize(
    ("ranges", "levels", "applies", "words"),
    [
        ([interval(0.0, 0.05)], [], True, "no risk curve rises"),
        ([interval(0.5, 0.9)], [interval(0.1, 0.3)], True, "irreversibility is low everywhere"),
        ([interval(0.5, 0.9)], [interval(0.6, 0.9)], False, "does not apply"),
        ([interval(0.5, 0.9)], [interval(0.6, 0.9, n=10)], None, "open"),
        ([interval(0.0, 0.05), interval(0.05, 0.2)], [interval(0.6, 0.9)], None, "open"),
        ([interval(0.0, 0.05, n=10)], [], None, "open"),
        ([], [], None, "open"),
    ],
)
def test_the_stop_rule(ranges, levels, applies, words):
    found = decide_stop(*({str(place): part for place, part in enumerate(parts)} for parts in (ranges, levels)))
    assert found.applies is applies
    assert words in found.sentence
