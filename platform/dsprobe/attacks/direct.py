"""No attack: the request as it is. The baseline of every attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dsprobe.attacks.base import Attack
from dsprobe.attacks.case import AttackCase
from dsprobe.registry import ComponentConfig

if TYPE_CHECKING:
    from dsprobe.models.base import LanguageModel, ModelKind
    from dsprobe.prompts.base import Prompt


class Direct(Attack):
    """The chat template around the request, then an empty reply."""

    class Config(ComponentConfig):
        """No settings."""

    source: ClassVar[str] = "HarmBench (2402.04249), baseline `DirectRequest`"
    assumes: ClassVar[str] = "prompt"
    native: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion", "autoregressive"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def compose(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> AttackCase:
        """See `Attack.compose`."""
        return AttackCase(prompt_id=prompt.id, attack="direct")
