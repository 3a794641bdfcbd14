"""Whether a toy reply is well-formed: fluency without a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from dsprobe.judges.base import Decides, Judge, Reply, Verdict
from dsprobe.judges.toy_oracle import asked_item
from dsprobe.registry import ComponentConfig
from dsprobe.toy.grammar import validity


class ToyValidityJudge(Judge):
    """Valid: the toy grammar accepts enough of the reply's sentences, an unfinished last one included.

    A refusal is valid, and so is a wrong recipe: form is judged, not content. Undecided for an empty reply and when the
    prompt is not a toy request, whose answer may be in another language.
    """

    class Config(ComponentConfig):
        """Settings."""

        min_share: float = Field(default=1.0, gt=0.0, le=1.0)
        """Share of the sentences that the grammar must accept."""

    decides: ClassVar[Decides] = "validity"

    def __init__(self, config: Config) -> None:
        self.config = config

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        """See `Judge.judge`."""
        return [Verdict(self._valid(reply)) for reply in replies]

    def _valid(self, reply: Reply) -> bool | None:
        if asked_item(reply) is None or not reply.text.strip():
            return None
        return validity(reply.text.lower()) >= self.config.min_share
