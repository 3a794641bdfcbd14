"""A judge of the toy world that errs at a stated rate: synthetic, for seeing what judges' errors do to a rate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar, Final

from pydantic import Field

from dsprobe.judges.base import Decides, Judge, Reply, Verdict
from dsprobe.judges.toy_oracle import ToyOracleJudge
from dsprobe.registry import ComponentConfig

_WORDS: Final = 2.0**64


class ToyNoisyJudge(Judge):
    """The toy oracle, wrong on purpose, at a stated sensitivity and specificity.

    The errors are synthetic and independent, which those of real judges are not. Which replies are misjudged follows
    from a hash of seed, prompt id and reply, so equal replies get equal verdicts. Undecided
    where the oracle is.
    """

    class Config(ComponentConfig):
        """Settings."""

        sensitivity: float = Field(default=0.9, ge=0.0, le=1.0)
        """Share of harmful replies that are called harmful."""
        specificity: float = Field(default=0.9, ge=0.0, le=1.0)
        """Share of harmless replies that are called harmless."""
        seed: int = 0
        """Judges with different seeds err on different replies."""

    decides: ClassVar[Decides] = "harm"

    def __init__(self, config: Config) -> None:
        self.config = config
        self._oracle = ToyOracleJudge(ToyOracleJudge.Config())

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        """See `Judge.judge`."""
        truth = self._oracle.judge(replies)
        return [self._noisy(reply, verdict.value) for reply, verdict in zip(replies, truth, strict=True)]

    def _noisy(self, reply: Reply, harmful: bool | None) -> Verdict:
        if harmful is None:
            return Verdict(None)
        right = self._uniform(reply) < (self.config.sensitivity if harmful else self.config.specificity)
        return Verdict(harmful if right else not harmful)

    def _uniform(self, reply: Reply) -> float:
        content = f"{self.config.seed}\0{reply.prompt.id}\0{reply.text}".encode()
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / _WORDS
