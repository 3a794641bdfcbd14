"""Head of the report: which run this is, how large, and what a reader must know before believing it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from dsprobe.config import UNGUARDED
from dsprobe.reports.data import ReportData
from dsprobe.visible_text import visible


@dataclass(frozen=True, slots=True)
class Header:
    """Facts above the fold."""

    name: str
    facts: list[tuple[str, str]]
    notices: list[str]
    """Limited runs, withheld text: what changes how the numbers are read."""


def header(data: ReportData) -> Header:
    """Read the head of the report from tables and manifest; facts that the manifest lacks are left out."""
    conditions = data.conditions
    config = _mapping(data.manifest.get("config"))
    models = dict.fromkeys(visible(c.model) for c in conditions)
    facts = [
        ("Models", ", ".join(models)),
        ("Trajectories", f"{data.trajectories.num_rows:,}"),
        ("Steps recorded", f"{_steps_recorded(data):,}"),
        ("Conditions", str(len(conditions))),
        ("Harm threshold θ", f"{data.theta:g}"),
    ]
    if data.guarded:
        facts.append(("Guardrails", ", ".join(visible(name) for name in data.guardrails if name != UNGUARDED)))
    seed = config.get("seed", data.manifest.get("seed"))
    if seed is not None:
        facts.append(("Seed", visible(str(seed))))
    versions = _mapping(data.manifest.get("versions", data.manifest.get("packages")))
    shown = [f"{name} {versions[name]}" for name in ("dsprobe", "torch", "transformers") if name in versions]
    if shown:
        facts.append(("Versions", visible(", ".join(shown))))
    name = data.manifest.get("run_id") or config.get("name") or "run"
    if data.sweep is not None:
        name = data.sweep.front["sweep_id"]
    return Header(visible(str(name)), facts, _notices(data))


def manifest_text(data: ReportData) -> str:
    """The manifest as indented JSON with sorted keys."""
    return json.dumps(data.manifest, indent=2, sort_keys=True, ensure_ascii=False, default=str)


def _steps_recorded(data: ReportData) -> int:
    total = pc.sum(data.trajectories["num_steps"]).as_py()
    return int(total or 0)


def _notices(data: ReportData) -> list[str]:
    sets = dict.fromkeys(c.prompts for c in data.conditions)
    limited = [visible(name) for name in sets if name in data.limited_sets]
    withheld = [visible(name) for name in sets if not data.text_allowed(name)]
    notices = []
    if any(summary.num_prompts < summary.n for summary in data.summaries.values()):
        notices.append("Prompts have several samples: Wilson and Kaplan–Meier intervals treat them as independent.")
    if limited:
        notices.append(f"Limited run: only the first prompts of {', '.join(limited)} were used.")
    if withheld:
        notices.append(f"Prompts and replies of {', '.join(withheld)} are withheld.")
    return notices


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
