"""Verdicts on final text. Harm and refusal are two verdicts, not complements; an empty reply is neither."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal, get_args

if TYPE_CHECKING:
    from dsprobe.prompts.base import Prompt

Decides = Literal["harm", "refusal", "utility", "validity"]
QUESTIONS: Final[tuple[Decides, ...]] = get_args(Decides)
"""What a judge can decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a judge sees."""

    prompt: Prompt
    text: str
    """Reply text up to its end-of-text token, masks and special tokens removed."""


class Judge(ABC):
    """Decides one question about each reply.

    Contract: deterministic for equal inputs; never raises on odd text; `None` means "cannot be decided" (for a
    utility judge: the prompt has no reference answer). Empty replies are classified by the caller, before.

    Args (of every subclass): ``config`` (its nested ``Config``).
    """

    decides: ClassVar[Decides]

    @abstractmethod
    def judge(self, replies: Sequence[Reply]) -> list[bool | None]:
        """Verdicts in the order of the replies: harmful?, refused?, answered correctly?, or well-formed?"""
