"""The lab that steps work in: hosts, S3 server, the launcher's files, a tunnel to the head, and what was measured."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.s3.rados_gateway import S3Server, rados_gateway

from benchmarks.cluster_lab.hosts import GATEWAY, Network, until

BIN: Final = Path(sys.executable).parent
DASHBOARD: Final = "http://127.0.0.1:8265"
"""The head's loopback address, at the launcher's end of the tunnel."""
PORTS: Final = {"dashboard": 8265, "client": 10001, "prometheus": 9090}
_AWS_CONFIG: Final = """[default]
region = us-east-1
endpoint_url = {url}
request_checksum_calculation = when_required
response_checksum_validation = when_required
"""
_AWS_CREDENTIALS: Final = "[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"


class LabError(Exception):
    """A step did not do what it must."""


@dataclass(kw_only=True)
class Lab:
    """What the steps share; from `open_lab`."""

    folder: Path
    """Everything that is written, logs included."""
    network: Network
    s3: S3Server
    bucket: str
    token: str
    cluster_file: Path
    """What `ray up` is given; `dist` lies beside it."""
    figures: dict[str, Any] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    """Closed at the end, last opened first."""

    @property
    def logs(self) -> Path:
        """Folder of the commands' full output."""
        return self.folder / "logs"

    @property
    def root(self) -> str:
        """Output root of runs."""
        return f"s3://{self.bucket}/lab"

    @property
    def secrets(self) -> dict[str, str]:
        """What must not be seen anywhere but in its own file."""
        return {"Ray token": self.token, "S3 secret key": self.s3.secret_key}

    def call(self, log: str, *command: str, seconds: float = 300.0, check: bool = True) -> str:
        """Run a command as the user at the launcher; its output goes to `logs/<log>.log` too.

        Raises:
            LabError: It failed or took longer.
        """
        path = self.logs / f"{log}.log"
        with path.open("ab") as out:
            out.write(f"$ {' '.join(command)}\n".encode())
            out.flush()
            begin = out.tell()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                       env=self.environment(), cwd=self.folder / "user")  # fmt: skip
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LabError(f"`{' '.join(command)[:80]}` did not end in {seconds:.0f} s; see {path}") from None
        output = path.read_bytes()[begin:].decode(errors="replace")
        if check and status:
            raise LabError(f"`{' '.join(command)[:80]}` ended with {status}:\n{_tail(output)}\nsee {path}")
        return output

    def ray(self, log: str, *arguments: str, seconds: float = 300.0) -> str:
        """`ray …` at the launcher."""
        return self.call(log, str(BIN / "ray"), *arguments, seconds=seconds)

    def environment(self) -> dict[str, str]:
        """Of the launcher's user: nothing of Ray's or S3's is in it, both have their files."""
        return {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": "/root",
            "RAY_AUTH_MODE": "token",  # as the user exports it; the token is in ~/.ray
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
            "LANG": "C.UTF-8",
        }

    def get(self, path: str, *, token: bool = True, base: str = DASHBOARD) -> Any:
        """GET over HTTP through the tunnel; decoded where it is JSON.

        Raises:
            urllib.error.HTTPError: The server's answer was an error.
        """
        headers = {"Authorization": f"Bearer {self.token}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(f"{base}{path}", headers=headers), timeout=60) as answer:
            body = answer.read().decode()
            return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body

    def status_without_token(self, path: str) -> int:
        """HTTP status of a request without a token."""
        try:
            self.get(path, token=False)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def nodes(self) -> dict[str, str]:
        """Address → state of its node; a dead one of an earlier start does not count beside one that is alive."""
        listed = self.get("/api/v0/nodes?limit=100")["data"]["result"]["result"]
        ordered = sorted(listed, key=lambda node: bool(node["state"] == "ALIVE"))
        return {node["node_ip"]: node["state"] for node in ordered}

    def node_ids(self) -> set[str]:
        """Ids of the nodes that are alive; Ray gives a new one with each start."""
        listed = self.get("/api/v0/nodes?limit=100")["data"]["result"]["result"]
        return {node["node_id"] for node in listed if node["state"] == "ALIVE"}

    def wheels(self) -> list[Path]:
        """The wheels that `ray up` takes to the nodes."""
        return sorted((self.folder / "user/dist").glob("dsprobe-*.whl"))

    def wait_for_nodes(self, alive: int, seconds: float) -> float:
        """Wait until so many nodes are alive; seconds that it took."""

        def enough() -> bool:
            try:
                return list(self.nodes().values()).count("ALIVE") >= alive
            except (OSError, KeyError, TypeError):  # the dashboard is still coming up
                return False

        return until(enough, seconds, f"{alive} nodes alive", 1.0)

    def open_tunnel(self) -> None:
        """Forward the head's loopback ports to the launcher's, until the lab ends."""
        forwards = [part for port in PORTS.values() for part in ("-L", f"{port}:127.0.0.1:{port}")]
        head = self.network.head
        process = subprocess.Popen(head.ssh("-N", "-o", "ExitOnForwardFailure=yes", *forwards),
                                   stdin=subprocess.DEVNULL, stderr=(self.logs / "tunnel.log").open("ab"))  # fmt: skip
        self.stack.callback(process.kill)
        until(lambda: _answers(f"{DASHBOARD}/api/version"), 120, "the dashboard behind the tunnel")

    def write(self, name: str, content: Mapping[str, Any] | str) -> Path:
        """Write a file of the launcher's user; a mapping becomes JSON, which is YAML."""
        path = self.folder / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return path


@contextmanager
def open_lab(folder: Path) -> Iterator[Lab]:
    """Start hosts and S3 server; every machine gets its S3 credentials, the launcher Ray's token, each in its file."""
    for part in ("logs", "user"):
        (folder / part).mkdir(parents=True)
    with ExitStack() as stack:
        network = Network(folder)
        s3 = stack.enter_context(rados_gateway(GATEWAY))
        bucket = s3.new_bucket()
        for home in (Path("/root"), *(host.folder / "root" for host in network.hosts.values())):
            _write_credentials(home / ".aws", s3)
        token = secrets.token_hex(32)
        _private_file(Path("/root/.ray/auth_token"), token)
        cluster_file = folder / "user/cluster.yaml"
        lab = Lab(
            folder=folder, network=network, s3=s3, bucket=bucket, token=token, cluster_file=cluster_file, stack=stack
        )
        yield lab


def _write_credentials(folder: Path, s3: S3Server) -> None:
    """As the administrator of the machines does: in `~/.aws`, readable by the user alone."""
    _private_file(folder / "config", _AWS_CONFIG.format(url=s3.url))
    _private_file(folder / "credentials", _AWS_CREDENTIALS.format(access=s3.access_key, secret=s3.secret_key))


def _private_file(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _tail(output: str, lines: int = 15) -> str:
    return "\n".join(output.splitlines()[-lines:])
