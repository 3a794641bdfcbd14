"""What can be seen of the cluster from the launcher: dashboard API, metrics, a real Prometheus on the head."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

from benchmarks.cluster_lab.hosts import CHECKOUT, HOSTS, until
from benchmarks.cluster_lab.lab import DASHBOARD, PORTS, Lab, LabError

PROMETHEUS: Final = f"http://127.0.0.1:{PORTS['prometheus']}"
_CONFIG: Final = CHECKOUT / "docs/cluster/prometheus/prometheus.yml"
_ENDPOINTS: Final = ("/api/version", "/api/jobs/", "/api/v0/nodes?limit=100", "/api/v0/actors?limit=100",
                     "/api/v0/tasks/summarize", "/nodes?view=summary", "/api/cluster_status")  # fmt: skip
_QUERIES: Final = {
    "trajectories": "sum(ray_dsprobe_trajectories_total)",
    "denoising steps": "sum(ray_dsprobe_denoising_steps_total)",
    "bytes written": "sum(ray_dsprobe_bytes_written_total)",
}
_NODES: Final = "count(count by (ip) (ray_node_cpu_count))"


def dashboard(lab: Lab) -> str:
    """The dashboard's API answers with the token, and refuses without it and with another."""
    for path in _ENDPOINTS:
        lab.get(path)
    refused = {lab.status_without_token(path) for path in _ENDPOINTS}
    wrong = _status_with(lab, "0" * 64)
    if refused != {401} or wrong != 403:
        raise LabError(f"Without a token: {sorted(refused)}, expected 401; with a wrong one: {wrong}, expected 403.")
    if lab.network.reachable(HOSTS["head"], PORTS["dashboard"]):
        raise LabError("The head's dashboard answers without a tunnel.")
    client = client_status("")
    if client != "UNAUTHENTICATED":
        raise LabError(f"Ray's client server answers {client} without a token.")
    jobs = [job for job in lab.get("/api/jobs/") if job["type"] == "SUBMISSION"]
    actors = lab.get("/api/v0/actors?limit=100")["data"]["result"]["total"]
    alive = list(lab.nodes().values()).count("ALIVE")
    return (
        f"{len(_ENDPOINTS)} endpoints with the token, 401 without, 403 with another; {alive} nodes, {len(jobs)} jobs, "
        f"{actors} actors"
    )


def prometheus(lab: Lab) -> str:
    """Debian's Prometheus on the head, with the shipped configuration, answers queries for our metrics."""
    head = lab.network.head
    config = head.folder / "root" / "prometheus"
    config.mkdir(exist_ok=True)
    for path in (_CONFIG, *_CONFIG.parent.glob("*rules*.yml")):
        (config / path.name).write_text(path.read_text())
    options = f"--config.file={_CONFIG.name} --storage.tsdb.path=/tmp/prometheus"
    listen = f"--web.listen-address=127.0.0.1:{PORTS['prometheus']}"
    command = f"cd /root/prometheus && exec prometheus {options} {listen}"
    log = (lab.logs / "prometheus.log").open("ab")
    process = subprocess.Popen([*head.ssh("-tt"), command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    lab.stack.callback(process.kill)
    until(lambda: _value(_NODES) == len(HOSTS), 180, f"Prometheus scrapes {len(HOSTS)} nodes", 1.0)
    values = {name: _awaited(expression) for name, expression in _QUERIES.items()}
    lab.figures["metrics"] = values
    shown = ", ".join(f"{name} {value:,.0f}" for name, value in values.items())
    return f"Prometheus scrapes all nodes and answers: {shown}"


def client_status(token: str) -> str:
    """What Ray's client server says to a first request: the name of a gRPC status."""
    import grpc
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{PORTS['client']}") as channel:
        messages: Any = ray_client_pb2  # made by protoc, without types
        services: Any = ray_client_pb2_grpc
        server = services.RayletDriverStub(channel)
        request = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
        try:
            server.ClusterInfo(request, timeout=30, metadata=[*metadata, ("client_id", "lab")])
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _awaited(expression: str) -> float:
    """Value of an instant query that is not 0, once there is one."""
    until(lambda: bool(_value(expression)), 180, f"Prometheus answers `{expression}`", 1.0)
    return _value(expression)


def _value(expression: str) -> float:
    """Value of an instant query; 0 while there is none."""
    url = f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
    except OSError:
        return 0.0
    return float(found[0]["value"][1]) if found else 0.0


def _status_with(lab: Lab, token: str) -> int:
    request = urllib.request.Request(f"{DASHBOARD}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
