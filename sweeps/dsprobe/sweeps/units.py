"""Rows matched by what they are, summed per prompt, and prompts resampled.

An objective is a ratio of sums over rows. With both sums kept per prompt, a bootstrap over prompts is one matrix
product for all settings, objectives and resamples at once, and it is paired: every setting sees the same drawn prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsprobe.experiment.outcomes import F64, I64, RowOutcomes, Text


@dataclass(frozen=True, slots=True)
class Contribution:
    """What each of N rows adds to the two sums of an objective; both 0 where a row does not count."""

    numerator_N: F64
    denominator_N: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSums:
    """Numerators and denominators of D objectives, summed over the rows of each of U prompts.

    Prompts (prompt set + prompt id) are sorted by label, so that equal sets of rows give equal arrays, bit by bit,
    whatever order the rows came in.
    """

    prompts_U: Text
    """Prompt-set label: the stratum of the bootstrap."""
    prompt_id_U: Text
    numerator_DU: F64
    denominator_DU: F64

    @property
    def values_D(self) -> F64:
        """The objectives; NaN where no row counts."""
        return _ratio(self.numerator_DU.sum(axis=1), self.denominator_DU.sum(axis=1))

    @property
    def counted_D(self) -> I64:
        """Prompts with a row that counts, per objective."""
        return np.asarray(np.count_nonzero(self.denominator_DU, axis=1), np.int64)

    def covers(self, other: UnitSums) -> bool:
        """Whether both are over the same prompts."""
        return np.array_equal(self.prompts_U, other.prompts_U) and np.array_equal(self.prompt_id_U, other.prompt_id_U)


def aligned(rows: RowOutcomes, to: RowOutcomes) -> RowOutcomes:
    """Those of `rows` that `to` has, in the order of `to`.

    Rows are the same when condition, prompt id and sample are; positions mean nothing.

    Raises:
        ValueError: A row is missing from `rows`, or is there twice.
    """
    if all(np.array_equal(a, b) for a, b in zip(_key(rows), _key(to), strict=True)):
        return rows
    known_N, wanted_N = _codes(rows, to)
    order = np.argsort(known_N, kind="stable")
    ranked_N = known_N[order]
    if bool(np.any(ranked_N[1:] == ranked_N[:-1])) or len(np.unique(wanted_N)) < len(wanted_N):
        raise ValueError("A row (condition, prompt id, sample) is there twice.")
    place_N = np.searchsorted(ranked_N, wanted_N)
    found_N = place_N < len(ranked_N)
    found_N[found_N] = ranked_N[place_N[found_N]] == wanted_N[found_N]
    if not found_N.all():
        first = int(np.flatnonzero(~found_N)[0])
        row = f"{to.condition[first]}, prompt `{to.prompt_id[first]}`, sample {to.sample[first]}"
        raise ValueError(f"{np.count_nonzero(~found_N)} of {len(to)} rows have no counterpart, the first one {row}.")
    return rows.select(order[place_N])


def sum_units(outcomes: RowOutcomes, contributions: Sequence[Contribution]) -> UnitSums:
    """Add up the contributions of N rows per prompt, in canonical order.

    Args:
        outcomes: The rows.
        contributions: One per objective.
    """
    order = np.lexsort((outcomes.sample, outcomes.condition, outcomes.prompt_id, outcomes.prompts))
    prompts_N, prompt_id_N = outcomes.prompts[order], outcomes.prompt_id[order]
    new_N = np.ones(len(order), np.bool_)
    new_N[1:] = (prompts_N[1:] != prompts_N[:-1]) | (prompt_id_N[1:] != prompt_id_N[:-1])
    start_U = np.flatnonzero(new_N)

    def summed(columns: Sequence[F64]) -> F64:
        rows_DN = np.array(columns, np.float64).reshape(len(columns), -1)[:, order]
        return np.add.reduceat(rows_DN, start_U, axis=1) if len(start_U) else rows_DN

    return UnitSums(
        prompts_U=prompts_N[start_U],
        prompt_id_U=prompt_id_N[start_U],
        numerator_DU=summed([c.numerator_N for c in contributions]),
        denominator_DU=summed([c.denominator_N for c in contributions]),
    )


def prompt_weights(prompts_U: Text, resamples: int, seed: int) -> F64:
    """How often each prompt is drawn in each bootstrap resample, ``[R, U]``.

    Prompts are drawn with replacement within their prompt set, whose size the experiment fixes: a resample never has
    more harmful and fewer benign prompts than the experiment.

    Args:
        prompts_U: Prompt set of each prompt.
        resamples: Number of resamples R.
        seed: Equal seeds and prompt sets give equal weights.

    Source: Efron & Tibshirani (1993), chapters 6 and 8; multinomial weights are the same bootstrap.
    """
    weights_RU = np.zeros((resamples, len(prompts_U)))
    rng = np.random.default_rng(seed)
    for label in np.unique(prompts_U):
        members = np.flatnonzero(prompts_U == label)
        weights_RU[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return weights_RU


def resampled_values(sums: Sequence[UnitSums], weights_RU: F64) -> F64:
    """Objectives of P settings on the same R resamples, ``[P, R, D]``; NaN where no drawn row counts.

    Equal sums are multiplied once, so that equal settings tie exactly, whatever the order of summation in the product.

    Args:
        sums: Settings on the same prompts.
        weights_RU: From `prompt_weights`.
    """
    stacked = np.concatenate([part for s in sums for part in (s.numerator_DU, s.denominator_DU)])
    different, which = np.unique(stacked, axis=0, return_inverse=True)
    product_RK = weights_RU @ different.T
    total_RP2D = product_RK[:, which.reshape(-1)].reshape(len(weights_RU), len(sums), 2, -1)
    return _ratio(total_RP2D[:, :, 0], total_RP2D[:, :, 1]).transpose(1, 0, 2)


def _ratio(numerator: F64, denominator: F64) -> F64:
    undefined = np.full(numerator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator != 0), np.float64)


def _key(rows: RowOutcomes) -> tuple[Text, Text, I64]:
    return rows.condition, rows.prompt_id, rows.sample


def _codes(first: RowOutcomes, second: RowOutcomes) -> tuple[I64, I64]:
    """Each row's key as one integer, equal for equal keys."""
    code: npt.NDArray[np.int64] = np.zeros(len(first) + len(second), np.int64)
    for a, b in zip(_key(first), _key(second), strict=True):
        labels, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
        code = code * len(labels) + inverse
    return code[: len(first)], code[len(first) :]
