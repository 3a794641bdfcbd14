"""How probable a causal model finds a reply to a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dsprobe.decoding.canvas import bucket_length
from dsprobe.metrics.fluency import row_perplexity
from dsprobe.models.base import CausalModel
from dsprobe.models.chat import chat_tokens, encode

BATCH_SIZE = 16
"""Rows of every forward pass: the last batch is filled up, and lengths are rounded up, so that a reply meets one shape
whoever is scored beside it, and its score keeps its bits."""


def reply_log_perplexity(model: CausalModel, prompts: Sequence[str], replies: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean −log p of a reply's tokens, the end-of-text token included, given the prompt in chat form.

    Args:
        model: A causal scorer; its own tokenizer is used.
        prompts: User turns.
        replies: Texts.

    Returns:
        ``[N]`` in nats a token, ≥ 0; NaN for an empty reply.
    """
    loss_N = np.full(len(replies), np.nan)
    rows = {
        index: _tokens(model, prompt, reply)
        for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        if reply
    }
    widths: dict[int, list[int]] = {}
    for index, (head, tail) in rows.items():
        widths.setdefault(bucket_length(len(head) + len(tail)), []).append(index)
    for width, indices in widths.items():
        for start in range(0, len(indices), BATCH_SIZE):
            part = indices[start : start + BATCH_SIZE]
            filled = [rows[index] for index in (part + part[-1:] * BATCH_SIZE)[:BATCH_SIZE]]
            loss_N[part] = _batch(model, filled, width)[: len(part)]
    return loss_N


def _tokens(model: CausalModel, prompt: str, reply: str) -> tuple[list[int], list[int]]:
    """Token ids before the reply, and of the reply with its end."""
    head = chat_tokens(model, [{"role": "user", "content": prompt}])
    return head, [*encode(model, reply), model.info.eos_token_ids[0]]


@torch.inference_mode()
def _batch(model: CausalModel, rows: Sequence[tuple[list[int], list[int]]], width: int) -> npt.NDArray[np.float64]:
    pads = [width - len(head) - len(tail) for head, tail in rows]
    pad_id = model.info.pad_token_id
    padded = [[pad_id] * pad + head + tail for pad, (head, tail) in zip(pads, rows, strict=True)]
    tokens_BT = torch.tensor(padded, device=model.device)
    index_T = torch.arange(width, device=model.device)[None]
    real_BT = index_T >= torch.tensor(pads, device=model.device)[:, None]
    scored_BT = index_T >= torch.tensor([width - len(tail) for _, tail in rows], device=model.device)[:, None]
    hidden_BTD, _ = model.hidden(tokens_BT, real_BT, None)
    row_N, column_N = scored_BT.nonzero(as_tuple=True)
    logprob_NV = model.head(hidden_BTD[row_N, column_N - 1]).float().log_softmax(dim=-1)
    logprob_BT = torch.zeros(tokens_BT.shape, device=model.device)
    logprob_BT[row_N, column_N] = logprob_NV.gather(-1, tokens_BT[row_N, column_N][:, None])[:, 0]
    return np.log(row_perplexity(logprob_BT.cpu().numpy(), scored_BT.cpu().numpy()))
