"""From a case to a row of a model's tokens: the one place where attacks meet tokenizers.

What a diffusion model is given as a canvas, an autoregressive model is *made to say*: texts at reply positions are
forced when generation reaches them, with end-of-text held back until the last one is out. A run of masks in the
user's turn, which only a diffusion model can fill, becomes a visible blank. A text written at step s of the loop is
forced no earlier than position s, since an autoregressive step is a token; a re-mask rewinds the reply to its start.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import TYPE_CHECKING

from dsprobe.attacks.base import Anchor, CanvasAction, Remask, Rendered, Write
from dsprobe.attacks.case import AnchorText, AttackCase, CaseAction, RemaskText, WriteText
from dsprobe.attacks.rendering import chat_prefix, encode, eos_id, mask_text, request_text
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from dsprobe.models.base import LanguageModel
    from dsprobe.prompts.base import Prompt

_MASK = -1
"""Stands for a mask while a reply is laid out; no token id is negative."""


def realise(case: AttackCase, prompt: Prompt, model: LanguageModel, reply_length: int) -> Rendered:
    """Turn a case into a row.

    Args:
        case: What is written where.
        prompt: The request that the case belongs to.
        model: Supplies tokenizer, chat template, mask id and kind.
        reply_length: Response positions available for the reply.

    Raises:
        ConfigError: A text has words that the tokenizer lacks, something does not fit the reply, or nothing is left to
            write.
    """
    if model.info.kind == "autoregressive":
        return _forced(case, prompt, model, reply_length)
    if case.judged == "turn":
        return _in_user_turn(case, prompt, model)
    return _canvas(case, prompt, model, reply_length)


# ---- diffusion models ----------------------------------------------------------------------------------------------


def _canvas(case: AttackCase, prompt: Prompt, model: LanguageModel, reply_length: int) -> Rendered:
    """The user's turn, then the reply as a canvas."""
    tokens = _user_tokens(case, prompt, model)
    mask = _mask_id(model)
    laid = _laid_out(case, model, reply_length)
    rest = [eos_id(model) if case.tail == "eos" else mask] * (reply_length - len(laid))
    reply = [mask if token == _MASK else token for token in laid] + rest
    if mask not in reply and mask not in tokens:
        raise ConfigError(f"The attack's text fills all {reply_length} reply positions; at least one mask is needed.")
    start = len(tokens)
    actions = tuple(_action(action, start, model, reply_length) for action in case.actions)
    _refuse_overlap(actions, start)
    return Rendered(tokens=(*tokens, *reply), response_start=start, response_end=start + reply_length, actions=actions)


def _in_user_turn(case: AttackCase, prompt: Prompt, model: LanguageModel) -> Rendered:
    """The scaffold in the user's turn is the reply (the official rule of DIJA, 2507.11097)."""
    bare, tokens = chat_prefix(prompt, model), _user_tokens(case, prompt, model)
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, bare, strict=False)))
    end = max(index for index, token in enumerate(tokens) if token == model.info.mask_token_id) + 1
    return Rendered(tokens=tuple(tokens), response_start=start, response_end=end)


def _user_tokens(case: AttackCase, prompt: Prompt, model: LanguageModel) -> list[int]:
    """The chat turn up to where the reply begins, masks included.

    Raises:
        ConfigError: Another number of masks came out than was written.
    """
    if case.user == (None,):
        return chat_prefix(prompt, model)
    text = "".join(_user_text(segment, prompt, model, case.blank) for segment in case.user)
    tokens = model.chat_tokens([{"role": "user", "content": text}])
    wanted = sum(segment for segment in case.user if isinstance(segment, int))
    found = tokens.count(_mask_id(model)) if model.info.kind == "diffusion" else wanted
    if found != wanted:
        name = case.attack or "of the case"
        raise ConfigError(
            f"Attack `{name}` wrote {wanted} masks into the user's turn of prompt `{prompt.id}` and {found} came out "
            f"of the chat template and tokenizer of `{model.info.name}`; write into the reply instead (`dija`: "
            "placement `reply`)."
        )
    return tokens


def _user_text(segment: str | int | None, prompt: Prompt, model: LanguageModel, blank: str) -> str:
    if segment is None:
        return request_text(prompt)
    if isinstance(segment, str):
        return segment
    return mask_text(model, _mask_id(model)) * segment if model.info.kind == "diffusion" else blank


