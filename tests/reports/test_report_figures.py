"""Figures as numbers: every data function against the table it came from or a hand-worked case."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from dsprobe.metrics.intervals import wilson
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures import drift, style
from dsprobe.reports.figures.catalogue import FIGURES, FigureSpec
from dsprobe.reports.figures.decode_order import decode_order_data
from dsprobe.reports.figures.facets import drawn
from dsprobe.reports.figures.harm_over_steps import harm_over_steps_data
from dsprobe.reports.figures.interventions import interventions_data
from dsprobe.reports.figures.multiples import fitted
from dsprobe.reports.figures.overview import overview_data
from dsprobe.reports.figures.phase_transition import phase_transition_data
from dsprobe.reports.figures.risk_heatmap import risk_heatmap_data
from dsprobe.reports.figures.survival import survival_data


def _where(table: Any, **equal: Any) -> Any:
    for column, value in equal.items():
        table = table.filter(pc.equal(table[column], value))
    return table


def test_heat_map_cell_is_the_table_cell(report_data: ReportData) -> None:
    info = risk_heatmap_data(report_data)
    assert len(info.panels) == 10
    panel = next(p for p in info.panels if p.facet.name == "dija · toy-restricted (block)")
    key = {"condition": "toy-dllm/toy-restricted/dija/block", "quantity": "attribution"}
    cell = _where(report_data.position_stats, **key, step=5, position=13)
    assert panel.mean_SP.shape == (32, 42)
    assert panel.mean_SP[4, 13] == cell["mean"][0].as_py()
    assert info.top == max(np.nanmax(p.mean_SP) for p in info.panels)
    assert f"{info.top:.2f}" in info.finding()


def test_heat_map_leaves_unrecorded_cells_undefined(report_data: ReportData) -> None:
    table = report_data.position_stats
    partial = dataclasses.replace(report_data, position_stats=table.filter(pc.not_equal(table["position"], 7)))
    for panel in risk_heatmap_data(partial).panels:
        assert np.isnan(panel.mean_SP[:, 7]).all()
        assert not np.isnan(panel.mean_SP[:, 8]).any()


def test_drift_abscissae_are_schedule_and_fraction(report_data: ReportData) -> None:
    info = drift.drift_data(report_data, drift.RISK, "risk")
    panel = next(p for p in info.panels if p.facet.name == "dija · toy-restricted (uniform)")
    key = {"condition": "toy-dllm/toy-restricted/dija/uniform"}
    committed = _where(report_data.step_stats, **key, quantity="fraction_committed").sort_by("step")
    curve = panel.curves[0]
    np.testing.assert_allclose(curve.x["schedule"], np.arange(1, 33) / 32)
    np.testing.assert_allclose(curve.x["fraction"], committed["mean"].to_numpy())
    assert np.all(curve.bands["q05"] <= curve.bands["q25"])
    assert np.all(curve.bands["q75"] <= curve.bands["q95"])


def test_kl_drift_starts_where_kl_is_defined(report_data: ReportData) -> None:
    info = drift.drift_data(report_data, drift.KL, "KL", overlay=True)
    assert len(info.panels) == 5
    for panel in info.panels:
        assert {curve.decoding for curve in panel.curves} == {"uniform", "block"}
        assert all(curve.x["schedule"][0] == 2 / 32 for curve in panel.curves)


def test_survival_of_one_hand_worked_condition(report_factory: Callable[..., ReportData]) -> None:
    """Without censoring before the end, Kaplan–Meier is one minus the share that crossed."""
    data = report_factory(attacks=("pad",), decodings=("uniform",), prompts_per_condition=12, benign=False)
    rows = data.trajectories
    curve = survival_data(data).panels[0].series[0].curve
    step, event = rows["fhs_committed"].to_numpy(), np.array(rows["fhs_committed_event"].to_pylist())
    expected = [1 - np.mean(event & (step <= s)) for s in range(1, 33)]
    np.testing.assert_allclose(curve.survival_S, expected)


def test_phase_transition_points_are_the_harmful_fraction(report_factory: Callable[..., ReportData]) -> None:
    data = report_factory(attacks=("dija",), decodings=("block",), benign=False)
    panel = phase_transition_data(data).panels[0]
    stats = _where(data.step_stats, quantity="harmful_committed").sort_by("step")
    fit = panel.fits["committed"]
    np.testing.assert_allclose(fit.fraction_S, stats["mean"].to_numpy())
    step, share = panel.curve("committed")
    half = step[np.argmax(share >= fit.plateau.value / 2)]
    assert half == pytest.approx(fit.step.value, abs=0.2)
    assert fit.step.low <= fit.step.value <= fit.step.high


def test_decode_order_leaves_given_positions_out(report_factory: Callable[..., ReportData]) -> None:
    data = report_factory(attacks=("prefill",), decodings=("block",), prompts_per_condition=40, benign=False)
    rows = data.trajectories.slice(0, 1).to_pylist()[0]
    panel = decode_order_data(data).panels[0]
    reply = np.array([r["commit_step"][r["response_start"] :] for r in data.trajectories.to_pylist()], dtype=float)
    reply[reply < 0] = np.nan
    assert len(rows["commit_step"]) - rows["response_start"] == 42
    np.testing.assert_allclose(panel.mean_P, np.nanmean(reply, axis=0)[panel.position_P])
    assert -1 <= panel.tau.low <= panel.tau.value <= panel.tau.high <= 1


def test_overview_separates_harm_refusal_and_benign_rates(report_data: ReportData) -> None:
    info = overview_data(report_data)
    rates: dict[str, Any] = {
        panel.measure: dict(zip([c.id for c in info.conditions], panel.rates, strict=True)) for panel in info.panels
    }
    rows = _where(report_data.trajectories, condition="toy-dllm/toy-restricted/pad/block")
    assert rates["asr"]["toy-dllm/toy-restricted/pad/block"].value == np.mean(rows["verdict_toy_oracle"].to_pylist())
    assert rates["asr"]["toy-dllm/toy-benign/direct/block"] is None
    assert rates["over_refusal"]["toy-dllm/toy-restricted/pad/block"] is None
    assert rates["utility"]["toy-dllm/toy-benign/direct/block"].n == 30


def test_findings_follow_the_numbers(report_factory: Callable[..., ReportData]) -> None:
    """The same sentence must not come out of opposite data."""
    harmless = report_factory(attacks=("direct",), decodings=("uniform",), benign=False)
    assert "None of the 2 curves" in phase_transition_data(harmless).finding()
    assert "In none of the 2 curves" in survival_data(harmless).finding()
    assert "0.0%" in overview_data(harmless).finding()


ABOUT_GUARDRAILS = {"harm-over-steps", "interventions"}
CASES = [
    (spec, guarded) for guarded in (False, True) for spec in FIGURES if guarded or spec.name not in ABOUT_GUARDRAILS
]
NAMES = [f"{spec.name}-{'guarded' if guarded else 'plain'}" for spec, guarded in CASES]


@pytest.mark.parametrize(("spec", "guarded"), CASES, ids=NAMES)
def test_figures_name_their_axes_and_n(
    spec: FigureSpec, guarded: bool, small_data: ReportData, guarded_data: ReportData
) -> None:
    data = guarded_data if guarded else small_data
    assert spec.wanted(data)
    with style.house_style():
        figure = spec.draw(spec.collect(data))
        svg = style.svg_text(figure)
    words = [text.get_text() for text in figure.texts]
    axis_names = [
        name for name in ("step", "position", "share", "φ", "nats", "risk", "P(") if any(name in w for w in words)
    ]
    assert spec.name == "overview" or len(axis_names) >= 2
    assert spec.name != "overview" or "share" in words
    assert spec.name == "overview" or "n = 6" in svg


GRID_ATTACKS = ("direct", "dija", "pad", "prefill", "an-attack-with-a-very-long-name-that-no-panel-could-hold")


@pytest.fixture(scope="module")
def many_data(report_factory: Callable[..., ReportData]) -> ReportData:
    """Three decodings with long names, five attacks and two prompt sets: 18 conditions."""
    names = ("uniform", "block", "entropy-bounded-with-a-long-schedule-name")
    return report_factory(attacks=GRID_ATTACKS, decodings=names, prompts_per_condition=5, stored=1)


@pytest.fixture(scope="module")
def many_guarded_data(report_factory: Callable[..., ReportData]) -> ReportData:
    """Eighteen guarded and unguarded conditions, one guardrail with a long name."""
    return report_factory(
        attacks=GRID_ATTACKS[2:], decodings=("uniform", "a-long-schedule-name"), prompts_per_condition=4, stored=1,
        guardrails=("none", "late", "renoise-every-4-with-a-ban-and-final-check"), benign=False,
    )  # fmt: skip


@pytest.mark.parametrize(("spec", "guarded"), CASES, ids=NAMES)
@pytest.mark.filterwarnings("error")
def test_no_text_of_many_conditions_overlaps(
    spec: FigureSpec, guarded: bool, many_data: ReportData, many_guarded_data: ReportData
) -> None:
    data = many_guarded_data if guarded else many_data
    with style.house_style():
        figure = spec.draw(spec.collect(data))
        figure.draw_without_rendering()
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        texts = [*figure.texts, *(t for axes in panels for t in axes.texts)]
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
        for place, (one, box) in enumerate(boxes):
            assert box.x0 >= -1, one
            assert box.x1 <= figure.bbox.x1 + 1, one
            assert not any(a.bbox.overlaps(box) for a in panels if one in [w.get_text() for w in figure.texts]), one
            for other, neighbour in boxes[place + 1 :]:
                assert not box.overlaps(neighbour), (one, other)
        for axes in panels:
            assert axes.bbox.width > 60
            assert axes.bbox.height > 60


def test_interventions_are_counted_over_all_rows(guarded_data: ReportData) -> None:
    info = interventions_data(guarded_data)
    assert [panel.facet.name for panel in info.panels] == [
        "dija · toy-restricted (late)",
        "dija · toy-restricted (early-ban)",
        "direct · toy-benign (late)",
        "direct · toy-benign (early-ban)",
    ]
    panel = info.panels[1]
    rows = _where(guarded_data.steps, condition="toy-dllm/toy-restricted/dija/uniform/early-ban").to_pylist()
    for step in range(1, 33):
        mine = [row for row in rows if row["step"] == step]
        assert len(mine) == panel.running_S[step - 1] == panel.facet.n == 6
        assert panel.share_S[step - 1] == sum(row["action"] != 0 for row in mine) / 6
        assert panel.remasked_S[step - 1] == sum(row["remasked"] for row in mine) / 6
    acted = _where(guarded_data.trajectories, condition="toy-dllm/toy-restricted/dija/uniform/early-ban")[
        "interventions"
    ]
    assert panel.share_S.sum() == pytest.approx(sum(acted.to_pylist()) / 6)
    assert f"{max(p.share_S.sum() for p in info.panels):.2f} a row" in info.finding()


def test_rows_that_have_finished_count_as_left_alone(guarded_data: ReportData) -> None:
    steps = guarded_data.steps
    gone = pc.and_(pc.equal(steps["prompt_id"], "item-001"), pc.greater(steps["step"], 3))
    panel = interventions_data(dataclasses.replace(guarded_data, steps=steps.filter(pc.invert(gone)))).panels[0]
    assert panel.running_S[3:].tolist() == [5] * 29
    assert panel.share_S[3:].max() <= 5 / 6


def test_harm_over_steps_overlays_guardrails_with_wilson_bands(guarded_data: ReportData) -> None:
    info = harm_over_steps_data(guarded_data)
    assert [(panel.facet.column, panel.facet.row) for panel in info.panels[:2]] == [
        ("dija · toy-restricted", ("committed view",)),
        ("dija · toy-restricted", ("predicted view",)),
    ]
    panel = info.panels[0]
    assert [curve.guardrail for curve in panel.curves] == ["no guardrail", "late", "early-ban"]
    for curve, name in zip(panel.curves, ("", "/late", "/early-ban"), strict=True):
        rows = _where(guarded_data.steps, condition=f"toy-dllm/toy-restricted/dija/uniform{name}", step=20)
        harmful = int((rows["risk_committed"].to_numpy() >= 0.5).sum())
        assert curve.harmful_S[19] == harmful
        low, high = curve.bounds_S()
        expected = wilson(harmful, 6)
        assert (low[19], high[19]) == pytest.approx((expected.low, expected.high))
    before, after = panel.curves[0].final(), min((c.final() for c in panel.curves[1:]), key=lambda end: end.value)
    assert after.value < before.value
    assert f"from {before:.1%} to {after:.1%}" in info.finding()


def test_harm_of_a_shorter_run_stays_where_it_ended(guarded_data: ReportData) -> None:
    stats = guarded_data.step_stats
    cut = pc.and_(pc.equal(stats["guardrail"], "late"), pc.greater(stats["step"], 25))
    panel = harm_over_steps_data(dataclasses.replace(guarded_data, step_stats=stats.filter(pc.invert(cut)))).panels[0]
    late = panel.curves[1].harmful_S
    assert len(late) == 32
    assert set(late[24:].tolist()) == {late[24]}


def test_guardrails_of_a_cell_are_overlaid_in_their_own_colours(guarded_data: ReportData) -> None:
    names = {"no guardrail", "late", "early-ban"}
    for panel in survival_data(guarded_data).panels:
        assert {series.name for series in panel.series} == names
    for transition in phase_transition_data(guarded_data).panels:
        assert set(transition.fits) == names
    risk = drift.drift_data(guarded_data, drift.RISK, "risk")
    assert len(risk.panels) == 4  # two cells, two views
    for panel in risk.panels:
        assert [curve.guardrail for curve in panel.curves] == ["no guardrail", "late", "early-ban"]
        assert len({curve.quantity for curve in panel.curves}) == 1
    colours = [keywords["color"] for keywords in style.guardrail_styles(sorted(names)).values()]
    assert len(set(colours)) == 3
    for spec in FIGURES:
        if spec.name in ("survival", "phase-transition", "risk-drift", "kl-drift", "harm-over-steps"):
            with style.house_style():
                figure = spec.draw(spec.collect(guarded_data))
                legend = {text.get_text() for text in figure.legends[0].get_texts()}
            assert names <= legend, spec.name


def test_more_guardrails_than_colours_stay_distinguishable() -> None:
    names = ["no guardrail", *(f"p{number:02d}" for number in range(20))]
    styles = [(s["color"], str(s["linestyle"])) for s in style.guardrail_styles(names).values()]
    assert len(set(styles)) == 21


def test_figures_without_guardrails_do_not_speak_of_them(small_data: ReportData) -> None:
    assert {spec.name for spec in FIGURES if not spec.wanted(small_data)} == ABOUT_GUARDRAILS
    assert overview_data(small_data).guardrails == []
    assert {curve.guardrail for panel in drift.drift_data(small_data, drift.RISK, "r").panels for curve in panel.curves}


def test_figure_grows_with_its_rows(report_factory: Callable[..., ReportData]) -> None:
    heights = []
    for decodings in (("a",), tuple("abcdefgh")):
        data = report_factory(attacks=("dija", "pad"), decodings=decodings, prompts_per_condition=2, stored=1)
        with style.house_style():
            heights.append(FIGURES[1].draw(risk_heatmap_data(data)).get_size_inches()[1])
    assert heights[1] > 3 * heights[0]


def test_long_words_are_broken_and_cut_to_the_width() -> None:
    lines = fitted("a-name-of-many-parts-that-goes-on-and-on-and-on", 1.0, 9)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert fitted("short", 1.0, 9) == ["short"]
    assert all(len(line) < 20 for line in lines)


def test_blank_panels_are_named_instead_of_drawn(report_factory: Callable[..., ReportData]) -> None:
    data = report_factory(attacks=("direct", "dija"), decodings=("uniform", "block"), benign=False)
    info = survival_data(data)
    assert info.left_out == ""  # every panel holds an attack that succeeds
    transition = phase_transition_data(data)
    assert transition.left_out == "Not drawn, because no trajectory is ever harmful: direct (uniform, block)."
    assert [p.facet.column for p in drawn(transition.panels)] == ["dija", "dija"]
    harmless = report_factory(attacks=("direct",), decodings=("uniform",), benign=False)
    assert len(drawn(phase_transition_data(harmless).panels)) == 1


def test_head_sentences_hold_both_ends_and_both_views(report_data: ReportData) -> None:
    outcome = overview_data(report_data).finding()
    assert "lowest under direct" in outcome
    assert "highest under dija" in outcome
    assert "Asked directly, the model refuses 100.0% [88.6, 100.0]" in outcome
    arrival = survival_data(report_data).finding()
    assert "in the predicted view" in arrival
    assert "in the committed view" in arrival


def test_themed_svg_has_unique_ids_and_theme_colours(small_data: ReportData) -> None:
    spec = FIGURES[0]
    with style.house_style():
        svg = style.svg_text(spec.draw(spec.collect(small_data)))
    themed = style.themed_svg(svg, "one")
    assert style.INK not in themed
    assert "var(--ink)" in themed
    ids = re.findall(r'\bid="([^"]+)"', themed)
    assert ids
    assert all(name.startswith("one-") for name in ids)
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', themed)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }
