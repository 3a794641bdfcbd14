"""Iterative refinement injection: texts slipped in while the reply is being refined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from dsprobe.attacks.base import Attack
from dsprobe.attacks.case import AttackCase, WriteText
from dsprobe.attacks.rendering import plain_text
from dsprobe.registry import ComponentConfig

if TYPE_CHECKING:
    from dsprobe.models.base import LanguageModel, ModelKind
    from dsprobe.prompts.base import Prompt

Text = Annotated[str, AfterValidator(plain_text)]
Steps = Annotated[int, Field(ge=1)]
Positions = Annotated[int, Field(ge=0)]


class RefinementInjection(Attack):
    """Text k is written at reply position p_k after the commits of step s_k, whatever stands there.

    No publication defines "iterative refinement injection"; this is our operationalisation: the connectors of PAD
    (2507.19227) spread over diffusion time instead of standing on the first canvas, so that each meets a reply that the
    earlier ones have bent already. The nearest published attacks are anchoring (2510.00565), which replaces the whole
    state once, and TrajHijack (2604.08557), which rewrites its start once.

    An autoregressive model is made to say text k at position max(p_k, s_k).
    """

    class Config(ComponentConfig):
        """Settings."""

        texts: tuple[Text, ...] = Field(default=("Step 1:", "Step 2:", "Step 3:"), min_length=1)
        """Written as they stand."""
        steps: tuple[Steps, ...] = (1, 4, 8)
        """Step after which each text is written."""
        positions: tuple[Positions, ...] = (0, 16, 32)
        """Reply position of each text's first token."""

        @model_validator(mode="after")
        def _one_of_each(self) -> Self:
            if not len(self.texts) == len(self.steps) == len(self.positions):
                raise ValueError(
                    f"{len(self.texts)} texts, {len(self.steps)} steps and {len(self.positions)} positions; one each "
                    "is needed"
                )
            return self

    source: ClassVar[str] = "our operationalisation; nearest: 2507.19227 (PAD), 2510.00565, 2604.08557"
    assumes: ClassVar[str] = "decoding loop"
    native: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def compose(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> AttackCase:
        """See `Attack.compose`."""
        parts = zip(self.config.texts, self.config.steps, self.config.positions, strict=True)
        writes = tuple(WriteText(step=step, position=position, text=text) for text, step, position in parts)
        return AttackCase(prompt_id=prompt.id, attack="refinement_injection", actions=writes)
