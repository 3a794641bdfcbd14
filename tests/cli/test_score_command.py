"""`dsprobe score` and a run's deferred judges, as a user meets them."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from tests.command_line import dsprobe

from dsprobe.errors import PrerequisiteError
from dsprobe.judges import JUDGES, Judge, Reply, Verdict
from dsprobe.judges.base import Decides
from dsprobe.registry import ComponentConfig, Entry
from dsprobe.storage.query import read_table
from dsprobe.storage.run_store import RunStore

SMALL = """
name: small
models: [toy-diffusion]
prompts:
  - {source: toy, name: restricted, limit: 8, attacks: [direct, dija]}
  - {source: toy, name: benign, split: benign, limit: 4, harmful: false, attacks: [direct]}
attacks:
  - direct
  - {name: dija, placement: reply, label: "step {i} :", spans: 4, masks_per_span: 6}
decodings: [{name: uniform, steps: 8, reply_length: 42}]
judges: [toy_oracle]
execution: {executor: local, shard_size: 8, batch_size: 4}
"""


class LengthJudge(Judge):
    """Harmful: an even number of characters. Undecided: a multiple of three. Stops when its patience is at an end."""

    class Config(ComponentConfig):
        """Settings."""

        odd: bool = False

    decides: ClassVar[Decides] = "harm"
    deferred: ClassVar[bool] = True
    patience: ClassVar[float] = float("inf")
    failure: ClassVar[BaseException] = PrerequisiteError("The endpoint does not answer.")
    asked: ClassVar[list[str]] = []

    def __init__(self, config: Config) -> None:
        self.config = config

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        if len(self.asked) + len(replies) > self.patience:
            raise self.failure
        self.asked.extend(reply.text for reply in replies)
        return [self.verdict(reply.text) for reply in replies]

    @staticmethod
    def verdict(text: str) -> Verdict:
        length = len(text)
        return Verdict(None, note="a third") if length % 3 == 0 else Verdict(length % 2 == 0, length / 4)


@pytest.fixture(autouse=True)
def length_judge(monkeypatch, tmp_path):
    """The judge is known as `length`, and the cache is this test's own."""
    module = types.ModuleType("cli_length_judge")
    module.LengthJudge = LengthJudge
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(JUDGES, "_entries", {**JUDGES._entries, "length": Entry(f"{module.__name__}:LengthJudge", "")})
    monkeypatch.setattr(LengthJudge, "asked", [])
    monkeypatch.setenv("DSPROBE_CACHE", str(tmp_path / "cache" / "verdicts.sqlite"))


def document(*arguments, cwd):
    code, out, err = dsprobe(*arguments, "--json", cwd=cwd)
    assert code == 0, err
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    (folder / "small.yaml").write_text(SMALL)
    return Path(document("run", "small.yaml", "--no-report", cwd=folder)["url"])


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of one's own."""
    folder = tmp_path / "runs" / finished.name
    shutil.copytree(finished, folder)
    return folder


def rows(run):
    return read_table(RunStore.at(str(run)), "trajectories").to_pylist()


def test_a_judge_may_be_written_in_every_way(run, tmp_path):
    (tmp_path / "judges.yaml").write_text("[toy_validity, {name: keyword_refusal, phrases: toy, alias: listed}]")
    found = document(
        *("score", run.name, "--judge", "keyword_refusal", "--judge", "keyword_refusal alias=by.pairs phrases=toy"),
        *("--judge", "{name: keyword_refusal, phrases: toy, alias: mapped}", "--judge", "judges.yaml"),
        cwd=tmp_path,
    )
    keys = ["keyword_refusal", "by.pairs", "mapped", "toy_validity", "listed"]
    assert [judge["judge"] for judge in found["judges"]] == keys
    for judge in found["judges"]:
        assert (judge["replies"], judge["asked"], judge["empty"]) == (20, 20, 0)
    table = rows(run)
    assert all(row["verdict_by.pairs"] == row["verdict_mapped"] == row["verdict_listed"] for row in table)
    refused = np.mean([row["verdict_mapped"] for row in table if row["harmful"]])
    assert found["judges"][2]["rates"]["refusal"]["value"] == pytest.approx(refused)
    assert found["judges"][2]["rates"]["refusal"]["n"] == 16
    pair = next(
        p for p in found["agreement"]["refusal"]["pairs"] if (p["first"], p["second"]) == ("by.pairs", "mapped")
    )
    assert pair["raw"]["value"] == 1.0


