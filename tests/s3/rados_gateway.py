"""A real S3 server for tests: Ceph's RADOS Gateway, one monitor and one OSD in memory, ready in about ten seconds.

Needs the Debian packages ceph-mon, ceph-osd and radosgw. Where they are missing moto's server stands in, and the
header of the test report says so; `S3Server.name` says which one it is.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BINARIES = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool", "setpriv")
KEYS = {
    "mon.": "--cap mon 'allow *'",
    "client.admin": "--cap mon 'allow *' --cap osd 'allow *'",
    "osd.0": "--cap mon 'allow profile osd' --cap osd 'allow *'",
    "client.rgw": "--cap mon 'allow rw' --cap osd 'allow rwx'",
}
CONFIG = """
[global]
fsid = {fsid}
mon_host = {monitor}
mon_initial_members = a
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_memory_target = 939524096
run_dir = {folder}/run
log_file = {folder}/log/$name.log
admin_socket = {folder}/run/$name.asok
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_max_pg_per_osd = 1000
rgw_frontends = beast endpoint={host}:{port} tcp_nodelay=1
rgw_rados_pool_pg_num_min = 4
"""


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where a running server listens and who may use it."""

    name: str
    host: str
    port: int
    access_key: str
    secret_key: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def environment(self, url: str = "") -> dict[str, str]:
        """The variables of botocore's usual chain; `url` when something stands in front of the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
        )

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


def gateway_missing() -> str:
    """Why the RADOS Gateway cannot be started here; empty if it can."""
    absent = [name for name in BINARIES if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def server_name() -> str:
    """The server that tests will use, in words."""
    reason = gateway_missing()
    return f"moto, NOT a real S3 server ({reason})" if reason else "Ceph RADOS Gateway"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """The RADOS Gateway, or moto's server where its programs are missing."""
    with moto() if gateway_missing() else rados_gateway() as server:
        yield server


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto's server, in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(name="moto", host=host, port=port, access_key="test", secret_key="test-secret")
    finally:
        server.stop()


@contextmanager
def rados_gateway(host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Ceph in a folder of its own, its gateway on the address `host`; the processes die with this one."""
    folder = Path(tempfile.mkdtemp(prefix="rgw-", dir="/tmp"))  # short: the path of a Unix socket has 107 bytes
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        yield _start(folder, daemons, host)
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen[bytes]], host: str) -> S3Server:
    port, monitor_port = _free_port(), _free_port()
    monitor, fsid = f"[v2:127.0.0.1:{monitor_port}/0]", str(uuid.uuid4())
    for name in ("mon", "osd", "rgw", "run", "log"):
        (folder / name).mkdir()
    (folder / "ceph.conf").write_text(CONFIG.format(fsid=fsid, monitor=monitor, folder=folder, host=host, port=port))
    environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}

    def call(command: str, timeout: float = 60) -> str:
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def daemon(*command: str) -> None:
        with (folder / "log" / f"{command[0]}.out").open("wb") as log:
            started = ["setpriv", "--pdeathsig", "KILL", *command, "-f"]
            daemons.append(subprocess.Popen(started, env=environment, stdout=log, stderr=log))

    keyring, monmap = folder / "keyring", folder / "monmap"
    keyring.touch()
    for name, caps in KEYS.items():
        call(f"ceph-authtool {keyring} --gen-key -n {name} {caps}")
    call(f"monmaptool --create --clobber --fsid {fsid} --addv a '{monitor}' {monmap}")
    call(f"ceph-mon --mkfs -i a --monmap {monmap} --keyring {keyring}")
    daemon("ceph-mon", "-i", "a")
    identity = str(uuid.uuid4())
    call(f"ceph --connect-timeout 30 osd new {identity}")
    call(f"ceph-osd -i 0 --mkfs --osd-uuid {identity}")
    daemon("ceph-osd", "-i", "0")
    access_key, secret_key = f"AK{uuid.uuid4().hex[:18].upper()}", uuid.uuid4().hex
    keys = f"--access-key={access_key} --secret-key={secret_key}"
    call(f"radosgw-admin user create --uid=probe --display-name=probe {keys}")
    daemon("radosgw", "-n", "client.rgw")
    _wait_for(host, port, daemons[-1])
    version = call("radosgw --version").split()[2]
    return S3Server(
        name=f"Ceph RADOS Gateway {version}",
        host=host,
        port=port,
        access_key=access_key,
        secret_key=secret_key,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(host: str, port: int, daemon: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and daemon.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"radosgw did not come up on port {port} (exit {daemon.poll()})")
