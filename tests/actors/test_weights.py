"""Weights behind a URL: looked at without being fetched, fetched once per machine, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tests.actors.hub_server import hub_of
from tests.actors.weight_process import Fetcher
from tests.s3.fault_proxy import FaultProxy
from tests.s3.rados_gateway import S3Server, moto

from dsprobe.actors import weight_room, weights
from dsprobe.actors.weights import WeightCache
from dsprobe.config import ModelConfig
from dsprobe.errors import CheckpointError, ConfigError, PrerequisiteError, StorageError
from dsprobe.models import remote
from dsprobe.models.checkpoint import inspect_checkpoint
from dsprobe.models.load import load_model
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.storage import downloading
from dsprobe.storage.objects import ObjectStore

PART = 1 << 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this process, empty, and a source that begins anew."""
    monkeypatch.setenv(weight_room.FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv(weight_room.LIMIT, raising=False)
    monkeypatch.setattr(weight_room, "_held", {})
    monkeypatch.setattr(remote, "_factory", "dsprobe.actors.weights:WeightCache")
    monkeypatch.setattr(remote, "_source", None)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "dream", "dream")


@pytest.fixture(scope="module")
def upload(gateway: S3Server, bucket: str) -> Callable[[Path, str], str]:
    """`upload(folder, name)` puts a folder's files on the server and returns its URL."""
    client = gateway.client()

    def put(folder: Path, name: str) -> str:
        for file in folder.iterdir():
            client.put_object(Bucket=bucket, Key=f"models/{name}/{file.name}", Body=file.read_bytes())
        return f"s3://{bucket}/models/{name}"

    return put


@pytest.fixture(scope="module")
def bucket(gateway: S3Server) -> str:
    return gateway.new_bucket()


