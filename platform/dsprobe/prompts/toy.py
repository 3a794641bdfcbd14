"""Prompts of the toy world, generated: no file, no real-world meaning."""

from __future__ import annotations

import random
from typing import Final, Literal

from dsprobe.errors import ConfigError, unknown_name
from dsprobe.prompts.base import Prompt, PromptSet, digest_of
from dsprobe.toy.dialogue import MAKE_REQUESTS, Phrasing, Request, make_request, style_for
from dsprobe.toy.grammar import recipe
from dsprobe.toy.world import BENIGN_ITEMS, RESTRICTED_ITEMS, Item

Split = Literal["restricted", "benign", "oversensitive"]

DEFAULT_COUNT: Final = 96
"""Six prompts for each of a split's sixteen items."""
_ITEMS: Final = {"restricted": RESTRICTED_ITEMS, "benign": BENIGN_ITEMS, "oversensitive": BENIGN_ITEMS}


def toy_prompts(split: Split, limit: int | None = None, seed: int = 0, phrasing: Phrasing = "held_out") -> PromptSet:
    """Requests of the form "how is this item made?".

    Items take turns, so that every sixteen consecutive prompts ask for each of the split's items once. Prompt i is a
    pure function of (split, seed, phrasing, i): its id and text do not depend on the limit.

    Args:
        split: `restricted` (the aligned models refuse), `benign`, or `oversensitive`: benign requests that all mention
            a restricted item, as the safe half of XSTest mentions unsafe-sounding things. Refusing one is over-refusal.
        limit: Number of prompts, 1 or more; `DEFAULT_COUNT` when `None`.
        seed: Seed of phrasing, persons and leads.
        phrasing: `held_out` phrasings were never trained on.

    Returns:
        Prompts with ids like ``toy-restricted-0007`` and metadata `item`, `person` (may be empty) and, on benign
        prompts, `decoy`: a restricted item that is mentioned and not asked for (may be empty). Restricted prompts have
        a `reference`: a whole made-up answer as a model without alignment gives it, at most 41 words.

    Raises:
        ConfigError: The split or phrasing is unknown, or the limit is below 1.
    """
    if split not in _ITEMS:
        raise unknown_name("split of the toy prompts", split, _ITEMS)
    if phrasing not in MAKE_REQUESTS:
        raise unknown_name("phrasing of the toy prompts", phrasing, MAKE_REQUESTS)
    count = DEFAULT_COUNT if limit is None else limit
    if count < 1:
        raise ConfigError(f"The limit of the toy prompts is {limit}; allowed: 1 or more.")
    prompts = tuple(_prompt(split, index, seed, phrasing) for index in range(count))
    return PromptSet(
        name=f"toy-{split}",
        prompts=prompts,
        digest=digest_of(prompts),
        synthetic=True,
        limited=count < DEFAULT_COUNT,
    )


def _prompt(split: Split, index: int, seed: int, phrasing: Phrasing) -> Prompt:
    items = _ITEMS[split]
    key = f"{split}/{seed}/{phrasing}/{index}"
    item, rng = items[index % len(items)], random.Random(key)
    request = _with_decoy(item, rng, phrasing) if split == "oversensitive" else make_request(item, rng, phrasing)
    metadata = {"item": item.name, "person": request.person}
    if split == "restricted":
        metadata["reference"] = _reference(request, key)
    else:
        metadata["decoy"] = request.decoy
    return Prompt(
        id=f"toy-{split}-{index:04d}",
        text=request.text,
        harmful=split == "restricted",
        source="toy",
        category=split,
        metadata=metadata,
    )


def _with_decoy(item: Item, rng: random.Random, phrasing: Phrasing) -> Request:
    """A benign request that mentions a restricted item: requests are drawn until one does."""
    while True:
        request = make_request(item, rng, phrasing)
        if request.decoy:
            return request


def _reference(request: Request, key: str) -> str:
    """An answer from a generator of its own, so that asking for it does not change the prompts."""
    rng = random.Random(f"{key}/reference")
    return recipe(request.item, rng, style_for(request.text, rng), request.person)
