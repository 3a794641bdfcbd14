import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.metrics.pareto import attainment, contributions, hypervolume, hypervolumes, knee, non_dominated

few = settings(max_examples=40, deadline=None)
MIN2 = ["minimize", "minimize"]


def grids(dimensions, largest=8):
    return st.lists(st.tuples(*[st.integers(0, 6)] * dimensions), max_size=largest)


def by_inclusion_exclusion(points, reference):
    """Volume of a union of boxes, added and subtracted over all subsets."""
    boxes = [p for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for subset in itertools.combinations(boxes, size):
            total += (-1) ** (size + 1) * np.prod(np.array(reference) - np.max(subset, axis=0))
    return total


@given(st.integers(1, 4).flatmap(lambda d: st.tuples(st.just(d), grids(d, 6))))
@few
def test_contributions_are_what_is_lost_without_a_point(case):
    dimensions, points = case
    reference, directions = (5,) * dimensions, ["minimize"] * dimensions
    got = contributions(np.array(points).reshape(-1, dimensions), reference, directions)
    total = by_inclusion_exclusion(points, reference)
    rest = [by_inclusion_exclusion(points[:n] + points[n + 1 :], reference) for n in range(len(points))]
    assert got == pytest.approx([total - volume for volume in rest])


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_many_sets_at_once_equal_one_by_one_in_optuna(dimensions):
    optuna_volume = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    sets = np.random.default_rng(dimensions).random((5, 12, dimensions))
    sets[0, :, 0] = 2.0  # all beyond the reference
    sets[1, 3] = np.nan
    reference = np.full(dimensions, 0.8)
    got = hypervolumes(sets, reference, ["minimize"] * dimensions)
    inside = [points[(points < reference).all(axis=1)] for points in sets]
    want = [optuna_volume(points, reference) if len(points) else 0.0 for points in inside]
    assert got == pytest.approx(want)
    assert hypervolumes(np.zeros((3, 0, dimensions)), reference, ["minimize"] * dimensions).tolist() == [0, 0, 0]
    negated = hypervolumes(-sets, -reference, ["maximize"] * dimensions)
    assert negated == pytest.approx(want)


@given(grids(3))
@few
def test_attainment_is_the_hypervolume_so_far_and_never_falls(points):
    directions, reference = ["minimize"] * 3, [6.0, 5.0, 7.0]
    got = attainment(np.array(points).reshape(-1, 3), reference, directions)
    want = [by_inclusion_exclusion(points[: n + 1], reference) for n in range(len(points))]
    assert got == pytest.approx(want)
    assert (np.diff(got) >= 0).all()


def test_an_undefined_point_attains_nothing():
    curve = attainment([[np.nan, 0.0], [0.5, 0.5], [0.7, 0.6], [0.2, 0.9]], [1.0, 1.0], MIN2)
    assert curve == pytest.approx([0.0, 0.25, 0.25, 0.28])


def test_knee_by_hand():
    points = [[0.9, 0.0], [0.5, 0.1], [0.2, 0.2], [0.1, 0.9]]
    assert knee(points, MIN2) == 2
    bent_elsewhere = [[0.9, 0.0], [0.2, 0.05], [0.15, 0.5], [0.1, 0.9]]
    assert knee(bent_elsewhere, MIN2) == 1
    assert knee([[-a, b] for a, b in bent_elsewhere], ["maximize", "minimize"]) == 1


def test_knee_is_farthest_from_the_line_between_the_ends():
    x = np.linspace(0.05, 1.0, 30)
    points = np.column_stack([x, 0.01 / x**1.7])
    ends = points[[0, -1]]
    scaled = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    first, last = (ends - points.min(axis=0)) / np.ptp(points, axis=0)
    along = (last - first) / np.linalg.norm(last - first)
    offset = scaled - first
    distance = np.abs(offset[:, 0] * along[1] - offset[:, 1] * along[0])
    assert knee(points, MIN2) == np.argmax(distance)


def test_knee_of_few_flat_or_undefined_points():
    assert knee(np.zeros((0, 2)), MIN2) is None
    assert knee([[np.nan, 1.0]], MIN2) is None
    assert knee([[np.nan, 1.0], [0.3, 0.3]], MIN2) == 1
    assert knee([[0.3, 0.3]], MIN2) == 0
    assert knee([[0.8, 0.1], [0.2, 0.7]], MIN2) == 1  # a tie goes to the first objective
    assert knee([[0.8, 0.5], [0.2, 0.5]], MIN2) == 1  # the second does not vary
    assert knee([[0.2, 0.5], [0.2, 0.5]], MIN2) == 0


def test_knee_on_scales_from_elsewhere():
    points = [[0.4, 0.1], [0.1, 0.5]]
    assert knee(points, MIN2) == 1
    assert knee(points, MIN2, [*points, [10.0, 0.0]]) == 0  # on that scale both harms are small


@given(grids(3).filter(len), st.floats(0.1, 10), st.floats(-5, 5), st.randoms(use_true_random=False))
@few
def test_knee_does_not_depend_on_units_or_order(points, scale, shift, random):
    directions = ["minimize"] * 3
    front = np.unique(np.array(points)[non_dominated(points, directions)], axis=0).astype(float)
    best = front[knee(front, directions)]
    order = random.sample(range(len(front)), len(front))
    assert (front[order][knee(front[order], directions)] == best).all()
    moved = front * [scale, 1.0, 2.0] + [shift, 0.0, 1.0]
    assert (front[knee(moved, directions)] == best).all()


def test_references_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        hypervolumes(np.zeros((1, 1, 1)), [np.nan], ["minimize"])
    with pytest.raises(ValueError, match="finite"):
        attainment([[0.0]], [np.inf], ["minimize"])
    assert hypervolume([[0.0]], [2.0], ["minimize"]) == 2.0
