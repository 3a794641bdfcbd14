"""Nothing secret is where others may look: process lists, job metadata, Ray's logs, the cluster file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from benchmarks.cluster_lab.lab import Lab, LabError

_READ_LIMIT: Final = 50 << 20


def secrets(lab: Lab) -> str:
    """Search every place for the S3 secret key and Ray's token."""
    _check_search(lab)
    places = {
        "the process lists": "\n".join(line for host in lab.network.hosts.values() for line in host.processes()),
        "job metadata": json.dumps(lab.get("/api/jobs/")),
        "the cluster file": lab.cluster_file.read_text(),
        "actors": json.dumps(lab.get("/api/v0/actors?limit=1000&detail=true")),
    }
    seen = [f"{what} in {place}" for place, text in places.items() for what in _found(lab, text)]
    logs = [path for host in lab.network.hosts.values() for path in _ray_files(host.folder / "tmp")]
    logs += [path for path in lab.logs.rglob("*") if path.is_file()]
    seen += [f"{what} in {path}" for path in logs for what in _found(lab, path.read_bytes().decode(errors="replace"))]
    if seen:
        raise LabError("; ".join(seen[:10]))
    for host in lab.network.hosts.values():
        for name in (".ray/auth_token", ".aws/credentials"):
            mode = (host.folder / "root" / name).stat().st_mode & 0o777
            if mode & 0o077:
                raise LabError(f"{host.name}: ~/{name} has mode {mode:o}; others may read it.")
    lines = places["the process lists"].count("\n") + 1
    return f"neither key nor token in {lines} command lines, job metadata, the cluster file, {len(logs)} files of Ray's"


def _found(lab: Lab, text: str) -> list[str]:
    return [what for what, secret in lab.secrets.items() if secret in text]


def _check_search(lab: Lab) -> None:
    """The search finds both where they belong; it would be worth nothing otherwise."""
    home = lab.network.head.folder / "root"
    text = (home / ".ray/auth_token").read_text() + (home / ".aws/credentials").read_text()
    if len(_found(lab, text)) != len(lab.secrets):
        raise LabError("The head's own files do not hold the secrets that are searched for.")


def _ray_files(folder: Path) -> list[Path]:
    """Regular files that Ray wrote on a host, but for sockets, programs and packages of jobs."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path.stat().st_size < _READ_LIMIT]
