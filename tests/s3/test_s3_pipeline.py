"""A whole experiment on a real S3 server, through a proxy that breaks requests: same tables as on a local disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest
from tests.command_line import dsprobe
from tests.s3.fault_proxy import FaultProxy
from tests.s3.rados_gateway import S3Server

from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.query import read_table
from dsprobe.storage.schemas import TABLES
from dsprobe.storage.table_index import current_files

CONFIG = """
name: small
models: [toy-diffusion]
prompts: [{source: toy, name: restricted, limit: 4}]
attacks: [direct, {name: dija, placement: reply, label: "step {i} :", spans: 4, masks_per_span: 6}]
decodings: [{name: uniform, steps: 6, reply_length: 42}]
judges: [toy_oracle, {name: keyword_refusal, phrases: toy}]
recording: {wall_seconds: false}
execution: {executor: local, shard_size: 2, batch_size: 2}
"""
RATES = dict.fromkeys(("error_500", "error_503", "reset", "lost", "truncate"), 0.03)
COUNT = "SELECT attack, count(*) AS n FROM trajectories GROUP BY attack ORDER BY attack"
ROWS = [{"attack": "dija", "n": 4}, {"attack": "direct", "n": 4}]


def call(*arguments: object, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    code, shown, complaint = dsprobe(*arguments, cwd=cwd)
    assert code == 0, complaint
    return str(shown)


def digests(objects: ObjectStore) -> dict[str, list[dict[str, object]]]:
    """The files of all tables as the index lists them: names, sizes, digests."""
    return {str(kind): [dict(entry) for entry in current_files(objects, kind)] for kind in TABLES}


def test_a_run_through_faults_has_the_tables_of_a_local_one(
    gateway: S3Server, root: str, use: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(CONFIG)
    local = json.loads(call("run", "small.yaml", "--json", "--no-report", cwd=tmp_path))
    with FaultProxy(gateway.host, gateway.port, seed=3, rates=RATES) as proxy:
        use(gateway, "http://127.0.0.1:9")  # the run's own setting comes first
        settings = ("--set", f"output.s3.endpoint_url={proxy.url}", "--set", "output.s3.region=us-east-1")
        outcome = json.loads(call("run", "small.yaml", "--json", "--no-report", "--out", root, *settings, cwd=tmp_path))
        assert outcome["complete"]
        again = json.loads(call("run", "small.yaml", "--json", "--no-report", "--out", root, *settings, cwd=tmp_path))
        assert again["shards_done"] == 0
        use(gateway, proxy.url)  # commands that take a run's URL know no other setting
        assert json.loads(call("query", outcome["url"], COUNT, "--json", cwd=tmp_path)) == ROWS
        call("compact", outcome["url"], cwd=tmp_path)
        assert call("report", outcome["url"], cwd=tmp_path) == f"{outcome['url']}/report/index.html\n"
        assert sum(proxy.counts.values()) > 10
    use(gateway)
    remote = ObjectStore(outcome["url"])
    assert digests(remote) == digests(ObjectStore(str(local["url"])))
    assert b"toy-diffusion" in remote.read("report/index.html")
    _other_readers_agree(gateway, remote)


def _other_readers_agree(gateway: S3Server, remote: ObjectStore) -> None:
    """PyArrow's and Polars' own S3 clients read the files that the index lists."""
    paths = [remote.path(entry["path"]) for entry in current_files(remote, "steps")]
    rows = read_table(remote.url, "steps").num_rows
    arrow = pafs.S3FileSystem(
        access_key=gateway.access_key,
        secret_key=gateway.secret_key,
        endpoint_override=f"{gateway.host}:{gateway.port}",
        scheme="http",
        region="us-east-1",
    )
    assert ds.dataset(paths, filesystem=arrow, format="parquet").count_rows() == rows
    options = {
        "aws_access_key_id": gateway.access_key,
        "aws_secret_access_key": gateway.secret_key,
        "aws_endpoint_url": gateway.url,
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }
    scan = pl.scan_parquet([f"s3://{path}" for path in paths], storage_options=options)
    assert scan.select(pl.len()).collect().item() == rows > 0


@pytest.mark.parametrize("command", [("query", COUNT), ("compact",), ("report",)])
def test_a_run_that_is_not_there_is_said_to_be_missing(root: str, command: tuple[str, ...], tmp_path: Path) -> None:
    code, _, complaint = dsprobe(command[0], f"{root}/runs/none", *command[1:], cwd=tmp_path)
    assert code == 1
    assert "No run at" in complaint
