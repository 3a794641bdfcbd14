"""Tokenizers of checkpoints, loaded from data files only, and the token ids that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

from transformers import (
    AddedToken,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from dsprobe.errors import CheckpointError
from dsprobe.models.checkpoint import CheckpointFacts, unique_ids
from dsprobe.models.toy import TURN_MARKERS

TURN_END: Final = {"dream": "<|im_end|>", "llada": "<|eot_id|>"}
"""Tokens that end a chat turn beside the end-of-text token named in `config.json`."""


def load_tokenizer(folder: Path, facts: CheckpointFacts) -> PreTrainedTokenizerBase | None:
    """Load a folder's tokenizer without running code from the folder.

    The mask token is registered under its id, so that its text is never split.

    Returns:
        The tokenizer, or `None` when the folder has no tokenizer files.

    Raises:
        CheckpointError: The files need code of their own, or name no known tokenizer class.
    """
    tokenizer = _load(folder, facts)
    if tokenizer is not None and facts.mask_token_id is not None:
        _register_mask(tokenizer, facts.mask_token_id)
    return tokenizer


def _load(folder: Path, facts: CheckpointFacts) -> PreTrainedTokenizerBase | None:
    has_file = (folder / "tokenizer.json").is_file()
    has_pieces = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    # The published classes of diffusion models exist in `auto_map` only; the data files are all that is needed.
    data_class: Any = PreTrainedTokenizerFast if has_file else Qwen2Tokenizer
    if facts.family == "causal":
        if not has_file and not (folder / "tokenizer_config.json").is_file():
            return None
        load = partial(AutoTokenizer.from_pretrained, trust_remote_code=False)
    elif has_file or has_pieces:
        load = data_class.from_pretrained
    else:
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = load(folder)
    except Exception as error:  # `tokenizers` raises nothing narrower for files that it cannot read
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded: {str(error)[:300]}") from error
    return tokenizer


def _register_mask(tokenizer: PreTrainedTokenizerBase, mask_token_id: int) -> None:
    text = tokenizer.convert_ids_to_tokens(mask_token_id)
    if tokenizer.mask_token_id == mask_token_id or not isinstance(text, str):
        return
    tokenizer.add_special_tokens({"mask_token": AddedToken(text, special=True, normalized=False)})


def eos_token_ids(facts: CheckpointFacts, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """Tokens that end a reply: those of the configuration, the tokenizer, and the family's end of turn."""
    if tokenizer is None:
        return facts.eos_token_ids
    turn_end = tokenizer.get_vocab().get(TURN_END.get(facts.family, ""))
    return unique_ids(facts.eos_token_ids, tokenizer.eos_token_id, turn_end)


def suppressed_token_ids(
    facts: CheckpointFacts, tokenizer: PreTrainedTokenizerBase | None, named: Iterable[int] = ()
) -> tuple[int, ...]:
    """Tokens that no reply should hold: the mask, rows of the head without a token, toy turn markers.

    Args:
        facts: Supplies mask and vocabulary size.
        tokenizer: Supplies the vocabulary.
        named: `suppressed_token_ids` of `config.json`, if it has any.
    """
    suppressed = set(named) if facts.mask_token_id is None else {*named, facts.mask_token_id}
    if tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        suppressed |= set(range(facts.vocab_size)) - set(vocabulary.values())
        if facts.family.startswith("toy"):
            suppressed |= {vocabulary[name] for name in TURN_MARKERS if name in vocabulary}
    return tuple(sorted(suppressed))
