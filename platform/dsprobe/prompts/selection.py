"""Which prompts of a set are used: filters, and a stratified sample that is the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.prompts.base import Prompt


def select(prompts: Sequence[Prompt], config: PromptsConfig) -> list[Prompt]:
    """Filter by category and label, then sample; what is left stays in its order.

    Raises:
        ConfigError: A category is unknown, nothing is left, or the sample is larger than what the filters left.
    """
    kept = list(prompts)
    if config.categories is not None:
        known = {prompt.category for prompt in prompts}
        for category in config.categories:
            if category not in known:
                raise unknown_name(f"category of prompts `{config.key}`", category, known)
        kept = [prompt for prompt in kept if prompt.category in config.categories]
    if config.keep != "all":
        kept = [prompt for prompt in kept if prompt.harmful == (config.keep == "harmful")]
    if not kept:
        raise ConfigError(f"prompts `{config.key}`: no prompt is left by `categories` and `keep: {config.keep}`.")
    return kept if config.sample.size is None else _sampled(kept, config.sample.size, config)


def _sampled(prompts: Sequence[Prompt], size: int, config: PromptsConfig) -> list[Prompt]:
    if size > len(prompts):
        raise ConfigError(f"prompts `{config.key}`: `sample.size` is {size}; there are {len(prompts)} prompts.")
    return stratified(prompts, [_stratum(prompt, config) for prompt in prompts], size, config.sample.seed)


def _stratum(prompt: Prompt, config: PromptsConfig) -> str:
    return prompt.category if config.sample.by == "category" else str(prompt.harmful)


def stratified(prompts: Sequence[Prompt], strata: Sequence[str], size: int, seed: int) -> list[Prompt]:
    """Draw a stratified sample without replacement.

    A stratum's prompts are ranked by a hash of the seed and their content, and the first `allocate`d ones are taken.
    So which prompts a stratum gives depends on its own prompts and its share, and neither on the order of the file nor
    on what the other strata hold.

    Args:
        prompts: The set.
        strata: The stratum of each prompt.
        size: Number of prompts to draw, at most all.
        seed: Another seed draws another sample.

    Returns:
        The drawn prompts in their order in the set.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    shares = allocate({stratum: len(indices) for stratum, indices in members.items()}, size)
    drawn = []
    for stratum, indices in members.items():
        drawn += sorted(indices, key=lambda index: _rank(prompts[index], seed))[: shares[stratum]]
    return [prompts[index] for index in sorted(drawn)]


def _rank(prompt: Prompt, seed: int) -> bytes:
    return hashlib.sha256(json.dumps([seed, prompt.context, prompt.text]).encode()).digest()


def allocate(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """Share a sample out among strata in proportion to their sizes, by largest remainder (Hamilton's method).

    Where the sample has room for all strata, none is left out: a stratum whose quota is below one gets one. Equal
    remainders are decided by the strata's names.

    Args:
        counts: Stratum → number of its rows, each 1 or more.
        size: Rows to share out, at most all.

    Returns:
        Stratum → rows, in all `size`, none more than the stratum has.
    """
    total = sum(counts.values())
    quotas = {stratum: Fraction(size * count, total) for stratum, count in counts.items()}
    least = 1 if size >= len(counts) else 0
    shares = {stratum: max(least, int(quota)) for stratum, quota in quotas.items()}
    while (missing := size - sum(shares.values())) != 0:
        step = 1 if missing > 0 else -1
        open_to = [stratum for stratum in counts if step > 0 or shares[stratum] > least]
        # The stratum that its share treats worst (or, when rows must be taken back, best).
        chosen = min(open_to, key=lambda stratum: (step * (shares[stratum] - quotas[stratum]), stratum))
        shares[chosen] += step
    return shares
