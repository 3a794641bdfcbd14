"""Logistic regression of a yes/no outcome: slopes with Wald intervals, or none where no finite estimate exists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.special import expit

from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, F64, Bool, Interval, normal_quantile, undefined
from dsprobe.metrics.resampling import has_repeats


def logistic_slopes(
    success_N: Bool,
    x_NK: F64,
    cluster: npt.NDArray[Any] | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
) -> tuple[Interval, ...]:
    """Slopes β of ``logit P(success) = α + Σ_k β_k x_k`` by maximum likelihood (Newton), with Wald intervals.

    Args:
        success_N: Outcomes.
        x_NK: K covariates of each row.
        cluster: Prompt of each row. Where a prompt has several rows, the variance is the sandwich over prompts with
            the factor U / (U − 1); otherwise it is the inverse information.
        confidence: Two-sided level.

    Returns:
        Change of log-odds per unit of each covariate, n counts rows (prompts where clustered). All are NaN where no
        finite estimate exists: all outcomes are equal, the covariates are constant or collinear, or they separate
        success from failure (completely or but for ties); also with fewer prompts than parameters.

    Source: McCullagh & Nelder (1989), section 4.4; Albert & Anderson (1984), Biometrika 71(1), for separation; Liang &
    Zeger (1986), Biometrika 73(1), for the sandwich.
    """
    success, x = np.asarray(success_N, np.bool_), np.asarray(x_NK, np.float64)
    clustered = has_repeats(cluster)
    method = f"logistic regression, {'cluster-robust ' if clustered else ''}Wald"
    n = len(np.unique(np.asarray(cluster))) if clustered else len(x)
    nothing = tuple(undefined(method, n, confidence) for _ in range(x.shape[1]))
    if n <= x.shape[1] + 1 or not _has_finite_estimate(success, x):
        return nothing
    scale_K = x.std(axis=0)
    design_NP = np.column_stack([np.ones(len(x)), (x - x.mean(axis=0)) / scale_K])
    beta_P = _newton(success, design_NP)
    if beta_P is None:
        return nothing
    covariance_PP = _covariance(success, design_NP, beta_P, cluster if clustered else None)
    slope_K = beta_P[1:] / scale_K
    half_K = normal_quantile(confidence) * np.sqrt(np.diag(covariance_PP)[1:]) / scale_K
    return tuple(
        Interval(float(slope), float(slope - half), float(slope + half), n, method, confidence)
        for slope, half in zip(slope_K, half_K, strict=True)
    )


def _newton(success_N: Bool, design_NP: F64) -> F64 | None:
    beta_P = np.zeros(design_NP.shape[1])
    for _ in range(100):
        p_N = expit(design_NP @ beta_P)
        change_P = np.linalg.solve(_information(design_NP, p_N), design_NP.T @ (success_N - p_N))
        beta_P = beta_P + change_P
        if float(np.abs(change_P).max()) < 1e-10:
            return beta_P
    return None


def _information(design_NP: F64, p_N: F64) -> F64:
    return np.asarray(design_NP.T @ (design_NP * (p_N * (1 - p_N))[:, None]))


def _covariance(success_N: Bool, design_NP: F64, beta_P: F64, cluster: npt.NDArray[Any] | None) -> F64:
    """Covariance of the estimate: inverse information, or the sandwich over clusters."""
    p_N = expit(design_NP @ beta_P)
    bread_PP = np.linalg.inv(_information(design_NP, p_N))
    if cluster is None:
        return np.asarray(bread_PP)
    _, unit_N = np.unique(np.asarray(cluster), return_inverse=True)
    score_NP = design_NP * (success_N - p_N)[:, None]
    score_UP = np.stack([np.bincount(unit_N, weights=column) for column in score_NP.T], axis=-1)
    units = len(score_UP)
    return np.asarray(bread_PP @ (score_UP.T @ score_UP) @ bread_PP * units / (units - 1))


def _has_finite_estimate(success_N: Bool, x_NK: F64) -> bool:
    """Whether the covariates have full rank and successes and failures overlap.

    They do not overlap when some direction β ≠ 0 has ``y (α + β · x) ≥ 0`` for all rows (y = ±1) and > 0 for one: a
    linear program.
    """
    yes = int(np.count_nonzero(success_N))
    if not 0 < yes < len(success_N):
        return False
    spread_K = x_NK.std(axis=0)
    if not bool(np.all(spread_K > 1e-12 * np.abs(x_NK).max(initial=math.ulp(1.0)))):
        return False
    rows = np.unique(np.column_stack([success_N, (x_NK - x_NK.mean(axis=0)) / spread_K]), axis=0)
    design_MP = np.column_stack([np.ones(len(rows)), rows[:, 1:]])
    if np.linalg.matrix_rank(design_MP) < design_MP.shape[1]:
        return False
    signed_MP = design_MP * np.where(rows[:, :1] > 0, 1.0, -1.0)
    found = linprog(-signed_MP.sum(axis=0), A_ub=-signed_MP, b_ub=np.zeros(len(rows)), bounds=(-1, 1))
    return bool(found.success and found.fun is not None and found.fun > -1e-7)
