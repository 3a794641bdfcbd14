"""The report's sweep section: headline numbers, the front's settings, and the data of the front's explorer."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dsprobe.errors import ConfigError
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.attainment import attainment_data, draw_attainment
from dsprobe.reports.figures.catalogue import FigureSpec
from dsprobe.reports.figures.importances import draw_importances, importance_data
from dsprobe.reports.figures.parallel_coordinates import draw_parallel, parallel_data
from dsprobe.reports.figures.pareto import pareto_data
from dsprobe.reports.figures.pareto_drawing import draw_pareto
from dsprobe.reports.sweep_data import (
    Estimate,
    Estimates,
    FrontPoint,
    SweepData,
    objective_label,
    setting_text,
    short_names,
)
from dsprobe.reports.text import percent
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from dsprobe.reports.build import RenderedFigure


def _of_sweep(collect: Callable[[SweepData], Any]) -> Callable[[ReportData], Any]:
    """A sweep figure's data function in the form of all figures."""

    def from_report(data: ReportData) -> Any:
        if data.sweep is None:
            raise ConfigError("The report's data has no sweep; its figures cannot be drawn.")
        return collect(data.sweep)

    return from_report


SWEEP_FIGURES: Final[tuple[FigureSpec, ...]] = (
    FigureSpec(
        "sweep-front",
        "Front",
        "The front: harm against fluency",
        "Every point is a guardrail setting that no other trial beats in all objectives; lower is better in each. "
        "Bars are intervals over prompts. A hollow marker is the same setting on prompts that the search never saw, "
        "joined to its search value: the line's length is the optimism of the search.",
        _of_sweep(pareto_data),
        draw_pareto,
    ),
    FigureSpec(
        "sweep-importances",
        "Importances",
        "What moved the objectives",
        "Share of an objective's variation over the complete trials that a parameter accounts for. It describes this "
        "search and this space, not a cause; a parameter that exists only under some choice is seen in fewer trials.",
        _of_sweep(importance_data),
        draw_importances,
    ),
    FigureSpec(
        "sweep-parallel",
        "Parameters",
        "Which settings lead where",
        "One line per complete trial, through its parameters (thin axes) to its objectives (bold axes, lower is "
        "better). A parameter that a trial does not use is a gap: the dotted line passes through the slot below its "
        "axis.",
        _of_sweep(parallel_data),
        draw_parallel,
    ),
    FigureSpec(
        "sweep-attainment",
        "Attainment",
        "How fast the front grew",
        "Hypervolume of the front found so far, up to the stated reference point. On the right the same values against "
        "the forward passes that the sweep computed and those that regenerating every trial takes, on one axis.",
        _of_sweep(attainment_data),
        draw_attainment,
    ),
)
"""Figures of the section in reading order; each takes a `ReportData` that has a sweep."""


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of the table of settings: a front point, or the unguarded model."""

    label: str
    knee: bool
    facts: str
    """Trial number and share of resamples in which the point stays on the front; empty for the unguarded model."""
    found: list[str]
    """Objectives with intervals, on the search's prompts."""
    unseen: list[str]
    """The same on unseen prompts; empty where no validation was run."""
    settings: list[tuple[str, str]]
    """Parameters and their values."""
    file: str
    """Guardrail file, from the folder that holds ``runs``; empty for the unguarded model."""
    command: str


@dataclass(frozen=True, slots=True)
class SweepSection:
    """Everything that the templates print about a sweep."""

    name: str
    facts: list[tuple[str, str, str]]
    """Name, value, detail."""
    knee: list[tuple[str, str]]
    """Settings of the knee."""
    failures: list[tuple[str, int]]
    columns: list[str]
    """Objectives."""
    rows: list[SettingRow]
    confidence: str
    figures: Sequence[RenderedFigure]
    payload: dict[str, Any]
    """Data of the explorer, JSON-ready; every string is visible text."""
    summary: dict[str, Any]
    """The section's part of ``summary.json``."""


def sweep_section(data: SweepData, figures: Sequence[RenderedFigure]) -> SweepSection:
    """Collect the section's numbers and words.

    Args:
        data: A checked sweep.
        figures: The drawn `SWEEP_FIGURES`, in their order.
    """
    short = short_names(data.parameters)
    folder = f"runs/{data.front['sweep_id']}/sweep/guardrails"
    base, base_unseen = data.baseline
    rows = [SettingRow("unguarded", False, "", *_texts(data, base, base_unseen), [], "", "")]
    rows += [_row(data, point, short, folder) for point in data.points]
    return SweepSection(
        name=visible(str(data.front["sweep_id"])),
        facts=headline(data),
        knee=_settings(data.knee.parameters, short) if data.knee else [],
        failures=data.failures,
        columns=[objective_label(name) for name in data.objectives],
        rows=rows,
        confidence=data.confidence,
        figures=figures,
        payload=explorer_payload(data),
        summary=_summary(data, figures),
    )


