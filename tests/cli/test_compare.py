"""`dsprobe compare` as a user meets it: a small real run, a made-up one with odd labels, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from tests.command_line import dsprobe

from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.plan import resolve
from dsprobe.storage.commit_record import WriterOptions
from dsprobe.storage.compaction import compact
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.testing import synthetic_batch
from dsprobe.sweeps.library import recipes, summary

SMALL = """
name: small
models: [toy-diffusion]
prompts:
  - {source: toy, name: restricted, limit: 8, attacks: [dija]}
  - {source: toy, name: benign, split: benign, limit: 6, harmful: false, attacks: [direct]}
attacks:
  - direct
  - {name: dija, placement: reply, label: "step {i} :", spans: 4, masks_per_span: 6}
decodings:
  - {name: uniform, steps: 8, reply_length: 42}
  - {name: dilated, steps: 6, reply_length: 42, schedule: dilated}
guardrails:
  - none
  - {name: ending, stack: [{name: refuse, window: end, text: i can not help with that ., scorer: ngram}]}
judges: [toy_oracle, {name: keyword_refusal, phrases: toy}, {name: keyword_refusal, alias: second}, toy_utility]
execution: {executor: local, shard_size: 8, batch_size: 8}
"""
ODD = "di|ja [red]*x*"
"""An attack's label that means something to a terminal, to Markdown and to HTML."""


def compared(*arguments, cwd):
    code, out, err = dsprobe("compare", *arguments, "--json", cwd=cwd)
    assert code == 0, err
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def row_of(document, outcome, axis=0, **labels):
    rows = [
        row
        for row in document["axes"][axis]["comparisons"]
        if row["outcome"] == outcome
        and labels.items() <= {**row["cell"], "level": row["level"], "by": row["by"]}.items()
    ]
    (row,) = rows
    return row


