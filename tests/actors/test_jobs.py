"""Jobs on a real Ray head with token authentication: what is sent, what comes back, and what a user sees."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
import yaml
from tests.actors.job_cluster import BIN, command, dsprobe_env, free_port, job_cluster, wait_until

from dsprobe.actors.job_folder import CONFIG_FILE, MAX_BYTES, JobFolder
from dsprobe.actors.job_request import JobRequest, job_environment, next_id, submission
from dsprobe.actors.job_server import DEFAULT_ADDRESS, server_address
from dsprobe.actors.jobs import JobRecord
from dsprobe.actors.wheel import for_ray, job_wheel
from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import resolve
from dsprobe.sweeps.config import SweepConfig
from dsprobe.sweeps.library import recipes
from dsprobe.sweeps.pipeline import resolve_sweep

CONFIG = {
    "name": "small",
    "models": ["toy-diffusion"],
    "prompts": [{"source": "csv", "name": "mine", "path": "data/mine.csv"}],
    "decodings": [{"name": "few", "steps": 4, "reply_length": 12}],
    "judges": [{"name": "keyword_refusal", "file": "PHRASES"}],
    "execution": {"executor": "local", "shard_size": 4, "batch_size": 4},
    "output": {"root": "results"},
}
SECRETS = {"AWS_SECRET_ACCESS_KEY": "not-a-real-secret-key-0001", "HF_TOKEN": "not-a-real-hub-token-0002"}


@pytest.fixture(scope="module")
def cluster():
    with job_cluster() as running:
        yield running


@pytest.fixture
def project(tmp_path):
    """A working folder with a configuration, a prompt file in it and a phrase list outside it."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.csv").write_text("prompt\nhow to bake a cake\nhow to brew tea\n")
    (tmp_path / "phrases.txt").write_text("i cannot\n")
    text = yaml.safe_dump(CONFIG).replace("PHRASES", str(tmp_path / "phrases.txt"))
    (folder / "small.yaml").write_text(text)
    return folder


def job_of(output):
    return re.search(r"^Job (\S+):", output, re.MULTILINE)[1]


def record(cluster, job_id, cwd):
    shown = command("jobs", "status", job_id, "--json", cwd=cwd, env=cluster.env)
    return json.loads(shown.stdout)


