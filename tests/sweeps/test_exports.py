from __future__ import annotations

import io
import json
from dataclasses import replace

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.sweeps.sweep_outcomes import UTILITY, objective_set, outcomes, trial

from dsprobe.config import GuardrailConfig, Spec
from dsprobe.errors import StorageError
from dsprobe.reports.sweep_data import SweepData
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.schemas import check_schema
from dsprobe.strict_yaml import parse_yaml
from dsprobe.sweeps.config import FrontConfig
from dsprobe.sweeps.exports import front_json, read_front, read_trials, write_front
from dsprobe.sweeps.front import compute_front, with_validation

QUICK = FrontConfig(resamples=200)
OBJECTIVES = objective_set("asr", "fluency_loss", constraints=(UTILITY,))
N = 10
BASELINE = outcomes([1] * N, [1.0] * N)


def setting(harmful, loss, **kwargs):
    return outcomes([1] * harmful + [0] * (N - harmful), [1.0 + loss] * N, **kwargs)


TRIALS = [
    trial(0, setting(8, 0.1, used=2), parameters={"renoise.tau": 0.5, "renoise.every": 2, "renoise.ban": "true"}),
    trial(1, setting(2, 0.3), parameters={"renoise.tau": 0.1, "renoise.window": "late"}),
    trial(2, setting(8, 0.9), parameters={"renoise.tau": 1, "renoise.every": 4}),
    trial(
        3,
        outcomes([1] * 3, [None] * 3),
        state="stopped",
        rung=0.25,
        reason="dominated",
        parameters={"renoise.tau": 0.9},
    ),
    trial(4, None, state="failed", rung=0.0, reason="no legal token", parameters={"renoise.tau": 0.2}),
    trial(5, setting(2, 0.3), digest="d1", cached=True, parameters={"renoise.tau": 0.1, "renoise.window": "late"}),
]


@pytest.fixture
def front():
    found = compute_front(TRIALS, BASELINE, OBJECTIVES, QUICK)
    unseen = outcomes([1] * 4, [1.0] * 4, ids=[f"v{i}" for i in range(8)])
    rows = outcomes([0, 1, 0, 0], [1.5] * 4, ids=[f"v{i}" for i in range(8)])
    found = with_validation(found, {"knee": rows}, unseen, OBJECTIVES, QUICK)
    return replace(found, sweep_id="demo-0a1b", importances={"asr": {"renoise.tau": 1.0}, "fluency_loss": {}})


@pytest.fixture
def objects(tmp_path):
    return ObjectStore(str(tmp_path))


def test_front_json_says_everything_the_front_knows(front, objects):
    write_front(front, TRIALS, objects)
    found = read_front(objects)
    assert found == front_json(front)
    assert (found["version"], found["sweep_id"], found["objectives"]) == (1, "demo-0a1b", ["asr", "fluency_loss"])
    assert found["directions"] == ["minimize", "minimize"]
    assert found["reference"] == {"asr": 1.0, "fluency_loss": 2.0}
    assert found["hypervolume"]["value"] == pytest.approx(0.6 * 1.7 + 0.2 * 1.9)
    assert found["knee"] == "knee"
    assert [point["label"] for point in found["points"]] == ["knee", "p01"]
    knee, other = found["points"]
    assert knee["trial"] == 1
    assert knee["parameters"] == {"renoise.tau": 0.1, "renoise.window": "late"}
    assert knee["guardrail"] == {"name": "knee", "stack": [{"name": "refuse", "threshold": 0.01, "every": 2}]}
    assert knee["objectives"]["asr"]["value"] == 0.2
    assert knee["validation"]["asr"]["value"] == 0.25
    assert other["validation"] is None
    assert found["baseline"]["validation"]["asr"]["value"] == 1.0
    assert 0 <= knee["attained"] <= 1
    assert found["attainment"][-1] == {
        "trials": 6, "hypervolume": pytest.approx(found["hypervolume"]["value"]),
        "passes_used": 200 + 40 + 200 + 200 + 60 + 0, "passes_from_scratch": 200 + 200 * 4 + 60,
    }  # fmt: skip
    assert found["validation_run"] is None
    assert found["importances"] == {"asr": {"renoise.tau": 1.0}, "fluency_loss": {}}


def test_undefined_numbers_are_null(objects):
    objectives = objective_set("asr", "fluency_loss")
    found = compute_front(TRIALS[:2], BASELINE, objectives, QUICK)
    only_harmful = outcomes([1, 0], [])
    found = with_validation(found, {"knee": only_harmful}, only_harmful, objectives, QUICK)
    write_front(found, TRIALS[:2], objects)
    text = objects.read("sweep/front.json").decode()
    assert "NaN" not in text
    undefined = json.loads(text)["baseline"]["validation"]["fluency_loss"]
    assert undefined == {"value": None, "low": None, "high": None}


def test_trials_table_reads_everywhere(front, objects):
    write_front(front, TRIALS, objects)
    path = objects.address("sweep/trials.parquet")
    sql = (
        'SELECT number, state, asr, asr_low, asr_high, constraint_utility, "parameters.renoise.tau" AS tau, '
        f"passes_used, passes_from_scratch, point FROM '{path}' ORDER BY number"
    )
    rows = duckdb.sql(sql).fetchall()
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row[1] for row in rows] == ["complete"] * 3 + ["stopped", "failed", "complete"]
    assert [row[2] for row in rows] == [0.8, 0.2, 0.8, 1.0, None, 0.2]
    assert all(row[3] <= row[2] <= row[4] for row in rows if row[2] is not None)
    assert [row[5] for row in rows] == pytest.approx([-0.1] * 4 + [None, -0.1])
    assert [row[6] for row in rows] == [0.5, 0.1, 1.0, 0.9, 0.2, 0.1]
    assert [row[7] for row in rows] == [40, 200, 200, 60, None, 0]
    assert [row[8] for row in rows] == [200, 200, 200, 60, None, 200]
    assert [row[9] for row in rows] == ["p01", "knee", None, None, None, None]
    frame = pl.read_parquet(path)
    assert frame["parameters.renoise.every"].to_list() == [2, None, 4, None, None, None]
    assert frame["parameters.renoise.every"].dtype == pl.Int64
    assert frame["parameters.renoise.window"].to_list() == [None, "late", None, None, None, "late"]
    assert [json.loads(text) for text in frame["parameters"]] == [dict(t.parameters) for t in TRIALS]
    assert frame["rung"].to_list() == [1.0, 1.0, 1.0, 0.25, 0.0, 1.0]
    assert frame["reason"].to_list() == ["", "", "", "dominated", "no legal token", ""]
    assert frame["cached"].to_list() == [False] * 5 + [True]
    assert frame["feasible"].to_list() == [True] * 4 + [None, True]
    metadata = pq.read_schema(path).metadata
    check_schema(metadata, path)
    assert metadata[b"dsprobe.run_id"] == b"demo-0a1b"


def test_front_table_reads_everywhere(front, objects):
    write_front(front, TRIALS, objects)
    path = objects.address("sweep/front.parquet")
    rows = duckdb.sql(f"SELECT label, trial, asr, validation_asr, change_asr, attained FROM '{path}'").fetchall()
    want = [
        (p.label, p.trial, p.objectives["asr"].value, None if p.validation is None else p.validation["asr"].value,
         p.change["asr"].value, p.attained)
        for p in front.points
    ]  # fmt: skip
    assert rows == want
    frame = pl.read_parquet(io.BytesIO(objects.read("sweep/front.parquet")))
    assert frame["parameters.renoise.tau"].to_list() == [0.1, 0.5]
    assert [json.loads(text)["name"] for text in frame["guardrail"]] == ["knee", "p01"]


def test_parameters_of_several_kinds_stay_readable(objects):
    kinds = [{"a": True, "b": 1, "c": 1}, {"a": False, "b": "x", "c": 2.5}]
    trials = [trial(n, setting(5 - n, 0.1), parameters=given) for n, given in enumerate(kinds)]
    write_front(compute_front(trials, BASELINE, OBJECTIVES, QUICK), trials, objects)
    frame = pl.read_parquet(objects.address("sweep/trials.parquet"))
    assert frame["parameters.a"].to_list() == [True, False]
    assert frame["parameters.b"].to_list() == ["1", '"x"']
    assert frame["parameters.c"].to_list() == [1.0, 2.5]


def test_every_point_is_a_guardrail_file(front, objects):
    write_front(front, TRIALS, objects)
    for point in front.points:
        text = objects.read(f"sweep/guardrails/{point.label}.yaml").decode()
        assert GuardrailConfig(**parse_yaml(text, point.label)) == point.guardrail
        comment, *body = text.splitlines()
        assert comment.startswith(f"# Trial {point.trial} of sweep demo-0a1b: asr {point.objectives['asr'].value} [")
        assert not any(line.startswith("#") for line in body)


def test_nested_settings_survive_the_guardrail_file(front, objects):
    stack = (
        Spec(
            name="renoise", alias="first", weighting={"name": "linear", "low": 1e-05}, window="late", ban=True, cap=None
        ),
        Spec(name="refuse", text="no: # off", words=["yes", "1e5", "2026-11-21"]),
    )
    point = replace(front.points[0], guardrail=GuardrailConfig(name="knee", stack=stack))
    write_front(replace(front, points=(point,)), TRIALS, objects)
    read = GuardrailConfig(**parse_yaml(objects.read("sweep/guardrails/knee.yaml").decode(), "knee"))
    assert read == point.guardrail


def test_an_earlier_front_is_replaced(front, objects):
    write_front(front, TRIALS, objects)
    write_front(compute_front(TRIALS[1:2], BASELINE, OBJECTIVES, QUICK), TRIALS[1:2], objects)
    assert objects.list("sweep") == [
        "sweep/front.json",
        "sweep/front.parquet",
        "sweep/guardrails/knee.yaml",
        "sweep/trials.parquet",
    ]
    assert [row["number"] for row in read_trials(objects)] == [1]


@pytest.mark.parametrize("trials", [[], TRIALS[4:5], TRIALS[3:4]])
def test_a_sweep_without_a_front_is_written_too(trials, objects):
    write_front(compute_front(trials, BASELINE, OBJECTIVES, QUICK), trials, objects)
    assert read_front(objects)["points"] == []
    assert read_front(objects)["knee"] is None
    assert len(read_trials(objects)) == len(trials)
    assert len(pl.read_parquet(objects.address("sweep/front.parquet"))) == 0


def test_the_report_understands_what_is_written(front, objects):
    write_front(front, TRIALS, objects)
    search = {"sampler": "nsga2", "trials": 6, "rungs": [0.25, 1.0], "seed": 0, "concurrency": 1}
    data = SweepData.from_parts(read_front(objects), read_trials(objects), search)
    assert data.knee.trial == 1
    assert data.states == {"complete": 4, "stopped": 1, "failed": 1}
    assert data.passes == (700, 1060)
    assert [t.number for t in data.off_front] == [2, 3]
    assert data.finished[4].objectives is None
    assert data.finished[0].parameters == TRIALS[0].parameters


def test_missing_results_are_named(objects):
    with pytest.raises(StorageError, match=r"sweep/front\.json cannot be read"):
        read_front(objects)
