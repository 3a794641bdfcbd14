"""What the adapters share: a native transformers module behind the laboratory's interfaces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsprobe.errors import CheckpointError, ConfigError
from dsprobe.models.base import DiffusionModel, LanguageModel, ModelInfo
from dsprobe.models.gradients import watched_embeddings


class NativeModel(LanguageModel):
    """A language model on a native transformers class, frozen and in evaluation mode.

    Args:
        module: A causal-LM class of transformers, already on its device and in its dtype.
        info: Facts about the checkpoint.
        tokenizer: Its tokenizer, if it has one.

    Raises:
        CheckpointError: The output head is not a bias-free linear map.
    """

    def __init__(self, module: PreTrainedModel, info: ModelInfo, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.module = cast("Any", module)
        self.module.eval().requires_grad_(False)
        self.info = info
        self.tokenizer = tokenizer
        self.device = module.device
        self.dtype = module.dtype
        head = self.module.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear) or head.bias is not None:
            raise CheckpointError(
                f"{info.source or info.name}: the output head is not a bias-free linear map ({head})."
            )
        self._head: torch.nn.Linear = head

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Map hidden states ``[N, D]`` after the final norm to logits ``[N, V]``."""
        logits_NV: Tensor = self._head(hidden_ND)
        return logits_NV

    @property
    def head_weight_VD(self) -> Tensor:
        """Weight of the output head, shape ``[V, D]``."""
        return self._head.weight

    @property
    def body(self) -> PreTrainedModel:
        """The model below the head; its last hidden state is after the final norm."""
        body: PreTrainedModel = self.module.base_model
        return body

    @property
    def embedding_weight_VD(self) -> Tensor:
        """Weight of the input embeddings, shape ``[V, D]``; it may have more rows than the head."""
        weight_VD: Tensor = self.module.get_input_embeddings().weight
        return weight_VD

    def embedding_gradient(self, loss: Callable[[], Tensor]) -> Tensor:
        """Gradient of a loss with respect to the embedded inputs of the forward that computes it.

        Works inside inference mode too, and leaves no state behind.

        Args:
            loss: Calls `hidden` once, on tokens that it makes itself, and returns a scalar.

        Returns:
            ``[B, L, D]`` in the model's dtype, detached. Times `embedding_weight_VD` it is the gradient with respect to
            one-hot inputs.
        """
        with self.uncompiled(), watched_embeddings(self.module) as leaves:
            (grad_BLD,) = torch.autograd.grad(loss(), leaves)
        return grad_BLD

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run the body as it is inside the context, compiled or not: for gradients, and shapes met only once."""
        if getattr(self.module.base_model, "_compiled_call_impl", None) is None:
            yield
        else:
            with torch.compiler.set_stance("force_eager"):
                yield


class NativeDiffusionModel(NativeModel, DiffusionModel):
    """A bidirectional model on a native class; families differ in padding and in alignment."""

    def hidden(self, tokens_BL: Tensor, real_BL: Tensor) -> Tensor:
        """Run the body once; see `DiffusionModel.hidden`."""
        return self._align(self._run(tokens_BL, real_BL).last_hidden_state)

    def hidden_layers(self, tokens_BL: Tensor, real_BL: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Hidden states of chosen layers, unshifted; the last layer's is taken after the final norm.

        Raises:
            ConfigError: A layer index is out of range.
        """
        depth = int(self.module.config.num_hidden_layers) + 1
        for layer in layers:
            if not -depth <= layer < depth:
                raise ConfigError(
                    f"{self.info.name}: layer {layer} does not exist; allowed: {-depth} to {depth - 1} "
                    "(0 is the embeddings)."
                )
        states = self._run(tokens_BL, real_BL, output_hidden_states=True).hidden_states
        return {layer: states[layer] for layer in layers}

    def _run(self, tokens_BL: Tensor, real_BL: Tensor, **options: Any) -> Any:
        # One host synchronisation per forward: without padding the kernel needs no mask at all.
        if not bool(real_BL.all()):
            options |= self._padding(real_BL)
        return self.body(input_ids=tokens_BL, use_cache=False, return_dict=True, **options)

    @abstractmethod
    def _padding(self, real_BL: Tensor) -> dict[str, Tensor]:
        """The body's `attention_mask` (and `position_ids`) for a batch that holds padding."""

    def _align(self, hidden_BLD: Tensor) -> Tensor:
        """Move each state to the position that it predicts; the identity unless a family shifts."""
        return hidden_BLD

    def _attention_mask(self, allowed_BQK: Tensor) -> Tensor:
        """Turn allowed (query, key) pairs into the four-dimensional mask of the attention kernel.

        A boolean mask would be *added* to the scores by the eager kernel, so it gets numbers instead.
        """
        allowed_B1QK = allowed_BQK[:, None]
        if self.module.config._attn_implementation == "eager":
            mask = torch.zeros(allowed_B1QK.shape, dtype=self.dtype, device=allowed_BQK.device)
            return mask.masked_fill_(~allowed_B1QK, torch.finfo(self.dtype).min)
        return allowed_B1QK


def key_mask(real_BL: Tensor) -> Tensor:
    """Every query may read every real key: boolean ``[B, L, L]``."""
    return real_BL[:, None, :].expand(-1, real_BL.shape[1], -1)


def positions_of(real_BL: Tensor, at_padding: int) -> Tensor:
    """Positions counted over real tokens only, from 0.

    Args:
        real_BL: True at real tokens, ``[B, L]``.
        at_padding: Position written at padding.

    Returns:
        int64 ``[B, L]``.
    """
    return (real_BL.long().cumsum(dim=1) - 1).masked_fill(~real_BL, at_padding)
