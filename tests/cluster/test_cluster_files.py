"""The cluster files, as Ray, EC2 and Kubernetes read them, and their commands, as a shell reads them."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

botocore_session = pytest.importorskip("botocore.session")
from botocore.validate import ParamValidator  # noqa: E402
from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: E402

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "cluster"
RAY_UP = {path.name: path for path in (ROOT / "cluster.yaml", FOLDER / "on-prem.yaml", FOLDER / "gcp.yaml")}
KUBERAY = {path.name: path for path in sorted(FOLDER.glob("kuberay-*.yaml"))}
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def read(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture(params=RAY_UP, name="cluster")
def fixture_cluster(request):
    return read(RAY_UP[request.param])


def commands(cluster):
    return [command for kind in COMMANDS for command in cluster.get(kind, [])]


def test_rays_loader_takes_the_file(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_rays_loader_refuses_what_these_tests_would_miss(cluster):
    with pytest.raises(Exception, match=r"minworkers|Additional properties"):
        validate_config(prepare_config({**copy.deepcopy(cluster), "minworkers": 1}))


def run_instances_complaints(node_config):
    model = botocore_session.get_session().get_service_model("ec2").operation_model("RunInstances")
    request = {"MinCount": 1, "MaxCount": 1, **node_config}
    return ParamValidator().validate(request, model.input_shape).generate_report()


def test_ec2_takes_every_node_type():
    types = read(RAY_UP["cluster.yaml"])["available_node_types"]
    assert {name: run_instances_complaints(kind["node_config"]) for name, kind in types.items()} == dict.fromkeys(
        types, ""
    )
    assert "InstanceTyp" in run_instances_complaints({"InstanceTyp": "g6.2xlarge"})


def test_nothing_costs_money_before_there_is_work():
    for name in ("cluster.yaml", "gcp.yaml"):
        cluster = read(RAY_UP[name])
        kinds = cluster["available_node_types"]
        assert all(kind.get("min_workers", 0) == 0 for kind in kinds.values())
        assert kinds[cluster["head_node_type"]]["resources"]["GPU"] == 0
        assert cluster["idle_timeout_minutes"] <= 15
        assert cluster["max_workers"] <= 8


def test_workers_of_the_default_types_are_spot_machines():
    types = read(RAY_UP["cluster.yaml"])["available_node_types"]
    used = [kind["node_config"] for kind in types.values() if kind["resources"]["GPU"] and kind["max_workers"]]
    assert used
    assert all(config["InstanceMarketOptions"]["MarketType"] == "spot" for config in used)
    scheduling = read(RAY_UP["gcp.yaml"])["available_node_types"]["spot-l4"]["node_config"]["scheduling"]
    assert scheduling["provisioningModel"] == "SPOT"


def test_a_shell_can_read_every_command(cluster):
    for command in commands(cluster):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{command}\n{checked.stderr}"


def test_ray_is_shut_behind_a_token_and_the_dashboard_stays_on_loopback(cluster):
    starts = [c for c in commands(cluster) if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in next(command for command in starts if "--head" in command)
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_options_of_ray_start_exist(cluster):
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    used = {o for c in commands(cluster) if "ray start" in c for o in re.findall(r"--[a-z-]+", c)}
    assert used
    assert used <= known


def test_no_rule_of_rays_opens_ssh_to_everybody():
    from ray.autoscaler._private.aws import config as aws

    # Whatever rules a file gives, Ray adds its own, and none to a group that has rules: so the user's group has them.
    assert aws._create_default_ssh_inbound_rules()[0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    assert read(RAY_UP["cluster.yaml"])["provider"]["security_group"] == {"GroupName": "dsprobe"}
    assert "authorize-security-group-ingress" in RAY_UP["cluster.yaml"].read_text()


def test_the_metadata_service_asks_for_a_session_token():
    types = read(RAY_UP["cluster.yaml"])["available_node_types"].values()
    assert all(kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for kind in types)


@pytest.mark.parametrize("path", sorted([*RAY_UP.values(), *FOLDER.iterdir()]), ids=lambda path: path.name)
def test_no_file_holds_a_secret(path):
    if path.is_dir():
        pytest.skip("a folder")
    text = path.read_text()
    found = re.findall(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z]{20,}|(?i:secret_access_key|password)\s*[:=]\s*\S+", text)
    assert not found


@pytest.mark.parametrize("role", ["head", "worker"])
def test_policies_name_one_bucket_and_no_wildcard_action(role):
    policy = json.loads((FOLDER / f"iam-{role}.json").read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any(action.endswith("*") for action in actions)
        if any(action.startswith("s3:") for action in actions):
            assert statement["Resource"].startswith("arn:aws:s3:::my-bucket")
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions)


def test_workers_have_no_rights_beyond_the_bucket():
    policy = json.loads((FOLDER / "iam-worker.json").read_text())
    assert {action.split(":")[0] for statement in policy["Statement"] for action in statement["Action"]} == {"s3"}


def test_the_head_may_start_and_end_only_workers_of_this_cluster():
    policy = json.loads((FOLDER / "iam-head.json").read_text())
    by_name = {statement["Sid"]: statement for statement in policy["Statement"]}
    for name in ("StartWorkersWithTheirTag", "EndAndTagOwnWorkers"):
        tags = by_name[name]["Condition"]["StringEquals"]
        assert {key.split("/")[1]: value for key, value in tags.items()} == {
            "ray-cluster-name": read(RAY_UP["cluster.yaml"])["cluster_name"],
            "ray-node-type": "worker",
        }


# Fields of ray.io/v1 as KubeRay's API reference lists them, those that these files use.
RAY_CLUSTER_FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
RAY_JOB_FIELDS = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
GROUP_FIELDS = {"serviceType", "rayStartParams", "template", "groupName", "replicas", "minReplicas", "maxReplicas"}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_use_the_fields_of_its_api(name):
    document = read(KUBERAY[name])
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"]
    if document["kind"] == "RayJob":
        assert set(spec) <= RAY_JOB_FIELDS
        spec = spec["rayClusterSpec"]
    assert set(spec) <= RAY_CLUSTER_FIELDS
    assert spec["authOptions"] == {"mode": "token"}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert set(group) <= GROUP_FIELDS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_name_the_pinned_ray(name):
    spec = read(KUBERAY[name])["spec"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert str((spec.get("rayClusterSpec") or spec)["rayVersion"]) == pinned[1]


@pytest.fixture(scope="module", name="home")
def fixture_home(tmp_path_factory):
    """A home folder to which `ray up` has copied the wheel, with an environment as the setup commands expect it."""
    home = tmp_path_factory.mktemp("home")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--wheel-dir", str(home / "dsprobe-dist"), str(ROOT)],
        check=True,
    )  # fmt: skip
    shutil.copy(ROOT / "constraints.txt", home / "dsprobe-dist")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("not a secret")
    # Its dependencies are those of the tests and its own folder is empty: in place of minutes of pip.
    subprocess.run([sys.executable, "-m", "venv", str(home / "dsprobe")], check=True)
    site = next((home / "dsprobe" / "lib").glob("python3*")) / "site-packages"
    (site / "dependencies.pth").write_text(str(Path(importlib.metadata.distribution("ray").locate_file(""))))
    return home


@pytest.mark.parametrize("name", RAY_UP)
def test_setup_commands_install_the_wheel(name, home):
    cluster = read(RAY_UP[name])
    environment = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    for command in cluster["setup_commands"]:
        ran = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    where = subprocess.run(
        [home / "dsprobe" / "bin" / "python", "-c", "import dsprobe.errors; print(dsprobe.errors.__file__)"],
        env=environment, cwd=home, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(home))
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert "dsprobe/bin" in (home / ".bashrc").read_text()
