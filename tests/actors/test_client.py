"""Pools and attacks over Ray client (``ray://``), as from a laptop at the end of an SSH tunnel, with the token on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.actors.job_cluster import command, dsprobe_env, free_port, job_cluster

NOTEBOOK = """
import json, sys
from dsprobe.actors import connect
with connect("dsprobe", address=sys.argv[1], user="ada") as lab:
    import ray
    from dsprobe.actors.pools import pool_status
    plain = lab.attack("who are you ?", model="toy-diffusion", judges=["toy_oracle"])
    several = lab.attack_all(["who are you ?"] * 2, model="toy-diffusion", samples=2)
    models = list(lab.models)
    ray.kill(lab._pool.replicas[0])
    healed = lab.attack("who are you ?", model={"name": "toy-diffusion"}).text
    status = pool_status("dsprobe").to_dict()
    print(json.dumps([len(plain.steps), [result.text for result in several], models, plain.text, healed, status]))
"""
QUICK = {"RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "1", "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "1"}
"""How long a client tries, instead of half a minute."""


@pytest.fixture(scope="module", name="client")
def fixture_client():
    """Address and environment of a user of a cluster with a pool, which another user's client has started."""
    port = free_port()
    with job_cluster(f"--ray-client-server-port={port}") as cluster:
        address, env = f"ray://127.0.0.1:{port}", {**cluster.env, "RAY_ADDRESS": ""}
        started = command(
            "pool", "start", "demo", "--set", "execution.replicas=1", "--address", address, "--json", cwd="/", env=env
        )
        assert started.returncode == 0, started.stderr
        yield address, env


def python(code, *arguments, env):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=dsprobe_env(**env), capture_output=True, text=True, check=False
    )


def test_a_pool_outlives_the_client_that_started_it(client):
    address, env = client
    listed = command("pool", "list", "--json", "--address", address, cwd="/", env=env)
    assert listed.returncode == 0, listed.stderr
    ((pool, replicas),) = [(found["pool"], found["replicas"]) for found in json.loads(listed.stdout)]
    assert (pool, len(replicas)) == ("dsprobe", 1)


def test_a_notebook_attacks_over_the_client(client):
    address, env = client
    ran = python(NOTEBOOK, address, env=env)
    assert ran.returncode == 0, ran.stderr
    steps, texts, models, text, healed, status = json.loads(ran.stdout.splitlines()[-1])
    assert steps > 1
    assert "toy-diffusion" in models
    assert texts[0] == text  # a row is a row, whoever its neighbours are
    assert len(texts) == 4
    assert healed == text  # the replica was killed, and replaced from here
    assert status["ends_in_s"] > 1700


def test_a_client_with_another_token_is_refused(client, tmp_path):
    address, env = client
    (tmp_path / "token").write_text("0" * 64)
    ran = python(NOTEBOOK, address, env={**env, **QUICK, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert ran.returncode != 0
    assert "PrerequisiteError" in ran.stderr
    assert "No Ray cluster answers at" in ran.stderr
    assert "ssh -L 10001:127.0.0.1:10001 HEAD" in ran.stderr
