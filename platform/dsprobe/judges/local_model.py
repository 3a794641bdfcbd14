"""A causal model that a judge owns: its tokenizer at once, its weights when a first verdict needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsprobe.config import ModelConfig
from dsprobe.decoding.canvas import bucket_length
from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.experiment.preflight import TokenizerOnly
from dsprobe.judges.own_model import OwnModel
from dsprobe.models import hub
from dsprobe.models.base import CausalModel
from dsprobe.models.chat import decode_reply, require_tokenizer
from dsprobe.models.checkpoint import CheckpointFacts, inspect_checkpoint, local_folder
from dsprobe.models.load import load_model
from dsprobe.models.scoring import BATCH_SIZE
from dsprobe.models.tokenization import load_tokenizer

WORD_MARKS = "▁Ġ "
"""How tokenizers mark the start of a word inside a token."""


class LocalModel:
    """A judge's causal model.

    Every forward pass has `BATCH_SIZE` rows (the last batch is filled up) and a width that follows from the row alone,
    so a row's result does not depend on the rows beside it.

    Args:
        config: Which model, and where it is placed.
        name: The judge's name, for messages.

    Raises:
        ConfigError: The path is neither a folder nor a pinned hub id, or the model is not autoregressive.
        CheckpointError: The folder is no supported checkpoint, or has no tokenizer.
        PrerequisiteError: A hub id is not cached and cannot be fetched.
    """

    def __init__(self, config: OwnModel, name: str) -> None:
        self.config = config.model_config_named(name)
        self.where = f"Judge `{name}`: {config.path}"
        _refuse_adapter(self.config, self.where)
        self.facts = inspect_checkpoint(self.config)
        if self.facts.kind != "autoregressive":
            raise ConfigError(f"{self.where} is a {self.facts.kind} model; a judge needs an autoregressive one.")
        tokenizer = load_tokenizer(self.facts.path or hub.fetch_folder(self.config, weights=False), self.facts)
        if tokenizer is None:
            raise CheckpointError(f"{self.where} has no tokenizer.")
        self.reader = TokenizerOnly(self.facts, tokenizer)

    @cached_property
    def model(self) -> CausalModel:
        """The model, loaded at first use."""
        model = load_model(self.config)
        assert isinstance(model, CausalModel)
        return model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; needs no weights."""
        return require_tokenizer(self.reader)

    def identity(self) -> dict[str, Any]:
        """What decides the model's answers, as JSON values; not where its folder lies."""
        return model_identity(self.facts) | {"dtype": self.config.dtype, "attention": self.config.attention}

    def fits(self, tokens: Sequence[int], new_tokens: int = 0) -> bool:
        """Whether a row and what is to follow it lie within the model's trained length."""
        return not self.facts.max_positions or len(tokens) + new_tokens <= self.facts.max_positions

    def word_ids(self, word: str) -> list[int]:
        """Tokens whose whole text is a word, in any case and with or without a leading space.

        Raises:
            CheckpointError: There is none.
        """
        ids = [token for text, token in self.tokenizer.get_vocab().items() if _bare(text) == word.lower()]
        if not ids:
            raise CheckpointError(f"{self.where} has no token for the answer `{word}`; it is not a judge of this kind.")
        return sorted(ids)

    def next_logits(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Logits of the token after each row, batch by batch.

        Args:
            rows: Token ids.

        Yields:
            Indices of rows, and their logits ``[len(indices), V]`` in float32.
        """
        for indices, tokens_BT, real_BT in self._batches(rows):
            yield indices, self._forward(tokens_BT, real_BT)[: len(indices)]

    @torch.inference_mode()
    def _forward(self, tokens_BT: Tensor, real_BT: Tensor) -> Tensor:
        hidden_BTD, _ = self.model.hidden(tokens_BT, real_BT, None)
        return self.model.head(hidden_BTD[:, -1]).float()

    def generate(self, rows: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        """Greedy continuations.

        Args:
            rows: Token ids.
            max_tokens: Longest answer.

        Returns:
            Text of each answer up to its end-of-text token.
        """
        answers = [""] * len(rows)
        for indices, tokens_BT, real_BT in self._batches(rows):
            new_BN = self._continue(tokens_BT, real_BT, max_tokens)
            for index, tokens_N in zip(indices, new_BN.tolist(), strict=False):  # repeated rows are left over
                answers[index] = decode_reply(self.model, tokens_N)
        return answers

    @torch.inference_mode()
    def _continue(self, tokens_BT: Tensor, real_BT: Tensor, max_tokens: int) -> Tensor:
        """Greedy tokens ``[B, N]``, N ≤ `max_tokens`; what follows a row's end-of-text token means nothing."""
        info = self.model.info
        ends = torch.tensor(info.eos_token_ids, device=tokens_BT.device)
        never = torch.tensor([i for i in info.suppressed_token_ids if i not in info.eos_token_ids], dtype=torch.long)
        done_B = torch.zeros(len(tokens_BT), dtype=torch.bool, device=tokens_BT.device)
        found: list[Tensor] = []
        fresh_BT, cache = tokens_BT, None
        while len(found) < max_tokens and not bool(done_B.all()):
            hidden_BTD, cache = self.model.hidden(fresh_BT, real_BT, cache)
            logits_BV = self.model.head(hidden_BTD[:, -1])
            logits_BV.index_fill_(-1, never.to(logits_BV.device), torch.finfo(logits_BV.dtype).min)
            found.append(logits_BV.argmax(dim=-1))
            done_B |= torch.isin(found[-1], ends)
            fresh_BT = found[-1][:, None]
            real_BT = torch.cat([real_BT, torch.ones_like(fresh_BT, dtype=torch.bool)], dim=1)
        return torch.stack(found, dim=1)

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Rows of one bucket, padded on the left: indices, tokens ``[BATCH_SIZE, T]`` and where they are real."""
        if not rows:
            return  # and no weights are loaded
        buckets: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            buckets.setdefault(bucket_length(len(row)), []).append(index)
        device, pad = self.model.device, self.model.info.pad_token_id
        for width, members in sorted(buckets.items()):
            for start in range(0, len(members), BATCH_SIZE):
                part = members[start : start + BATCH_SIZE]
                filled = (part + part[-1:] * BATCH_SIZE)[:BATCH_SIZE]
                pads = torch.tensor([width - len(rows[index]) for index in filled], device=device)
                tokens = [[pad] * (width - len(rows[index])) + list(rows[index]) for index in filled]
                real_BT = torch.arange(width, device=device)[None] >= pads[:, None]
                yield part, torch.tensor(tokens, device=device), real_BT


def model_identity(facts: CheckpointFacts) -> dict[str, Any]:
    """Id, revision and digest of a checkpoint, as JSON values."""
    return {"model": facts.name, "revision": facts.revision, "digest": facts.digest}


def _bare(token: str) -> str:
    return token.lstrip(WORD_MARKS).lower()


def _refuse_adapter(config: ModelConfig, where: str) -> None:
    folder = local_folder(config)
    if folder is not None and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{where} is a LoRA adapter, not a model. Merge it into its base model (PEFT: `merge_and_unload`), save "
            "the result as safetensors with its tokenizer, and give that folder."
        )
