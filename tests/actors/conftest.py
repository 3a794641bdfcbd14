"""One quiet Ray instance per module whose workers live in `actor_world` or `judge_world`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # so that Ray workers and tests import the scripted world under one name

from tests.actors import actor_store, actor_world  # noqa: E402


@pytest.fixture(scope="module")
def scripted_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from quiet_ray("tests.actors.actor_store.install", tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def judging_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from quiet_ray("tests.actors.judge_world.install", tmp_path_factory.mktemp("world"))


def keep_auth_mode() -> None:
    """Go without a token, unless this process has used one before: Ray looks only once in the life of a process."""
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")


def quiet_ray(setup_hook: str, folder: Path) -> Iterator[None]:
    import ray

    keep_auth_mode()
    os.environ[actor_store.LOG] = str(folder / "events.log")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        namespace="dsprobe",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={
            "worker_process_setup_hook": setup_hook,
            "env_vars": {"PYTHONPATH": path, actor_store.LOG: os.environ[actor_store.LOG]},
        },
    )
    yield
    ray.shutdown()
    del os.environ[actor_store.LOG]


@pytest.fixture(autouse=True)
def scripted_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local executor lives in the same world as the workers."""
    monkeypatch.setattr("dsprobe.actors.pinned.ShardRunner", actor_world.ScriptedRunner)
    monkeypatch.setattr("dsprobe.actors.pinned.load_model", actor_world.scripted_model)


@pytest.fixture(autouse=True)
def empty_log() -> None:
    path = os.environ.get(actor_store.LOG)
    if path:
        Path(path).unlink(missing_ok=True)
