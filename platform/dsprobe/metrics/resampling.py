"""Bootstrap intervals over rows or over clusters (prompts), reproducible by seed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import DegenerateDataWarning
from scipy.stats import bootstrap as scipy_bootstrap

from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, F64, Int, Interval, normal_quantile, undefined

DEFAULT_RESAMPLES: Final = 2000
_BATCH: Final = 2_000_000
"""Most unit indices drawn at once, so that large samples do not fill the memory."""


def bootstrap(
    statistic: Callable[..., float],
    *data: npt.NDArray[Any],
    paired: bool = True,
    cluster: npt.NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """A statistic with its bootstrap percentile interval; equal arguments give equal bounds.

    Args:
        statistic: Maps the data arrays to a number; NaN where it is undefined.
        *data: Arrays with rows on their first axis.
        paired: Resample all arrays by the same rows; otherwise each on its own.
        cluster: Cluster label of every row (the prompt, where a prompt has several samples). Whole clusters are
            resampled, so that dependent rows stay together. Needs `paired`.
        seed: Seed of the resampling.
        resamples: Number of resamples.
        confidence: Two-sided level.

    Returns:
        The statistic on all data with percentile bounds; n counts rows of the smallest array, or clusters. A resample
        on which the statistic is undefined counts as −∞ for the lower and +∞ for the upper bound, so an interval
        never looks narrow because resamples were dropped. No data gives an undefined interval.

    Source: Efron & Tibshirani (1993), chapters 8 and 13.
    """
    if cluster is not None and not paired:
        raise ValueError("A cluster bootstrap needs paired data.")
    if paired and len({len(d) for d in data}) > 1:
        raise ValueError(f"Paired data must have equal lengths, not {[len(d) for d in data]}.")
    groups = None if cluster is None else _groups(cluster)
    name = "bootstrap" if groups is None else "cluster bootstrap"
    sizes = [len(groups)] if groups is not None else [len(d) for d in data]
    if min(sizes) == 0:
        return undefined(name, 0, confidence)

    def on_units(*units: Int) -> float:
        rows = units if groups is None else (np.concatenate([groups[u] for u in units[0]]),)
        return float(statistic(*(d[rows[0] if paired else rows[k]] for k, d in enumerate(data))))

    def on_resamples(*units: Int) -> F64:
        return np.array([on_units(*drawn) for drawn in zip(*units, strict=True)])

    units = tuple(np.arange(size) for size in (sizes[:1] if paired else sizes))
    distribution_R = resampled(on_resamples, units, seed, resamples)
    return percentile_interval(on_units(*units), distribution_R, min(sizes), name, confidence)


def resampled(statistic: Callable[..., F64], units: Sequence[Int], seed: int, resamples: int) -> F64:
    """Values of a statistic of unit indices over bootstrap resamples of the units.

    Args:
        statistic: Maps the unit indices of R resamples, one array ``[R, U]`` per sample, to R numbers ``[R]``, or to
            K numbers each, ``[K, R]``.
        units: Index arrays, one per independent sample.
        seed: Seed of the resampling.
        resamples: Number of resamples R.

    Returns:
        The values, ``[R]`` or ``[K, R]``.
    """
    if all(len(u) == 1 for u in units):  # nothing to vary; SciPy refuses samples of one
        return np.repeat(np.asarray(statistic(*(u[None] for u in units)), np.float64), resamples, axis=-1)
    padded = tuple(np.repeat(u, 2) if len(u) == 1 else u for u in units)

    def at_own_size(*drawn: Int, axis: int) -> F64:
        return statistic(*(d[:, : len(u)] for d, u in zip(drawn, units, strict=True)))

    with warnings.catch_warnings():
        # SciPy warns about its own interval, which is not used, when a resample is undefined.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = scipy_bootstrap(
            padded,
            at_own_size,
            n_resamples=resamples,
            batch=max(1, _BATCH // max(len(u) for u in padded)),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(result.bootstrap_distribution, np.float64)


def bootstrap_sums(
    statistic: Callable[[F64], F64],
    addend_NK: npt.ArrayLike,
    cluster: npt.NDArray[Any] | None = None,
    strata: npt.NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """A statistic of column sums (counts, ratios of sums) with its bootstrap percentile interval.

    Equals `bootstrap` of a statistic that sums its data, all resamples at once. Statistics of equal clusters, strata
    and seed see the same resamples.

    Args:
        statistic: Maps column sums ``[R, K]`` to R numbers; NaN where undefined.
        addend_NK: What each row adds to each of K sums.
        cluster: See `bootstrap`.
        strata: See `resampled_sums`.
        seed: Seed of the resampling.
        resamples: Number of resamples R.
        confidence: Two-sided level.
    """
    name = "bootstrap" if cluster is None else "cluster bootstrap"
    name = name if strata is None else f"stratified {name}"
    addend = np.asarray(addend_NK, np.float64)
    if not len(addend):
        return undefined(name, 0, confidence)
    units, sum_RK = resampled_sums(addend, cluster, strata, seed, resamples)
    value = float(statistic(addend.sum(axis=0)[None])[0])
    return percentile_interval(value, statistic(sum_RK), units, name, confidence)


def resampled_sums(
    addend_NK: F64,
    cluster: npt.NDArray[Any] | None = None,
    strata: npt.NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int = DEFAULT_RESAMPLES,
) -> tuple[int, F64]:
    """Column sums over bootstrap resamples of rows or clusters.

    Args:
        addend_NK: What each of N ≥ 1 rows adds to each of K sums.
        cluster: Cluster of each row; whole clusters are drawn.
        strata: Stratum of each row. Every resample keeps the number of units of each stratum; a stratum of one unit
            adds no variation.
        seed: Seed of the resampling.
        resamples: Number of resamples R.

    Returns:
        The number of units, and the sums, ``[R, K]``.

    Raises:
        ValueError: The columns differ in length, or a cluster lies in two strata.
    """
    num_rows = len(addend_NK)
    label_N = np.arange(num_rows) if cluster is None else np.asarray(cluster)
    stratum_N = np.zeros(num_rows, np.int64) if strata is None else np.asarray(strata)
    if not len(label_N) == len(stratum_N) == num_rows:
        raise ValueError(f"{num_rows} rows need as many clusters and strata, not {len(label_N)} and {len(stratum_N)}.")
    _, unit_N = np.unique(label_N, return_inverse=True)
    _, stratum_N = np.unique(stratum_N, return_inverse=True)
    units = int(unit_N.max()) + 1
    sum_UK = np.stack([np.bincount(unit_N, weights=column, minlength=units) for column in addend_NK.T], axis=-1)
    stratum_U = np.zeros(units, np.int64)
    stratum_U[unit_N] = stratum_N
    if bool(np.any(stratum_U[unit_N] != stratum_N)):
        raise ValueError("A cluster lies in two strata.")
    parts = [sum_UK[stratum_U == stratum] for stratum in range(int(stratum_U.max()) + 1)]

    def on_resamples(*drawn: Int) -> F64:
        sums = [_times_drawn(drawn_RU) @ part_UK for drawn_RU, part_UK in zip(drawn, parts, strict=True)]
        return np.asarray(np.sum(sums, axis=0).T)

    return units, resampled(on_resamples, [np.arange(len(part)) for part in parts], seed, resamples).T


def has_repeats(cluster: npt.NDArray[Any] | None) -> bool:
    """Whether some cluster has more than one row, so that rows are not independent."""
    return cluster is not None and len(np.unique(cluster)) < len(cluster)


def clipped(interval: Interval, low: float = -math.inf, high: float = math.inf) -> Interval:
    """The interval within the range of its quantity; an undefined one stays undefined.

    Infinite bounds of undefined resamples become the ends of the range.
    """
    if math.isnan(interval.value):
        return interval
    return replace(interval, low=max(interval.low, low), high=min(interval.high, high))


def percentile_interval(value: float, distribution_R: F64, n: int, method: str, confidence: float) -> Interval:
    """Percentile bounds of a bootstrap distribution; undefined (NaN) resamples widen the interval.

    Order statistics are taken outwards (no interpolation), so infinite values are legal.
    """
    if math.isnan(value):
        return undefined(method, n, confidence)
    normal_quantile(confidence)
    tail = (1 - confidence) / 2
    missing_R = np.isnan(distribution_R)
    low = np.quantile(np.where(missing_R, -np.inf, distribution_R), tail, method="lower")
    high = np.quantile(np.where(missing_R, np.inf, distribution_R), 1 - tail, method="higher")
    return Interval(value, float(low), float(high), n, method, confidence)


def mean(
    value_N: npt.NDArray[Any],
    cluster: npt.NDArray[Any] | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Mean of the defined (non-NaN) values, bootstrap percentile interval over rows or clusters."""
    return _summary(_resampled_means, value_N, cluster, seed, confidence)


