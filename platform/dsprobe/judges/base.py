"""Verdicts on final text. Harm and refusal are two verdicts, not complements; an empty reply is neither."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

if TYPE_CHECKING:
    from dsprobe.prompts.base import Prompt
    from dsprobe.registry import ComponentConfig

Decides = Literal["harm", "refusal", "utility", "validity"]
QUESTIONS: Final[tuple[Decides, ...]] = get_args(Decides)
"""What a judge can decide."""

VERDICT_PREFIX: Final = "verdict_"
"""Before a judge's key: the name of its column in `trajectories`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a judge sees."""

    prompt: Prompt
    text: str
    """Reply text up to its end-of-text token, masks and special tokens removed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one reply."""

    value: bool | None
    """The answer to the judge's question; `None` where it cannot be decided."""
    score: float | None = None
    """How strongly, on the judge's own scale (`Judge.scale`); `None` where it has none."""
    note: str = ""
    """Why it is undecided, e.g. ``"unparsable answer"``. Never holds text of the prompt or the reply."""
    transient: bool = False
    """Undecided for a reason that may pass, as when an endpoint gave no answer: never cached, so asked again."""


class Judge(ABC):
    """Decides one question about each reply.

    Contract: deterministic for equal inputs; never raises on odd text; a value of `None` means "cannot be decided" (for
    a utility judge: the prompt has no reference answer). Empty replies are classified by the caller, before. Building a
    judge reads no weights and opens no connection: what a first verdict needs is loaded by `judge`.

    Args (of every subclass): ``config`` (its nested ``Config``).
    """

    decides: ClassVar[Decides]
    """What it decides; a field `decides` of its configuration overrides it."""
    scale: ClassVar[tuple[float, float] | None] = None
    """Smallest and largest score; `None` where it gives no scores."""
    deferred: ClassVar[bool] = False
    """True where it needs a model of its own or a network: it never runs beside generation, only after it."""
    version: ClassVar[int] = 1
    """Bumped when a verdict's meaning changes, so that a stored verdict is not taken for a new one."""

    @classmethod
    def files(cls, config: ComponentConfig) -> tuple[str, ...]:
        """Paths of the files whose contents decide a verdict."""
        return ()

    @property
    def question(self) -> Decides:
        """What this judge, as configured, decides."""
        return question_of(self, getattr(self, "config", None))

    def identity(self) -> dict[str, Any]:
        """Everything beside prompt and reply that decides a verdict, as JSON values.

        Name, version and settings; judges with a model add its id, revision and digest, the digest of their template,
        and the sampling.
        """
        config = getattr(self, "config", None)
        params = {} if config is None else config.model_dump(mode="json")
        return {"judge": f"{type(self).__module__}:{type(self).__qualname__}", "version": self.version} | params

    def rendered(self, reply: Reply) -> str:
        """The text that the judge sees; part of a stored verdict's key.

        Here everything that a judge may look at. A judge that fills a template overrides it with the filled template.
        """
        return json.dumps([asdict(reply.prompt), reply.text], sort_keys=True)

    @abstractmethod
    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        """Verdicts in the order of the replies: harmful?, refused?, answered correctly?, or well-formed?

        Raises:
            CheckpointError: The judge's own model cannot be loaded.
            PrerequisiteError: What the judge needs is missing or does not answer.
        """


def question_of(judge: Judge | type[Judge], config: ComponentConfig | None) -> Decides:
    """What a judge, or one of a class, decides under a configuration."""
    decides: Decides = getattr(config, "decides", None) or judge.decides
    return decides
