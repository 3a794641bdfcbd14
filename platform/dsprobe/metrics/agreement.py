"""Do judges of the same question agree? Raw agreement, Cohen's kappa for two, Krippendorff's alpha for any number.

Verdicts are bool, with None or NaN where a judge could not decide. Chance-corrected agreement is undefined where all
verdicts are equal: there is nothing to tell agreement from a constant answer, and perfect raw agreement stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, F64, Interval, rate, undefined
from dsprobe.metrics.outputs import Labels, as_float, ratio_of_sums
from dsprobe.metrics.resampling import bootstrap_sums, clipped, has_repeats, mean


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAgreement:
    """Two judges on the rows that both decided."""

    first: str
    second: str
    both_yes: int
    only_first: int
    """The first says yes, the second no."""
    only_second: int
    both_no: int
    raw: Interval
    """Share of equal verdicts."""
    kappa: Interval

    @property
    def n(self) -> int:
        """Rows that both decided."""
        return self.both_yes + self.only_first + self.only_second + self.both_no

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        names = ("first", "second", "n", "both_yes", "only_first", "only_second", "both_no")
        return {name: getattr(self, name) for name in names} | {
            "raw": self.raw.to_dict(),
            "kappa": self.kappa.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementTable:
    """Several judges of one question on the same rows."""

    judges: tuple[str, ...]
    n: int
    """Rows with a verdict of at least two judges."""
    alpha: Interval
    """Krippendorff's alpha of all judges."""
    pairs: tuple[PairAgreement, ...]
    """Every pair, in the order of `judges`."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "judges": list(self.judges),
            "n": self.n,
            "alpha": self.alpha.to_dict(),
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def agreement_table(
    verdict_N: Mapping[str, npt.ArrayLike],
    prompt_N: Labels,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> AgreementTable:
    """Agreement of judges (people among them) that answer the same question.

    Args:
        verdict_N: Judge → verdicts on the same N rows.
        prompt_N: Prompt of each row; intervals resample prompts.
        seed: Seed of all bootstraps.
        confidence: Two-sided level.

    Raises:
        ValueError: Columns differ in length.
    """
    columns = {judge: as_float(column) for judge, column in verdict_N.items()}
    lengths = {judge: len(column) for judge, column in columns.items()} | {"prompts": len(prompt_N)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Verdicts and prompts must be equally long: {lengths}.")
    rating_JN = np.stack(list(columns.values())) if columns else np.empty((0, len(prompt_N)))
    return AgreementTable(
        judges=tuple(columns),
        n=int(np.count_nonzero((~np.isnan(rating_JN)).sum(axis=0) >= 2)),
        alpha=krippendorff_alpha(rating_JN, prompt_N, seed, confidence),
        pairs=tuple(
            _pair(first, second, columns[first], columns[second], prompt_N, seed, confidence)
            for first, second in combinations(columns, 2)
        ),
    )


def raw_agreement(
    first_N: npt.ArrayLike,
    second_N: npt.ArrayLike,
    cluster: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Share of rows with equal verdicts among those that both raters decided.

    Wilson interval; bootstrap over clusters where a cluster has several rows.
    """
    first, second, group = _both_decided(first_N, second_N, cluster)
    if has_repeats(group):
        return mean((first == second).astype(np.float64), group, seed, confidence)
    return rate(np.asarray(first == second, np.bool_), confidence)


