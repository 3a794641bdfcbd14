"""What a run was: enough to repeat it, written before any work."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from dsprobe.experiment.plan import Plan
from dsprobe.judges import beside_generation, decides

MANIFEST_VERSION: Final = 1
PACKAGES: Final = ("dsprobe", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "ray", "duckdb")


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
        "code_revision": _revision(),
        "hardware": _hardware(),
        "equality": "bit-identical on one machine and build; across devices equal up to near-ties (see `margin`)",
    }


def _model(plan: Plan, name: str) -> dict[str, Any]:
    facts = plan.models[name]
    return {"family": facts.family, "kind": facts.kind, "digest": facts.digest, "revision": facts.revision,
            "parameter_bytes": facts.parameter_bytes}  # fmt: skip


def _prompts(plan: Plan, name: str) -> dict[str, Any]:
    return plan.prompt_sets[name].facts()


def _revision() -> str | None:
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
