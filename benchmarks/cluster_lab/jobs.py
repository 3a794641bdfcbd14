"""Steps that submit jobs from the launcher: the demo sweep, a demo run, a notebook beside it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.chaos.world import committed
from benchmarks.cluster_lab.hosts import HOSTS, until
from benchmarks.cluster_lab.lab import BIN, DASHBOARD, Lab, LabError

POOL: Final = "lab"
EXECUTION: Final = {"execution.replicas": len(HOSTS), "execution.num_cpus": 0.5, "execution.pool": POOL}
_FINISHED: Final = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(kw_only=True)
class Job:
    """A submitted job."""

    lab: Lab
    id: str
    root: str
    """Output root below the bucket."""
    begin: float
    """Clock reading just before it was submitted."""
    submitted_s: float
    """Seconds until the job server had it."""

    @property
    def url(self) -> str:
        """Output root."""
        return f"s3://{self.lab.bucket}/{self.root}"

    def record(self) -> dict[str, Any]:
        """What the job server says."""
        found: dict[str, Any] = self.lab.get(f"/api/jobs/{self.id}")
        return found

    def log(self) -> str:
        """What the job wrote."""
        return str(self.lab.get(f"/api/jobs/{self.id}/logs")["logs"])

    def commits(self) -> int:
        """Shards that are committed."""
        return committed(self.url)

    def objects(self) -> list[str]:
        """Objects below its output root."""
        pages = self.lab.s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.lab.bucket, Prefix=self.root)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def finished(self) -> bool:
        """Whether it ended, however."""
        return self.record()["status"] in _FINISHED

    def wait(self, seconds: float = 1500.0) -> float:
        """Wait for its success; seconds since it was submitted.

        Raises:
            LabError: It failed.
        """
        until(self.finished, seconds, f"job {self.id} ended", 1.0)
        took = time.monotonic() - self.begin
        (self.lab.logs / f"job-{self.id}.log").write_text(self.log())
        record = self.record()
        if record["status"] != "SUCCEEDED":
            raise LabError(f"Job {self.id}: {record['status']} {record['message']}\n{self.log()[-1500:]}")
        return took

    def first_commit(self, seconds: float = 900.0) -> float:
        """Wait for the first committed shard; seconds since the job was submitted."""
        until(lambda: self.commits() > 0 or self.finished(), seconds, f"a shard of {self.id} committed", 0.3)
        if not self.commits():
            raise LabError(f"Job {self.id} ended without a shard:\n{self.log()[-1500:]}")
        return time.monotonic() - self.begin


def submit(lab: Lab, kind: str, config: str, root: str, values: Mapping[str, Any]) -> Job:
    """Submit a job as a user does, by `dsprobe submit` through the tunnel.

    Args:
        lab: The lab.
        kind: `run` or `sweep`.
        config: Recipe or file.
        root: Output root below the bucket.
        values: Key → value, for `--set`.
    """
    given = {"output.root": f"s3://{lab.bucket}/{root}", **values}
    settings = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    overrides = [part for setting in settings for part in ("--set", setting)]
    begin = time.monotonic()
    output = lab.call(f"submit-{root}", str(BIN / "dsprobe"), "submit", kind, config, "--address", DASHBOARD,
                      "--no-follow", *overrides)  # fmt: skip
    found = re.search(r"^Job (\S+):", output, re.MULTILINE)
    if found is None:
        raise LabError(f"`dsprobe submit` named no job:\n{output[-1500:]}")
    return Job(lab=lab, id=found[1], root=root, begin=begin, submitted_s=time.monotonic() - begin)


def sweep(lab: Lab) -> str:
    """The demo sweep, small, as a job; its front is on S3."""
    small = {"search.trials": 3, "experiment.prompts.0.limit": 4, "experiment.prompts.1.limit": 2,
             "validation.0.limit": 4, "validation.1.limit": 2, "search.rungs": [1.0], "front.chosen": 1,
             # A study needs a file with one owner; the job's driver runs on the head.
             "search.storage": "sqlite:////root/studies/demo.db"}  # fmt: skip
    execution = {f"experiment.{key}": value for key, value in EXECUTION.items()}
    job = submit(lab, "sweep", "demo", "sweep", small | execution)
    seconds = job.wait()
    names = {key.rpartition("/")[2] for key in job.objects()}
    if "index.html" not in names or not any("front" in name for name in names):
        raise LabError(f"The sweep's front is not below {job.root}: {sorted(names)[:20]}")
    lab.figures["sweep"] = {"submit_s": round(job.submitted_s, 1), "job_s": round(seconds, 1), "trials": 3}
    return f"demo sweep, 3 trials: submitted in {job.submitted_s:.0f} s, done after {seconds:.0f} s, front on S3"


def run(lab: Lab) -> str:
    """A demo run as a job: pre-flight on the cluster, first shard, tables; a notebook attacks its models meanwhile."""
    job = submit(
        lab, "run", "demo", "run", EXECUTION | {"execution.shard_size": 16, "prompts.0.limit": 24, "prompts.1.limit": 8}
    )
    first = job.first_commit()
    told = notebook(lab)
    beside = not job.finished()
    seconds = job.wait()
    log = job.log()
    if "honours conditional writes" not in log or log.index("Pre-flight") > log.index("shards run"):
        raise LabError("The job's log shows no pre-flight before its work.")
    if not any("/tables/trajectories/" in key for key in job.objects()):
        raise LabError("There are no tables on S3.")
    if not beside:
        raise LabError("The job ended before the notebook did; it must be longer.")
    lab.figures["run"] = {"submit_s": round(job.submitted_s, 1), "first_shard_s": round(first, 1),
                          "job_s": round(seconds, 1), "notebook": told}  # fmt: skip
    return (
        f"demo run: submitted in {job.submitted_s:.0f} s, first shard after {first:.0f} s, done after {seconds:.0f} s; "
        f"meanwhile a notebook: attached in {told['connect_s']:.0f} s, attack in {told['attack_s']:.1f} s"
    )


_CELLS: Final = (
    """import time
begin = time.monotonic()
from dsprobe.actors import connect
lab = connect("{pool}", address="{address}")
connect_s = time.monotonic() - begin
lab""",
    """begin = time.monotonic()
result = lab.attack("who are you ?", model="toy-diffusion", attack="direct", judges=["toy_oracle"])
attack_s = time.monotonic() - begin
result""",
    """import json
print("TOLD " + json.dumps({{"connect_s": round(connect_s, 1), "attack_s": round(attack_s, 1),
                            "steps": len(result.steps), "models": list(lab.models)}}))
lab.close()""",
)


def notebook(lab: Lab, seconds: float = 300.0) -> dict[str, Any]:
    """Execute a notebook at the launcher that attaches to the pool over the tunnel; what it measured."""
    import nbformat

    cells = [cell.format(pool=POOL, address="ray://127.0.0.1:10001") for cell in _CELLS]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = lab.folder / "user" / "attach.ipynb"
    nbformat.write(page, path)
    lab.call(
        "notebook", str(BIN / "jupyter-execute"), "--inplace", f"--timeout={seconds:.0f}", str(path), seconds=seconds
    )
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    found = re.search(r"^TOLD (.*)$", text, re.MULTILINE)
    if found is None:
        raise LabError(f"The notebook did not get to its end: {outputs}")
    told: dict[str, Any] = json.loads(found[1])
    if told["steps"] < 2:
        raise LabError(f"The notebook's attack has no steps: {told}")
    return told
