"""What the report's section on attacks is made from: which runs have one, and what the study of transfer leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.sensitivity import Curve
from dsprobe.experiment.transfer import TransferStudy, study_transfer
from dsprobe.judges.base import VERDICT_PREFIX
from dsprobe.metrics.anchoring import AnchoringCurve
from dsprobe.metrics.over_refusal import OverRefusal, over_refusal_by_type
from dsprobe.prompts.layouts import pair_of
from dsprobe.reports.data import ReportData
from dsprobe.visible_text import visible

_BOTH: frozenset[str] = frozenset({"diffusion", "autoregressive"})


def attack_study(data: ReportData) -> TransferStudy | None:
    """The study behind the section on attacks.

    Returns:
        `None` unless the run has several judges of harm, models of both kinds, or a grid of attacks, and unguarded
        rows with harmful requests.
    """
    harm = [judge for judge, question in data.judges.items() if question == "harm"]
    if not harm or "attacks" not in _section(data.manifest, "config"):
        return None
    kinds = {facts["kind"] for facts in _section(data.manifest, "models").values()}
    if len(harm) == 1 and not kinds >= _BOTH and not _grids(data):
        return None
    study = study_transfer(data.trajectories, data.manifest, data.judges)
    return study if study.attacks else None


def without_grids(data: ReportData) -> tuple[ReportData, str]:
    """The same run without the points of grids of attacks, which have their own figures.

    Dozens of nearly equal conditions would fill every figure over the steps and its build time.

    Returns:
        The data, and a sentence that says what was left out; the data as they are where the section on attacks, and
        with it the curves, is missing, or where nothing would be left.
    """
    drawn = {curve.family for curve in data.study.curves} if data.study else set()
    points = {key: family for key, family in _grids(data).items() if family in drawn}
    if not points or all(condition.attack in points for condition in data.conditions):
        return data, ""
    families = ", ".join(visible(family) for family in dict.fromkeys(points.values()))
    return data.without_attacks(points.keys()), f"Grids of attacks are drawn as curves only: {families}."


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRefusal:
    """Refusals of one condition's safe requests, and of their unsafe contrasts where the set has them."""

    condition: Condition
    judge: str
    paired: bool
    """Whether the set has categories of XSTest's kind, ``X`` and ``contrast_X``."""
    found: OverRefusal


def over_refusals(data: ReportData) -> Iterator[PairedRefusal]:
    """Over-refusal by type of pair, for every condition with safe requests and every judge of refusals.

    Several samples of a prompt would count as independent, so the first of each prompt is taken.
    """
    judges = [judge for judge, question in data.judges.items() if question == "refusal"]
    for condition in data.conditions:
        table = data.rows("trajectories", condition)
        if "category" not in table.column_names or not judges or pc.all(table["harmful"]).as_py():
            continue
        rows = _first_samples(table)
        kinds, harmful = rows["category"].to_pylist(), np.asarray(rows["harmful"].to_pylist(), np.bool_)
        pairs = [pair_of(kind) for kind in kinds]
        paired = bool({p for p, h in zip(pairs, harmful, strict=True) if h} & set(np.array(pairs)[~harmful].tolist()))
        for judge in judges:
            found = over_refusal_by_type(
                rows[VERDICT_PREFIX + judge].to_pylist(), ~harmful, pairs, rows["empty"].to_pylist()
            )
            yield PairedRefusal(condition=condition, judge=judge, paired=paired, found=found)


def has_pairs(data: ReportData) -> bool:
    """Whether any prompt set has safe requests and unsafe contrasts of the same type."""
    if "category" not in data.trajectories.column_names:
        return False
    kinds = set(pc.unique(data.trajectories["category"]).to_pylist())
    contrasts = {pair_of(kind) for kind in kinds if kind.startswith("contrast_")}
    return bool(contrasts & {pair_of(kind) for kind in kinds if not kind.startswith("contrast_")})


def anchoring_curves(data: ReportData) -> list[tuple[Curve, AnchoringCurve]]:
    """The curves of the anchoring attack against t/T, beside the published one; see `Curve.anchoring`."""
    curves = data.study.curves if data.study else ()
    return [(curve, curve.anchoring) for curve in curves if curve.anchoring is not None]


def _grids(data: ReportData) -> dict[str, str]:
    """Attack key → family, of the attacks that are points of a grid."""
    attacks: Iterable[Mapping[str, Any]] = _section(data.manifest, "config").get("attacks", ())
    return {a["alias"] or a["name"]: a["family"] for a in attacks if a.get("family")}


def _section(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, Mapping) else {}


def _first_samples(table: pa.Table) -> pa.Table:
    ordered = table.sort_by([("prompt_id", "ascending"), ("sample", "ascending")])
    _, first = np.unique(np.array(ordered["prompt_id"].to_pylist(), np.str_), return_index=True)
    return ordered.take(first)
