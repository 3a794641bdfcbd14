"""What the attacks share: the chat turn before the reply, texts as tokens, and the checks on both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dsprobe.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dsprobe.models.base import LanguageModel
    from dsprobe.prompts.base import Prompt


def request_text(prompt: Prompt) -> str:
    """The user's message: the request, after its context where it has one (joined as HarmBench's baselines do)."""
    return f"{prompt.context}\n\n---\n\n{prompt.text}" if prompt.context else prompt.text


def chat_prefix(prompt: Prompt, model: LanguageModel) -> list[int]:
    """Tokens of the user's turn up to where the assistant's reply begins.

    Raises:
        ConfigError: The prompt holds the mask token's text, which would open undecided positions in the user's turn.
        CheckpointError: The model has no tokenizer or no chat template.
    """
    tokens = model.chat_tokens([{"role": "user", "content": request_text(prompt)}])
    if model.info.mask_token_id in tokens:
        raise ConfigError(
            f"Prompt `{prompt.id}` holds the mask token's text; only attacks such as `dija` write masks into the "
            "user's turn."
        )
    return tokens


def mask_text(model: LanguageModel, mask_token_id: int) -> str:
    """How the tokenizer spells the mask token."""
    return str(_tokenizer(model).convert_ids_to_tokens(mask_token_id))


def eos_id(model: LanguageModel) -> int:
    """The end-of-text token that fills a reply.

    Raises:
        ConfigError: The model has none.
    """
    if not model.info.eos_token_ids:
        raise ConfigError(f"`{model.info.name}` has no end-of-text token to fill the reply with; use `tail: mask`.")
    return model.info.eos_token_ids[0]


def encode(text: str, model: LanguageModel) -> list[int]:
    """Token ids of a piece of given text, without special tokens around it.

    Raises:
        ConfigError: The text has no token, words that the tokenizer does not know, or the mask token's text.
        CheckpointError: The model has no tokenizer.
    """
    tokenizer = _tokenizer(model)
    tokens: list[int] = list(tokenizer.encode(text, add_special_tokens=False))
    if not tokens:
        raise ConfigError(f"`{text}` has no token in the vocabulary of `{model.info.name}`.")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        # One word, not the text: a case or a reply from a file may be harmful.
        words = (w for w in text.split() if tokenizer.unk_token_id in tokenizer.encode(w, add_special_tokens=False))
        raise ConfigError(f"The vocabulary of `{model.info.name}` lacks `{next(words, '…')}`, which is to be written.")
    if model.info.mask_token_id in tokens:
        raise ConfigError(
            f"A text of {len(text)} characters holds the mask token's text; what is written is given and never masked."
        )
    return tokens


def segments_at(pieces: Iterable[tuple[int, str]], model: LanguageModel, reply_length: int) -> tuple[str | int, ...]:
    """Texts at reply positions as segments of `AttackCase.reply`, masks between them.

    Args:
        pieces: Reply position (0 is the first) and text written from there on, in any order.
        model: Counts the texts' tokens.
        reply_length: Response positions.

    Raises:
        ConfigError: A piece does not fit the reply, or two pieces overlap.
    """
    segments: list[str | int] = []
    free = 0
    for start, text in sorted(pieces):
        size = len(encode(text, model))
        if start < free:
            raise ConfigError(
                f"The text at reply position {start} starts inside the one before it, which ends at {free}; a longer "
                "reply or positions farther apart are needed."
            )
        if start + size > reply_length:
            raise ConfigError(
                f"The text at reply position {start} needs {size} positions and ends at {start + size}, and the reply "
                f"has {reply_length}."
            )
        segments += [start - free, text] if start > free else [text]
        free = start + size
    return tuple(segments)


def plain_text(value: Any) -> str:
    """Check a text that is written as it stands (a pydantic validator).

    Raises:
        ValueError: It is blank, or holds ``{goal}``, which nobody would fill.
    """
    text = str(value)
    if not text.strip():
        raise ValueError("a text is needed")
    if "{goal}" in text:
        raise ValueError("the text is written as it stands; `{goal}` is not filled in")
    return text


def _tokenizer(model: LanguageModel) -> PreTrainedTokenizerBase:
    if model.tokenizer is None:
        raise CheckpointError(f"{model.info.name}: the checkpoint has no tokenizer, so no text can be written.")
    return model.tokenizer
