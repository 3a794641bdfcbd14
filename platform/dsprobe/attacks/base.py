"""Attacks: each turns a prompt into a case, as data, and a case becomes a row of a model's tokens.

A case (`dsprobe.attacks.case.AttackCase`) knows no tokenizer, so it can be saved, replayed and carried over to a model
of the other family; `dsprobe.attacks.realise` is the one place where cases become tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from dsprobe.attacks.case import AttackCase
    from dsprobe.models.base import LanguageModel, ModelKind
    from dsprobe.prompts.base import Prompt
    from dsprobe.registry import ComponentConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Tokens written into the canvas after a step's commits, whatever stands there."""

    step: int
    """1-based step of the row."""
    position: int
    """First canvas position."""
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remask:
    """Committed reply positions that hold one of some tokens are masked again after a step's commits."""

    step: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The reply's state is replaced by a partly masked version of a given reply; see `dsprobe.attacks.in_loop`."""

    step: int
    tokens: tuple[int, ...]
    """One token for each reply position."""


CanvasAction = Write | Remask | Anchor
"""What an attack with access to the denoising loop does to a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One row before decoding.

    For a diffusion model `tokens` is the whole canvas (masks where the model writes, in the user turn too). For an
    autoregressive model it ends where generation starts.
    """

    tokens: tuple[int, ...]
    response_start: int
    """First position of the judged reply; prefills and anchors count as part of it."""
    response_end: int
    """End (exclusive) of the judged reply. May lie past `tokens` for autoregressive models."""
    actions: tuple[CanvasAction, ...] = ()
    """What happens to the canvas between steps, diffusion models only."""
    forced: tuple[tuple[int, int], ...] = ()
    """(canvas position, token) that an autoregressive model is made to say when it gets there."""


class Attack(ABC):
    """A published attack as data plus a pure function from prompts to cases.

    Contract: `compose` is deterministic in (config, prompt, model facts) and never runs the model. `compose_all` may
    run it, where the attack is a search (`searches`), and is deterministic in (config, prompt, weights) for each prompt
    by itself: which other prompts are composed beside it changes nothing.

    Args (of every subclass): ``config`` (its nested ``Config``).
    """

    source: ClassVar[str]
    """Paper (arXiv id) and section that define the attack."""
    assumes: ClassVar[str]
    """What the attacker must be able to do: `prompt`, `masks in the turn`, `canvas write`, `decoding loop`, `logits`,
    `gradients`."""
    native: ClassVar[frozenset[ModelKind]]
    """Model kinds that the attack was published for; on the others it runs as the nearest thing that they allow."""
    supports: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion", "autoregressive"})
    """Model kinds for which it can be rendered."""
    searches: ClassVar[bool] = False
    """Whether composing a case takes forward or backward passes."""

    reads_metadata: ClassVar[bool] = False
    """Whether composing may need a prompt's metadata, so that every prompt is checked before anything runs."""
    surrogates: Mapping[str, LanguageModel] = MappingProxyType({})
    """Other models of the run by label, where `needs_model` names one; filled in before `compose_all`."""

    @classmethod
    def needs_model(cls, config: ComponentConfig) -> str | None:
        """Label of another model of the run that composing runs; `None` for none."""
        return None

    @classmethod
    def files(cls, config: ComponentConfig) -> tuple[str, ...]:
        """Paths of the files whose contents decide what is composed."""
        return ()

    @abstractmethod
    def compose(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> AttackCase:
        """Turn a prompt into a case.

        Args:
            prompt: The request.
            model: Supplies tokenizer, chat template and kind: lengths are counted in its tokens.
            reply_length: Response positions available for the reply.

        Raises:
            ConfigError: The attack does not fit the model kind or the reply length.
        """

    def compose_all(self, prompts: Sequence[Prompt], model: LanguageModel, reply_length: int) -> list[AttackCase]:
        """Cases of several prompts; a search runs here. Arguments and errors as in `compose`."""
        return [self.compose(prompt, model, reply_length) for prompt in prompts]

    def render(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> Rendered:
        """Turn a prompt into a row, without running the model.

        Raises:
            ConfigError: The attack does not fit the model kind or the reply length, or is a search.
        """
        from dsprobe.attacks.realise import realise

        if self.searches:
            raise ConfigError(
                f"Attack `{type(self).__name__.lower()}` is a search, which is not repeated here. Save its cases with "
                "`dsprobe attacks save` and use attack `cases`."
            )

        return realise(self.compose(prompt, model, reply_length), prompt, model, reply_length)

    def render_all(self, prompts: Sequence[Prompt], model: LanguageModel, reply_length: int) -> list[Rendered]:
        """Rows of several prompts; a search runs here. Arguments and errors as in `render`."""
        from dsprobe.attacks.realise import realise

        cases = self.compose_all(prompts, model, reply_length)
        return [realise(case, prompt, model, reply_length) for case, prompt in zip(cases, prompts, strict=True)]
