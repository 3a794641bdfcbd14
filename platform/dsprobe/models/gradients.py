"""Gradients with respect to the embedded inputs of a frozen module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def watched_embeddings(module: Any) -> Iterator[list[Tensor]]:
    """Make the embedded inputs of every forward inside the context leaves that gradients are taken at.

    Gradients are tracked inside, even where the caller is in inference mode; the tensors that go into the module must
    be made inside too. The module's parameters stay frozen, and nothing is left on it afterwards.

    Args:
        module: A module of transformers with input embeddings.

    Yields:
        The leaves ``[B, L, D]``, one for each forward so far; `torch.autograd.grad` takes them.
    """
    leaves: list[Tensor] = []

    def watch(embedding: Any, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with torch.inference_mode(False), torch.enable_grad():
        hook = module.get_input_embeddings().register_forward_hook(watch)
        try:
            yield leaves
        finally:
            hook.remove()
