"""A private Ray instance: silent, shut behind a token, and gone without a trace."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig
from dsprobe.errors import PrerequisiteError

SCRIPT = """
import json, os, signal, sys, time
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig

def stolen(address):
    import subprocess
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    code = f"import ray; ray.init(address='{address}', logging_level='ERROR'); print('in')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return "in" in done.stdout

facts = {}
with ray_session(ExecutionConfig(), include_dashboard=False) as session:
    import ray

    @ray.remote(num_cpus=0)
    class Noisy:
        def shout(self):
            print("noise")
            return os.getpid()

    noisy = Noisy.options(name="n", lifetime="detached").remote()
    pid = ray.get(noisy.shout.remote())
    os.kill(pid, signal.SIGKILL)
    facts["token"] = oct(session.token_path.stat().st_mode & 0o777)
    facts["private"] = session.private
    facts["stolen"] = stolen(session.address)
    with ray_session(ExecutionConfig()) as inner:
        facts["inner"] = inner.private
    facts["still_open"] = ray.is_initialized()
    facts["folder"] = ray._private.worker._global_node.get_session_dir_path()
    time.sleep(1)
facts["closed"] = not ray.is_initialized()
facts["folder_gone"] = not os.path.exists(facts["folder"])
open(sys.argv[1], "w").write(json.dumps(facts))
"""


@pytest.mark.slow
def test_private_instance(tmp_path: Path) -> None:
    import json

    marker = f"dsp-test-{os.getpid()}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path / "home"), "DSP_MARK": marker}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "facts.json")],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts.pop("folder")
    assert facts == {
        "token": "0o600",
        "private": True,
        "stolen": False,
        "inner": False,
        "still_open": True,
        "closed": True,
        "folder_gone": True,
    }
    assert not list((tmp_path / "home").rglob("auth_token"))
    deadline = time.monotonic() + 10
    while _processes_with(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _processes_with(marker) == []


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Clusters of other tests, which run beside this one, are not to be found.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda temp_dir=None: None)
    with (
        pytest.raises(PrerequisiteError, match="No Ray cluster answers at `auto`"),
        ray_session(ExecutionConfig(address="auto")),
    ):
        pass


def _processes_with(marker: str) -> list[str]:
    """Command lines of live processes that inherited the marked environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"DSP_MARK={marker}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
        except OSError:  # ended while we looked
            continue
    return found