def headline(data: SweepData) -> list[tuple[str, str, str]]:
    """Name, value and detail of the numbers at the top."""
    used, scratch = data.passes
    raw, search = data.front["hypervolume"], data.search
    volume = Estimate(*(float("nan") if raw[key] is None else raw[key] for key in ("value", "low", "high")))
    reference = ", ".join(f"{objective_label(name)} {data.front['reference'][name]:g}" for name in data.objectives)
    states = ", ".join(f"{count} {state}" for state, count in data.states.items() if count)
    unseen = sum(point.validation is not None for point in data.points)
    rungs = ", ".join(f"{float(rung):g}" for rung in search["rungs"])
    ratio = f": {scratch / used:.1f} times as many" if used else ""
    facts = [
        ("Trials", f"{len(data.finished):,}", f"{states}; {search['trials']} asked for"),
        ("Front", f"{len(data.points)} settings", f"{unseen} of them also run on unseen prompts"),
        ("Hypervolume", str(volume), f"{data.confidence} interval; reference point: {reference}"),
        ("Forward passes", f"{used:,}", f"{scratch:,} from scratch{ratio}"),
        ("Search", visible(str(search["sampler"])),
         f"seed {search['seed']}, rungs {rungs}, {search['concurrency']} at once"),
    ]  # fmt: skip
    run = data.front["validation_run"]
    return facts + ([("Validation run", visible(str(run)), "")] if run else [])


def explorer_payload(data: SweepData) -> dict[str, Any]:
    """What the interactive front shows: objectives, the front, the unguarded model, the other trials.

    Estimates are ``[value, low, high]`` in the order of the objectives, None where undefined.
    """
    short = short_names(data.parameters)
    base, base_unseen = data.baseline
    return {
        "objectives": [objective_label(name) for name in data.objectives],
        "confidence": data.confidence,
        "baseline": {"label": "unguarded", "values": _triples(base), "unseen": _triples(base_unseen), "settings": []},
        "points": [
            {
                "label": point.label, "knee": point is data.knee, "facts": _facts(point),
                "settings": _settings(point.parameters, short),
                "values": _triples(point.objectives), "unseen": _triples(point.validation),
            }
            for point in data.points
        ],
        "others": [
            {
                "label": f"trial {trial.number}", "facts": ": ".join(filter(None, (trial.state, trial.reason))),
                "stopped": trial.state == "stopped", "settings": _settings(trial.parameters, short),
                "values": _triples(trial.objectives), "unseen": None,
            }
            for trial in data.off_front
        ],
    }  # fmt: skip


def _row(data: SweepData, point: FrontPoint, short: Mapping[str, str], folder: str) -> SettingRow:
    file = f"{folder}/{point.label}.yaml"
    command = f"dsprobe run demo --guardrail {shlex.quote(file)}"
    return SettingRow(
        point.label, point is data.knee, _facts(point), *_texts(data, point.objectives, point.validation),
        _settings(point.parameters, short), visible(file), visible(command),
    )  # fmt: skip


def _facts(point: FrontPoint) -> str:
    share = percent(point.attained)
    return f"trial {point.trial}, on the front in {share} of resamples"


def _texts(data: SweepData, found: Estimates, unseen: Estimates | None) -> tuple[list[str], list[str]]:
    names = data.objectives
    return [str(found[name]) for name in names], [str(unseen[name]) for name in names] if unseen else []


def _settings(parameters: Mapping[str, Any], short: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(short[name], setting_text(parameters[name])) for name in short if name in parameters]


def _triples(found: Estimates | None) -> list[list[float | None]] | None:
    return None if found is None else [list(estimate.to_dict().values()) for estimate in found.values()]


def _summary(data: SweepData, figures: Sequence[RenderedFigure]) -> dict[str, Any]:
    used, scratch = data.passes
    return {
        "sweep_id": visible(str(data.front["sweep_id"])),
        "trials": data.states,
        "objectives": list(data.objectives),
        "hypervolume": dict(data.front["hypervolume"]),
        "reference": dict(data.front["reference"]),
        "confidence": data.front["confidence"],
        "forward_passes": {"used": used, "from_scratch": scratch},
        "knee": data.knee.label if data.knee else None,
        "front": [
            {
                "label": point.label,
                "trial": point.trial,
                "parameters": dict(point.parameters),
                "objectives": _dictionaries(point.objectives),
                "validation": _dictionaries(point.validation),
                "attained": point.attained,
            }
            for point in data.points
        ],
        "baseline": {"objectives": _dictionaries(data.baseline[0]), "validation": _dictionaries(data.baseline[1])},
        "findings": {figure.name: figure.finding for figure in figures},
    }


def _dictionaries(found: Estimates | None) -> dict[str, dict[str, float | None]] | None:
    return None if found is None else {name: estimate.to_dict() for name, estimate in found.items()}