def test_a_job_outlives_its_submitter_and_runs_this_code_on_the_files_that_travelled(cluster, project):
    arguments = ["submit", "run", "small.yaml", "--allow-local-output", "--tag", "team=red", "--no-report", "--follow"]
    laptop = subprocess.Popen(
        [BIN / "dsprobe", *arguments], cwd=project,
        env=dsprobe_env(**cluster.env | SECRETS, PYTHONUNBUFFERED="1", TMPDIR=str(project.parent)),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    job_id = next(job_of(line) for line in laptop.stdout if line.startswith("Job "))
    os.killpg(laptop.pid, signal.SIGKILL)
    laptop.communicate()
    assert re.fullmatch(r"dsprobe-run-small-[0-9a-f]{8}-1", job_id)

    twice = command(*arguments, "--wheel", "none", cwd=project, env=cluster.env)
    assert (twice.returncode, job_id in twice.stderr, "--again" in twice.stderr) == (2, True, True), twice.stderr
    shown = command("jobs", "logs", job_id, "--follow", cwd=project, env=cluster.env)
    assert shown.returncode == 0, shown.stdout
    assert "py_modules_files" in shown.stdout  # the embedded model lies in the wheel
    assert 0 < shown.stdout.index("Pre-flight") < shown.stdout.index("1 shards run")
    run_id = job_id.removeprefix("dsprobe-run-").removesuffix("-1")
    manifest = json.loads((project / "results" / "runs" / run_id / "manifest.json").read_text())
    assert manifest["config"]["execution"]["address"] == "auto"
    assert manifest["config"]["prompts"][0]["path"] == "data/mine.csv"

    kept = record(cluster, job_id, project)
    assert kept["status"] == "SUCCEEDED"
    facts = {name.removeprefix("dsprobe."): value for name, value in kept["metadata"].items()}
    assert facts.items() >= {"kind": "run", "id": run_id, "config": "small.yaml", "tag.team": "red"}.items()
    listed = command("jobs", "list", "--json", cwd=project, env=cluster.env).stdout
    assert [job["id"] for job in json.loads(listed)] == [job_id]

    everything = rest_of(cluster, f"/api/jobs/{job_id}") + json.dumps(kept) + shown.stdout + shown.stderr
    assert '"env_vars"' in everything
    hidden = [*SECRETS.values(), cluster.token.read_text()]
    assert not [value for value in hidden if value in everything]


def rest_of(cluster, path):
    """What the server says over plain HTTP, environment included."""
    import requests

    header = {"Authorization": f"Bearer {cluster.token.read_text()}"}
    answer = requests.get(cluster.address + path, headers=header, timeout=30)
    answer.raise_for_status()
    return answer.text


def test_nothing_runs_where_the_preflight_fails(cluster, project):
    asked = ["--set", "execution.num_gpus=1", "--set", "seed=3", "--set", "execution.cost.gpu=H100"]
    shown = command(
        "submit", "run", "small.yaml", *asked, "--allow-local-output", "--wheel", "none", "--follow", "--json",
        cwd=project, env=cluster.env,
    )  # fmt: skip
    assert shown.returncode == 1, shown.stderr
    assert json.loads(shown.stdout)["job_id"] in shown.stderr
    assert re.search(r"resources\s+│ failed", shown.stderr)
    assert "1 of 7 checks failed" in shown.stderr
    assert not list(project.glob("results/runs/*"))


def test_an_interrupt_ends_the_following_and_stop_ends_the_job(cluster, project):
    rows = "prompt\n" + "".join(f"how to bake cake {number}\n" for number in range(4000))
    (project / "data" / "mine.csv").write_text(rows)
    shown = command(
        "submit", "run", "small.yaml", "--allow-local-output", "--wheel", "none", "--no-check", "--id", "long",
        cwd=project, env=cluster.env,
    )  # fmt: skip
    assert (shown.returncode, job_of(shown.stdout)) == (0, "long"), shown.stderr
    follower = subprocess.Popen(
        [BIN / "dsprobe", "jobs", "logs", "long", "--follow"], cwd=project, env=dsprobe_env(**cluster.env),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "the job goes on" in said
    assert record(cluster, "long", project)["status"] in ("PENDING", "RUNNING")
    assert command("jobs", "stop", "long", cwd=project, env=cluster.env).returncode == 0
    wait_until(lambda: record(cluster, "long", project)["status"] == "STOPPED")
    assert command("jobs", "status", "long", cwd=project, env=cluster.env).returncode == 130
    missing = command("jobs", "status", "nosuch", cwd=project, env=cluster.env)
    assert (missing.returncode, "jobs list" in missing.stderr) == (2, True)


@pytest.mark.slow
def test_plain_ray_job_submit_does_the_same_and_a_job_reduces_its_logs(cluster, project):
    configured = yaml.safe_load((project / "small.yaml").read_text())
    configured["execution"] |= {"executor": "ray", "address": "auto"}
    configured["judges"], configured["output"] = [], {"root": str(project / "plain")}
    configured["recording"] = {"raw": {"keep": ["steps"]}}
    (project / "small.yaml").write_text(yaml.safe_dump(configured))
    shown = subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "dsprobe", "run", "small.yaml", "--no-report"],
        cwd=project, env=dsprobe_env(**cluster.env), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout + shown.stderr
    run = next((project / "plain" / "runs").glob("small-*"))
    assert list(run.glob("tables/*"))
    reduced = command(
        "submit", "reduce", run, "--threshold", "0.25", "--allow-local-output", "--wheel", "none", "--follow",
        cwd=project, env=cluster.env,
    )  # fmt: skip
    assert reduced.returncode == 0, reduced.stdout + reduced.stderr
    assert "threshold 0.25" in reduced.stdout
    assert list(run.glob("reduced/*"))


@contextlib.contextmanager
def other_servers():
    """Ports of a web server that is no dashboard, of something that speaks no HTTP, and of nothing."""
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    mute = socket.create_server(("127.0.0.1", 0))

    def slam():
        with contextlib.suppress(OSError):
            while True:
                mute.accept()[0].close()

    threading.Thread(target=slam, daemon=True).start()
    yield {"is no Ray dashboard": web.server_port, "is not reached": mute.getsockname()[1], "SSH": free_port()}
    web.shutdown()
    mute.close()


def test_a_wrong_address_or_token_is_one_clear_message(cluster, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    home = {"HOME": str(tmp_path)}
    cases = [("refuses this token", cluster.env | {"RAY_AUTH_TOKEN_PATH": str(wrong)}),
             ("wants a token", {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": cluster.address}),
             ("RAY_AUTH_TOKEN_PATH", home | {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": cluster.address})]  # fmt: skip
    with other_servers() as ports:
        for said, port in ports.items():
            cases.append((said.replace("SSH", "ssh -L"), cluster.env | {"RAY_ADDRESS": f"http://127.0.0.1:{port}"}))
        for said, env in cases:
            shown = command("jobs", "list", cwd=tmp_path, env=env)
            assert shown.returncode == 1, (said, shown)
            assert said in shown.stderr
            assert shown.stderr.count("\n") == 1, shown.stderr
            assert cluster.token.read_text() not in shown.stderr


def test_the_address_comes_from_the_option_then_the_environment():
    environ = {"RAY_ADDRESS": "http://b:1/", "RAY_API_SERVER_ADDRESS": "http://a:1"}
    assert server_address("https://c:1", environ) == "https://c:1"
    assert server_address(None, environ) == "http://a:1"
    assert server_address(None, {"RAY_ADDRESS": "http://b:1/"}) == "http://b:1"
    assert server_address(None, {}) == DEFAULT_ADDRESS
    for wrong in ("auto", "ray://h:10001", "10.0.0.1:6379", "http://u:p@h:1"):
        with pytest.raises(ConfigError, match="dashboard") as caught:
            server_address(None, {"RAY_ADDRESS": wrong})
        assert "u:p" not in str(caught.value)


def test_only_listed_variables_go_with_a_job():
    environ = SECRETS | {"AWS_REGION": "eu", "DSPROBE_LOG": "INFO", "DSPROBE_HUB_TOKEN": "x", "PATH": "/bin",
                         "HF_HUB_OFFLINE": "1", "COLOUR": "red", "AWS_ACCESS_KEY_ID": "x"}  # fmt: skip
    assert job_environment(environ, ["COLOUR"]) == {
        "AWS_REGION": "eu", "DSPROBE_LOG": "INFO", "HF_HUB_OFFLINE": "1", "COLOUR": "red",
    }  # fmt: skip
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "my_password", "ABSENT"):
        with pytest.raises(ConfigError, match=name) as caught:
            job_environment(environ, [name])
        assert "not-a-real" not in str(caught.value)


@pytest.mark.parametrize("place", ["tags", "env", "source", "commands"])
def test_no_part_of_a_request_may_hold_a_secret(place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    leak = f"x {SECRETS['HF_TOKEN']} x"
    parts = {"tags": {"a": leak}, "env": {"A": leak}, "source": leak, "commands": [["run", leak]]}
    given = {"kind": "run", "id": "a-00000000", "source": "a.yaml", "commands": [["run"]]}
    submission(JobRequest(**given), "fine")
    with pytest.raises(ConfigError, match="secret environment variable") as caught:
        submission(JobRequest(**given | {place: parts[place]}), "leaky")
    assert SECRETS["HF_TOKEN"] not in str(caught.value)


def test_arguments_reach_the_shell_as_they_are():
    request = JobRequest(
        kind="reduce", id="a-00000000", source="s3://b/a", commands=[["reduce", "a b;c"], ["run", "$x"]]
    )
    assert submission(request, "j")["entrypoint"] == (
        "python -m dsprobe.cli.main reduce 'a b;c' && python -m dsprobe.cli.main run '$x'"
    )
    assert next_id(request, ["dsprobe-reduce-a-00000000-4", "dsprobe-reduce-a-00000001-9", "x"]).endswith("-5")


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", 130, 130), ("FAILED", 77, 1),
     ("FAILED", None, 1), ("FAILED", 0, 1), ("STOPPED", None, 130)],
)  # fmt: skip
def test_a_jobs_exit_code_becomes_ours(status, driver, code):
    facts = {"id": "", "metadata": {}, "entrypoint": "", "message": "", "started": None, "ended": None}
    assert JobRecord(status=status, driver_exit=driver, **facts).exit_code == code


def staged(project, tmp_path, **options):
    config = load_config("small.yaml", schema=RunConfig).config
    folder = JobFolder(tmp_path / "job")
    folder.add(config, **{"allow_local_output": True, **options})
    return config, folder


def test_the_folder_holds_the_named_files_alone_and_gives_the_same_run(project, tmp_path, monkeypatch):
    (project / "unrelated.bin").write_bytes(b"0" * 1000)
    monkeypatch.chdir(project)
    config, folder = staged(project, tmp_path)
    here = resolve(config.model_copy(update={"judges": ()})).run_id
    monkeypatch.chdir(folder.folder)
    there = load_config(CONFIG_FILE, schema=RunConfig).config
    files = sorted(path.relative_to(folder.folder).as_posix() for path in folder.folder.rglob("*") if path.is_file())
    assert files[:2] == ["data/mine.csv", CONFIG_FILE]
    assert re.fullmatch(r"files/[0-9a-f]{8}-phrases.txt", files[2])
    assert there.judges[0].params["file"] == files[2]
    assert resolve(there.model_copy(update={"judges": ()})).run_id == here
    assert re.fullmatch(r"dsprobe-[0-9a-f]{12}", there.execution.pool)
    assert (there.execution.executor, there.execution.address) == ("ray", "auto")
    assert there.output.root == str(project / "results")


def test_a_sweep_travels_as_the_same_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["output.root=out", "search.storage=study.journal"]
    config = load_config("demo", overrides, schema=SweepConfig, recipes=recipes("sweep")).config
    folder = JobFolder(tmp_path / "job")
    folder.add(config, allow_local_output=True)
    there = load_config(str(folder.folder / CONFIG_FILE), schema=SweepConfig).config
    assert resolve_sweep(there).id == resolve_sweep(config).id
    assert (there.output.root, there.search.storage) == (str(tmp_path / "out"), str(tmp_path / "study.journal"))
    assert (there.experiment.execution.executor, there.experiment.execution.address) == ("ray", "auto")


def test_jobs_share_a_pool_only_where_they_bring_the_same_code_and_files(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)

    def pool(code, phrases="i cannot", *overrides):
        shutil.rmtree(tmp_path / "job", ignore_errors=True)
        (tmp_path / "phrases.txt").write_text(phrases)
        folder = JobFolder(tmp_path / "job")
        folder.add(load_config("small.yaml", overrides, schema=RunConfig).config, allow_local_output=True)
        folder.use_pool(code)
        return load_config(str(folder.folder / CONFIG_FILE), schema=RunConfig).config.execution.pool

    assert pool("a.whl") == pool("a.whl")
    assert len({pool("a.whl"), pool("b.whl"), pool(None), pool("a.whl", "i will not")}) == 4
    assert pool(None, "", "judges=[]") == "dsprobe"
    assert pool("a.whl", "", "execution.pool=mine") == "mine"


def test_a_local_output_needs_a_word_and_large_files_are_refused(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match="s3://"):
        staged(project, tmp_path, allow_local_output=False)
    shutil.rmtree(tmp_path / "job")
    with Path("data/mine.csv").open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="100 MiB"):
        staged(project, tmp_path)


def test_a_wheel_for_ray_requires_nothing_and_is_named_by_its_content(tmp_path):
    wheel = tmp_path / "dsprobe-9.9.9-py3-none-any.whl"
    info = "dsprobe-9.9.9.dist-info"

    def written(code):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("dsprobe/a.py", code)
            archive.writestr(
                f"{info}/METADATA", "Name: dsprobe\nVersion: 9.9.9\nRequires-Dist: torch\n\nRequires-Dist: no"
            )
            archive.writestr(f"{info}/RECORD", f"dsprobe/a.py,,\n{info}/METADATA,sha256=x,9\n{info}/RECORD,,\n")
        return for_ray(wheel, tmp_path / "out")

    first, second = written("1"), written("2")
    assert first == written("1")
    assert first.name != second.name
    assert re.fullmatch(r"dsprobe-9\.9\.9-0[0-9a-f]{12}-py3-none-any\.whl", first.name)
    metadata = zipfile.ZipFile(first).read(f"{info}/METADATA").decode()
    assert metadata == "Name: dsprobe\nVersion: 9.9.9\n\nRequires-Dist: no"
    with pytest.raises(ConfigError, match="no wheel"):
        job_wheel(str(tmp_path / "absent.whl"), tmp_path)
    assert job_wheel("none", tmp_path) is None
