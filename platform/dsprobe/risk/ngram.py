"""Logistic regression on hashed token uni- and bigrams: cheap, and deliberately imperfect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dsprobe.errors import CheckpointError, ConfigError, PrerequisiteError
from dsprobe.models.base import LanguageModel
from dsprobe.registry import ComponentConfig
from dsprobe.risk.base import RiskInput, RiskOutput, RiskScorer, View
from dsprobe.toy.assets import assets_dir
from dsprobe.toy.tokenizer import tokenizer_digest
from dsprobe.untrusted import local_path

NUM_BUCKETS: Final = 4096
"""Hash buckets that uni- and bigrams share."""
_WORD, _LEFT, _RIGHT, _OFFSET = 2_654_435_761, 2_246_822_519, 3_266_489_917, 668_265_263
_LOW_32, _SHIFT = 0xFFFF_FFFF, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramFeatures:
    """Buckets of the n-grams of N canvases; `NUM_BUCKETS` stands for "no n-gram here"."""

    unigram_NL: Tensor
    """Bucket of the token at each position."""
    bigram_NL: Tensor
    """Bucket of the pair that starts at each position; there is none at the last."""

    def counts(self) -> Tensor:
        """How often each bucket occurs, float32 ``[N, NUM_BUCKETS]``."""
        both = torch.cat([self.unigram_NL, self.bigram_NL], dim=1)
        count = torch.zeros(both.shape[0], NUM_BUCKETS + 1, device=both.device)
        return count.scatter_add_(1, both, torch.ones_like(both, dtype=torch.float32))[:, :-1]


def ngram_features(tokens_NL: Tensor, kept_NL: Tensor) -> NgramFeatures:
    """Hash the uni- and bigrams of the kept tokens.

    A bigram is two kept tokens at neighbouring positions: a mask between two words separates them, since what it will
    become is open. The hash is multiplicative (Knuth, TAOCP 3 §6.4) on token ids, in 64-bit integers on any device.

    Args:
        tokens_NL: Token ids below 2¹⁷, int64.
        kept_NL: True where the token counts: inside the response, and no special token.
    """
    pair_NL = kept_NL & torch.roll(kept_NL, -1, dims=1)
    pair_NL[:, -1] = False
    following_NL = torch.roll(tokens_NL, -1, dims=1)
    unigram_NL = (tokens_NL * _WORD & _LOW_32) >> _SHIFT
    bigram_NL = (tokens_NL * _LEFT + following_NL * _RIGHT + _OFFSET & _LOW_32) >> _SHIFT
    return NgramFeatures(
        unigram_NL=torch.where(kept_NL, unigram_NL, NUM_BUCKETS),
        bigram_NL=torch.where(pair_NL, bigram_NL, NUM_BUCKETS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramWeights:
    """A fitted regression and the tokenizer it was fitted for."""

    weight_F: Tensor
    """Weight of each bucket, float32 ``[NUM_BUCKETS]``."""
    bias: Tensor
    """Float32 scalar."""
    tokenizer: str
    """`tokenizer_digest` of the tokenizer whose ids were hashed."""

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({"weight": self.weight_F, "bias": self.bias.reshape(1)}, path, metadata={"tokenizer": self.tokenizer})

    @classmethod
    def load(cls, path: Path) -> NgramWeights:
        """Read a file that `save` wrote.

        Raises:
            PrerequisiteError: The file does not exist.
            CheckpointError: It is not such a file.
        """
        if not path.is_file():
            raise PrerequisiteError(f"No n-gram weights at {path}. Rebuild them: dsprobe toy train")
        try:
            with safe_open(path, framework="pt") as stream:
                digest = (stream.metadata() or {}).get("tokenizer", "")
                weight_F, bias = stream.get_tensor("weight"), stream.get_tensor("bias")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} does not hold n-gram weights: {error}") from None
        if weight_F.shape != (NUM_BUCKETS,) or bias.numel() != 1:
            raise CheckpointError(f"{path}: {tuple(weight_F.shape)} weights; allowed: ({NUM_BUCKETS},).")
        return cls(weight_F=weight_F, bias=bias.reshape(()), tokenizer=digest)


def countable_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    """Which token ids count as words, bool ``[vocab_size]``: all but special tokens and rows beyond the tokenizer."""
    countable_V = torch.arange(vocab_size) < len(tokenizer)
    countable_V[torch.tensor(tokenizer.all_special_ids, dtype=torch.long)] = False
    return countable_V


class NgramScorer(RiskScorer):
    """Probability that the visible response is harmful, from which words and word pairs are in it.

    Order beyond pairs and counts do not matter. The attribution is each position's positive contribution to the logit,
    divided by their sum: a bucket's weight is split evenly over its occurrences, a pair's over its two words.

    Args:
        config: Which weights.
        model: A model with the tokenizer that the weights were fitted for.

    Raises:
        ConfigError: The weights were fitted for another tokenizer.
        PrerequisiteError: The weights are not installed.
    """

    class Config(ComponentConfig):
        """Settings."""

        weights: Literal["full", "half"] = "full"
        """`full` saw all restricted items in training; `half` only every other one, and misses many of the rest."""
        folder: str | None = None
        """Folder of ``ngram-<weights>.safetensors``; the packaged one when not given."""

    calibrated_on: ClassVar[View] = "committed"

    def __init__(self, config: Config, model: LanguageModel) -> None:
        self.config = config
        folder = assets_dir() if config.folder is None else local_path(config.folder, "scorer `ngram`")
        weights = NgramWeights.load(folder / f"ngram-{config.weights}.safetensors")
        if model.tokenizer is None or tokenizer_digest(model.tokenizer) != weights.tokenizer:
            raise ConfigError(
                f"Scorer `ngram` with weights `{config.weights}` was fitted for another tokenizer than that of model "
                f"`{model.info.name}`. Allowed: models with the tokenizer of digest {weights.tokenizer[:12]}…"
            )
        self._weight_F = weights.weight_F.to(model.device)
        self._bias = weights.bias.to(model.device)
        self._countable_V = countable_tokens(model.tokenizer, model.info.vocab_size).to(model.device)

    def score(self, batch: RiskInput) -> RiskOutput:
        """See `RiskScorer.score`."""
        features = ngram_features(batch.tokens_NL, batch.response_NL & self._countable_V[batch.tokens_NL])
        count_NF = features.counts()
        # A sum over one row's own buckets, not a matrix product: its order never depends on the other rows.
        logit_N = ((count_NF > 0) * self._weight_F).sum(dim=1) + self._bias
        return RiskOutput(risk_N=torch.sigmoid(logit_N), attribution_NL=self._attribution(features, count_NF))

    def _attribution(self, features: NgramFeatures, count_NF: Tensor) -> Tensor:
        gain_NF = self._weight_F.clamp_min(0) / count_NF.clamp_min(1)
        gain_NF = torch.nn.functional.pad(gain_NF, (0, 1))
        half_NL = gain_NF.gather(1, features.bigram_NL) / 2
        gain_NL = gain_NF.gather(1, features.unigram_NL) + half_NL
        gain_NL[:, 1:] += half_NL[:, :-1]
        return gain_NL / gain_NL.sum(dim=1, keepdim=True).clamp_min(torch.finfo(gain_NL.dtype).tiny)
