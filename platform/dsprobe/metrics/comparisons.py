"""Comparing two conditions on the same prompts, and families of such comparisons."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from dsprobe.metrics.intervals import (
    DEFAULT_CONFIDENCE,
    F64,
    Bool,
    Interval,
    TestResult,
    undefined,
    wilson_bounds,
)


def mcnemar(first_N: Bool, second_N: Bool) -> TestResult:
    """McNemar's exact test that two conditions have the same rate on the same prompts.

    Under the null the b prompts where only the first is True are Binomial(b + c, ½) among the discordant ones.

    Returns:
        ``statistic`` is min(b, c); the two-sided p-value is 1 without discordant prompts; n counts all prompts.

    Source: McNemar (1947), Psychometrika 12(2).
    """
    _, only_first, only_second, _ = _cells(first_N, second_N)
    discordant, smaller = only_first + only_second, min(only_first, only_second)
    p_value = float(binomtest(smaller, discordant, 0.5).pvalue) if discordant else 1.0
    return TestResult(float(smaller), p_value, len(first_N), "McNemar exact")


def holm(p_value_K: npt.ArrayLike) -> F64:
    """Holm's step-down adjustment of a family of p-values.

    Sorted ascending, ``p̃_(i) = max_{j ≤ i} min(1, (K − j + 1) p_(j))``; an adjusted value ≤ α keeps the family-wise
    error at α under any dependence.

    Args:
        p_value_K: p-values in [0, 1]; NaN (no test) stays NaN and does not count into K.

    Returns:
        Adjusted p-values in the order given.

    Source: Holm (1979), Scand. J. Statist. 6(2).
    """
    p_K = np.asarray(p_value_K, np.float64)
    if bool(np.any((p_K < 0) | (p_K > 1))):
        raise ValueError(f"p-values must lie in [0, 1]: {p_K}.")
    kept = np.flatnonzero(~np.isnan(p_K))
    order = kept[np.argsort(p_K[kept], kind="stable")]
    adjusted_K = np.full(p_K.shape, np.nan)
    adjusted_K[order] = np.minimum(np.maximum.accumulate(p_K[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted_K


def paired_difference(first_N: Bool, second_N: Bool, confidence: float = DEFAULT_CONFIDENCE) -> Interval:
    """Difference of two rates on the same prompts, P(first) − P(second), Newcombe's paired score interval.

    Wilson limits of the two rates are combined with the correlation φ of the pairs (method 10, φ with continuity
    correction). For several samples per prompt use `dsprobe.metrics.resampling.bootstrap` with clusters instead.

    Returns:
        The difference in [−1, 1]; NaN without pairs.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635–2650.
    """
    method = "Newcombe paired"
    both, only_first, only_second, neither = _cells(first_N, second_N)
    n = both + only_first + only_second + neither
    if n == 0:
        return undefined(method, 0, confidence)
    counts = np.array([both + only_first, both + only_second])
    (p1, p2), (low, high) = counts / n, wilson_bounds(counts, n, confidence)
    phi = _phi(both, only_first, only_second, neither)
    below = _combine(p1 - low[0], high[1] - p2, phi)
    above = _combine(high[0] - p1, p2 - low[1], phi)
    difference = (only_first - only_second) / n
    return Interval(difference, max(difference - below, -1.0), min(difference + above, 1.0), n, method, confidence)


def independent_difference(first_N: Bool, second_N: Bool, confidence: float = DEFAULT_CONFIDENCE) -> Interval:
    """Difference of two rates on different prompts, P(first) − P(second), Newcombe's score interval (method 10).

    Returns:
        The difference in [−1, 1], n counts the smaller sample; NaN where a sample is empty.

    Source: Newcombe (1998), Statistics in Medicine 17, 873–890.
    """
    method = "Newcombe independent"
    size = np.array([np.size(first_N), np.size(second_N)])
    if not size.all():
        return undefined(method, 0, confidence)
    counts = np.array([np.count_nonzero(first_N), np.count_nonzero(second_N)])
    (p1, p2), (low, high) = counts / size, wilson_bounds(counts, size, confidence)
    below = _combine(p1 - low[0], high[1] - p2, 0.0)
    above = _combine(high[0] - p1, p2 - low[1], 0.0)
    difference = float(p1 - p2)
    return Interval(difference, difference - below, difference + above, int(size.min()), method, confidence)


def _cells(first_N: Bool, second_N: Bool) -> tuple[int, int, int, int]:
    """Pairs where both, only the first, only the second, neither is True."""
    first, second = np.asarray(first_N, np.bool_), np.asarray(second_N, np.bool_)
    if first.shape != second.shape:
        raise ValueError(f"Paired outcomes must have equal lengths, not {first.size} and {second.size}.")
    cells = (first & second, first & ~second, ~first & second, ~first & ~second)
    both, only_first, only_second, neither = (int(np.count_nonzero(cell)) for cell in cells)
    return both, only_first, only_second, neither


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Correlation of the pairs; a positive one is reduced by the continuity correction, 0 where undefined."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    product = float(a * d - b * c)
    if product > 0:
        product = max(product - (a + b + c + d) / 2, 0.0)
    return product / math.sqrt(margins)


def _combine(own: float, other: float, phi: float) -> float:
    """Square-and-add of two half-widths with correlation."""
    return math.sqrt(max(own**2 - 2 * phi * own * other + other**2, 0.0))
