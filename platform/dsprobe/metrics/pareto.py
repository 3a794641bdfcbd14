"""Trade-offs between objectives: the non-dominated set, the hypervolume it covers, and its knee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, F64, Bool, Interval, undefined
from dsprobe.metrics.resampling import percentile_interval, resampled_sums

Direction = Literal["minimize", "maximize"]


def non_dominated(points_ND: npt.ArrayLike, directions: Sequence[Direction]) -> Bool:
    """Which points no other point dominates.

    A point dominates another if it is at least as good in every objective and better in one. Equal points do not
    dominate each other, so all copies stay.

    Args:
        points_ND: N points with D objectives; a point with an undefined (NaN) objective is never in the set and
            dominates nothing.
        directions: Direction of each objective.

    Returns:
        ``[N]``, True for the Pareto front.
    """
    cost_ND = _as_cost(points_ND, directions)
    defined_N = np.asarray(~np.isnan(cost_ND).any(axis=1), np.bool_)
    front_N = defined_N.copy()
    for n in np.flatnonzero(defined_N):
        at_least_N = (cost_ND <= cost_ND[n]).all(axis=1)
        front_N[n] = not bool(np.any(at_least_N & (cost_ND < cost_ND[n]).any(axis=1)))
    return front_N


def hypervolume(points_ND: npt.ArrayLike, reference_D: npt.ArrayLike, directions: Sequence[Direction]) -> float:
    """Volume of the objective space that the points dominate, up to a reference point; exact.

    Points that are not better than the reference in every objective add nothing. Exact by slicing along the last
    objective; meant for fronts of up to a few hundred points in 2 or 3 objectives.

    Args:
        points_ND: N points with D ≥ 1 objectives.
        reference_D: Reference point, stated with the result.
        directions: Direction of each objective.

    Returns:
        Volume ≥ 0 in the product of the objectives' units; 0 for no points.

    Source: Zitzler & Thiele (1998); slicing as in While et al. (2006), IEEE TEVC 10(1).
    """
    points = _as_cost(points_ND, directions)
    points = np.unique(points[non_dominated(points, ["minimize"] * len(directions))], axis=0)
    reference = _reference(reference_D, directions)
    inside = points[(points < reference).all(axis=1)]
    return float(_slice(inside[None], reference)[0])


def hypervolumes(points_RND: npt.ArrayLike, reference_D: npt.ArrayLike, directions: Sequence[Direction]) -> F64:
    """Hypervolume of each of R sets of N points, ``[R]``, e.g. of a front in bootstrap resamples.

    Args:
        points_RND: The sets; a point with an undefined (NaN) objective adds nothing.
        reference_D: See `hypervolume`.
        directions: See `hypervolume`.
    """
    sets = np.asarray(points_RND, np.float64)
    cost = _as_cost(sets, directions).reshape(sets.shape)
    reference = _reference(reference_D, directions)
    # A point on the reference's face spans no volume, so points beyond it are put there instead of being left out.
    beyond = np.isnan(cost).any(axis=-1, keepdims=True) | (cost >= reference).any(axis=-1, keepdims=True)
    return _slice(np.where(beyond, reference, cost), reference)


def hypervolume_difference(
    first_KND: F64,
    second_KND: F64,
    prompt_N: npt.NDArray[Any],
    reference_D: npt.ArrayLike,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> tuple[Interval, float]:
    """Hypervolume of one family of settings minus another's on the same rows, as a share of the reference box.

    A setting's objectives are means over rows. Noise makes fronts of more settings larger: compare equal numbers.

    Args:
        first_KND: D objectives of N rows under each of K settings, to be minimised, 0 at best; NaN is left out.
        second_KND: The same rows under the settings of the other family.
        prompt_N: Prompt of each row; both families see the same resamples of prompts.
        reference_D: Reference point, above 0 in every objective.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.

    Returns:
        The difference in [−1, 1] with its percentile interval, and the share that the second family covers. NaN
        without rows or settings.

    Raises:
        ValueError: The families differ in rows or objectives, or the reference is not above 0.
    """
    reference = np.asarray(reference_D, np.float64)
    value_KND = np.concatenate([first_KND, second_KND])
    settings, rows, objectives = value_KND.shape
    if rows != len(prompt_N) or objectives != len(reference) or not bool((reference > 0).all()):
        raise ValueError(f"{rows} rows of {objectives} objectives do not fit {len(prompt_N)} prompts, {reference}.")
    method = "cluster bootstrap of hypervolumes"
    if not rows or not len(first_KND) or not len(second_KND):
        return undefined(method, 0, confidence), float("nan")
    defined_KND = ~np.isnan(value_KND)
    columns = [np.where(defined_KND, value_KND, 0.0), defined_KND.astype(np.float64)]
    addend_NK = np.concatenate([part.transpose(1, 0, 2).reshape(rows, -1) for part in columns], axis=1)
    units, sum_RK = resampled_sums(addend_NK, prompt_N, None, seed)
    sum_RK = np.concatenate([addend_NK.sum(axis=0)[None], sum_RK])  # the data themselves come first
    total_RKD, count_RKD = (part.reshape(-1, settings, objectives) for part in np.split(sum_RK, 2, axis=1))
    mean_RKD = np.divide(total_RKD, count_RKD, out=np.full(total_RKD.shape, np.nan), where=count_RKD > 0)
    share_2R = [
        hypervolumes(part, reference, ["minimize"] * objectives) / float(np.prod(reference))
        for part in (mean_RKD[:, : len(first_KND)], mean_RKD[:, len(first_KND) :])
    ]
    gain_R = share_2R[0] - share_2R[1]
    return percentile_interval(float(gain_R[0]), gain_R[1:], units, method, confidence), float(share_2R[1][0])


def contributions(points_ND: npt.ArrayLike, reference_D: npt.ArrayLike, directions: Sequence[Direction]) -> F64:
    """Hypervolume that each point alone adds to the others, ``[N]``; 0 for dominated points and for copies.

    Arguments as in `hypervolume`.

    Source: exclusive hypervolume, While et al. (2006), IEEE TEVC 10(1).
    """
    points = np.asarray(points_ND, np.float64).reshape(-1, len(directions))
    total = hypervolume(points, reference_D, directions)
    rest = [hypervolume(np.delete(points, n, axis=0), reference_D, directions) for n in range(len(points))]
    return np.asarray(np.maximum(total - np.array(rest, np.float64), 0.0), np.float64)


def attainment(points_ND: npt.ArrayLike, reference_D: npt.ArrayLike, directions: Sequence[Direction]) -> F64:
    """Hypervolume of the first 1, 2, …, N points, ``[N]``: how a search got to its front. Never falls.

    Arguments as in `hypervolume`, points in the order of the search; an undefined (NaN) point adds nothing.
    """
    cost_ND = _as_cost(points_ND, directions)
    reference = _reference(reference_D, directions)
    front_PD, volume, found = cost_ND[:0], 0.0, []
    for point_D in cost_ND:
        adds = bool((point_D < reference).all()) and not bool((front_PD <= point_D).all(axis=1).any())
        if adds:
            front_PD = np.vstack([front_PD[~(point_D <= front_PD).all(axis=1)], point_D])
            # Rounding alone could let it fall.
            volume = max(volume, hypervolume(front_PD, reference, ["minimize"] * len(directions)))
        found.append(volume)
    return np.array(found, np.float64)


def knee(
    points_ND: npt.ArrayLike,
    directions: Sequence[Direction],
    range_KD: npt.ArrayLike | None = None,
) -> int | None:
    """The point of a front from which any step gains least for what it costs.

    Objectives are scaled to 0 at their best and 1 at their worst value over the front; the knee is the point that lies
    deepest below the plane through the ends (1, 0, …), (0, 1, …), that is the one with the smallest sum of scaled
    objectives. An objective that does not vary plays no part. In two objectives this is the largest distance from the
    line between the ends of the front. Equal sums are decided by the first objective, then the next, then the order
    of the points.

    Args:
        points_ND: Non-dominated points.
        directions: Direction of each objective.
        range_KD: Points whose values give the ends of the scales; the front's own when `None`.

    Returns:
        Index of the knee; `None` without a defined point.

    Source: Das (1999), Structural Optimization 18, 107–115 (largest distance from the plane of the ends), with the
    plane of the scaled axes, which is his where the ends of the front are the worst in every other objective.
    """
    cost_ND = _as_cost(points_ND, directions)
    defined = np.flatnonzero(~np.isnan(cost_ND).any(axis=1))
    if not len(defined):
        return None
    ends_KD = cost_ND[defined] if range_KD is None else _as_cost(range_KD, directions)
    best_D, span_D = ends_KD.min(axis=0), np.ptp(ends_KD, axis=0)
    kept_ND = cost_ND[defined]
    scaled_ND = np.divide(kept_ND - best_D, span_D, out=np.zeros_like(kept_ND), where=span_D > 0)
    sum_N = np.round(scaled_ND.sum(axis=1), 12)  # so that equal sums tie whatever the rounding
    return int(defined[np.lexsort((*kept_ND.T[::-1], sum_N))[0]])


def _slice(cost_RND: F64, reference_D: F64) -> F64:
    """Sum of slabs between successive values of the last objective, each with a lower-dimensional volume; ``[R]``."""
    sets, count, dimensions = cost_RND.shape
    if count == 0:
        return np.zeros(sets)
    if dimensions == 1:
        return np.asarray(reference_D[0] - cost_RND[:, :, 0].min(axis=1), np.float64)
    order_RN = np.argsort(cost_RND[:, :, -1], axis=1, kind="stable")
    sorted_RND = np.take_along_axis(cost_RND, order_RN[:, :, None], axis=1)
    height_RN = np.diff(sorted_RND[:, :, -1], axis=1, append=reference_D[-1])
    volume_R = np.zeros(sets)
    for n in np.flatnonzero(height_RN.any(axis=0)):
        volume_R += height_RN[:, n] * _slice(sorted_RND[:, : n + 1, :-1], reference_D[:-1])
    return volume_R


def _reference(reference_D: npt.ArrayLike, directions: Sequence[Direction]) -> F64:
    reference: F64 = _as_cost(np.asarray(reference_D, np.float64)[None], directions)[0]
    if not bool(np.isfinite(reference).all()):
        raise ValueError(f"The reference point must be finite: {np.asarray(reference_D)}.")
    return reference


def _as_cost(points_ND: npt.ArrayLike, directions: Sequence[Direction]) -> F64:
    """Points with maximised objectives negated."""
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"Direction `{direction}` is not allowed. Allowed: minimize, maximize.")
    points: npt.NDArray[Any] = np.asarray(points_ND, np.float64).reshape(-1, len(directions))
    return points * np.where(np.asarray(directions) == "minimize", 1.0, -1.0)
