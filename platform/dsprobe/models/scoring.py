"""How probable a causal model finds a reply to a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dsprobe.metrics.fluency import row_perplexity
from dsprobe.models.base import CausalModel
from dsprobe.models.chat import chat_tokens, encode

BATCH_SIZE = 64


def reply_log_perplexity(model: CausalModel, prompts: Sequence[str], replies: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean −log p of a reply's tokens, the end-of-text token included, given the prompt in chat form.

    Args:
        model: A causal scorer; its own tokenizer is used.
        prompts: User turns.
        replies: Texts.

    Returns:
        ``[N]`` in nats a token, ≥ 0; NaN for an empty reply.
    """
    order = sorted(range(len(replies)), key=lambda index: len(replies[index]))
    loss_N = np.full(len(replies), np.nan)
    for start in range(0, len(order), BATCH_SIZE):
        part = [index for index in order[start : start + BATCH_SIZE] if replies[index]]
        if part:
            loss_N[part] = _batch(model, [prompts[i] for i in part], [replies[i] for i in part])
    return loss_N


@torch.inference_mode()
def _batch(model: CausalModel, prompts: Sequence[str], replies: Sequence[str]) -> npt.NDArray[np.float64]:
    heads = [chat_tokens(model, [{"role": "user", "content": prompt}]) for prompt in prompts]
    tails = [[*encode(model, reply), model.info.eos_token_ids[0]] for reply in replies]
    width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    pads = [width - len(head) - len(tail) for head, tail in zip(heads, tails, strict=True)]
    pad_id = model.info.pad_token_id
    rows = [[pad_id] * pad + head + tail for pad, head, tail in zip(pads, heads, tails, strict=True)]
    tokens_BT = torch.tensor(rows, device=model.device)
    index_T = torch.arange(width, device=model.device)[None]
    real_BT = index_T >= torch.tensor(pads, device=model.device)[:, None]
    scored_BT = index_T >= torch.tensor([width - len(tail) for tail in tails], device=model.device)[:, None]
    hidden_BTD, _ = model.hidden(tokens_BT, real_BT, None)
    row_N, column_N = scored_BT.nonzero(as_tuple=True)
    logprob_NV = model.head(hidden_BTD[row_N, column_N - 1]).float().log_softmax(dim=-1)
    logprob_BT = torch.zeros(tokens_BT.shape, device=model.device)
    logprob_BT[row_N, column_N] = logprob_NV.gather(-1, tokens_BT[row_N, column_N][:, None])[:, 0]
    return np.log(row_perplexity(logprob_BT.cpu().numpy(), scored_BT.cpu().numpy()))
