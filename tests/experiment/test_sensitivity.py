"""Curves, capability and agreement of a made-up run: what tells their rows apart, and what they are compared with."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dsprobe.config import RunConfig
from dsprobe.config_grid import expand_attacks
from dsprobe.experiment.judge_agreement import agreements
from dsprobe.experiment.sensitivity import capability, curves
from dsprobe.experiment.transfer import TransferStudy
from dsprobe.experiment.transfer_rows import TransferRows
from dsprobe.reports.transfer_sheets import capability_sheets, curve_sheets

PROMPTS = 12
KINDS = {"diffusion": {"kind": "diffusion"}, "causal": {"kind": "autoregressive"}}
JUDGES = {"oracle": "harm", "useful": "utility"}


def rows_of(attacks, cells):
    """A run of the cells ``(model, prompts, attack, decoding, share)``; the first requests succeed."""
    config = {
        "models": [{"name": name} for name in KINDS],
        "prompts": [{"source": "toy", "name": "plain"}, {"source": "toy", "name": "benign", "split": "benign"}],
        "attacks": attacks,
        "decodings": [
            {"name": name, "steps": steps, "reply_length": 42} for name, steps in (("fast", 16), ("slow", 32))
        ],
    }
    expand_attacks(config, {})
    table = pa.Table.from_pylist([
        {"model": model, "prompts": prompts, "attack": attack, "decoding": decoding, "guardrail": "none",
         "prompt_id": f"p{n:02d}", "sample": 0, "harmful": prompts == "plain", "empty": False,
         "verdict_oracle": n < share * PROMPTS, "verdict_useful": n < share * PROMPTS}
        for model, prompts, attack, decoding, share in cells
        for n in range(PROMPTS)
    ])  # fmt: skip
    config = RunConfig.model_validate(config).model_dump(mode="json")
    return TransferRows(table, {"config": config, "models": KINDS}, JUDGES)


def study_of(run):
    return TransferStudy(
        attacks=(), transfers=(), curves=tuple(curves(run)), capability=tuple(capability(run)), agreement={}
    )


def anchored(*cells):
    """Cells ``(model, decoding, step, share)`` of the anchoring attack."""
    steps = sorted({step for _, _, step, _ in cells})
    attacks = ["direct", {"name": "anchoring", "alias": "at", "grid": {"step": steps}}]
    keys = dict(zip(steps, (a["alias"] for a in expanded(attacks)), strict=True))
    return rows_of(attacks, [(model, "plain", keys[step], decoding, share) for model, decoding, step, share in cells])


def expanded(attacks):
    config = {"attacks": attacks}
    expand_attacks(config, {})
    return [attack for attack in config["attacks"] if isinstance(attack, dict)]


def test_an_autoregressive_model_says_no_more_tokens_than_its_reply_has():
    (curve,) = curves(anchored(("causal", "slow", 4, 0.25), ("causal", "slow", 64, 0.75)))
    assert [(point.at[0], point.rate.value) for point in curve.anchoring.response.curve] == [
        (pytest.approx(4 / 42), 0.25), (1.0, 0.75),
    ]  # fmt: skip
    assert [point.at[0] for point in curve.response.curve] == [4, 64]  # as configured


def test_steps_of_a_diffusion_model_are_those_its_decoding_plans():
    fast, slow = curves(
        anchored(*(("diffusion", name, step, step / 16) for name in ("fast", "slow") for step in (4, 16)))
    )
    assert [point.at[0] for point in fast.anchoring.response.curve] == [4 / 16, 1.0]
    assert [point.at[0] for point in slow.anchoring.response.curve] == [4 / 32, 0.5]


def test_the_published_slope_stands_beside_ours_in_json_and_in_the_note():
    study = study_of(
        anchored(*(("diffusion", "slow", step, share) for step, share in ((1, 0.25), (4, 0.5), (16, 0.75))))
    )
    (curve,) = study.to_dict()["curves"]
    ours, published = curve["anchoring"]["slope_per_doubling"], curve["anchoring"]["published"]
    assert ours["low"] < ours["value"] < ours["high"]
    assert curve["response"]["rises"] is study.curves[0].response.rises() is True
    (sheet,) = curve_sheets(study)
    assert f"Slope per doubling of t: diffusion, oracle: {ours['value']:.2f}" in sheet.note
    assert f"published ({published['model']}, 2510.00565): {published['slope_per_doubling']:.2f}." in sheet.note


def test_other_grids_have_no_published_curve_and_cues_come_first():
    attacks = ["direct", {"name": "pad", "alias": "dots", "grid": {"spacing": [6, 10], "cues": [1, 2]}}]
    cells = [("diffusion", "plain", a["alias"], "slow", 0.2 + 0.2 * a["cues"]) for a in expanded(attacks)]
    study = study_of(rows_of(attacks, cells))
    (curve,) = study.curves
    assert curve.response.variables == ("cues", "spacing")
    assert curve.response.slope.value > 0
    assert curve.response.slopes[1].value == pytest.approx(0, abs=1e-9)
    assert curve.to_dict()["anchoring"] is None
    assert "doubling" not in next(iter(curve_sheets(study))).note


@pytest.mark.parametrize("decodings", [("slow",), ("fast", "slow")])
def test_capability_names_the_decoding_where_there_are_several(decodings):
    shares = {"fast": 0.5, "slow": 0.75}
    cells = [("diffusion", "benign", "direct", name, shares[name]) for name in decodings]
    study = study_of(rows_of(["direct"], [*cells, ("causal", "benign", "direct", "slow", 1.0)]))
    found = {part["decoding"]: part["estimate"]["level"]["value"] for part in study.to_dict()["capability"]}
    assert found == {name: shares[name] for name in decodings}
    (sheet,) = capability_sheets(study)
    if len(decodings) == 1:
        assert "decoding" not in sheet.headings
    else:
        place = sheet.headings.index("decoding")
        assert [row[place] for row in sheet.rows] == list(decodings)
        assert place < sheet.labels
    assert {len(row) for row in sheet.rows} == {len(sheet.headings)}


def test_capability_names_the_attack_where_there_are_several():
    cells = [(m, "benign", a, "slow", 0.5) for a in ("direct", "dija") for m in KINDS]
    (sheet,) = capability_sheets(study_of(rows_of(["direct", "dija"], cells)))
    assert [row[:3] for row in sheet.rows] == [["benign", a, "useful"] for a in ("direct", "dija")]
    assert (sheet.headings[:3], sheet.labels) == (["prompts", "attack", "judge"], 3)


def test_curves_of_several_decodings_are_told_apart():
    study = study_of(anchored(*(("diffusion", n, s, 0.5) for n in ("fast", "slow") for s in (4, 16))))
    (sheet,) = curve_sheets(study)
    assert [row[:3] for row in sheet.rows] == [["diffusion", n, "oracle"] for n in ("fast", "slow")]
    assert sheet.headings[:3] == ["model", "decoding", "judge"]
    assert sheet.labels == 3


def test_prompts_of_two_sets_that_share_an_id_are_two_prompts():
    table = pa.table({
        "prompts": ["one"] * 8 + ["two"] * 8,
        "prompt_id": [f"p{n % 4}" for n in range(16)],
        "verdict_a": [n % 2 == 0 for n in range(16)],
        "verdict_b": [n % 3 == 0 for n in range(16)],
    })  # fmt: skip
    (pair,) = agreements(table, {"a": "harm", "b": "harm"}, {})["harm"].pairs
    assert (pair.n, pair.raw.n) == (16, 8)
