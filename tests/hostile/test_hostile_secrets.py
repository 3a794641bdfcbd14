"""Keys stay where they are: no file, message or log of a run holds one."""

from __future__ import annotations

import http.server
import json
import logging
import threading

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import dsprobe

from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError
from dsprobe.storage.objects import ObjectStore
from dsprobe.untrusted import redacted, refuse_secrets

# Made up; split so that no scanner takes this file for a leak.
CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIA" + "CANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary/aws/secret/0002/canary/canary/can",
    "AWS_SESSION_TOKEN": "canary-session-token-0003-canary",
    "OPENAI_API_KEY": "sk-" + "canary0004canary0004canary",
    "HF_TOKEN": "hf_" + "canary0005canary0005canary",
    "RAY_AUTH_TOKEN": "canary-ray-token-0006-canary-canary",
    "DATABASE_PASSWORD": "canary-password-0007-canary",
}

SMALL = {
    "name": "small",
    "models": ["toy-diffusion"],
    "prompts": [{"source": "toy", "limit": 1}],
    "decodings": [{"steps": 2, "reply_length": 8}],
    "execution": {"executor": "local"},
}


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses every request, and repeats the key that it was given."""

    def do_POST(self):
        body = json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        return


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def write(folder, changes=()):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": {"root": str(folder / "out")}, **dict(changes)}))
    return path


def leaks(texts):
    return [(name, text[:200]) for text in texts for name, secret in CANARIES.items() if secret in text]


def test_a_run_whose_endpoint_refuses_leaves_no_key_anywhere(endpoint, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    backend = {"kind": "openai", "base_url": endpoint, "model": "m", "retries": 0}
    judge = {"name": "strongreject_rubric", "alias": "far", "backend": backend}
    path = write(tmp_path, {"judges": [judge]})
    env = {**CANARIES, "DSPROBE_LOG": "DEBUG", "DSPROBE_CACHE": str(tmp_path / "cache.sqlite")}
    code, out, err = dsprobe("run", path, cwd=tmp_path, env=env)
    assert code == 1
    assert "401" in err, err
    files = [file.read_bytes().decode("utf-8", "replace") for file in tmp_path.rglob("*") if file.is_file()]
    assert any("dsprobe.run_id" in text for text in files)  # there is something to leak into
    assert leaks([out, err, caplog.text, *files]) == []


SECRETS = [
    (("output", "root"), "s3://user:password@bucket/x"),
    (("output", "root"), CANARIES["AWS_ACCESS_KEY_ID"]),
    (("models", 0, "path"), f"https://x:{CANARIES['HF_TOKEN']}@hub/model"),
    (("prompts", 0, "name"), CANARIES["HF_TOKEN"]),
    (("judges", 0, "backend", "extra_body", "key"), CANARIES["OPENAI_API_KEY"]),
    (("judges", 0, "alias"), CANARIES["AWS_SECRET_ACCESS_KEY"]),
    (("execution", "address"), f"ray://{CANARIES['RAY_AUTH_TOKEN']}"),
]


@pytest.mark.parametrize(("path", "secret"), SECRETS)
def test_a_configuration_with_a_key_is_refused_by_place(path, secret, tmp_path):
    config = json.loads(json.dumps(SMALL))
    config["output"], config["models"] = {}, [{"name": "toy-diffusion"}]
    config["judges"] = [{"name": "rubric", "backend": {"extra_body": {}}}]
    node = config
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = secret
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as refused:
        load_config(str(file), (), CANARIES, schema=RunConfig)
    assert ".".join(map(str, path)) in str(refused.value)
    assert secret not in str(refused.value)


def test_what_is_no_key_is_accepted(tmp_path):
    values = {
        "a": "none",
        "b": "sk-1",
        "c": "http://localhost:8000/v1",
        "d": "0" * 64,
        "e": "s3://bucket/x",
        "f": "user@host",
    }
    refuse_secrets(values, "here", {"OPENAI_API_KEY": "none", "GPG_KEY": "short"})


@pytest.mark.parametrize(
    "url", ["s3://key:secret0000@bucket/x", "s3a://k:s@b", "http://u:secret0000@host/x", "simplecache::s3://k:s0@b"]
)
def test_storage_urls_hold_no_keys(url):
    with pytest.raises(ConfigError) as refused:
        ObjectStore(url)
    assert "secret0000" not in str(refused.value)
    assert "k:s" not in str(refused.value)


@settings(max_examples=100)
@given(
    st.text(st.characters(codec="ascii", exclude_characters="/@: \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f"), min_size=1),
    st.text(max_size=20),
)
def test_passwords_of_urls_are_taken_out_of_messages(password, around):
    shown = redacted(f"{around} s3://someone:{password}@bucket/x cannot be read")
    assert f":{password}@" not in shown
    assert "bucket/x cannot be read" in shown


@pytest.mark.parametrize("arguments", [
    ("run", "demo", "--out", "s3://user:hunter2hunter2@bucket"),
    ("run", "demo", "--set", "output.root=s3://user:hunter2hunter2@bucket"),
    ("query", "s3://user:hunter2hunter2@bucket/run", "SELECT 1"),
    ("report", "s3://user:hunter2hunter2@bucket/run"),
    ("score", "s3://user:hunter2hunter2@bucket/run", "--judge", "keyword_refusal"),
    ("sweep", "demo", "--set", "search.storage=postgresql://me:hunter2hunter2@host/db"),
])  # fmt: skip
def test_a_url_with_a_password_is_refused_without_repeating_it(arguments, tmp_path):
    code, out, err = dsprobe(*arguments, cwd=tmp_path)
    assert code in (1, 2)
    assert "hunter2hunter2" not in out + err
    assert list(tmp_path.iterdir()) == []
