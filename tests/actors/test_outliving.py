"""A pool outlives the driver that started it, killed without warning; two drivers at once get the tables of one alone.

Ray keeps an actor's class for as long as an actor of its driver lives, so that a pool can be reached by whoever comes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from tests.actors.test_connect import environment  # noqa: F401 - a fixture

from dsprobe.actors.executor import execute
from dsprobe.config import DecodingConfig, ExecutionConfig, ModelConfig, PromptsConfig, RunConfig
from dsprobe.experiment.plan import resolve
from dsprobe.storage.compaction import content_digest
from dsprobe.storage.run_store import RunStore, plan_facts

INSTANCE = """
import sys
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig
with ray_session(ExecutionConfig(), include_dashboard=False) as session:
    print(session.address, session.token_path, flush=True)
    sys.stdin.readline()
"""
CREATOR = """
import sys
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig
execution = ExecutionConfig(replicas=2, num_cpus=0.5, address=sys.argv[1])
with ray_session(execution):
    print([info.pid for info in ReplicaPool.get_or_create("dsprobe", execution).info()], flush=True)
    sys.stdin.readline()
"""
RUNNER = """
import json, os, signal, sys
from pathlib import Path
from tests.actors.test_outliving import plan_of, run
from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.session import ray_session
address, folder, name, kills = sys.argv[1:]
plan = plan_of(name, "ray", address)
with ray_session(plan.config.execution):
    before = [info.pid for info in ReplicaPool.connect("dsprobe").info()]
    retried = run(plan, folder)
    if kills == "kill":
        os.kill(before[0], signal.SIGKILL)
    retried += run(plan_of(name + "2", "ray", address), folder)
    after = [info.pid for info in ReplicaPool.connect("dsprobe").info()]
print(json.dumps([before, after, retried]))
"""


def plan_of(name, executor, address="local"):
    """The same for equal names; others ask other prompts."""
    execution = ExecutionConfig(
        executor=executor, address=address, replicas=2, num_cpus=0.5, batch_size=2, shard_size=4, retries=3
    )
    return resolve(
        RunConfig(
            name=name,
            seed=len(name),
            models=(ModelConfig(name="toy-diffusion"),),
            prompts=(PromptsConfig(source="toy", limit=12),),
            decodings=(DecodingConfig(steps=8),),
            execution=execution,
        )
    )


def run(plan, root):
    """Run a plan to the end; how many attempts were repeated."""
    store = RunStore(str(root), plan.run_id)
    store.write_manifest(plan_facts(plan))
    report = execute(plan, store, progress=lambda progress: None)
    assert report.complete
    return len(report.retried)


def tables(plan, root):
    store = RunStore(str(root), plan.run_id)
    return {
        (shard, name): content_digest(store.read_shard(record, name))
        for shard, record in store.committed().items()
        for name in record.files
    }


@pytest.fixture
def scripted_local():
    """No script here: everything is real."""


@pytest.fixture
def start(environment, request):  # noqa: F811
    """Start a script in a process of its own."""

    def begin(code, *arguments, token=None):
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token} if token else {}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment, **auth, "PYTHONPATH": str(request.config.rootpath)}, start_new_session=True,
        )  # fmt: skip
        request.addfinalizer(lambda: process.poll() is None and process.communicate("\n", timeout=60))
        return process

    return begin


@pytest.mark.slow
def test_a_pool_outlives_its_creator_and_serves_two_drivers(start, tmp_path):
    address, token = start(INSTANCE).stdout.readline().split()
    creator = start(CREATOR, address, token=token)
    created = json.loads(creator.stdout.readline())
    creator.kill()
    creator.wait()
    time.sleep(2)  # the control store notices, and forgets the driver's job

    runners = [
        start(RUNNER, address, tmp_path / "together", name, kills, token=token)
        for name, kills in (("first", "kill"), ("another", ""))
    ]
    answers = []
    for runner in runners:
        out, err = runner.communicate(timeout=240)
        assert runner.returncode == 0, err[-3000:]
        answers.append(json.loads(out.splitlines()[-1]))
    before, after, _ = answers[0]
    assert before == created
    assert after[0] not in created  # its own victim was replaced
    assert after[1] == created[1]

    last = start(RUNNER, address, tmp_path / "later", "first", "", token=token)  # a replica of a driver that is gone
    out, err = last.communicate(timeout=240)
    assert last.returncode == 0, err[-3000:]
    assert json.loads(out.splitlines()[-1]) == [after, after, 0]
    for name in ("first", "first2", "another", "another2"):
        alone = plan_of(name, "local")
        run(alone, tmp_path / "alone")
        expected = tables(alone, tmp_path / "alone")
        assert len(expected) >= 3
        assert tables(plan_of(name, "ray"), tmp_path / "together") == expected
