"""Suffixes between token ids and text: what one may hold, and whether it comes back as it went in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dsprobe.attacks.rendering import request_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dsprobe.models.base import LanguageModel
    from dsprobe.prompts.base import Prompt


def allowed_tokens(model: LanguageModel, among: Iterable[int] | None = None) -> list[int]:
    """Ids of the tokens that a suffix may hold: printable ASCII text; no special, added or suppressed token.

    Args:
        model: Supplies tokenizer and facts.
        among: Ids to choose from; `None` for the whole vocabulary.

    Returns:
        Ascending ids.

    Raises:
        CheckpointError: The model has no tokenizer.
    """
    tokenizer, info = _tokenizer(model), model.info
    forbidden = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values(), *info.suppressed_token_ids}
    forbidden |= {*info.eos_token_ids, info.pad_token_id}
    ids = tokenizer.get_vocab().values() if among is None else among
    return [t for t in sorted(set(ids) - forbidden) if t < info.vocab_size and _is_plain(_decode([t], model))]


def suffix_text(suffix: Iterable[int], model: LanguageModel) -> str:
    """A suffix as it is written behind the request, set off by a space."""
    text = _decode(suffix, model)
    return text if text[:1].isspace() else f" {text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A prompt's chat turn with a place for a suffix of a fixed number of tokens."""

    prompt: Prompt
    model: LanguageModel
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def around(cls, suffix: tuple[int, ...], prompt: Prompt, model: LanguageModel) -> Self | None:
        """The turn that a suffix stands in; `None` where the suffix does not come out of the tokenizer as it went in.

        Args:
            suffix: At least one token id.
            prompt: The request before it.
            model: Supplies tokenizer and chat template.
        """
        tokens, size = _render(suffix, prompt, model), len(suffix)
        # From the end: the request may hold the same tokens, and the template writes little behind the suffix.
        for start in range(len(tokens) - size, -1, -1):
            if tokens[start : start + size] == suffix:
                return cls(prompt=prompt, model=model, before=tokens[:start], after=tokens[start + size :])
        return None

    def survives(self, suffix: tuple[int, ...]) -> bool:
        """Whether the text of a suffix gives the same tokens inside the turn, and leaves the others as they were."""
        return _render(suffix, self.prompt, self.model) == self.before + suffix + self.after


def _render(suffix: tuple[int, ...], prompt: Prompt, model: LanguageModel) -> tuple[int, ...]:
    content = request_text(prompt) + suffix_text(suffix, model)
    return tuple(model.chat_tokens([{"role": "user", "content": content}]))


def _tokenizer(model: LanguageModel) -> PreTrainedTokenizerBase:
    from dsprobe.models.chat import require_tokenizer

    return require_tokenizer(model)


def _decode(tokens: Iterable[int], model: LanguageModel) -> str:
    decoded = _tokenizer(model).decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(decoded)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and not text.isspace() and bool(text)
