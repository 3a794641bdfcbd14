"""The report's section on attacks, judges and transfer: figures, and the tables that stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dsprobe.experiment.transfer import TransferStudy
from dsprobe.reports.attack_data import PairedRefusal, has_pairs, over_refusals
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.attack_success import attack_success_data, draw_attack_success
from dsprobe.reports.figures.capability import capability_data, draw_capability
from dsprobe.reports.figures.catalogue import FigureSpec
from dsprobe.reports.figures.dose_response import dose_data, dose_grid_data, draw_doses
from dsprobe.reports.figures.judge_agreement import agreement_data, draw_agreement
from dsprobe.reports.figures.transfer_indices import draw_transfer_indices, transfer_index_data
from dsprobe.reports.judge_sheets import agreement_sheets, label_sheets
from dsprobe.reports.over_refusal import over_refusal_sheets
from dsprobe.reports.sheets import Sheet
from dsprobe.reports.transfer_sheets import (
    attack_sheets,
    capability_sheets,
    curve_sheets,
    pair_sheets,
)
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from dsprobe.reports.build import RenderedFigure


def _if(has: Callable[[TransferStudy], object]) -> Callable[[ReportData], bool]:
    """Whether a run has a study, and the study something."""
    return lambda data: data.study is not None and bool(has(data.study))


def _grids(study: TransferStudy, *, several: bool) -> bool:
    return any((len(curve.response.variables) > 1) == several for curve in study.curves)


ATTACK_FIGURES: Final[tuple[FigureSpec, ...]] = (
    FigureSpec(
        "attack-success",
        "Attacks",
        "Attack success by attack, model and judge",
        "Share of harmful requests whose reply the judge calls harmful, with its 95 % Wilson interval. Circles are "
        "diffusion models, squares autoregressive ones. Points of grids stand in their curves only.",
        attack_success_data,
        draw_attack_success,
        _if(lambda study: any(not row.family for row in study.attacks)),
    ),
    FigureSpec(
        "transfer-index",
        "Transfer",
        "Does an attack carry over?",
        "ASR on the target model over ASR on the source, same artefacts, both ways. At 1 an attack works as well on "
        "the target; left of it, less. Arrow heads and hollow marks lie beyond the axis, a 0 among them; undefined: "
        "nothing succeeds on the source. The pooled rows take the attacks that were made for the source; their "
        "difference is the asymmetry.",
        transfer_index_data,
        draw_transfer_indices,
        _if(lambda study: any(pair.own for pair in study.transfers)),
    ),
    FigureSpec(
        "dose-response",
        "Dose",
        "Dose and response",
        "ASR against the setting that a grid of attacks varies, with point-wise 95 % Wilson bands. Anchoring is drawn "
        "against t/T, its step as a share of all steps (of all tokens for autoregressive models); the published curve "
        "has other judges, requests and models.",
        dose_data,
        draw_doses,
        _if(lambda study: _grids(study, several=False)),
    ),
    FigureSpec(
        "dose-grid",
        "Dose grids",
        "Dose and response, two settings at once",
        "ASR against the first setting, one column for each value of the second, with point-wise 95 % Wilson bands.",
        dose_grid_data,
        draw_doses,
        _if(lambda study: _grids(study, several=True)),
    ),
    FigureSpec(
        "judge-agreement",
        "Judges",
        "Do the judges agree?",
        "Cohen's κ of every two judges of a question on the replies that both decided, over all conditions: 1 is full "
        "agreement, 0 chance. Krippendorff's α takes all judges at once. Intervals resample prompts.",
        agreement_data,
        draw_agreement,
        _if(lambda study: study.agreement),
    ),
    FigureSpec(
        "capability",
        "Capability",
        "Capability beside safety",
        "Utility on benign requests beside attack success: asked directly, and under the attack that succeeds most "
        "(the highest of several rates, so it is high by selection too). 95 % Wilson intervals.",
        capability_data,
        draw_capability,
        lambda data: bool(data.study) and bool(capability_data(data).panels),
    ),
)
"""Figures of the section in reading order."""


@dataclass(frozen=True, slots=True)
class Block:
    """A figure and its tables, or tables alone."""

    figure: RenderedFigure | None
    tables: Sequence[Sheet]
    unfolded: frozenset[str]
    """Titles of the tables that are shown unfolded."""


@dataclass(frozen=True, slots=True)
class AttackSection:
    """Everything that the templates print about attacks."""

    blocks: list[Block]
    figures: Sequence[RenderedFigure]
    summary: dict[str, Any]
    """The section's part of ``summary.json``."""


def wants_attacks(data: ReportData) -> bool:
    """Whether a run has the section: see `attack_study`; pairs of requests or human labels do as well."""
    return data.study is not None or has_pairs(data) or bool(data.labelled)


def attack_section(data: ReportData, figures: Sequence[RenderedFigure]) -> AttackSection:
    """Collect the section's tables and numbers.

    Args:
        data: A run that wants the section.
        figures: The drawn figures of `ATTACK_FIGURES` that the run wants, in their order.
    """
    study, refusals = data.study, list(over_refusals(data))
    drawn = {figure.name: figure for figure in figures}
    blocks = []
    if study is not None:
        # Curves of one and of several variables share their tables, which stand below the last figure of the two.
        curves = "dose-grid" if "dose-grid" in drawn else "dose-response"
        tables: dict[str, Iterable[Sheet]] = {
            "attack-success": attack_sheets(study),
            "transfer-index": pair_sheets(study),
            curves: curve_sheets(study),
            "judge-agreement": agreement_sheets(study.agreement),
            "capability": capability_sheets(study),
        }
        blocks = [_block(figure, list(tables.get(name, ()))) for name, figure in drawn.items()]
    if data.labelled:
        blocks.append(_block(None, list(label_sheets(data.labelled))))
    if refusals:
        blocks.append(_block(None, over_refusal_sheets(refusals)))
    return AttackSection(blocks, figures, _summary(data, refusals, figures))


def _block(figure: RenderedFigure | None, tables: list[Sheet]) -> Block:
    """Tables of numbers that no figure shows are unfolded."""
    unfolded = ("Attack success", "Over-refusal", "Capability", "Judges against human labels")
    return Block(figure, tables, frozenset(t.title for t in tables if t.title.startswith(unfolded)))


def _summary(data: ReportData, refusals: Sequence[PairedRefusal], figures: Sequence[RenderedFigure]) -> dict[str, Any]:
    """The study's numbers; those of single conditions stand under ``conditions`` already."""
    study = data.study.to_dict() if data.study else {}
    study.pop("attacks", None)
    over = [
        {"condition": entry.condition.id, "judge": entry.judge, "paired": entry.paired, **entry.found.to_dict()}
        for entry in refusals
    ]
    labels = [judge.to_dict() for judge in data.labelled]
    found: dict[str, Any] = _visible({**study, "over_refusal": over, "labels": labels})
    return found | {"findings": {figure.name: figure.finding for figure in figures}}


def _visible(value: Any) -> Any:
    """JSON values whose strings are fit for printing."""
    if isinstance(value, dict):
        return {visible(str(key)): _visible(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_visible(part) for part in value]
    return visible(value) if isinstance(value, str) and value else value
