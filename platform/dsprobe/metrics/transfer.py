"""Do attack artefacts carry over from one model to another, and more one way than the other?

An artefact (one attack's text for one prompt) is found on a source model and tried on both. Verdicts may be None; such
artefacts are left out of what needs them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dsprobe.metrics.intervals import DEFAULT_CONFIDENCE, F64, Bool, Interval, rate
from dsprobe.metrics.outputs import Labels, as_float, ratio_of_means, ratio_of_sums
from dsprobe.metrics.resampling import bootstrap_sums

MIN_STRATUM: Final = 10
"""Fewest prompts that form a stratum of their own; smaller ones are drawn together, since few units vary too little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One direction, from a source to a target, on one set of artefacts."""

    index: Interval
    """Transfer index: ASR_target / ASR_source; NaN where nothing succeeds on the source."""
    conditional: Interval
    """P(success on the target given success on the source), Wilson."""
    source: Interval
    """ASR on the source, Wilson."""
    target: Interval
    """ASR on the target, Wilson."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        names = ("index", "conditional", "source", "target")
        return {name: getattr(self, name).to_dict() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackTransfer:
    """One attack's artefacts in both directions."""

    attack: str
    forward: Transfer
    """From the first model to the second."""
    backward: Transfer
    """From the second model to the first."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {"attack": self.attack, "forward": self.forward.to_dict(), "backward": self.backward.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTable:
    """Transfer between two models, by attack and pooled over the attacks that are native to the source."""

    attacks: tuple[AttackTransfer, ...]
    """All attacks in ascending order of their names, native or not."""
    forward: Transfer
    """First → second, pooled over the attacks that are native to the first model."""
    backward: Transfer
    """Second → first, pooled over the attacks that are native to the second model."""
    asymmetry: Interval
    """Forward minus backward pooled index, from the same resamples of prompts; NaN where either is."""

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {
            "attacks": [attack.to_dict() for attack in self.attacks],
            "forward": self.forward.to_dict(),
            "backward": self.backward.to_dict(),
            "asymmetry": self.asymmetry.to_dict(),
        }


def transfer_index(
    target_N: npt.ArrayLike,
    source_N: npt.ArrayLike,
    cluster: Labels | None = None,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
    strata: Labels | None = None,
) -> Interval:
    """Transfer index: ASR_target / ASR_source on the same attack artefacts, paired bootstrap.

    Args:
        target_N: Success of artefact n on the target model; pairs with an undecided verdict are left out.
        source_N: Success of the same artefact on the source model.
        cluster: Prompt of each artefact, where prompts have several.
        seed: Seed of the bootstrap.
        confidence: Two-sided level.
        strata: Stratum of each artefact, see `dsprobe.metrics.resampling.resampled_sums`.

    Returns:
        The ratio, ≥ 0; undefined (NaN, null in JSON) when nothing succeeds on the source. Resamples without a success
        on the source open the interval to infinity.
    """
    target, source = as_float(target_N), as_float(source_N)
    kept_N = ~(np.isnan(target) | np.isnan(source))
    groups, layers = (None if x is None else np.asarray(x)[kept_N] for x in (cluster, strata))
    return ratio_of_means(target[kept_N], source[kept_N], groups, seed, confidence, layers)


def transfer(
    target_N: npt.ArrayLike,
    source_N: npt.ArrayLike,
    prompt_N: Labels,
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
    strata: Labels | None = None,
) -> Transfer:
    """Index, conditional transfer and both rates on the artefacts that both models' judges decided.

    Arguments as in `transfer_index`. The Wilson intervals take artefacts as independent.
    """
    target, source = as_float(target_N), as_float(source_N)
    kept_N = ~(np.isnan(target) | np.isnan(source))
    hit, found = target[kept_N] > 0, source[kept_N] > 0
    return Transfer(
        index=transfer_index(target, source, prompt_N, seed, confidence, strata),
        conditional=rate(hit[found], confidence),
        source=rate(found, confidence),
        target=rate(hit, confidence),
    )


def transfer_table(
    attack_N: npt.ArrayLike,
    prompt_N: npt.ArrayLike,
    first_N: npt.ArrayLike,
    second_N: npt.ArrayLike,
    first_native: Collection[str],
    second_native: Collection[str],
    seed: int = 0,
    confidence: float = DEFAULT_CONFIDENCE,
) -> TransferTable:
    """Transfer between two models in both directions.

    The pooled index of a direction is a ratio of sums over the artefacts of its native attacks, so attacks weigh by
    their artefacts. Intervals resample prompts with all their artefacts. Resampling is stratified by the set of
    attacks that a prompt has artefacts of, so that the attacks keep their shares; see `MIN_STRATUM`.

    Args:
        attack_N: Attack of each artefact.
        prompt_N: Prompt of each artefact.
        first_N: Success on the first model; None where undecided.
        second_N: Success of the same artefact on the second model.
        first_native: Attacks made for the first model, pooled for first → second.
        second_native: Attacks made for the second model, pooled for second → first.
        seed: Seed of all bootstraps.
        confidence: Two-sided level.

    Raises:
        ValueError: Columns differ in length, or an attack is native to both models.
    """
    attack, prompt = np.asarray(attack_N).astype(np.str_), np.asarray(prompt_N)
    first, second = as_float(first_N), as_float(second_N)
    lengths = {len(column) for column in (attack, prompt, first, second)}
    if len(lengths) > 1:
        raise ValueError(f"Artefact columns must be equally long, not {sorted(lengths)}.")
    both = sorted(set(first_native) & set(second_native))
    if both:
        raise ValueError(f"Attacks cannot be native to both models: {', '.join(both)}.")
    stratum = _strata(attack, prompt)

    def pooled(row_N: Bool, source: F64, target: F64) -> Transfer:
        return transfer(target[row_N], source[row_N], prompt[row_N], seed, confidence, stratum[row_N])

    from_first, from_second = (np.isin(attack, list(native)) for native in (first_native, second_native))
    return TransferTable(
        attacks=tuple(
            AttackTransfer(
                attack=str(name),
                forward=pooled(np.asarray(attack == name), first, second),
                backward=pooled(np.asarray(attack == name), second, first),
            )
            for name in np.unique(attack)
        ),
        forward=pooled(from_first, first, second),
        backward=pooled(from_second, second, first),
        asymmetry=_asymmetry(first, second, from_first, from_second, prompt, stratum, seed, confidence),
    )


def _asymmetry(
    first_N: F64,
    second_N: F64,
    from_first_N: Bool,
    from_second_N: Bool,
    prompt_N: Labels,
    stratum_N: Labels,
    seed: int,
    confidence: float,
) -> Interval:
    """Difference of the two pooled indices; a prompt drawn for one direction is drawn for the other."""
    kept_N = ~(np.isnan(first_N) | np.isnan(second_N)) & (from_first_N | from_second_N)
    first, second = first_N[kept_N], second_N[kept_N]
    forward, backward = from_first_N[kept_N], from_second_N[kept_N]
    addend_N4 = np.stack([second * forward, first * forward, first * backward, second * backward], axis=-1)

    def difference(sum_R4: F64) -> F64:
        return ratio_of_sums(sum_R4[:, :2]) - ratio_of_sums(sum_R4[:, 2:])

    return bootstrap_sums(difference, addend_N4, prompt_N[kept_N], stratum_N[kept_N], seed, confidence=confidence)


def _strata(attack_N: Labels, prompt_N: Labels) -> Labels:
    """Stratum of each artefact: its prompt's set of attacks, 0 for sets of fewer than `MIN_STRATUM` prompts."""
    if not len(attack_N):
        return np.zeros(0, np.int64)
    attacks, attack = np.unique(attack_N, return_inverse=True)
    prompts, unit = np.unique(prompt_N, return_inverse=True)
    has_UA = np.zeros((len(prompts), len(attacks)), np.bool_)
    has_UA[unit, attack] = True
    _, set_U, size = np.unique(has_UA, axis=0, return_inverse=True, return_counts=True)
    set_U = set_U.reshape(-1)
    return np.asarray(np.where(size[set_U] >= MIN_STRATUM, set_U + 1, 0)[unit])
