"""A worker host is cut off in the middle of a run: the job ends complete, and its tables are those of a calm run."""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks.chaos.world import difference, tables_of
from benchmarks.cluster_lab.hosts import HOSTS, Host, until
from benchmarks.cluster_lab.jobs import EXECUTION, POOL, Job, submit
from benchmarks.cluster_lab.lab import Lab, LabError
from benchmarks.cluster_lab.nodes import ask_nodes

_SETTINGS: Final = {
    **EXECUTION,
    "execution.shard_size": 16,
    "execution.batch_size": 16,
    "prompts.0.limit": 96,
    "prompts.1.limit": 32,
    "recording.wall_seconds": False,  # the only values that differ between two runs of one plan
}
_CUT_AT: Final = 0.25
"""Share of the shards that are committed when the cable is cut."""


def cut(lab: Lab) -> str:
    """Run twice, cutting a host off in the second run; then give it its cable back."""
    if "run" not in lab.figures:  # both runs shall find the pool's models loaded
        submit(lab, "run", "demo", "warm", _SETTINGS | {"prompts.0.limit": 1, "prompts.1.limit": 1}).wait()
    calm = submit(lab, "run", "demo", "calm", _SETTINGS)
    calm_s = calm.wait()
    shards = calm.commits()
    cut_job = submit(lab, "run", "demo", "cut", _SETTINGS)
    until(lambda: cut_job.commits() >= shards * _CUT_AT or cut_job.finished(), 900, "a quarter of the shards")
    at = cut_job.commits()
    host = _busy_worker(lab)
    host.link("down")
    begin = time.monotonic()
    try:
        noticed = until(lambda: lab.nodes()[host.address] == "DEAD", 300, f"{host.name} is seen as dead")
        cut_s = cut_job.wait()
        complete = cut_job.commits()
    finally:
        host.link("up")
        away, up_again = time.monotonic() - begin, time.monotonic()
    files = _compare(calm, cut_job, shards)
    lab.wait_for_nodes(len(HOSTS), 600)
    back = time.monotonic() - up_again
    if host.name not in ask_nodes(lab, "back"):
        raise LabError(f"{host.name} is alive again, but no task runs there.")
    lost = (cut_s - calm_s) / calm_s
    lab.figures["cut"] = {
        "calm_s": round(calm_s, 1), "cut_s": round(cut_s, 1), "lost_share": round(lost, 3), "shards": shards,
        "committed_at_cut": at, "noticed_s": round(noticed, 1), "away_s": round(away, 1), "back_s": round(back, 1),
    }  # fmt: skip
    return (
        f"{host.name} cut off after {at} of {shards} shards, dead to Ray after {noticed:.0f} s; the job is complete "
        f"({complete} shards) and its {files} files of tables are the same: {cut_s:.0f} s instead of {calm_s:.0f} s "
        f"({lost:+.0%}); back in use {back:.0f} s after its return"
    )


def _busy_worker(lab: Lab) -> Host:
    """A worker host that holds a replica of the pool."""
    query = "/api/v0/actors?limit=1000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE&detail=true"
    actors: list[dict[str, Any]] = lab.get(query)["data"]["result"]["result"]
    ids = {actor["node_id"] for actor in actors if str(actor["name"]).startswith(f"{POOL}:")}
    listed = lab.get("/api/v0/nodes?limit=100")["data"]["result"]["result"]
    addresses = {node["node_ip"] for node in listed if node["node_id"] in ids}
    for host in reversed(lab.network.workers):
        if host.address in addresses:
            return host
    raise LabError(f"No worker host holds a replica; they are on {sorted(addresses)}.")


def _compare(calm: Job, other: Job, shards: int) -> int:
    """Both runs have all shards, and the same files of tables, byte for byte; how many files that are."""
    if other.commits() != shards:
        raise LabError(f"{other.commits()} of {shards} shards are committed.")
    expected, found = tables_of(calm.url), tables_of(other.url)
    if not expected or found != expected:
        raise LabError(f"Tables differ: {difference(expected, found)}")
    return len(expected)