def _action(action: CaseAction, start: int, model: LanguageModel, reply_length: int) -> CanvasAction:
    match action:
        case WriteText():
            tokens = _fitting(encode(action.text, model), action.position, reply_length)
            return Write(step=action.step, position=start + action.position, tokens=tuple(tokens))
        case RemaskText():
            found = {token for phrase in action.phrases for token in encode(phrase, model)}
            found |= set(model.info.eos_token_ids) if action.end_of_text else set()
            return Remask(step=action.step, tokens=tuple(sorted(found)))
        case AnchorText():
            return Anchor(step=action.step, tokens=tuple(_whole_reply(action.text, model, reply_length)))


def _refuse_overlap(actions: Iterable[CanvasAction], start: int) -> None:
    """Two texts at one place after one step have no order."""
    taken: set[tuple[int, int]] = set()
    for action in actions:
        if isinstance(action, Write):
            places = {(action.step, action.position + offset) for offset in range(len(action.tokens))}
            if taken & places:
                raise ConfigError(
                    f"Two texts written after step {action.step} overlap at reply position "
                    f"{min(taken & places)[1] - start}; positions farther apart, or other steps, are needed."
                )
            taken |= places


# ---- autoregressive models -----------------------------------------------------------------------------------------


def _forced(case: AttackCase, prompt: Prompt, model: LanguageModel, reply_length: int) -> Rendered:
    """The reply so far, and what is to be said later."""
    tokens = _user_tokens(case, prompt, model)
    laid = _laid_out(case, model, reply_length)
    length = len(laid) if case.tail == "eos" and laid else reply_length
    reply = {position: token for position, token in enumerate(laid) if token != _MASK}
    rewound = {action.step for action in case.actions if isinstance(action, RemaskText)}
    # In the order of the loop: a later text overwrites an earlier one, and a write what an anchor put there.
    for action in sorted(case.actions, key=lambda action: (action.step, action.kind == "write")):
        reply |= _said_later(action, rewound, model, reply_length)
    given = next(position for position in range(len(reply) + 1) if position not in reply)
    if given >= length:
        raise ConfigError(
            f"The prefill needs {given} positions and one more to go on; the reply has {length}. A longer reply or a "
            "shorter text is needed."
        )
    start = len(tokens)
    return Rendered(
        tokens=(*tokens, *(reply[position] for position in range(given))),
        response_start=start,
        response_end=start + length,
        forced=tuple((start + position, token) for position, token in sorted(reply.items()) if position >= given),
    )


def _said_later(action: CaseAction, rewound: set[int], model: LanguageModel, reply_length: int) -> dict[int, int]:
    """Reply position → token that an action makes an autoregressive model say."""
    if isinstance(action, RemaskText):
        return {}
    if isinstance(action, AnchorText):
        # Without the end-of-text behind a short reply: nothing could be said after it.
        return dict(enumerate(encode(action.text, model)[: min(action.step, reply_length)]))
    first = action.position if action.step in rewound else max(action.position, action.step)
    return dict(enumerate(_fitting(encode(action.text, model), first, reply_length), start=first))


# ---- both ----------------------------------------------------------------------------------------------------------


def _laid_out(case: AttackCase, model: LanguageModel, reply_length: int) -> list[int]:
    """The segments of the reply as tokens, `_MASK` where the model writes."""
    laid: list[int] = []
    for segment in case.reply:
        laid += [_MASK] * segment if isinstance(segment, int) else encode(segment, model)
    if len(laid) > reply_length:
        raise ConfigError(f"The attack's text and masks need {len(laid)} positions, and the reply has {reply_length}.")
    return laid


def _whole_reply(text: str, model: LanguageModel, reply_length: int) -> list[int]:
    """A text as a reply of full length: cut, or filled with end-of-text."""
    tokens = encode(text, model)[:reply_length]
    return tokens + [eos_id(model)] * (reply_length - len(tokens))


def _fitting(tokens: list[int], position: int, reply_length: int) -> list[int]:
    if position + len(tokens) > reply_length:
        raise ConfigError(
            f"The text at reply position {position} needs {len(tokens)} positions and ends at "
            f"{position + len(tokens)}, and the reply has {reply_length}."
        )
    return tokens


def _mask_id(model: LanguageModel) -> int:
    if model.info.mask_token_id is None:
        raise ConfigError(f"`{model.info.name}`, a diffusion model, has no mask token.")
    return model.info.mask_token_id
