"""The sweep's figures as numbers: hand-worked fronts, lines and curves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dsprobe.reports.figures.attainment import attainment_data
from dsprobe.reports.figures.importances import importance_data
from dsprobe.reports.figures.parallel_coordinates import parallel_data
from dsprobe.reports.figures.pareto import pareto_data
from dsprobe.reports.figures.pareto_drawing import draw_pareto
from dsprobe.reports.figures.style import house_style, svg_text
from dsprobe.reports.sweep_data import SweepData, short_names
from dsprobe.reports.sweep_section import SWEEP_FIGURES

SEARCH = {"sampler": "nsga2", "trials": 5, "rungs": [0.5, 1.0], "seed": 3, "concurrency": 1}


def _e(value: float | None, wide: float = 0.1) -> dict[str, float | None]:
    return {"value": value, "low": value and value - wide, "high": value and value + wide}


def _trial(
    number: int, asr: float | None, loss: float | None, state: str = "complete", **parameters: Any
) -> dict[str, Any]:
    found = None if state == "failed" else {"asr": _e(asr), "fluency_loss": _e(loss)}
    return {
        "number": number, "state": state, "reason": "", "digest": f"d{number}", "rung": 1.0, "objectives": found,
        "parameters": {f"stack.0.{name}": value for name, value in parameters.items()},
        "passes_used": 10, "passes_from_scratch": 100, "wall_seconds": 1.0, "cached": False,
    }  # fmt: skip


def _point(label: str, row: dict[str, Any], unseen: tuple[float, float] | None) -> dict[str, Any]:
    seen = unseen and {"asr": _e(unseen[0]), "fluency_loss": _e(unseen[1])}
    return {
        "label": label, "trial": row["number"], "parameters": row["parameters"], "guardrail": {},
        "objectives": row["objectives"], "validation": seen, "attained": 0.8,
    }  # fmt: skip


def hand_worked(**changes: Any) -> SweepData:
    """Two front points, a dominated trial, a stopped one, a failed one and a repeat of the first."""
    rows = [
        _trial(0, 0.2, 0.4, threshold=0.1, window="all", rate=1.0),
        _trial(1, 0.6, 0.1, threshold=0.5, window="late"),
        _trial(2, 0.7, 0.5, threshold=0.9, window="all", rate=1000.0),
        _trial(3, 0.8, 0.6, "stopped", threshold=0.3, window="early"),
        _trial(4, None, None, "failed", threshold=0.3),
        _trial(5, 0.2, 0.4, threshold=0.1, window="all", rate=1.0) | {"digest": "d0"},
    ]
    front = {
        "version": 1, "sweep_id": "s", "objectives": ["asr", "fluency_loss"], "confidence": 0.9,
        "reference": {"asr": 1.0, "fluency_loss": 1.0}, "hypervolume": {"value": 0.66, "low": 0.6, "high": 0.7},
        "knee": "knee", "baseline": {"objectives": {"asr": _e(0.9), "fluency_loss": _e(0.0)}, "validation": None},
        "points": [_point("p01", rows[1], (0.65, 0.15)), _point("knee", rows[0], (0.25, 0.6))],
        "attainment": [
            {"trials": 1, "hypervolume": 0.48, "passes_used": 100, "passes_from_scratch": 100},
            {"trials": 2, "hypervolume": 0.66, "passes_used": 110, "passes_from_scratch": 200},
            {"trials": 6, "hypervolume": 0.66, "passes_used": 140, "passes_from_scratch": 560},
        ],
        "validation_run": None,
        "importances": {
            "asr": {"stack.0.threshold": 0.25, "stack.0.window": 0.75},
            "fluency_loss": {"stack.0.window": 1.0},
        },
    }  # fmt: skip
    return SweepData.from_parts(front | changes, rows, SEARCH)


def test_front_panel_separates_front_dominated_and_stopped() -> None:
    info = pareto_data(hand_worked())
    (panel,) = info.panels
    assert (panel.y, panel.x) == ("asr", "fluency_loss")
    assert [mark.label for mark in panel.front] == ["knee", "p01"]
    np.testing.assert_array_equal(panel.complete_T2, [[0.5, 0.7]])
    np.testing.assert_array_equal(panel.stopped_T2, [[0.6, 0.8]])
    assert (panel.front[0].x.value, panel.front[0].y.low) == (0.4, pytest.approx(0.1))
    assert [e.value for e in panel.front[1].unseen or ()] == [0.15, 0.65]


def test_unseen_prompts_count_only_where_every_objective_stays_inside() -> None:
    """p01 moves by 0.05 in both, the knee by 0.2 in fluency; intervals reach 0.1."""
    info = pareto_data(hand_worked())
    assert info.inside == 1
    assert "On unseen prompts 1 of 2 points stay" in info.finding()
    assert "from 0.900 [0.800, 1.000] to 0.200 [0.100, 0.300]" in info.finding()


def test_far_trials_are_counted_not_drawn() -> None:
    data = hand_worked()
    far = _trial(6, 0.9, 40.0, threshold=0.2, window="all")
    info = pareto_data(SweepData.from_parts(dict(data.front), [*data.trials, far], SEARCH))  # type: ignore[list-item]
    (panel,) = info.panels
    assert panel.beyond == 1
    assert panel.limits[0][1] < 2
    assert "1 trials of a panel lie beyond" in info.left_out


def test_every_pair_of_objectives_has_a_panel(sweep_data: SweepData) -> None:
    info = pareto_data(sweep_data)
    pairs = [(panel.y, panel.x) for panel in info.panels]
    assert pairs[0] == ("asr", "fluency_loss")
    assert len(set(pairs)) == 6
    np.testing.assert_array_equal(info.third_N, [p.objectives["over_refusal"].value for p in sweep_data.points])
    assert "colour is over-refusal" in info.left_out


def test_undefined_objectives_leave_a_gap() -> None:
    data = hand_worked()
    odd = _trial(6, None, 0.3, threshold=0.2, window="all")
    again = SweepData.from_parts(dict(data.front), [*data.trials, odd], SEARCH)  # type: ignore[list-item]
    np.testing.assert_array_equal(pareto_data(again).panels[0].complete_T2, [[0.5, 0.7]])
    lines = [line for line in parallel_data(again).lines if line.place is None]
    assert math.isnan(lines[-1].heights_A[3])


def test_lines_are_scaled_and_conditional_parameters_are_gaps() -> None:
    info = parallel_data(hand_worked())
    names = [axis.name for axis in info.axes]
    assert names == ["rate", "threshold", "window", "attack success rate", "fluency loss"]
    assert [axis.log for axis in info.axes] == [True, False, False, False, False]
    knee = next(line for line in info.lines if line.knee)
    late = next(line for line in info.lines if line.place == 1)
    np.testing.assert_allclose(knee.heights_A, [0.0, 0.0, 0.0, 0.0, 0.75])
    assert math.isnan(late.heights_A[0])
    np.testing.assert_allclose(late.heights_A[1:], [0.5, 1.0, 0.8, 0.0])
    assert info.undrawn == 2
    assert info.axes[2].ticks == [(0.0, "all"), (1.0, "late")]


def test_log_axis_is_even_in_ratios() -> None:
    rows = [_trial(n, 0.5, 0.5, rate=10.0**n) for n in range(4)]
    data = hand_worked()
    front = dict(data.front) | {"points": [_point("knee", rows[1], None)]}
    info = parallel_data(SweepData.from_parts(front, rows, SEARCH))
    heights = sorted(line.heights_A[0] for line in info.lines)
    np.testing.assert_allclose(heights, [0, 1 / 3, 2 / 3, 1], atol=1e-12)


def test_constant_parameters_have_no_axis_but_a_word() -> None:
    rows = [_trial(n, 0.1 * n, 1 - 0.1 * n, margin=2, threshold=0.1 * n) for n in range(4)]
    data = hand_worked()
    front = dict(data.front) | {"points": [_point("knee", rows[0], None)]}
    info = parallel_data(SweepData.from_parts(front, rows, SEARCH))
    assert "margin" not in [axis.name for axis in info.axes]
    assert "The same in every line: margin." in info.left_out


def test_many_parameters_go_into_even_bands_with_all_objectives() -> None:
    rows = [_trial(n, 0.1, 0.2, **{f"p{k:02d}": float(n) for k in range(12)}) for n in range(3)]
    front = dict(hand_worked().front) | {"points": [_point("knee", rows[0], None)]}
    info = parallel_data(SweepData.from_parts(front, rows, SEARCH))
    assert [len(band) for band in info.panels] == [8, 8]
    assert all(band[-2:] == [12, 13] for band in info.panels)


def test_attainment_marks_the_first_trial_with_95_percent() -> None:
    info = attainment_data(hand_worked())
    assert info.reached == 1
    assert (
        "after 2 of 6 trials and 110 forward passes; from scratch the same trials take 200, 1.8 times" in info.finding()
    )


def test_attainment_without_any_volume_says_so() -> None:
    step = {"trials": 1, "hypervolume": 0.0, "passes_used": 1, "passes_from_scratch": 1}
    info = attainment_data(hand_worked(attainment=[step]))
    assert info.reached is None
    assert "No trial dominated" in info.finding()
    assert attainment_data(hand_worked(attainment=[])).panels == []


def test_importances_share_an_order_and_name_what_is_missing() -> None:
    info = importance_data(hand_worked())
    assert info.parameters == ["window", "threshold"]
    assert [panel.shares for panel in info.panels] == [[0.75, 0.25], [1.0, None]]
    assert info.unassessed == ["rate"]
    assert "Only 4 complete trials for 3 parameters" in info.left_out
    assert "attack success rate: window (75.0%)" in info.finding()


def test_enough_trials_need_no_caveat() -> None:
    rows = [_trial(n, 0.1 * n, 0.5, threshold=n / 10, window="all") for n in range(20)]
    front = dict(hand_worked().front) | {"points": [_point("knee", rows[0], None)]}
    assert SweepData.from_parts(front, rows, SEARCH).caveat == ""
    assert "19 complete" in SweepData.from_parts(front, rows[:19], SEARCH).caveat


def test_short_names_drop_only_what_all_share() -> None:
    assert short_names(["stack.0.a", "stack.0.a.b"]) == {"stack.0.a": "a", "stack.0.a.b": "a.b"}
    assert short_names(["stack.0.a", "stack.1.a"]) == {"stack.0.a": "0.a", "stack.1.a": "1.a"}
    assert short_names(["stack.0.a"]) == {"stack.0.a": "a"}
    assert short_names([]) == {}


@pytest.mark.parametrize("objectives", [("asr", "fluency_loss"), ("asr", "fluency_loss", "over_refusal")])
def test_same_data_draws_the_same_bytes(sweep_factory: Any, objectives: tuple[str, ...]) -> None:
    data = SweepData.from_parts(*sweep_factory(trials=20, objectives=objectives))

    def drawn() -> str:
        with house_style():
            return svg_text(draw_pareto(pareto_data(data)))

    first = drawn()
    assert first == drawn()
    assert "unguarded" in first
    assert "fluency loss" in first


def test_names_in_the_front_cover_no_point(sweep_data: SweepData) -> None:
    """Every written name keeps clear of every front point, and no two names overlap."""
    with house_style():
        figure = draw_pareto(pareto_data(sweep_data))
        axes = figure.axes[0]
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        points = [[p.objectives["fluency_loss"].value, p.objectives["asr"].value] for p in sweep_data.points]
        dots = axes.transData.transform(points)
    assert {text.get_text() for text in axes.texts} >= {"knee", "unguarded"}
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("spec", SWEEP_FIGURES, ids=lambda spec: spec.name)
def test_a_report_without_a_sweep_cannot_draw_them(spec: Any, small_data: Any) -> None:
    from dsprobe.errors import ConfigError

    with pytest.raises(ConfigError, match="no sweep"):
        spec.collect(small_data)
