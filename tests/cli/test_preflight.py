"""`dsprobe preflight`: all that is wrong in one table, and what the cluster must have."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from tests.command_line import dsprobe

from dsprobe.actors.capacity import Limits, NodeType, judged, limits_of_file, room
from dsprobe.config import ExecutionConfig
from dsprobe.errors import StorageError

GOOD = {
    "name": "good",
    "models": ["toy-diffusion"],
    "prompts": [{"source": "toy", "limit": 2}],
    "decodings": [{"steps": 4, "reply_length": 12}],
    "execution": {"executor": "local"},
}


def preflight(folder, config, *arguments, env=None):
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return dsprobe("preflight", "c.yaml", *arguments, cwd=folder, env=env)


def states(text):
    return {check["name"]: check["state"] for check in json.loads(text)["checks"]}


def test_a_sound_configuration_passes_and_leaves_nothing_behind(tmp_path):
    code, out, err = preflight(tmp_path, GOOD)
    assert (code, "failed" in err) == (0, False)
    assert "8 row forward passes" in out
    assert "CPU seconds" in out
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
    found = json.loads(preflight(tmp_path, GOOD, "--json")[1])
    assert found["ok"]
    assert found["id"].startswith("good-")
    assert found["estimate"]["forward_passes"] == 8
    assert found["cost"]["usd"] == 0


def test_every_failure_is_shown_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    broken = {**GOOD, "models": ["toy-diffusion", {"name": "far", "path": "/no/such/model"}],
              "prompts": [{"source": "toy", "limit": 2}, {"source": "csv", "name": "gone", "path": "no.csv"}],
              "judges": [{"name": "harmbench", "backend": {"kind": "local", "path": "/no/judge"}}],
              "output": {"root": "file/below"}}  # fmt: skip
    code, out, _ = preflight(tmp_path, broken, "--json")
    assert code == 2
    assert states(out) == {
        "model toy-diffusion": "ok", "model far": "failed", "prompts toy": "ok", "prompts gone": "failed",
        "judge harmbench": "failed", "version": "ok", "output": "failed", "resources": "ok", "plan": "skipped",
    }  # fmt: skip
    code, _, err = preflight(tmp_path, broken)
    assert (code, len(re.findall(r"│ failed +│", err)), "4 of 9 checks failed" in err) == (2, 4, True)
    code, out, _ = preflight(tmp_path, broken, "--json", "--local")
    assert not {"version", "output", "resources"} & states(out).keys()


def test_what_is_missing_outside_the_configuration_exits_with_1(tmp_path):
    (tmp_path / "file").write_text("")
    code, out, _ = preflight(tmp_path, {**GOOD, "output": {"root": "file/below"}}, "--json")
    assert (code, states(out)["output"], states(out)["plan"]) == (1, "failed", "ok")
    code, out, _ = preflight(tmp_path, GOOD, "--json", env={"DSPROBE_JOB_VERSION": "0.0.1"})
    assert (code, states(out)["version"]) == (1, "failed")
    asked = {**GOOD, "execution": {"executor": "ray", "num_cpus": 100000}}
    code, out, _ = preflight(tmp_path, asked, "--json")
    assert (code, states(out)["resources"]) == (1, "failed")


def test_a_wrong_configuration_exits_with_2(tmp_path):
    code, _, err = preflight(tmp_path, {**GOOD, "modles": []})
    assert (code, "Did you mean" in err) == (2, True)
    code, out, _ = preflight(tmp_path, {**GOOD, "execution": {"executor": "local", "cost": {"gpu": "H10"}}}, "--json")
    assert (code, states(out)["cost"]) == (2, "failed")
    code, out, _ = preflight(tmp_path, GOOD, "--kind", "transfer", "--json")
    assert (code, states(out)["plan"]) == (2, "failed")


@pytest.mark.parametrize("kind", ["sweep", "transfer"])
def test_recipes_of_other_kinds_pass(kind, tmp_path):
    code, out, err = dsprobe("preflight", "demo", "--kind", kind, "--local", "--json", cwd=tmp_path)
    assert code == 0, out + err
    assert json.loads(out)["estimate"]["forward_passes"] > 0


def test_validate_shows_the_same_cost(tmp_path):
    found = json.loads(preflight(tmp_path, GOOD, "--json", "--local")[1])
    shown = json.loads(dsprobe("validate", "c.yaml", "--json", cwd=tmp_path)[1])
    assert (shown["cost"], shown["estimate"]) == (found["cost"], found["estimate"])


def test_the_output_root_is_tried_on_a_real_server(gateway, tmp_path):
    bucket, environment = gateway.new_bucket(), gateway.environment()
    there = {**GOOD, "output": {"root": f"s3://{bucket}/results"}}
    code, out, err = preflight(tmp_path, there, "--json", env=environment)
    assert (code, states(out)["output"]) == (0, "ok"), err
    assert "Contents" not in gateway.client().list_objects_v2(Bucket=bucket)
    nowhere = {**GOOD, "output": {"root": "s3://no-such-bucket-here/results"}}
    code, out, _ = preflight(tmp_path, nowhere, "--json", env=environment)
    assert (code, states(out)["output"]) == (1, "failed")


CPU, GPU = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "limits", "asked", "state", "says"),
    [
        ([CPU], None, {"replicas": 8}, "ok", "8 of 8"),
        ([CPU], None, {"replicas": 9}, "failed", "8 of 9"),
        ([CPU, GPU], None, {"replicas": 4, "num_gpus": 1}, "ok", "4 of 4"),
        ([CPU, GPU], None, {"replicas": 8, "num_gpus": 0.5}, "ok", "8 of 8"),
        ([CPU, GPU], None, {"replicas": 5, "num_gpus": 1}, "failed", "4 of 5"),
        ([CPU], [("gpu", GPU, 3)], {"replicas": 12, "num_gpus": 1}, "ok", "12 once the autoscaler"),
        ([CPU], [("gpu", GPU, 3)], {"replicas": 13, "num_gpus": 1}, "failed", "12 once the autoscaler"),
        ([CPU], [("gpu", GPU, 9), ("cpu", CPU, 9)], {"replicas": 21, "num_gpus": 1}, "failed", "20 once"),
    ],
)
def test_resources_now_or_by_the_autoscaler(nodes, limits, asked, state, says):
    known = limits and Limits(
        types=[NodeType(name=name, resources=has, most=most, addable=most) for name, has, most in limits],
        most=5,
        source="a file",
    )
    found = judged(ExecutionConfig(**asked), nodes, known, "the nodes that are up", None)
    assert (found.state, says in found.detail) == (state, True), found.detail


def test_a_replica_that_asks_for_nothing_fits_anywhere():
    assert room({}, ExecutionConfig(num_cpus=0)) > 1000


def test_limits_are_read_from_the_file_of_ray_up(tmp_path):
    file = tmp_path / "ray_bootstrap_config.yaml"
    types = {"head": {"resources": {"CPU": 2}}, "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3}}
    file.write_text(yaml.safe_dump({"head_node_type": "head", "max_workers": 6, "available_node_types": types}))
    limits = limits_of_file(file)
    assert [(kind.name, kind.most) for kind in limits.types] == [("gpu", 3), ("head", 1)]
    assert limits.most == 7
    file.write_text("available_node_types: 3")
    with pytest.raises(StorageError, match="no cluster file"):
        limits_of_file(file)
