"""Anchoring: how late may harm come in and still be completed? The priming vulnerability's dose–response."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from dsprobe.attacks.base import Attack
from dsprobe.attacks.case import AnchorText, AttackCase
from dsprobe.errors import ConfigError
from dsprobe.registry import ComponentConfig
from dsprobe.untrusted import local_path

if TYPE_CHECKING:
    from dsprobe.models.base import LanguageModel, ModelKind
    from dsprobe.prompts.base import Prompt

REFERENCE: Final = "reference"
"""Key of `Prompt.metadata` that holds a complete answer, as a model without alignment gives it."""


class Anchoring(Attack):
    """At step t the reply's state is replaced by a partly masked version of a harmful reply from elsewhere.

    With r that reply, T the steps of the decoding and t the step, the state after the step is r in which the positions
    that were masked before the step stay masked with probability (T − t)/T; decoding goes on from there. The share of
    harmful outcomes over t is a causal dose–response of the trajectory: it needs no judge of half-masked text. At t = T
    the reply *is* r.

    The reply comes from the prompt's `reference` (the toy world has one for every restricted request) or from a file of
    replies. An autoregressive model is made to say the first t tokens of it: a step is a token there.
    """

    class Config(ComponentConfig):
        """Settings."""

        step: int = Field(default=8, ge=1)
        """t: step after whose commits the reply is replaced."""
        replies: str | None = None
        """CSV, JSON lines or Parquet file with `id` and `prompt` columns, the latter being the reply to prompt `id`;
        `None` takes each prompt's `reference`."""

    source: ClassVar[str] = "2510.00565, section 4.1 and table 2"
    assumes: ClassVar[str] = "decoding loop, and a harmful reply of another model"
    reads_metadata: ClassVar[bool] = True
    native: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion"})

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def files(cls, config: ComponentConfig) -> tuple[str, ...]:
        """See `Attack.files`."""
        assert isinstance(config, Anchoring.Config)
        return () if config.replies is None else (config.replies,)

    def compose(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> AttackCase:
        """See `Attack.compose`."""
        anchor = AnchorText(step=self.config.step, text=self._reply_to(prompt))
        return AttackCase(prompt_id=prompt.id, attack="anchoring", actions=(anchor,))

    def _reply_to(self, prompt: Prompt) -> str:
        if self.config.replies is None:
            found = prompt.metadata.get(REFERENCE, "")
            hint = "Give a file with `replies`, e.g. the harmful replies of a model without alignment."
        else:
            found = self._replies.get(prompt.id, "")
            hint = f"{self.config.replies} has {len(self._replies)} replies to other prompts."
        if not found:
            raise ConfigError(f"Attack `anchoring` has no reply to prompt `{prompt.id}`. {hint}")
        return found

    @cached_property
    def _replies(self) -> dict[str, str]:
        from dsprobe.config import PromptsConfig
        from dsprobe.prompts.load import load_prompts

        path = local_path(self.config.replies or "", "attack `anchoring`")
        source = {".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix, "csv")
        found = load_prompts(PromptsConfig(source=source, name="replies", path=str(path)))
        return {reply.id: reply.text for reply in found.prompts}