@pytest.fixture(autouse=True)
def reach(gateway: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gateway.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def proxy(gateway: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What stands between the server and this test's processes."""
    with FaultProxy(gateway.host, gateway.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


def made_up(folder: Path, mib: int = 0, seed: int = 0) -> Path:
    """A folder that looks like a model, with weights of about `mib` MiB in one tensor."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed).integers(0, 255, (mib << 20) or 1000, dtype=np.uint8)
    save_file({"x": noise}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "Dream", "seed": seed}))
    return folder


def reads(proxy: FaultProxy, name: str = "model.safetensors") -> int:
    return sum(request.method == "GET" and name in request.path for request in proxy.requests)


def the_one(cache: Path) -> Path:
    (folder,) = [path for path in cache.iterdir() if path.is_dir() and not path.suffix]
    return folder


def test_a_plan_reads_headers_and_the_model_is_that_of_the_folder(checkpoint, upload, proxy, cache):
    config = ModelConfig(name="dream", path=upload(checkpoint, "whole"))
    local = ModelConfig(name="dream", path=str(checkpoint))
    facts, expected = inspect_checkpoint(config), inspect_checkpoint(local)
    same = {"path", "digest"}
    assert {k: v for k, v in dataclasses.asdict(facts).items() if k not in same} == {
        k: v for k, v in dataclasses.asdict(expected).items() if k not in same
    }
    assert inspect_checkpoint(config) == facts
    assert reads(proxy) == 1, "the header, once"
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.suffix], "nothing is fetched for a plan"

    model, again = load_model(config), load_model(local)
    assert model.info.digest == facts.digest
    assert model.info.source == config.path
    tokens = torch.arange(12).reshape(1, 12)
    assert torch.equal(model.hidden(tokens, tokens >= 0), again.hidden(tokens, tokens >= 0))
    assert reads(proxy) == 2
    load_model(config)
    assert reads(proxy) == 2
    assert sorted(file.name for file in the_one(cache).iterdir()) == sorted(f.name for f in checkpoint.iterdir())
    for file in checkpoint.iterdir():
        assert (the_one(cache) / file.name).read_bytes() == file.read_bytes()


def test_an_outline_takes_no_room(tmp_path, upload):
    folder = made_up(tmp_path / "large", mib=24)
    outline = WeightCache().outline(upload(folder, "large")).folder / "model.safetensors"
    assert outline.stat().st_size == (folder / "model.safetensors").stat().st_size
    assert outline.stat().st_blocks * 512 < 1 << 20


def test_processes_that_start_together_fetch_once(tmp_path, upload, proxy, cache):
    url = upload(made_up(tmp_path / "shared", mib=6), "shared")
    fetchers = [Fetcher(url, cache, PART) for _ in range(4)]
    assert {fetcher.finish() for fetcher in fetchers} == {the_one(cache)}
    assert reads(proxy) == 1 + 7, "a header, and seven parts"


def test_after_a_kill_only_what_is_missing_is_fetched(tmp_path, upload, proxy, cache):
    parts = 13
    folder = made_up(tmp_path / "killed", mib=parts - 1)
    url = upload(folder, "killed")
    WeightCache().outline(url)
    proxy.delay_s = 0.5
    proxy.inject("delay", method="GET", contains="model.safetensors", times=float("inf"))
    fetcher = Fetcher(url, cache, PART)
    until = time.monotonic() + 60
    journals: list[Path] = []
    while time.monotonic() < until and not (journals and len(journals[0].read_text().splitlines()) > 4):
        journals = list(cache.glob("*.partial/*.parts"))
        time.sleep(0.02)
    fetcher.kill()
    done = len(journals[0].read_text().split("\n")) - 2
    assert 3 < done < parts
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.suffix]
    time.sleep(1.0)  # what was under way passes the proxy
    proxy.clear()
    before = reads(proxy)
    assert Fetcher(url, cache, PART).finish() == the_one(cache)
    assert reads(proxy) - before == parts - done
    assert (the_one(cache) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_what_a_power_failure_left_is_found_and_fetched_again(tmp_path, upload, monkeypatch):
    monkeypatch.setattr(downloading, "PART_BYTES", PART)
    folder = made_up(tmp_path / "power", mib=2)
    objects = ObjectStore(upload(folder, "power"))
    entry = next(entry for entry in objects.entries("") if entry.name == "model.safetensors")
    target = tmp_path / "copy"
    downloading.reserve(entry, target)
    with target.with_name("copy.parts").open("a") as journal:
        journal.write("0\n1\n2\n")  # says that all is there, and the file is a hole
    downloading.download(objects, entry, target)
    assert target.read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("times", [1, float("inf")])
def test_a_damaged_answer(times, checkpoint, upload, proxy, cache):
    url = upload(checkpoint, "damaged")
    WeightCache().outline(url)
    proxy.inject("damage", method="GET", contains="model.safetensors", times=times)
    if times == 1:
        folder = WeightCache().fetch(url).folder
        assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
        return
    with pytest.raises(StorageError, match=r"model\.safetensors arrived damaged twice"):
        WeightCache().fetch(url)
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.suffix]


def test_parts_of_an_upload_are_checked_one_by_one(tmp_path, monkeypatch):
    data = np.random.default_rng(0).bytes(11 << 20)
    with moto() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        client, bucket = server.client(), server.new_bucket()
        begun = client.create_multipart_upload(Bucket=bucket, Key="m/w")
        which = {"Bucket": bucket, "Key": "m/w", "UploadId": begun["UploadId"]}
        parts = [
            {
                "PartNumber": n + 1,
                "ETag": client.upload_part(**which, PartNumber=n + 1, Body=data[n * 5 << 20 : (n + 1) * 5 << 20])[
                    "ETag"
                ],
            }
            for n in range(3)
        ]
        client.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
        objects = ObjectStore(f"s3://{bucket}/m")
        (entry,) = objects.entries("")
        assert entry.etag.endswith("-3")
        file = tmp_path / "w"
        downloading.download(objects, entry, file)
        assert file.read_bytes() == data
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert not downloading._intact(objects, entry, file)


def test_an_object_that_is_replaced_meanwhile_is_not_mixed(tmp_path, upload):
    url = upload(made_up(tmp_path / "old"), "replaced")
    objects = ObjectStore(url)
    entry = next(entry for entry in objects.entries("") if entry.name == "model.safetensors")
    upload(made_up(tmp_path / "new", seed=1), "replaced")
    with pytest.raises(StorageError, match="replaced"):
        downloading.download(objects, entry, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_another_version_is_another_model(tmp_path, upload):
    first = WeightCache().fetch(upload(made_up(tmp_path / "v1", seed=1), "versions"))
    second = WeightCache().fetch(upload(made_up(tmp_path / "v2", seed=2), "versions"))
    assert first.digest != second.digest
    assert first.folder != second.folder


def test_what_was_used_longest_ago_goes_first_and_nothing_that_is_in_use(tmp_path, upload, cache):
    urls = [upload(made_up(tmp_path / f"lru{i}", mib=2, seed=i), f"lru{i}") for i in range(4)]
    user = Fetcher(urls[0], cache)
    used = user.folder()
    try:
        old = [Fetcher(url, cache).finish() for url in urls[1:3]]
        os.utime(cache / f"{old[0].name}.used")  # the second was used longest ago now
        new = WeightCache(limit_bytes=7 << 20).fetch(urls[3]).folder
        assert [path.is_dir() for path in (used, *old, new)] == [True, True, False, True]
        with pytest.raises(PrerequisiteError, match=rf"takes 0\.00195 GiB.*{weight_room.LIMIT} allows it"):
            WeightCache(limit_bytes=5 << 20).fetch(urls[2])
        assert used.is_dir()
        assert new.is_dir(), "this process lives with it"
    finally:
        user.kill()


def test_a_disk_without_room(tmp_path, upload):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    url = upload(made_up(tmp_path / "roomy", mib=3), "roomy")
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=2m", "none", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(
            PrerequisiteError, match=rf"takes 0\.00293 GiB.*has 0\.0019\d* GiB free.*{weight_room.FOLDER}"
        ):
            WeightCache(place / "cache").fetch(url)
        subprocess.run([*mount, "remount,size=10m", "none", str(place)], check=True)
        # In another process, which lets go of the disk when it ends.
        assert (Fetcher(url, place / "cache").finish() / "model.safetensors").stat().st_size > 3 << 20
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_others_fill_meanwhile(tmp_path, upload, monkeypatch):
    def full(file: int, data: bytes, start: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(PrerequisiteError, match=r"cannot be kept in .*: the disk is full"):
        WeightCache().fetch(upload(made_up(tmp_path / "filled"), "filled"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no config\.json"),
        ({"config.json": b"{}"}, r"has no model\.safetensors"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, r"from safetensors alone"),
        ({"config.json": b"{}", "model.safetensors": b"short"}, r"damaged or not a safetensors"),
        ({"config.json": b"{}", "model.safetensors": b"\xff" * 100}, r"damaged or not a safetensors"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"x": "../y.safetensors"}}'},
            r"is no name of a safetensors file",
        ),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_with_its_url(files, message, request, upload, tmp_path, cache):
    for name, data in files.items():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(data)
    (tmp_path / "bad").mkdir(exist_ok=True)
    url = upload(tmp_path / "bad", f"bad{abs(hash(message))}{len(files)}")
    with pytest.raises(CheckpointError, match=message) as refused:
        inspect_checkpoint(ModelConfig(name="bad", path=url))
    assert url in str(refused.value)
    assert str(cache) not in str(refused.value)


def test_configurations_that_cannot_be(monkeypatch):
    with pytest.raises(ConfigError, match="`revision` is for hub ids"):
        inspect_checkpoint(ModelConfig(name="m", path="s3://bucket/m", revision="a" * 40))
    with pytest.raises(ConfigError, match="URL scheme `s4`"):
        inspect_checkpoint(ModelConfig(name="m", path="s4://bucket/m"))
    monkeypatch.setenv(weight_room.LIMIT, "much")
    with pytest.raises(ConfigError, match=rf"{weight_room.LIMIT} is `much`"):
        WeightCache()
    monkeypatch.setattr(remote, "_factory", None)
    monkeypatch.setattr(remote, "_source", None)
    with pytest.raises(PrerequisiteError, match=r"import dsprobe\.actors"):
        inspect_checkpoint(ModelConfig(name="m", path="s3://bucket/m"))


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_fetches_once_whatever_its_replicas(executor, tmp_path, upload, proxy, cache):
    from dsprobe.toy.assets import checkpoint_dir

    url = upload(checkpoint_dir("toy-diffusion"), "toy")
    config = {
        "name": "url", "models": [{"name": "toy", "path": url}], "prompts": [{"source": "toy", "limit": 4}],
        "attacks": ["direct"], "output": {"root": str(tmp_path / "out")},
        "execution": {"executor": executor, "replicas": 2, "batch_size": 2},
    }  # fmt: skip
    (tmp_path / "url.yaml").write_text(json.dumps(config))
    ran = subprocess.run(
        [sys.executable, "-m", "dsprobe.cli.main", "run", "url.yaml", "--no-report"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert reads(proxy) == 2, "the header by the driver, the weights by one of the replicas"
    (manifest,) = (tmp_path / "out" / "runs").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["models"]["toy"]["digest"][:32] == the_one(cache).name


def test_a_hub_id_is_fetched_once_by_processes_that_start_together(checkpoint, tmp_path):
    commit = "c" * 40
    code = (
        "from dsprobe.config import ModelConfig; from dsprobe.models.load import load_model\n"
        f"print(load_model(ModelConfig(name='m', path='lab/model', revision='{commit}')).info.digest)"
    )
    with hub_of(checkpoint, commit) as (url, asked):
        environment = os.environ | {
            "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert asked["model.safetensors"] == 1
    assert weights.FOLDER not in environment or not (tmp_path / "cache").exists(), "hub ids have a cache of their own"
