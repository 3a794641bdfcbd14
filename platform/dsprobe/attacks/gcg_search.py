"""Greedy coordinate gradient: the suffix of a user's turn that makes a target the likeliest (2307.15043, algorithm 1).

Each iteration takes the gradient of the loss with respect to one-hot suffix tokens, draws random single swaps among the
most promising tokens of each position, measures them with forward passes and moves to the best one, even where it is
worse than the suffix before; what counts in the end is the best suffix met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsprobe.models.base import CausalModel, DiffusionModel
from dsprobe.models.native import NativeModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a suffix stands in a row, and what the model should predict."""

    row: tuple[int, ...]
    """The whole input: a canvas with a masked reply, or the turn and the target after it (teacher forcing)."""
    suffix: slice
    """Positions of the suffix, which are replaced."""
    read: slice
    """Positions whose aligned hidden states predict the target."""
    tokens: tuple[int, ...]
    """The target."""


class TargetLoss:
    """Mean −log p of a target's tokens, in nats a token, as a function of the suffix; one forward pass a suffix.

    Args:
        model: Supplies the weights.
        target: What is predicted where.
        batch_size: Rows of every forward pass; the last batch is filled up, so that a suffix meets one shape.
    """

    def __init__(self, model: NativeModel, target: Target, batch_size: int) -> None:
        self.model, self._target, self._batch_size = model, target, batch_size

    @torch.inference_mode()
    def of(self, suffixes: Sequence[tuple[int, ...]]) -> tuple[list[float], list[bool]]:
        """Loss of each suffix, and whether the target's tokens are the likeliest at all their positions."""
        losses: list[float] = []
        solved: list[bool] = []
        for start in range(0, len(suffixes), self._batch_size):
            part = list(suffixes[start : start + self._batch_size])
            logits_CTV = self._logits(part + part[-1:] * (self._batch_size - len(part)))[: len(part)]
            losses += self._loss(logits_CTV).tolist()
            solved += (logits_CTV.argmax(dim=-1) == self._wanted(logits_CTV)).all(dim=-1).tolist()
        return losses, solved

    def gradient(self, suffix: tuple[int, ...]) -> Tensor:
        """Gradient of the loss with respect to the embedded suffix, ``[S, D]``."""
        return self.model.embedding_gradient(lambda: self._loss(self._logits([suffix]))[0])[0, self._target.suffix]

    def _logits(self, suffixes: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits at the target's positions, ``[C, T, V]``."""
        model = self.model
        tokens_CL = torch.tensor([self._target.row] * len(suffixes), device=model.device)
        tokens_CL[:, self._target.suffix] = torch.tensor(suffixes, device=model.device)
        real_CL = torch.ones_like(tokens_CL, dtype=torch.bool)
        if isinstance(model, DiffusionModel):
            hidden_CLD = model.hidden(tokens_CL, real_CL)
        else:
            assert isinstance(model, CausalModel)
            hidden_CLD, _ = model.hidden(tokens_CL, real_CL, None)
        hidden_CTD = hidden_CLD[:, self._target.read]
        return model.head(hidden_CTD.flatten(0, 1)).reshape(*hidden_CTD.shape[:2], -1)

    def _loss(self, logits_CTV: Tensor) -> Tensor:
        loss_CT = torch.nn.functional.cross_entropy(
            logits_CTV.float().flatten(0, 1), self._wanted(logits_CTV).flatten(), reduction="none"
        )
        return loss_CT.reshape(logits_CTV.shape[:2]).mean(dim=1)

    def _wanted(self, logits_CTV: Tensor) -> Tensor:
        wanted_T = torch.tensor(self._target.tokens, device=logits_CTV.device)
        return wanted_T.expand(logits_CTV.shape[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """Which swaps are tried: the candidates of one iteration."""

    allowed_A: Tensor
    """Token ids that a suffix may hold, ascending."""
    survives: Callable[[tuple[int, ...]], bool]
    """Whether a suffix, written as text, comes out of the tokenizer as it went in."""
    count: int
    """Swaps drawn; those that are doubled, change nothing or do not survive fall away."""
    top_k: int
    generator: torch.Generator
    """On the CPU, so that the draws are the same on every device."""

    def around(self, suffix: tuple[int, ...], gradient_SD: Tensor, embedding_VD: Tensor) -> list[tuple[int, ...]]:
        """Random single swaps among the tokens that the gradient promises most of.

        Args:
            suffix: S token ids.
            gradient_SD: Gradient of the loss with respect to the embedded suffix.
            embedding_VD: Input embeddings.
        """
        allowed_A = self.allowed_A.to(gradient_SD.device)
        fall_SA = -(gradient_SD @ embedding_VD.T)[:, allowed_A].float()
        best_SK = allowed_A[fall_SA.topk(min(self.top_k, len(allowed_A)), dim=1).indices].tolist()
        places = torch.randint(len(suffix), (self.count,), generator=self.generator).tolist()
        ranks = torch.randint(len(best_SK[0]), (self.count,), generator=self.generator).tolist()
        swapped = [
            (*suffix[:place], best_SK[place][rank], *suffix[place + 1 :])
            for place, rank in zip(places, ranks, strict=True)
        ]
        return [new for new in dict.fromkeys(swapped) if new != suffix and self.survives(new)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found."""

    suffix: tuple[int, ...]
    before: float
    """Loss of the initial suffix."""
    after: float
    """Loss of the suffix found."""
    iterations: int
    """Iterations done."""


def search(
    loss: TargetLoss, initial: tuple[int, ...], proposals: Proposals, iterations: int, *, early_stop: bool = True
) -> Found:
    """Search the suffix of the lowest loss.

    Args:
        loss: What is minimised.
        initial: Where the search starts; it must survive.
        proposals: The swaps of an iteration.
        iterations: Most iterations.
        early_stop: End once each token of the target is the likeliest at its position.
    """
    current = best = initial
    with loss.model.uncompiled():
        (before,), (solved,) = loss.of([initial])
        after, done = before, 0
        while done < iterations and not (solved and early_stop):
            candidates = proposals.around(current, loss.gradient(current), loss.model.embedding_weight_VD)
            done += 1
            if not candidates:
                continue
            losses, hits = loss.of(candidates)
            index = min(range(len(losses)), key=losses.__getitem__)
            current = candidates[index]
            if losses[index] < after:
                best, after, solved = current, losses[index], hits[index]
    return Found(suffix=best, before=before, after=after, iterations=done)
