"""Steps of the cluster itself: `ray up`, what runs on its nodes, `ray down`."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.cluster_lab.hosts import HOSTS, until
from benchmarks.cluster_lab.lab import DASHBOARD, Lab, LabError

_ASK_NODES = '''
"""Ask every node which dsprobe it imports, and print it; a digest of all its modules tells one code from another."""
import hashlib, json, pathlib, socket
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0)
def code():
    import dsprobe

    folder = pathlib.Path(list(dsprobe.__path__)[0])
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\\0" + path.read_bytes())
    return socket.gethostname(), str(folder), digest.hexdigest()


ray.init(log_to_driver=False)
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
on = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
print("NODES " + json.dumps(ray.get([code.options(scheduling_strategy=strategy).remote() for strategy in on])))
'''


def up(lab: Lab) -> str:
    """`ray up` brings up all three nodes; head and dashboard are reached through a tunnel."""
    begin = time.monotonic()
    lab.ray("up", "up", "-y", "--no-config-cache", str(lab.cluster_file), seconds=900)
    head = time.monotonic() - begin
    lab.open_tunnel()
    lab.wait_for_nodes(len(HOSTS), 600)
    alive = time.monotonic() - begin
    lab.figures["up"] = {"head_s": round(head, 1), "all_nodes_s": round(alive, 1)}
    return f"head after {head:.0f} s, {len(HOSTS)} nodes after {alive:.0f} s"


def up_again(lab: Lab) -> str:
    """A second `ray up` changes nothing."""
    before = lab.node_ids()
    begin = time.monotonic()
    lab.ray("up-again", "up", "-y", "--no-restart", "--no-config-cache", str(lab.cluster_file), seconds=900)
    seconds = time.monotonic() - begin
    if lab.node_ids() != before:
        raise LabError(f"Nodes were replaced: {before} became {lab.node_ids()}.")
    lab.figures["up"]["again_s"] = round(seconds, 1)
    return f"`ray up --no-restart` again: {seconds:.0f} s, the same nodes"


def wheel(lab: Lab) -> str:
    """A plain Ray job finds the wheel's code on every node, and no checkout."""
    found = ask_nodes(lab, "wheel")
    [built] = lab.wheels()
    expected = _digest_of(built)
    wrong = [host for host, _, digest in found.values() if digest != expected]
    if len(found) != len(HOSTS) or wrong:
        raise LabError(f"{sorted(found)} answered; other code than {built.name}'s on {wrong}: {found}")
    return f"{built.name} is what all nodes import ({expected[:12]}), from {next(iter(found.values()))[1]}"


def ask_nodes(lab: Lab, log: str) -> dict[str, tuple[str, str, str]]:
    """Host → its name, folder and digest of the code that a task there imports, by a plain Ray job."""
    script = lab.write("asking/ask_nodes.py", _ASK_NODES)
    output = lab.ray(log, "job", "submit", "--address", DASHBOARD, "--working-dir", str(script.parent),
                     "--", "python", script.name, seconds=600)  # fmt: skip
    line = next((line for line in output.splitlines() if "NODES [" in line), None)
    if line is None:
        raise LabError(f"The job did not print its nodes; see {lab.logs / log}.log")
    answers: list[Any] = json.loads(line[line.index("NODES ") + len("NODES ") :])
    return {host: (host, folder, digest) for host, folder, digest in answers}


def down(lab: Lab) -> str:
    """`ray down`, and `ray stop` on the workers, which it leaves to themselves; nothing of Ray's runs after that."""
    begin = time.monotonic()
    lab.ray("down", "down", "-y", str(lab.cluster_file), seconds=600)
    command = time.monotonic() - begin
    for host in lab.network.workers:
        host.run("~/dsprobe/bin/ray stop", timeout=120, check=False)
    until(lambda: not left_of_ray(lab), 120, "no process of Ray on any host", 1.0)
    gone = time.monotonic() - begin
    lab.figures["down"] = {"command_s": round(command, 1), "nothing_left_s": round(gone, 1)}
    return f"`ray down`: {command:.0f} s; nothing of Ray on any host after {gone:.0f} s"


def left_of_ray(lab: Lab) -> list[str]:
    """Host and command line of every process of Ray's."""
    marks = ("raylet", "gcs_server", "ray::", "/ray/", "ray start", "ray-dashboard", "monitor.py")
    return [
        f"{host.name}: {line[:100]}"
        for host in lab.network.hosts.values()
        for line in host.processes()
        if any(mark in line for mark in marks)
    ]


def _digest_of(wheel: Path) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.startswith("dsprobe/") and name.endswith(".py")]
        for name in sorted(modules, key=lambda name: name.removeprefix("dsprobe/")):
            digest.update(name.removeprefix("dsprobe/").encode() + b"\0" + archive.read(name))
    return digest.hexdigest()
