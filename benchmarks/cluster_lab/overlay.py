"""The cluster file of the lab: `docs/cluster/on-prem.yaml` with this lab's machines, as its first lines tell a user."""

from __future__ import annotations

import shutil
from typing import Final

import yaml

from benchmarks.cluster_lab.hosts import CHECKOUT, HOSTS
from benchmarks.cluster_lab.lab import Lab, LabError
from dsprobe.actors.wheel import build_wheel

SHIPPED: Final = CHECKOUT / "docs/cluster/on-prem.yaml"


def prepare(lab: Lab) -> str:
    """Do what a user does before `ray up`: build `dist/`, and change the four lines that name machines and key."""
    dist = lab.cluster_file.parent / "dist"  # `./dist` of the file is relative to where `ray up` is run
    build_wheel(CHECKOUT, dist)
    shutil.copy(CHECKOUT / "constraints.txt", dist)
    content = yaml.safe_load(SHIPPED.read_text())
    workers = [address for name, address in HOSTS.items() if name != "head"]
    _replace(content["provider"], head_ip=HOSTS["head"], worker_ips=workers)
    _replace(content["auth"], ssh_user="root", ssh_private_key=str(lab.network.key))
    lab.cluster_file.write_text(yaml.safe_dump(content, sort_keys=False))
    return f"{SHIPPED.relative_to(CHECKOUT)} with 3 addresses, user and key; {lab.wheels()[0].name}"


def _replace(section: dict[str, object], **values: object) -> None:
    absent = values.keys() - section.keys()
    if absent:
        raise LabError(f"{SHIPPED} has no {', '.join(sorted(absent))} to replace.")
    section.update(values)
