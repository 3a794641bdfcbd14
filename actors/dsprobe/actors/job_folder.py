"""The small folder that travels with a job: its configuration and the files which that names, and nothing else.

Nothing of a checkout is copied, so nothing has to be left out. A relative path inside the current folder keeps its
name; a file from elsewhere gets one below ``files/``, and the configuration names that. Folders (models, data sets) are
too large to travel: their paths are made absolute and must be there on every node.

A pool of replicas outlives the job that started it and keeps that job's code and files. A job that brings either
therefore has a pool of its own, named by what it brings, unless the configuration names one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from dsprobe.config import ExecutionConfig
from dsprobe.errors import ConfigError
from dsprobe.untrusted import local_path

CONFIG_FILE: Final = "dsprobe-job.yaml"
"""Name of the configuration in a job's folder."""

MAX_BYTES: Final = 100 * 2**20
"""Of all files; Ray refuses packages of several hundred MiB, and keeps them in the head node's memory."""

_FILE_KEYS: Final = frozenset({"path", "file", "replies", "template_file", "folder"})
"""Keys under which components name a file or folder."""
_READ_BY_THE_DRIVER: Final = frozenset({"prompts", "validation"})
"""Parts whose files no replica opens."""
_OF_THE_JOB: Final = frozenset({"execution", "output"})
"""Parts that name no input."""


@dataclass(slots=True)
class JobFolder:
    """What was put together.

    Args:
        folder: A folder to be made.
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    """Path as given → path in the job's folder."""
    notes: list[str] = field(default_factory=list)
    """What must be there on the nodes."""
    _tree: dict[str, Any] = field(default_factory=dict)
    _names_pool: bool = False
    _brought: set[str] = field(default_factory=set)

    def add(self, config: BaseModel, *, allow_local_output: bool) -> None:
        """Write a run's or sweep's configuration for the cluster, and copy what it names.

        Args:
            config: A `RunConfig`, or a `SweepConfig`, whose experiment has the execution.
            allow_local_output: Whether an output root that is no URL is meant.

        Raises:
            ConfigError: The files are too large, a path cannot be one, or the output root is local and must not be.
        """
        self.folder.mkdir()
        tree = config.model_dump(mode="json", exclude_unset=True)
        run = tree.get("experiment", tree)
        run["execution"] = {**run.get("execution", {}), "executor": "ray", "address": "auto"}
        root = config.model_dump(include={"output": {"root"}})["output"]["root"]
        tree["output"] = {**tree.get("output", {}), "root": job_output(root, allow_local=allow_local_output)}
        storage = tree.get("search", {}).get("storage")
        if storage is not None and "://" not in storage:
            tree["search"]["storage"] = job_output(storage, allow_local=allow_local_output, what="search.storage")
        for holder, key, for_driver in list(_named_files(tree)):
            given = holder[key]
            holder[key] = self._carried(given)
            if given in self.files and not for_driver:
                self._brought.add(_digest(self.folder / self.files[given]) + self.files[given])
        self._tree, self._names_pool = tree, "pool" in run["execution"]
        self.use_pool(None)

    def use_pool(self, code: str | None) -> None:
        """Name the pool by what replicas get from this job, unless the configuration names one; writes the file.

        Args:
            code: What names the code that travels; `None` where the nodes' own runs.
        """
        brings = sorted({*self._brought, *([] if code is None else [code])})
        if brings and not self._names_pool:
            name = f"{ExecutionConfig().pool}-{hashlib.sha256(chr(0).join(brings).encode()).hexdigest()[:12]}"
            self._tree.get("experiment", self._tree)["execution"]["pool"] = name
        text = yaml.safe_dump(self._tree, sort_keys=False, allow_unicode=True)
        (self.folder / CONFIG_FILE).write_text(text, encoding="utf-8")

    def _carried(self, given: str) -> str:
        """The path under which a job finds what a path names here."""
        path = local_path(given, "a file of the configuration")
        if path.is_dir():
            self.notes.append(f"The folder {path.resolve()} does not travel; it must be there on every node.")
            return str(path.resolve())
        if not path.is_file():  # a hub id, or missing: the pre-flight says
            return given
        if given not in self.files:
            self._check_room(path)
            target = self._target(path)
            (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.folder / target)
            self.files[given] = target
        return self.files[given]

    def _target(self, path: Path) -> str:
        inside = not path.is_absolute() and ".." not in path.parts and path.name != CONFIG_FILE
        if inside:
            return path.as_posix()
        return f"files/{_digest(path)[:8]}-{path.name}"

    def _check_room(self, path: Path) -> None:
        size = path.stat().st_size + sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        if size > MAX_BYTES:
            raise ConfigError(
                f"The files of the configuration have more than {MAX_BYTES >> 20} MiB with `{path}`. Put it on a disk "
                "that all nodes share and give the folder, or use a data set of the hub."
            )


def job_output(root: str, *, allow_local: bool, what: str = "output.root") -> str:
    """Where a job writes.

    Args:
        root: URL or path as configured.
        allow_local: Whether a path is meant.
        what: Its key, for messages.

    Returns:
        The URL, or the absolute path.

    Raises:
        ConfigError: It is a path, and must not be.
    """
    if "://" in root:
        return root
    path = str(local_path(root, what).resolve())
    if not allow_local:
        raise ConfigError(
            f"{what} `{root}` is a folder of this machine ({path}); a cluster's nodes do not share it. Give "
            "s3://bucket/prefix, or --allow-local-output where all nodes see that path (a cluster of one machine, NFS)."
        )
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _named_files(node: Any, for_driver: bool = False) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Mappings and their keys whose values may be paths, and whether the driver alone reads them."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _FILE_KEYS and isinstance(value, str) and "://" not in value:
                yield node, key, for_driver
            elif key not in _OF_THE_JOB:
                yield from _named_files(value, for_driver or key in _READ_BY_THE_DRIVER)
    elif isinstance(node, list):
        for item in node:
            yield from _named_files(item, for_driver)