def cohen_kappa(
    first_N: npt.ArrayLike,
    second_N: npt.ArrayLike,
    cluster: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Cohen's kappa of two raters with yes/no verdicts: ``(p_o − p_e) / (1 − p_e)``.

    p_o is the raw agreement, p_e what two raters with the same margins would reach by chance.

    Args:
        first_N: Verdicts of the first rater; rows that one of the two left open are left out.
        second_N: Verdicts of the second rater on the same rows.
        cluster: Prompt of each row; the bootstrap draws whole prompts.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.

    Returns:
        Kappa in [−1, 1]; 0 is chance. NaN where both raters give one and the same answer throughout (p_e = 1);
        resamples without a value open the interval to the whole range.

    Source: Cohen (1960), Educational and Psychological Measurement 20(1).
    """
    first, second, group = _both_decided(first_N, second_N, cluster)
    return clipped(bootstrap_sums(_kappa, _cells(first, second), group, seed=seed, confidence=confidence), -1.0, 1.0)


def krippendorff_alpha(
    rating_JN: npt.ArrayLike,
    cluster: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Interval:
    """Krippendorff's alpha for nominal ratings: ``1 − D_o / D_e``, any number of raters, missing ratings allowed.

    With n_uc ratings c among the m_u ≥ 2 ratings of row u, ``D_o = Σ_u Σ_c n_uc (m_u − n_uc) / (m_u − 1)`` and
    ``D_e = Σ_c n_c (n − n_c) / (n − 1)``, where n_c and n count the ratings of all such rows.

    Args:
        rating_JN: Category of each of N rows by each of J raters as a number (bool: 0 and 1); None or NaN is missing.
            Rows with fewer than two ratings are left out.
        cluster: Prompt of each row; the bootstrap draws whole prompts.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.

    Returns:
        Alpha ≤ 1; 0 is chance, n counts rows or clusters. NaN where all ratings are equal or none can be paired;
        resamples without a value open the interval to [−1, 1].

    Source: Krippendorff (2019), Content Analysis, 4th ed., chapter 12.
    """
    rating = as_float(rating_JN)
    paired_N = (~np.isnan(rating)).sum(axis=0) >= 2
    group = None if cluster is None else np.asarray(cluster)[paired_N]
    rating = rating[:, paired_N]
    if not rating.size:
        return undefined("bootstrap" if cluster is None else "cluster bootstrap", 0, confidence)
    category_C = np.unique(rating[~np.isnan(rating)])
    count_NC = (rating[:, :, None] == category_C).sum(axis=0).astype(np.float64)
    total_N1 = count_NC.sum(axis=1, keepdims=True)
    disagreement_N1 = (count_NC * (total_N1 - count_NC) / (total_N1 - 1)).sum(axis=1, keepdims=True)
    addend_NK = np.hstack([disagreement_N1, count_NC])
    return clipped(bootstrap_sums(_alpha, addend_NK, group, seed=seed, confidence=confidence), -1.0, 1.0)


def _pair(
    first: str, second: str, first_N: F64, second_N: F64, prompt_N: Labels, seed: int, confidence: float
) -> PairAgreement:
    decided_first, decided_second, _ = _both_decided(first_N, second_N, None)
    cell_4 = _cells(decided_first, decided_second).sum(axis=0)
    both_yes, only_first, only_second, both_no = (int(count) for count in cell_4)
    return PairAgreement(
        first=first,
        second=second,
        both_yes=both_yes,
        only_first=only_first,
        only_second=only_second,
        both_no=both_no,
        raw=raw_agreement(first_N, second_N, prompt_N, seed, confidence),
        kappa=cohen_kappa(first_N, second_N, prompt_N, seed, confidence),
    )


def _both_decided(
    first_N: npt.ArrayLike, second_N: npt.ArrayLike, cluster: Labels | None
) -> tuple[F64, F64, Labels | None]:
    """Verdicts (0 or 1) and clusters of the rows that both raters decided."""
    first, second = as_float(first_N), as_float(second_N)
    if first.shape != second.shape:
        raise ValueError(f"Two raters need the same rows, not {first.size} and {second.size}.")
    kept_N = ~(np.isnan(first) | np.isnan(second))
    return first[kept_N], second[kept_N], None if cluster is None else np.asarray(cluster)[kept_N]


def _cells(first_N: F64, second_N: F64) -> F64:
    """Both yes, only the first, only the second, both no: one column each, ``[N, 4]``."""
    yes, also = first_N > 0, second_N > 0
    return np.stack([yes & also, yes & ~also, ~yes & also, ~yes & ~also], axis=-1).astype(np.float64)


def _kappa(cell_R4: F64) -> F64:
    both_yes, only_first, only_second, both_no = cell_R4.T
    n_R = cell_R4.sum(axis=1)
    chance_R = (both_yes + only_first) * (both_yes + only_second) + (both_no + only_first) * (both_no + only_second)
    above_R = n_R * (both_yes + both_no) - chance_R  # times n², so that counts stay whole numbers
    return ratio_of_sums(np.stack([above_R, n_R**2 - chance_R], axis=-1))


def _alpha(sum_RK: F64) -> F64:
    """Alpha of the disagreement (first column) and the count of each category (the others)."""
    count_RC = sum_RK[:, 1:]
    n_R = count_RC.sum(axis=1)
    expected_R = (count_RC * (n_R[:, None] - count_RC)).sum(axis=1)
    observed_R = (n_R - 1) * sum_RK[:, 0]
    return np.asarray(1 - ratio_of_sums(np.stack([observed_R, expected_R], axis=-1)))
