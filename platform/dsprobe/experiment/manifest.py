"""What a run was: enough to repeat it, written before any work."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from dsprobe.judges import beside_generation, decides
from dsprobe.judges.base import QUESTIONS
from dsprobe.untrusted import parse_record

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan

MANIFEST_VERSION: Final = 1
"""Version of the manifest; storage refuses newer ones."""

PACKAGES: Final = ("dsprobe", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "ray", "duckdb")


class _Part(BaseModel):
    """A part of a manifest: what readers ask for has one type, and there may be more."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Named(_Part):
    name: str
    alias: str | None = None


class _Risk(_Part):
    threshold: float = 0.0


class _Config(_Part):
    models: list[_Named] = []
    prompts: list[dict[str, Any]] = []
    judges: list[_Named] = []
    execution: dict[str, Any] = {}
    risk: _Risk = _Risk()


class _Model(_Part):
    kind: str
    digest: str


class _Prompts(_Part):
    digest: str
    harmful: int | None = None  # manifests of the first versions do not say
    synthetic: bool
    limited: bool


class _Sampler(_Part):
    name: str


class _Search(_Part):
    sampler: _Sampler


class _Objective(_Part):
    name: str


class _Sweep(_Part):
    search: _Search
    objectives: list[_Objective] = []


class _Shape(_Part):
    """What of a manifest is there has these types."""

    version: int = 1
    run_id: str
    shards: list[str]
    config: _Config = _Config()
    sources: dict[str, str] = {}
    models: dict[str, _Model] = {}
    prompt_sets: dict[str, _Prompts] = {}
    judges: dict[str, str] = {}
    conditions: list[str] = []
    not_run: dict[str, str] = {}
    packages: dict[str, str] = {}
    sweep: _Sweep | None = None


def check_manifest(found: Mapping[str, Any]) -> None:
    """Check the types of what a manifest holds: anyone may have written it.

    Raises:
        ValueError: It is no manifest; the message names the field.
    """
    shape = parse_record(_Shape, found)
    unknown = set(shape.judges.values()) - set(QUESTIONS)
    if unknown:
        raise ValueError(f"`judges`: unknown question {min(unknown)[:40]!a}")


def build_manifest(plan: Plan, sources: Mapping[str, str]) -> dict[str, Any]:
    """Describe a run.

    Args:
        plan: The resolved experiment.
        sources: Where each configuration value came from (`dsprobe.config_loader`).

    Returns:
        A JSON-ready mapping. When a run is resumed its first manifest stays; only `run_id` and `shards` must agree.
    """
    return {
        "version": MANIFEST_VERSION,
        "run_id": plan.run_id,
        "shards": [shard.id for shard in plan.shards],
        "config": plan.config.model_dump(mode="json"),
        "sources": dict(sources),
        "models": {name: _model(plan, name) for name in plan.models},
        "prompt_sets": {name: _prompts(plan, name) for name in plan.prompt_sets},
        "judges": {judge.key: decides(judge) for judge in beside_generation(plan.config.judges)},
        "conditions": [condition.id for condition in plan.conditions],
        "not_run": plan.skipped,
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "code_revision": code_revision(),
        "hardware": _hardware(),
        "equality": "bit-identical on one machine and build; across devices equal up to near-ties (see `margin`)",
    }


def _model(plan: Plan, name: str) -> dict[str, Any]:
    facts = plan.models[name]
    return {"family": facts.family, "kind": facts.kind, "digest": facts.digest, "revision": facts.revision,
            "parameter_bytes": facts.parameter_bytes}  # fmt: skip


def _prompts(plan: Plan, name: str) -> dict[str, Any]:
    return plan.prompt_sets[name].facts()


def code_revision() -> str | None:
    """Commit of the checkout that this code runs from; `None` for an installed wheel."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    shown = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(), "gpus": gpus}
