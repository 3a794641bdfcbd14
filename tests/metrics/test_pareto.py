import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.metrics.pareto import hypervolume, hypervolume_difference, non_dominated
from dsprobe.metrics.resampling import bootstrap

few = settings(max_examples=40, deadline=None)


def lattice_volume(points, reference):
    """Count the unit cells of an integer grid that some point dominates."""
    cells = np.stack(np.meshgrid(*[np.arange(r) for r in reference], indexing="ij"), -1).reshape(-1, len(reference))
    return int(sum(any((np.array(p) <= cell).all() for p in points) for cell in cells))


def grids(dimensions):
    return st.lists(st.tuples(*[st.integers(0, 6)] * dimensions), max_size=8)


@given(st.integers(1, 4).flatmap(lambda d: st.tuples(st.just(d), grids(d))))
@few
def test_hypervolume_equals_counted_cells(case):
    dimensions, points = case
    reference = (5,) * dimensions
    got = hypervolume(np.array(points).reshape(-1, dimensions), reference, ["minimize"] * dimensions)
    assert got == pytest.approx(lattice_volume(points, reference))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hypervolume_equals_optuna(dimensions):
    optuna_volume = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    points, reference = np.random.default_rng(dimensions).random((40, dimensions)), np.full(dimensions, 0.9)
    got = hypervolume(points, reference, ["minimize"] * dimensions)
    inside = points[(points < reference).all(axis=1)]
    assert got == pytest.approx(optuna_volume(inside, reference))


def test_by_hand_with_mixed_directions():
    points = [[0.1, 0.2], [0.3, 0.8], [0.4, 0.5], [0.1, 0.2]]  # harm (less is better), utility (more is better)
    directions = ["minimize", "maximize"]
    assert non_dominated(points, directions).tolist() == [True, True, False, True]
    assert hypervolume(points, [0.5, 0.0], directions) == pytest.approx(0.4 * 0.2 + 0.2 * 0.6)
    assert hypervolume(points, [0.1, 0.0], directions) == 0
    assert hypervolume(np.zeros((0, 2)), [1, 1], directions) == 0


@given(grids(3), st.randoms())
@few
def test_front_is_what_no_point_dominates_and_carries_all_volume(points, random):
    directions = ["minimize"] * 3
    front = non_dominated(np.array(points).reshape(-1, 3), directions)
    for p, kept in zip(points, front, strict=True):
        dominated = any(all(x <= y for x, y in zip(q, p, strict=True)) and q != p for q in points)
        assert kept == (not dominated)
    kept_points = [p for p, k in zip(points, front, strict=True) if k]
    volume = hypervolume(np.array(points).reshape(-1, 3), [7, 7, 7], directions)
    assert hypervolume(np.array(kept_points).reshape(-1, 3), [7, 7, 7], directions) == pytest.approx(volume)
    shuffled = random.sample(points, len(points))
    assert hypervolume(np.array(shuffled).reshape(-1, 3), [7, 7, 7], directions) == pytest.approx(volume)


def test_undefined_points_neither_join_nor_dominate():
    points = [[np.nan, 0.0], [0.5, 0.5]]
    assert non_dominated(points, ["minimize", "minimize"]).tolist() == [False, True]
    assert hypervolume(points, [1, 1], ["minimize", "minimize"]) == 0.25


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`up`"):
        non_dominated([[1.0]], ["up"])
    with pytest.raises(ValueError, match="finite"):
        hypervolume([[1.0]], [np.inf], ["minimize"])


def test_hypervolume_difference_equals_the_general_bootstrap():
    rng = np.random.default_rng(0)
    first, second = (rng.random((3, 30, 2)) < 0.4).astype(float), (rng.random((3, 30, 2)) < 0.5).astype(float)
    first[0, 3, 1] = np.nan
    prompt = np.repeat(np.arange(10), 3)

    def gain(first_NK2, second_NK2):
        volumes = [
            hypervolume(np.nanmean(part, axis=0), (2, 1), ["minimize"] * 2) / 2 for part in (first_NK2, second_NK2)
        ]
        return volumes[0] - volumes[1]

    turned = first.transpose(1, 0, 2), second.transpose(1, 0, 2)
    expected = bootstrap(gain, *turned, cluster=prompt)
    got, base = hypervolume_difference(first, second, prompt, (2, 1))
    assert (got.value, got.low, got.high, got.n) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.n)
    )
    assert base == pytest.approx(hypervolume(second.mean(axis=1), (2, 1), ["minimize"] * 2) / 2)
    same, _ = hypervolume_difference(first, first, prompt, (1, 1))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="do not fit"):
        hypervolume_difference(first, second, prompt[:4], (1, 1))
    assert np.isnan(hypervolume_difference(first[:, :0], second[:, :0], prompt[:0], (1, 1))[0].value)
