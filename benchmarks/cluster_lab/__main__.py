"""A cluster by one command, on one machine: `ray up`, jobs, dashboard, a notebook, a host that is cut off, `ray down`.

Run as ``python -m benchmarks.cluster_lab`` (`make cluster-lab`), as root. Three hosts are network namespaces with an
SSH server each, S3 is Ceph's RADOS Gateway, and the cluster file is docs/cluster/on-prem.yaml. Nothing of it touches
the machine's own network or other processes, and all of it ends with this command. No network is needed.

A line per step is printed; full logs and a JSON file of figures are in the folder that is named at the end. Exit code 1
means that a step failed: the steps after it, but for `down`, are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.cluster_lab.hosts import enter_namespaces, missing

if TYPE_CHECKING:
    from benchmarks.cluster_lab.lab import Lab

STEPS: Final = ("up", "again", "wheel", "sweep", "run", "dashboard", "prometheus", "cut", "secrets", "down")


def main() -> None:
    """Parse, go into namespaces, take the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", metavar="A,B", default=",".join(STEPS), help=f"of {', '.join(STEPS)}; `up` is needed"
    )
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end, for a shell, until Ctrl-C")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="pictures for the docs, after a small run")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="new folder for logs and figures")
    arguments = parser.parse_args()
    steps = arguments.steps.split(",")
    if unknown := set(steps) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if reason := missing():
        sys.exit(f"The lab cannot run here: {reason}.")
    folder = enter_namespaces("benchmarks.cluster_lab", sys.argv[1:])
    sys.exit(_in_lab(folder, arguments, [step for step in STEPS if step in steps]))


def _in_lab(folder: Path, arguments: argparse.Namespace, steps: list[str]) -> int:
    from benchmarks.cluster_lab.lab import open_lab

    kept = arguments.logs or Path(tempfile.gettempdir()) / f"{folder.name}-logs"
    begin = time.monotonic()
    with open_lab(folder / "lab") as lab:
        print(f"{time.monotonic() - begin:6.1f} s  ok    lab         3 hosts, {lab.s3.name}", flush=True)
        good = _take(lab, steps, arguments)
        if arguments.keep:
            _wait_for_user(lab)
        lab.figures["all_s"] = round(time.monotonic() - begin, 1)
        shutil.copytree(lab.logs, kept, dirs_exist_ok=True)
        if not good:
            _keep_host_logs(lab, kept)
        (kept / "figures.json").write_text(json.dumps(lab.figures, indent=1) + "\n")
    print(f"{time.monotonic() - begin:6.1f} s  {'ok  ' if good else 'FAIL'}  all         logs and figures.json: {kept}")
    return 0 if good else 1


def _keep_host_logs(lab: Lab, kept: Path) -> None:
    """Logs of Ray and of sshd, for a failure's cause."""
    for host in lab.network.hosts.values():
        (kept / host.name).mkdir(parents=True, exist_ok=True)
        for logs in (host.folder / "tmp/ray").glob("session_2*/logs"):
            shutil.copytree(
                logs, kept / host.name / logs.parent.name, dirs_exist_ok=True, ignore_dangling_symlinks=True
            )
        shutil.copy(host.folder / "sshd/log", kept / host.name / "sshd.log")


def _take(lab: Lab, steps: list[str], arguments: argparse.Namespace) -> bool:
    """Take the steps in order; after a failure only `down`, unless the lab is kept."""
    from benchmarks.cluster_lab import cutting, jobs, nodes, observing, overlay, screenshots, secrecy

    known: dict[str, Callable[[Lab], str]] = {
        "up": nodes.up, "again": nodes.up_again, "wheel": nodes.wheel, "sweep": jobs.sweep, "run": jobs.run,
        "dashboard": observing.dashboard, "prometheus": observing.prometheus, "cut": cutting.cut,
        "secrets": secrecy.secrets, "down": nodes.down,
    }  # fmt: skip
    wanted = [("file", overlay.prepare), *((name, known[name]) for name in steps)]
    if arguments.screenshots is not None:
        pictures = ("pictures", lambda lab: screenshots.take(lab, arguments.screenshots.resolve()))
        wanted.insert(next((i for i, (name, _) in enumerate(wanted) if name == "down"), len(wanted)), pictures)
    good = True
    for name, step in wanted:
        if good or (name == "down" and not arguments.keep):
            good &= _timed(lab, name, step)
    return good


def _timed(lab: Lab, name: str, step: Callable[[Lab], str]) -> bool:
    """Take one step and print its line."""
    begin = time.monotonic()
    try:
        said, good = step(lab), True
    except Exception as error:  # noqa: BLE001 - whatever it is, the step failed, and the lab must still be taken down
        (lab.logs / f"{name}-failed.log").write_text(traceback.format_exc())
        said, good = f"{type(error).__name__}: {error}", False
    print(f"{time.monotonic() - begin:6.1f} s  {'ok  ' if good else 'FAIL'}  {name:<10}  {said}", flush=True)
    return good


def _wait_for_user(lab: Lab) -> None:
    """Say how to get in, and wait for Ctrl-C or SIGTERM."""
    print("The lab is up. A shell at the launcher, from another terminal:")
    print(f"  {lab.network.shell()}")
    print("Ctrl-C ends it.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
