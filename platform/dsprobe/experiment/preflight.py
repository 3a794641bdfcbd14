"""Dry run of rendering: every condition's prompts meet their attack before any weights are read."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsprobe.attacks import Attack
from dsprobe.attacks.in_loop import check_steps
from dsprobe.attacks.realise import realise
from dsprobe.config import DecodingConfig
from dsprobe.decoding.schedule import planned_steps
from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.models.base import LanguageModel
from dsprobe.models.checkpoint import CheckpointFacts
from dsprobe.models.info import model_info
from dsprobe.models.tokenization import load_tokenizer
from dsprobe.prompts.base import PromptSet


class TokenizerOnly(LanguageModel):
    """What an attack may ask of a model, without the model: its facts and its tokenizer."""

    def __init__(self, facts: CheckpointFacts, tokenizer: PreTrainedTokenizerBase) -> None:
        self.info = model_info(facts, tokenizer)
        self.tokenizer = tokenizer
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def head(self, hidden_ND: Tensor) -> NoReturn:
        """There are no weights."""
        raise AssertionError("rendering a prompt must not run the model")

    @property
    def head_weight_VD(self) -> NoReturn:
        """There are no weights."""
        raise AssertionError("rendering a prompt must not run the model")


def stand_in(facts: CheckpointFacts) -> TokenizerOnly | None:
    """A model's stand-in; `None` for a hub id, whose tokenizer is fetched with the weights.

    Raises:
        CheckpointError: The folder has no tokenizer, or the tokenizer no chat template.
    """
    if facts.path is None:
        return None
    tokenizer = load_tokenizer(facts.path, facts)
    if tokenizer is None or tokenizer.chat_template is None:
        lacks = "tokenizer" if tokenizer is None else "chat template"
        raise CheckpointError(
            f"Model `{facts.name}`: {facts.path} has no {lacks}; prompts cannot be rendered without it."
        )
    return TokenizerOnly(facts, tokenizer)


def check_rendering(
    attack: Attack, prompts: PromptSet, model: TokenizerOnly, decoding: DecodingConfig, *, every: bool = False
) -> None:
    """Render a set's first and longest prompt, or every one.

    Args:
        attack: Composes without running the model.
        prompts: The set.
        model: Tokenizer and facts.
        decoding: Reply length and steps.
        every: For attacks that read a file or a prompt's metadata, which may lack a prompt or hold a
            text of any length.

    Raises:
        ConfigError: The attack does not fit the model, the reply length, the decoding's steps, or the model's trained
            length.
    """
    few = (prompts.prompts[0], max(prompts.prompts, key=lambda prompt: len(prompt.text)))
    for prompt in prompts.prompts if every else few:
        row = realise(attack.compose(prompt, model, decoding.reply_length), prompt, model, decoding.reply_length)
        check_steps([row], planned_steps(decoding), model.info.mask_token_id)
        length, limit = max(len(row.tokens), row.response_end), model.info.max_positions
        if limit and length > limit:
            raise ConfigError(
                f"Prompt `{prompt.id}` with its reply takes {length} positions; `{model.info.name}` has {limit}."
            )
