"""Figures of attacks, judges and transfer as numbers, against chosen success rates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from tests.reports.transfer_world import AUTOREGRESSIVE, DIFFUSION, GRIDS, OWN

from dsprobe.experiment.judge_agreement import agreements
from dsprobe.metrics.anchoring import PUBLISHED_ANCHORING
from dsprobe.metrics.intervals import Interval, wilson
from dsprobe.reports.attack_data import anchoring_curves, without_grids
from dsprobe.reports.attack_section import ATTACK_FIGURES
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures import style
from dsprobe.reports.figures.attack_success import attack_success_data
from dsprobe.reports.figures.capability import capability_data
from dsprobe.reports.figures.catalogue import FigureSpec
from dsprobe.reports.figures.dose_response import dose_data, dose_grid_data
from dsprobe.reports.figures.forest import ForestPanel, Line, draw_forest, ratio_scale
from dsprobe.reports.figures.judge_agreement import agreement_data
from dsprobe.reports.figures.transfer_indices import UNDEFINED, draw_transfer_indices, transfer_index_data


def test_success_is_the_judges_rate_for_every_attack_and_model(transfer_data: ReportData) -> None:
    info = attack_success_data(transfer_data)
    names = [(row.condition.attack, row.condition.model) for row in info.rows]
    assert names == [(attack, model) for attack in OWN for model in (DIFFUSION, AUTOREGRESSIVE)]
    assert [panel.judge for panel in info.panels] == ["toy_oracle", "second"]
    rates = dict(zip(names, info.panels[0].rates, strict=True))
    assert rates["prefill", DIFFUSION] == wilson(2, 8)
    assert rates["prefill", AUTOREGRESSIVE] == wilson(8, 8)
    assert info.kinds == {DIFFUSION: "diffusion", AUTOREGRESSIVE: "autoregressive"}
    finding = info.finding()
    assert f"{DIFFUSION}: highest under dija, 100.0%" in finding
    assert "Judges differ most" in finding


def test_transfer_goes_both_ways_and_says_what_is_undefined(transfer_data: ReportData) -> None:
    info = transfer_index_data(transfer_data)
    found = {(line.name, line.target): value for line, value in zip(info.lines, info.panels[0].found, strict=True)}
    assert found["prefill", AUTOREGRESSIVE].value == 4  # type: ignore[union-attr]
    assert found["prefill", DIFFUSION].value == 0.25  # type: ignore[union-attr]
    assert found["dija", AUTOREGRESSIVE].value == 0.5  # type: ignore[union-attr]
    assert math.isnan(found["direct", DIFFUSION].value)  # type: ignore[union-attr]
    # Made for diffusion: dija (4 of 8); made for autoregressive models: prefill (2 of 8).
    assert found["pooled, made for diffusion", AUTOREGRESSIVE].value == 0.5  # type: ignore[union-attr]
    assert found["pooled, made for AR", DIFFUSION].value == 0.25  # type: ignore[union-attr]
    assert found["asymmetry: pooled minus pooled", ""].value == 0.25  # type: ignore[union-attr]
    assert "asymmetry of the pooled indices +0.25" in info.finding()
    with style.house_style():
        words = [t.get_text().strip() for axes in draw_transfer_indices(info).axes for t in axes.texts]
    assert words.count(UNDEFINED) == 2
    assert any(word.startswith("+0.25 [") for word in words)


def test_a_ratio_axis_is_symmetric_and_marks_what_lies_beyond() -> None:
    known = [Interval(0.25, 0.1, 0.6, 9, "m"), Interval(0.0, 0.0, math.inf, 9, "m")]
    scale = ratio_scale("ratio", known)
    assert (scale.low, scale.high) == (1 / 16, 16)
    with style.house_style():
        figure = draw_forest([ForestPanel("t", "j", known)], [Line("a"), Line("b")], scale)
        axes = figure.axes[0]
        figure.draw_without_rendering()
    markers = [line.get_marker() for line in axes.lines]
    assert {"<", ">"} <= set(markers)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8", "16",
    ]  # fmt: skip


def test_doses_are_drawn_per_grid_and_anchoring_against_the_share_of_steps(transfer_data: ReportData) -> None:
    info = dose_data(transfer_data)
    headings = [(panel.facet.column, panel.facet.row) for panel in info.panels]
    judges = ("toy_oracle", "second")
    assert sorted(headings) == sorted((c, (j,)) for c in ("prefill: position", "anchoring: t/T") for j in judges)
    anchored = next(p for p in info.panels if p.variable == "t/T" and p.facet.row == ("toy_oracle",))
    assert anchored.published is PUBLISHED_ANCHORING[0]
    by_model = {series.name: series.points for series in anchored.series}
    assert [(p.at[0], p.rate.value) for p in by_model[DIFFUSION]] == [(1 / 32, 0.25), (8 / 32, 0.5), (1.0, 1.0)]
    assert [p.at[0] for p in by_model[AUTOREGRESSIVE]] == pytest.approx([1 / 42, 8 / 42, 32 / 42])  # tokens
    assert by_model[DIFFUSION][0].rate == wilson(2, 8)
    slope = next(a for c, a in anchoring_curves(transfer_data) if (c.model, c.judge) == (DIFFUSION, "toy_oracle"))
    assert slope.slope_per_doubling.value > 0
    assert f"published for LLaDA-8B-Instruct {PUBLISHED_ANCHORING[0].slope_per_doubling:.2f}" in info.finding()


def test_a_grid_of_two_settings_has_a_panel_for_each_value_of_the_second(transfer_data: ReportData) -> None:
    info = dose_grid_data(transfer_data)
    assert list(dict.fromkeys(panel.facet.column for panel in info.panels)) == [
        "pad: cues, spacing 6", "pad: cues, spacing 10",
    ]  # fmt: skip
    for panel in info.panels:
        assert [series.name for series in panel.series] == [DIFFUSION, AUTOREGRESSIVE]
        assert all([point.at for point in series.points] == [(1.0,), (2.0,), (3.0,)] for series in panel.series)
    assert "each adjusted for the other" in info.finding()


def test_agreement_counts_the_replies_that_both_judges_decided(transfer_data: ReportData) -> None:
    info = agreement_data(transfer_data)
    assert transfer_data.study is not None
    assert transfer_data.study.agreement == agreements(transfer_data.trajectories, transfer_data.judges, {})
    assert [panel.question for panel in info.panels] == ["harm"]
    pair = info.panels[0].pair(0, 1)
    conditions = 2 * (len(OWN) + len(GRIDS))
    assert pair.n == 8 * conditions
    assert pair.only_first + pair.only_second == conditions  # the first request of each
    assert f"α {info.panels[0].table.alpha:.2f}" in info.finding()


def test_capability_stands_beside_the_direct_and_the_worst_attack(transfer_data: ReportData) -> None:
    info = capability_data(transfer_data)
    assert [line.side for line in info.lines] == [DIFFUSION, AUTOREGRESSIVE]
    assert [(p.title, p.judge) for p in info.panels[:3]] == [
        ("utility ↑", "toy_utility"), ("ASR direct ↓", "toy_oracle"), ("ASR worst ↓", "toy_oracle"),
    ]  # fmt: skip
    assert info.panels[1].rates == [wilson(0, 8), wilson(0, 8)]
    assert info.panels[2].rates == [wilson(8, 8), wilson(8, 8)]
    condition = next(c for c in transfer_data.conditions if c.prompts == "toy-benign" and c.model == DIFFUSION)
    assert info.panels[0].rates[0] == transfer_data.summaries[condition].utility["toy_utility"]
    assert info.benign == "toy-benign"


def test_points_of_grids_are_left_to_their_curves(transfer_data: ReportData, small_data: ReportData) -> None:
    smaller, sentence = without_grids(transfer_data)
    assert {condition.attack for condition in smaller.conditions} == set(OWN)
    assert all(smaller.summaries[c] is transfer_data.summaries[c] for c in smaller.conditions)
    assert sentence == "Grids of attacks are drawn as curves only: position, at, cues."
    assert without_grids(small_data) == (small_data, "")


def test_ordinary_runs_have_no_study(small_data: ReportData, transfer_data: ReportData) -> None:
    assert small_data.study is None
    alone = dataclasses.replace(transfer_data, judges={"keyword_refusal": "refusal"})
    assert alone.study is None
    assert not any(spec.wanted(alone) for spec in ATTACK_FIGURES)


@pytest.mark.parametrize("spec", ATTACK_FIGURES, ids=[spec.name for spec in ATTACK_FIGURES])
@pytest.mark.filterwarnings("error")
def test_no_text_of_attack_figures_overlaps(spec: FigureSpec, transfer_data: ReportData) -> None:
    assert spec.wanted(transfer_data)
    with style.house_style():
        figure = spec.draw(spec.collect(transfer_data))
        figure.draw_without_rendering()
        boxes = [(t.get_text(), t.get_window_extent()) for t in _texts(figure) if t.get_text()]
        for place, (one, box) in enumerate(boxes):
            assert box.x0 >= -1, one
            assert box.x1 <= figure.bbox.x1 + 1, one
            for other, neighbour in boxes[place + 1 :]:
                assert not box.overlaps(neighbour), (one, other)


def _texts(figure: Any) -> list[Any]:
    return [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]


def test_more_series_than_colours_stay_distinguishable() -> None:
    found = [style.series_style(place) for place in range(20)]
    assert len({(s["color"], str(s["linestyle"])) for s in found}) == 20
    assert all(s["linestyle"] == "-" for s in found[: len(style.SERIES)])