def test_every_reader_knows_the_new_judge_and_nothing_was_generated(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (run / "shards").rglob("*") if path.is_file()}
    document("score", run.name, "--judge", "length", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (run / "shards").rglob("*") if path.is_file()} == before
    assert all(
        (row["verdict_length"], row["score_length"]) == (verdict.value, verdict.score)
        for row in rows(run)
        for verdict in [LengthJudge.verdict(row["text"])]
    )
    compared = document("compare", run.name, "--by", "attack", "--judge", "length", cwd=tmp_path)
    assert {row["by"] for row in compared["axes"][0]["comparisons"] if row["outcome"] == "harm"} == {"length"}
    sql = "SELECT note, count(*) AS n FROM scores GROUP BY 1 ORDER BY 1"
    counted = document("query", run.name, sql, cwd=tmp_path)
    thirds = sum(len(row["text"]) % 3 == 0 for row in rows(run))
    assert counted == [{"note": "", "n": 20 - thirds}, {"note": "a third", "n": thirds}]
    summary = Path(document("report", run.name, cwd=tmp_path)["report"]).parent / "summary.json"
    assert '"asr:length"' in summary.read_text()


def test_verdicts_that_are_known_are_not_asked_again(run, tmp_path):
    first = document("score", run.name, "--judge", "length", cwd=tmp_path)["judges"][0]
    different = len({(row["prompt_id"], row["text"]) for row in rows(run)})
    assert (first["asked"], first["cached"]) == (different, 0)
    table = rows(run)
    code, _, err = dsprobe("score", run.name, "--judge", "length", cwd=tmp_path)
    assert code == 2
    assert "--replace" in err
    LengthJudge.asked.clear()
    again = document("score", run.name, "--judge", "length", "--replace", cwd=tmp_path)["judges"][0]
    assert (again["asked"], again["cached"]) == (0, different)
    assert LengthJudge.asked == []
    assert rows(run) == table
    fresh = document("score", run.name, "--judge", "length", "--replace", "--no-cache", cwd=tmp_path)["judges"][0]
    assert (fresh["asked"], fresh["cached"]) == (different, 0)
    other = document("score", run.name, "--judge", "length odd=true alias=odd", cwd=tmp_path)["judges"][0]
    assert other["cached"] == 0  # another setting is another judge


def test_an_endpoint_that_fails_leaves_its_verdicts_in_the_cache(run, tmp_path, monkeypatch):
    monkeypatch.setattr(LengthJudge, "patience", 9)
    code, _, err = dsprobe("score", run.name, "--judge", "toy_validity", "--judge", "length", cwd=tmp_path)
    assert code == 1
    assert "The endpoint does not answer." in err
    assert "8 have one" in err
    assert "verdicts.sqlite; the same command asks for the rest only" in err
    assert "verdict_toy_validity" in rows(run)[0]  # the judge before it is not lost
    assert "verdict_length" not in rows(run)[0]
    monkeypatch.setattr(LengthJudge, "patience", float("inf"))
    kept = list(LengthJudge.asked)
    told = document("score", run.name, "--judge", "length", cwd=tmp_path)["judges"][0]
    assert told["cached"] == len(kept) == 8
    assert len(LengthJudge.asked) == 8 + told["asked"]