def median(
    value_N: npt.NDArray[Any],
    cluster: npt.NDArray[Any] | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Median of the defined (non-NaN) values, bootstrap percentile interval over rows or clusters."""
    return _summary(_resampled_medians, value_N, cluster, seed, confidence)


def _summary(
    statistic: Callable[[F64, Int, Int], F64],
    value_N: npt.NDArray[Any],
    cluster: npt.NDArray[Any] | None,
    seed: int,
    confidence: float,
) -> Interval:
    """A statistic of ``(values, unit of each value, drawn units [R, U])``, which gives one number per resample."""
    values_N = np.asarray(value_N, np.float64)
    kept_N = ~np.isnan(values_N)
    values_N = values_N[kept_N]
    name = "bootstrap" if cluster is None else "cluster bootstrap"
    if not len(values_N):
        return undefined(name, 0, confidence)
    label_N = np.arange(len(values_N)) if cluster is None else np.asarray(cluster)[kept_N]
    _, unit_N = np.unique(label_N, return_inverse=True)
    units = np.arange(int(unit_N.max()) + 1)

    def on_resamples(drawn_RU: Int) -> F64:
        return statistic(values_N, unit_N, drawn_RU)

    value = float(on_resamples(units[None])[0])
    distribution_R = resampled(on_resamples, (units,), seed, DEFAULT_RESAMPLES)
    return percentile_interval(value, distribution_R, len(units), name, confidence)


def _resampled_means(value_N: F64, unit_N: Int, drawn_RU: Int) -> F64:
    sum_U, count_U = np.bincount(unit_N, weights=value_N), np.bincount(unit_N)
    return np.asarray(sum_U[drawn_RU].sum(axis=1) / count_U[drawn_RU].sum(axis=1))


def _resampled_medians(value_N: F64, unit_N: Int, drawn_RU: Int) -> F64:
    """Medians from how often each value was drawn: the two middle ranks of the sorted values."""
    order_N = np.argsort(value_N, kind="stable")
    drawn_RN = _times_drawn(drawn_RU)[:, unit_N[order_N]]
    rank_RN = np.cumsum(drawn_RN, axis=1)
    total_R = rank_RN[:, -1]
    low_R = (rank_RN < ((total_R - 1) // 2 + 1)[:, None]).sum(axis=1)
    high_R = (rank_RN < (total_R // 2 + 1)[:, None]).sum(axis=1)
    return np.asarray((value_N[order_N[low_R]] + value_N[order_N[high_R]]) / 2)


def _times_drawn(drawn_RU: Int) -> Int:
    """How often each unit was drawn in each resample, ``[R, U]``."""
    resamples, units = drawn_RU.shape
    flat = (drawn_RU + np.arange(resamples)[:, None] * units).reshape(-1)
    return np.bincount(flat, minlength=resamples * units).reshape(resamples, units)


def _groups(cluster: npt.NDArray[Any]) -> list[Int]:
    """Row indices of each cluster, in order of the sorted labels."""
    _, label_N, count = np.unique(np.asarray(cluster), return_inverse=True, return_counts=True)
    order = np.argsort(label_N, kind="stable")
    return [np.asarray(part) for part in np.split(order, np.cumsum(count)[:-1])] if len(order) else []
