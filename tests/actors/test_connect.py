"""A notebook attaches to the pool of another process and attacks the models that are pinned there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dsprobe.actors import connect
from dsprobe.adhoc import attack, attack_all, canvas
from dsprobe.config import ModelConfig
from dsprobe.errors import ConfigError
from dsprobe.models.load import load_model
from dsprobe.prompts.toy import toy_prompts

SERVER = """
import sys
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig, ModelConfig
execution = ExecutionConfig(replicas=2, num_cpus=0.5)
with ray_session(execution, include_dashboard=False) as session:
    pool = ReplicaPool.get_or_create("lab", execution, [ModelConfig(name="toy-diffusion")])
    print(session.address, session.token_path, flush=True)
    sys.stdin.readline()
"""
CLIENT = """
import json, os, signal, sys
from dsprobe.actors import connect
from dsprobe.errors import DSProbeError
from dsprobe.prompts.toy import toy_prompts

facts = {"light": not {"ray", "torch", "transformers"} & sys.modules.keys()}

def complaint(function, *given, **named):
    try:
        function(*given, **named)
    except DSProbeError as error:
        return f"{type(error).__name__}: {error}"

import ray
address, prompts = sys.argv[2], toy_prompts("restricted", limit=3).prompts
facts["lba"] = complaint(connect, "lba", address)
facts["closed"] = not ray.is_initialized()
with connect("lab", address) as lab:
    draw = lab.canvas("toy-diffusion")
    drawn = draw(prompts[0].text, ["step 1 :", 7, "step 2 :", 7], prompt=prompts[0])
    facts["preview"] = draw.preview(drawn).committed
    facts["word"] = complaint(draw, "how", ["zzz"])
    facts["one"] = lab.attack(drawn, judges=["toy_oracle"]).to_dict()
    facts["repr"] = repr(lab)
    dija = {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}
    settings = {"attack": dija, "decoding": {"temperature": 0.5}, "samples": 2, "seed": 1}
    facts["many"] = [result.to_dict() for result in lab.attack_all(prompts, "toy-diffusion", **settings)]
    facts["twin"] = lab.attack(drawn, {"name": "toy-autoregressive"}).to_dict()
    facts["models"] = lab.models
    facts["which"] = complaint(lab.attack, "x")
    facts["model"] = complaint(lab.attack, "x", "toy-difusion")
    facts["attack"] = complaint(lab.attack, "x", "toy-diffusion", attack="dijja")
    facts["kind"] = complaint(lab.attack, "x", "toy-autoregressive", guardrail=["renoise"])
    os.kill(lab.info()[0].pid, signal.SIGKILL)
    facts["healed"] = len(lab.attack_all(prompts, "toy-diffusion"))
    with connect("lab") as inner:  # the open connection is used, and left open
        facts["inner"] = len(inner.info())
    facts["open"] = ray.is_initialized()
facts["closed"] &= not ray.is_initialized()
json.dump(facts, open(sys.argv[1], "w"))
"""
DIJA = {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Address and token file of a private instance with a pool, in a process of its own."""
    command = [sys.executable, "-c", SERVER]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    assert process.stdout is not None
    address, token = process.stdout.readline().split()
    yield address, token
    process.communicate("\n", timeout=60)


@pytest.fixture(scope="module")
def facts(
    cluster: tuple[str, str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a second process saw and got."""
    address, token = cluster
    path = tmp_path_factory.mktemp("client") / "facts.json"
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(path), address],
        env={**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_results_equal_those_of_this_process(facts: dict[str, Any]) -> None:
    prompts = toy_prompts("restricted", limit=3).prompts
    model = load_model(ModelConfig(name="toy-diffusion"))
    drawn = canvas(prompts[0].text, ["step 1 :", 7, "step 2 :", 7], prompt=prompts[0])
    assert facts["one"] == _plain(attack(model, drawn, judges=["toy_oracle"]))
    many = attack_all(model, prompts, attack=DIJA, decoding={"temperature": 0.5}, samples=2, seed=1)
    assert facts["many"] == [_plain(result) for result in many]
    assert [result["sample"] for result in facts["many"]] == [0, 1] * 3
    twin = load_model(ModelConfig(name="toy-autoregressive"))
    assert facts["twin"] == _plain(attack(twin, drawn))
    assert facts["preview"] == _plain(attack(model, drawn))["initial"]


def _plain(result: Any) -> Any:
    return json.loads(json.dumps(result.to_dict()))


def test_the_handle_knows_the_pool_and_says_what_is_wrong(facts: dict[str, Any]) -> None:
    assert facts["light"]
    assert facts["models"] == ["toy-autoregressive", "toy-diffusion"]
    assert facts["repr"] == "Laboratory(pool `lab`, 2 replicas, models: toy-diffusion)"
    assert facts["lba"] == "ConfigError: Unknown replica pool `lba`. Did you mean `lab`? Allowed: lab."
    assert facts["word"].startswith("ConfigError: The vocabulary of `toy-diffusion` lacks `zzz`")
    assert "Give `model=`" in facts["which"]
    assert "Did you mean `toy-diffusion`" in facts["model"]
    assert "Did you mean `dija`" in facts["attack"]
    assert facts["kind"] == "ConfigError: Guardrail `renoise` is not defined for autoregressive models."


def test_a_dead_replica_is_replaced_and_connections_end_as_they_began(facts: dict[str, Any]) -> None:
    assert facts["healed"] == 3
    assert facts["inner"] == 2
    assert facts["open"]
    assert facts["closed"]


def test_a_private_instance_is_not_started_in_order_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="`local` would start an instance without pools"):
        connect("lab", "local")