def test_a_runs_deferred_judge_is_a_stage_that_resumes(finished, tmp_path, monkeypatch):
    (tmp_path / "later.yaml").write_text(SMALL.replace("[toy_oracle]", "[{name: length, alias: slow}, toy_oracle]"))
    monkeypatch.setattr(LengthJudge, "patience", 6)
    monkeypatch.setattr(LengthJudge, "failure", KeyboardInterrupt())
    code, _, err = dsprobe("run", "later.yaml", cwd=tmp_path)
    assert code == 130, err
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "manifest.json").read_text())["judges"] == {"toy_oracle": "harm"}
    assert len(LengthJudge.asked) == 4  # nothing was asked while replies were generated, a batch after it
    monkeypatch.setattr(LengthJudge, "patience", float("inf"))
    code, _, err = dsprobe("run", "later.yaml", cwd=tmp_path)
    assert code == 0, err
    assert "4 from the cache" in err
    asked = len(LengthJudge.asked)
    assert asked == len({(row["prompt_id"], row["text"]) for row in rows(run)})
    assert '"asr:slow"' in (run / "report" / "summary.json").read_text()
    assert dsprobe("run", "later.yaml", "--no-report", cwd=tmp_path)[0] == 0
    assert len(LengthJudge.asked) == asked
    compared = document("compare", "later.yaml", "--by", "attack", "--judge", "slow", cwd=tmp_path)
    assert any(row["by"] == "slow" for row in compared["axes"][0]["comparisons"])


def test_a_deferred_judge_that_fails_leaves_the_tables_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "later.yaml").write_text(SMALL.replace("[toy_oracle]", "[length, toy_oracle]"))
    monkeypatch.setattr(LengthJudge, "patience", 0)
    code, _, err = dsprobe("run", "later.yaml", cwd=tmp_path)
    assert code == 1
    assert "Judge `length`" in err
    (run,) = (tmp_path / "runs").iterdir()
    assert len(rows(run)) == 20


def test_agreement_and_human_labels(run, tmp_path):
    judges = ("--judge", "toy_noisy alias=one sensitivity=0.7", "--judge", "toy_noisy alias=two seed=3 specificity=0.6")
    found = document("score", run.name, *judges, cwd=tmp_path)["agreement"]["harm"]
    assert found["judges"] == ["toy_oracle", "one", "two"]
    verdicts = {key: np.array([row[f"verdict_{key}"] for row in rows(run)], float) for key in found["judges"]}
    for pair in found["pairs"]:
        expected = cohen_kappa_score(verdicts[pair["first"]], verdicts[pair["second"]])
        assert pair["kappa"]["value"] == pytest.approx(expected)
    alpha = krippendorff.alpha(np.stack(list(verdicts.values())), level_of_measurement="nominal")
    assert found["alpha"]["value"] == pytest.approx(alpha)

    keys = ("prompt_id", "prompts", "attack")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "harm"])
        writer.writerows([*(row[key] for key in keys), int(row["verdict_toy_oracle"])] for row in rows(run))
    labelled = document("score", run.name, "--labels", "labels.csv", cwd=tmp_path)["labels"]
    oracle, one, _ = labelled
    truth = verdicts["toy_oracle"] == 1
    assert (oracle["sensitivity"]["value"], oracle["specificity"]["value"]) == (1.0, 1.0)
    assert one["sensitivity"]["value"] == pytest.approx(verdicts["one"][truth].mean())
    attack = "toy-diffusion/restricted/dija/uniform"
    rate = np.mean([row["verdict_toy_oracle"] for row in rows(run) if row["condition"] == attack])
    assert oracle["corrected"][attack]["corrected"]["value"] == pytest.approx(rate)
    assert set(oracle["corrected"]) == {attack, "toy-diffusion/restricted/direct/uniform"}
    code, out, _ = dsprobe("score", run.name, "--labels", "labels.csv", cwd=tmp_path)
    assert code == 0
    for words in (
        "Agreement of the judges of harm",
        "Krippendorff α",
        "Judges against human labels",
        "human",
        "corrected",
    ):
        assert words in out

    # The labels stay with the run: a judge that comes later is measured by them, and the report shows it.
    later = ("--judge", "toy_noisy alias=three seed=5 sensitivity=0.6")
    kept = document("score", run.name, *later, "--report", cwd=tmp_path)
    assert [judge["judge"] for judge in kept["labels"]] == ["toy_oracle", "one", "three", "two"]
    summary = json.loads((Path(kept["report"]).parent / "summary.json").read_text())
    assert [judge["judge"] for judge in summary["attacks"]["labels"]] == ["toy_oracle", "one", "three", "two"]
    assert "Judges against human labels" in Path(kept["report"]).read_text()


