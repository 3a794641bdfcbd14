"""What is sent to a cluster's job server, and what never is.

What Ray keeps of a job (entry point, environment, metadata) anyone with the cluster's token can read, so no credentials
go there: only the variables of `PASSED` do, and nothing is sent where one of its texts holds a secret.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from dsprobe.errors import ConfigError
from dsprobe.untrusted import is_secret_name, refuse_secrets

PASSED: Final = ("HF_HUB_OFFLINE", "DSPROBE_*", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Environment variables that go with a job, where they are set; others by name."""

OF_A_MACHINE: Final = ("DSPROBE_CACHE", "DSPROBE_WEIGHTS*")
"""Those of them that do not: they name places and room on the machine where they are set."""

JOB_VERSION: Final = "DSPROBE_JOB_VERSION"
"""Environment variable of a job: the version that submitted it."""

PREFIX: Final = "dsprobe."
"""Before the keys of a job's metadata that dsprobe writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What is to run."""

    kind: str
    """``run``, ``sweep``, ``transfer`` or ``reduce``."""
    id: str
    """Run id, sweep id, or another ``<name>-<8 hexadecimal digits>`` that is the same for the same work."""
    source: str
    """The configuration as given."""
    commands: Sequence[Sequence[str]]
    """`dsprobe` command lines without the program; each runs if the ones before it succeeded."""
    folder: Path | None = None
    """Working folder that travels."""
    wheel: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    """Of the checkout that submits."""


def job_environment(environ: Mapping[str, str], names: Sequence[str] = ()) -> dict[str, str]:
    """The variables that go with a job.

    Args:
        environ: Environment of this process.
        names: Others than `PASSED`, by name.

    Raises:
        ConfigError: A name is not set, or is one that holds a secret; its value is not shown.
    """
    passed = {name: value for name, value in environ.items() if _matches(name, PASSED)}
    passed = {
        name: value for name, value in passed.items() if not is_secret_name(name) and not _matches(name, OF_A_MACHINE)
    }
    for name in names:
        if is_secret_name(name):
            raise ConfigError(
                f"--env {name} looks like a secret, and Ray shows a job's environment to everyone with its token. Give "
                "the nodes an instance role, or set it in the environment that Ray is started in."
            )
        if name not in environ:
            raise ConfigError(f"--env {name}: there is no such variable here.")
        passed[name] = environ[name]
    return passed


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def submission(request: JobRequest, job_id: str) -> dict[str, Any]:
    """What goes to Ray: entry point, runtime environment and metadata.

    Args:
        request: What is to run.
        job_id: Its id.

    Returns:
        Arguments of Ray's `submit_job`.

    Raises:
        ConfigError: A text holds a secret; its place is named.
    """
    programs = [shlex.join(["python", "-m", "dsprobe.cli.main", *command]) for command in request.commands]
    runtime: dict[str, Any] = {"env_vars": {**request.env, JOB_VERSION: version("dsprobe")}}
    if request.folder is not None:
        runtime["working_dir"] = str(request.folder)
    if request.wheel is not None:
        runtime["py_modules"] = [str(request.wheel)]
    facts = {"kind": request.kind, "id": request.id, "config": request.source, "version": version("dsprobe"),
             "commit": request.commit or ""}  # fmt: skip
    facts |= {f"tag.{name}": value for name, value in request.tags.items()}
    content = {
        "submission_id": job_id,
        "entrypoint": " && ".join(programs),
        "runtime_env": runtime,
        "metadata": {PREFIX + name: value for name, value in facts.items()},
    }
    refuse_secrets(content, "The job", os.environ, fate="shown to all who may see the cluster's jobs")
    return content


def digest_id(name: str, parts: Sequence[str]) -> str:
    """A name with 8 hexadecimal digits, for work that has no run id.

    Args:
        name: Kept as far as it can be part of an id.
        parts: What tells one work from another.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:8]}"


def next_id(request: JobRequest, taken: Sequence[str]) -> str:
    """``dsprobe-<kind>-<id>-<n>``, with the first number that is above those in use.

    Args:
        request: What is to run.
        taken: Ids of the cluster's jobs.
    """
    stem = f"dsprobe-{request.kind}-{request.id}-"
    numbers = [int(found[1]) for name in taken if (found := re.fullmatch(re.escape(stem) + r"(\d+)", name))]
    return f"{stem}{max(numbers, default=0) + 1}"