def bounds(interval):
    return interval["value"], interval["low"], interval["high"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder, and the comparison of a run that it was made for."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.yaml").write_text(SMALL)
    return folder, compared("small.yaml", cwd=folder)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A made-up run: two samples a prompt, undefined verdicts, a level with fewer rows, labels that need escaping."""
    folder = tmp_path_factory.mktemp("odd")
    levels = {"none": 40, "late": 36, "all": 40}
    conditions = {
        f"{attack}-{level}": Condition(model="toy", prompts="toy", attack=attack, decoding="d", guardrail=level)
        for attack in ("direct", ODD)
        for level in levels
    }
    store = RunStore(str(folder), "odd-0", WriterOptions(threshold=0.5, sample_positions=1, extreme_positions=0))
    config = {
        "models": [{"name": "toy"}],
        "decodings": [{"name": "d"}],
        "attacks": [{"name": "direct"}, {"name": "dija", "alias": ODD}],
        "guardrails": [{"name": level} for level in levels],
        "recording": {"enabled": True},
    }
    judges = {"oracle": "harm", "keyword": "refusal"}
    store.write_manifest({"run_id": "odd-0", "shards": list(conditions), "config": config, "judges": judges})
    for seed, (shard, condition) in enumerate(conditions.items()):
        with store.open_attempt(shard) as writer:
            rows = levels[condition.guardrail]
            writer.add(synthetic_batch(seed, condition=condition, rows=rows, judges=list(judges)))
            writer.commit()
    compact(store)
    return folder, pd.read_parquet(f"{store.url}/tables/trajectories")


def test_a_configuration_is_run_and_then_only_compared(small):
    folder, document = small
    assert document["run_id"].startswith("small-")
    assert [(axis["by"], axis["baseline"]) for axis in document["axes"]] == [
        ("guardrail", "none"),
        ("decoding", "uniform"),
    ]
    assert document["axes"][0]["levels"] == ["none", "ending"]
    code, _, err = dsprobe("compare", "small.yaml", cwd=folder)
    assert code == 0
    assert "56/56 trajectories 0.0/s, 56 done before" in err
    for source in (document["run_id"], document["url"], Path(document["url"]).relative_to(folder)):
        assert compared(source, cwd=folder) == document


def test_the_numbers_are_those_of_the_tables(small):
    _, document = small
    table = pd.read_parquet(Path(document["url"]) / "tables" / "trajectories").query("attack == 'dija' and harmful")
    wide = table.pivot(index="prompt_id", columns=["decoding", "guardrail"], values="verdict_toy_oracle").astype(bool)
    p_values = []
    for decoding in ("uniform", "dilated"):
        row = row_of(document, "harm", decoding=decoding)
        level, baseline = wide[decoding, "ending"], wide[decoding, "none"]
        cells = pd.crosstab(level, baseline).reindex(index=[True, False], columns=[True, False], fill_value=0)
        assert row["estimate"]["test"]["p_value"] == pytest.approx(mcnemar(cells, exact=True).pvalue)
        assert row["estimate"]["difference"]["value"] == pytest.approx(level.mean() - baseline.mean())
        assert bounds(row["estimate"]["level"])[1:] == pytest.approx(
            proportion_confint(level.sum(), 8, method="wilson")
        )
        assert (row["estimate"]["pairs"], row["estimate"]["left_out"], row["unmatched"]) == (8, 0, 0)
        p_values.append(row["estimate"]["test"]["p_value"])
    adjusted = multipletests(p_values, method="holm")[1]
    assert [row_of(document, "harm", decoding=d)["p_holm"] for d in ("uniform", "dilated")] == pytest.approx(adjusted)
    assert (
        row_of(document, "harm", decoding="uniform")["estimate"]["difference"]["value"] < -0.5
    )  # the filter does something
    assert row_of(document, "utility", decoding="uniform")["requests"] == "benign"


def test_every_comparison_of_the_document_is_complete(small):
    _, document = small
    assert document.keys() == {"version", "run_id", "url", "confidence", "alpha", "adjustment", "axes", "conclusion"}
    for axis in document["axes"]:
        assert {row["outcome"] for row in axis["comparisons"]} == {"harm", "refusal", "utility", "fhs"}
        assert len(axis["comparisons"]) == 2 * 5  # two cells of each kind; two views of the First Harmful Step
        for row in axis["comparisons"]:
            assert row.keys() == {
                "outcome", "by", "requests", "cell", "level", "baseline", "unmatched", "estimate", "p_holm",
                "supported",
            }  # fmt: skip
            assert row["estimate"].keys() == {
                "pairs", "prompts", "left_out", "undefined", "level", "baseline", "difference", "test", "beside",
            }  # fmt: skip
            for name in ("level", "baseline", "difference"):
                assert row["estimate"][name].keys() == {"value", "low", "high", "n", "method", "confidence"}
            assert (row["outcome"] == "fhs") == (row["estimate"]["beside"] is not None)
            assert axis["by"] not in row["cell"]
        assert len(axis["costs"]) == 4


def test_another_baseline_turns_the_difference_around(small):
    folder, document = small
    turned = compared(document["run_id"], "--by", "guardrail", "--baseline", "ending", cwd=folder)
    (axis,) = turned["axes"]
    assert axis["baseline"] == "ending"
    before, after = (row_of(d, "harm", decoding="uniform")["estimate"]["difference"] for d in (document, turned))
    assert bounds(after) == pytest.approx((-before["value"], -before["high"], -before["low"]))
    cost, turned_cost = (d["axes"][0]["costs"][0]["delta_nfe"]["value"] for d in (document, turned))
    assert turned_cost == pytest.approx(1 / cost)


def test_a_judge_is_chosen_for_the_question_it_decides(small):
    folder, document = small
    assert row_of(document, "refusal", decoding="uniform")["by"] == "keyword_refusal"
    chosen = compared(document["run_id"], "--by", "guardrail", "--judge", "second", cwd=folder)
    assert row_of(chosen, "refusal", decoding="uniform")["by"] == "second"
    assert row_of(chosen, "harm", decoding="uniform")["by"] == "toy_oracle"


@pytest.mark.parametrize("columns", [120, 72])
def test_tables_fit_the_terminal_and_the_last_line_says_what_is_supported(small, columns):
    folder, document = small
    _, out, _ = dsprobe("compare", document["run_id"], cwd=folder, columns=columns)
    *lines, last = out.splitlines()
    assert max(map(len, lines)) <= columns
    assert last == document["conclusion"]
    supported = sum(row["supported"] for axis in document["axes"] for row in axis["comparisons"])
    assert last.startswith(
        f"Supported at 5% after Holm (one family per axis and outcome): {supported} of 20 differences."
    )
    assert "one family of 2" in re.sub(r"\s+", " ", out)


def test_undefined_verdicts_and_missing_partners_are_counted(odd):
    folder, table = odd
    document = compared("odd-0", cwd=folder)
    wide = table.query("attack == 'direct'").pivot(
        index=["prompt_id", "sample"], columns="guardrail", values="verdict_oracle"
    )
    pairs = wide.loc[:"p00017", ["late", "none"]]
    row = row_of(document, "harm", attack="direct", level="late")
    assert row["unmatched"] == 4
    assert row["estimate"]["undefined"] == {"level": pairs["late"].isna().sum(), "baseline": pairs["none"].isna().sum()}
    defined = pairs.dropna().astype(bool)
    assert (row["estimate"]["pairs"], row["estimate"]["left_out"]) == (len(defined), len(pairs) - len(defined))
    assert row["estimate"]["difference"]["value"] == pytest.approx(defined["late"].mean() - defined["none"].mean())
    assert row["estimate"]["difference"]["method"] == "cluster bootstrap"
    sums = defined.astype(int).groupby("prompt_id").sum()
    expected = permutation_test(
        (sums["late"], sums["none"]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=0,
    )
    assert row["estimate"]["test"]["p_value"] == pytest.approx(expected.pvalue, abs=0.02)
    assert row["estimate"]["beside"]["method"] == "McNemar exact"
    _, out, _ = dsprobe("compare", "odd-0", cwd=folder)
    found = row["estimate"]
    assert f"{found['left_out']} ({found['undefined']['baseline']} + {found['undefined']['level']})" in out
    assert "8 rows have no partner" in out


def test_times_and_costs_are_those_of_the_tables(odd):
    folder, table = odd
    document = compared("odd-0", cwd=folder)
    rows = table.query("attack == 'direct' and guardrail in ('all', 'none')")
    horizon = table.query("attack == 'direct'")["num_steps"].max()
    unharmed = np.where(rows["fhs_committed_event"], rows["fhs_committed"], horizon)
    means = pd.Series(unharmed).groupby(rows["guardrail"].to_numpy()).mean()
    row = row_of(document, "fhs", attack="direct", level="all", by="committed")
    assert row["estimate"]["level"]["value"] == pytest.approx(means["all"])
    assert row["estimate"]["difference"]["value"] == pytest.approx(means["all"] - means["none"])
    assert row["estimate"]["beside"]["method"] == "log-rank"
    cost = rows["forward_passes"] * rows["canvas"].map(len)
    totals = cost.groupby(rows["guardrail"]).sum()
    shown = next(c for c in document["axes"][0]["costs"] if c["cell"]["attack"] == "direct" and c["level"] == "all")
    assert shown["delta_nfe"]["value"] == pytest.approx(totals["all"] / totals["none"])


def test_labels_are_text_in_the_terminal_and_in_markdown(odd):
    folder, _ = odd
    _, out, _ = dsprobe("compare", "odd-0", cwd=folder, columns=200)
    assert ODD in out
    code, out, _ = dsprobe("compare", "odd-0", "--markdown", cwd=folder)
    assert code == 0
    tables = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4  # harm, two views of the First Harmful Step, cost; there are no benign requests
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "di\\|ja \\[red\\]\\*x\\*" in out
    assert out.splitlines()[-1].startswith("Supported at 5%")


def test_levels_that_take_different_numbers_of_steps_are_pointed_out(small):
    folder, document = small
    _, out, _ = dsprobe("compare", document["run_id"], "--by", "decoding", cwd=folder)
    assert "Longest trajectories differ (uniform 8, dilated 6)" in re.sub(r"\s+", " ", out)
    assert document["axes"][1]["steps"][0]["longest"] == {"uniform": 8, "dilated": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "guardrial"], "Did you mean `guardrail`"),
        (["--by", "model"], "only one level of model (`toy-diffusion`)"),
        (["--by", "guardrail", "--baseline", "endign"], "Did you mean `ending`"),
        (["--baseline", "ending"], "--baseline `ending` needs --by"),
        (["--by", "attack"], "No attack shares rows (prompt, sample) with the baseline `direct`"),
        (["--judge", "toy_orakle"], "Did you mean `toy_oracle`"),
        (["--judge", "second", "--judge", "keyword_refusal"], "both decide refusal"),
        (["--json", "--markdown"], "exclude each other"),
        (["--limit", "3"], "`--limit` changes what is run"),
        (["--set", "seed=3"], "`seed=3` changes what is run"),
    ],
)
def test_a_wrong_request_is_one_message(small, arguments, message):
    folder, document = small
    code, _, err = dsprobe("compare", document["run_id"], *arguments, cwd=folder)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["windos"], "Did you mean `windows`"),
        (["no/such.yaml"], "no/such.yaml"),
        (["windows", "--baseline", "middel"], "Did you mean `middle`"),
        (["windows", "--by", "decoding"], "Allowed: --by guardrail, --by attack"),
        (["schedules", "--baseline", "renoise"], "guardrail and decoding both have several levels"),
        (["schedules", "--judge", "oracle"], "toy_oracle"),
        (["schedules", "--set", "judges=[]"], "There are no judges"),
        (
            ["windows", "--set", "guardrails=[{name: a, stack: [renoise]}, {name: b, stack: [renoise]}]"],
            "Choose --baseline",
        ),
        (["demo", "--by", "guardrail"], "only one level of guardrail (`none`)"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_run(arguments, message, tmp_path):
    code, _, err = dsprobe("compare", *arguments, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_the_windows_recipe_differs_in_windows_only():
    config = load_config("windows", schema=RunConfig, recipes=recipes("run")).config
    assert summary(recipes("run")["windows"])
    stacks = {guardrail.name: guardrail.stack[0] for guardrail in config.guardrails if guardrail.stack}
    shared = [{k: v for k, v in spec.params.items() if k not in ("window", "text")} for spec in stacks.values()]
    assert all(params == shared[0] for params in shared)
    assert [(spec.name, spec.params["window"]) for spec in stacks.values()] == [
        ("refuse", "end"), ("renoise", "end"), ("renoise", "early"), ("renoise", "middle"), ("renoise", "late"),
        ("renoise", "all"),
    ]  # fmt: skip
    assert len(resolve(config).conditions) == 2 * 7


def test_the_schedules_recipe_crosses_schedules_with_a_guardrail_under_two_attacks():
    config = load_config("schedules", schema=RunConfig, recipes=recipes("run")).config
    assert [d.schedule.name for d in config.decodings] == ["uniform", "dilated"]
    conditions = {(c.decoding, c.guardrail, c.attack) for c in resolve(config).conditions}
    assert len(conditions) == 2 * 2 * 3