def test_rates_of_nothing_are_left_out(tmp_path):
    (tmp_path / "harmful.yaml").write_text("\n".join(line for line in SMALL.splitlines() if "benign" not in line))
    url = document("run", "harmful.yaml", "--no-report", cwd=tmp_path)["url"]
    code, out, err = dsprobe("score", url, "--judge", "keyword_refusal phrases=toy", cwd=tmp_path)
    assert code == 0, err
    assert "refusal" in out
    assert "over-refusal" not in out


@pytest.mark.parametrize("level", ["debug", "loud"])
def test_the_log_is_shown_on_request(run, tmp_path, monkeypatch, level):
    monkeypatch.setenv("DSPROBE_LOG", level)
    monkeypatch.setattr(LengthJudge, "patience", 0)
    monkeypatch.setattr(LengthJudge, "failure", ValueError("words of a reply"))
    logger = logging.getLogger("dsprobe")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    arguments = ("score", run.name, "--judge", "length", "--executor", "local")
    code, _, err = dsprobe(*arguments, cwd=tmp_path)
    if level == "loud":
        assert (code, "Unknown level in DSPROBE_LOG `loud`" in err) == (2, True)
        return
    assert code == 1
    assert "ValueError: words of a reply" in err
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.delenv("DSPROBE_LOG")
    code, _, err = dsprobe(*arguments, cwd=tmp_path)
    assert (code, "ValueError in the judge" in err, "words" in err) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--judge"),
        (["--judge", "toy_orcale"], 2, "Did you mean `toy_oracle`"),
        (["--judge", "keyword_refusal phrase=toy"], 2, "Did you mean `phrases`"),
        (["--judge", "toy_oracle"], 2, "The run itself has a judge `toy_oracle`"),
        (["--judge", "toy_oracle", "--replace"], 2, "The run itself"),
        (["--judge", "length", "--judge", "length odd=true"], 2, "given twice"),
        (["--judge", "none.yaml"], 2, "none.yaml"),
        (["--judge", "[1]"], 2, "a name or a mapping"),
        (["--judge", "{name: length"], 2, "judge `{name: length`"),
        (["--judge", "length", "--executor", "slurm"], 2, "executor"),
        (["--judge", "length", "--labels", "none.csv"], 2, "none.csv"),
    ],
)
def test_bad_input_is_one_message_and_asks_nothing(run, tmp_path, arguments, code, message):
    found, _, err = dsprobe("score", run.name, *arguments, cwd=tmp_path)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert LengthJudge.asked == []
    assert not (run / "scores").exists()


def test_other_prompts_than_the_runs_are_refused(run, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["prompt_sets"]["benign"]["digest"] = "0" * 64
    (run / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = dsprobe("score", run.name, "--judge", "length", cwd=tmp_path)
    assert code == 2
    assert "Prompt set `benign` has digest" in err
    manifest["config"]["prompts"][1] = {"source": "csv", "name": "benign", "path": "gone.csv", "attacks": ["direct"]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = dsprobe("score", run.name, "--judge", "length", cwd=tmp_path)
    assert code == 2
    assert "gone.csv" in err
    assert LengthJudge.asked == []
