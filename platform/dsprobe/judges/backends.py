"""Who answers a rubric: a local causal model, or an endpoint that speaks the OpenAI chat protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from dsprobe.errors import CheckpointError
from dsprobe.judges.endpoint import ChatEndpoint, EndpointConfig
from dsprobe.judges.own_model import OwnModel

if TYPE_CHECKING:
    from dsprobe.judges.local_model import LocalModel

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one conversation."""

    text: str | None
    """`None` where there is no answer."""
    note: str = ""
    """Why there is none."""
    transient: bool = False
    """See `Verdict.transient`."""


NO_ANSWER: Final = Answer(None, "no answer from the endpoint", transient=True)
"""Of an endpoint that gave an empty or filtered answer; it may give another one tomorrow."""


class Backend(ABC):
    """Answers conversations, greedily where it can."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides an answer beside the conversation, as JSON values: model and sampling."""

    @abstractmethod
    def check(self, messages: Sequence[Message]) -> None:
        """See, without weights and without a network, that a conversation of this shape can be put.

        Raises:
            CheckpointError: The model's chat template does not take it.
        """

    @abstractmethod
    def complete(self, conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        """Answers in the order of the conversations.

        Raises:
            CheckpointError: The local model cannot be loaded.
            PrerequisiteError: The endpoint does not answer.
        """


class LocalBackendConfig(OwnModel):
    """A local instruction-tuned causal model, decoded greedily."""

    kind: Literal["local"]
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer."""


class OpenAIBackendConfig(EndpointConfig):
    """An endpoint that speaks the OpenAI chat protocol."""

    kind: Literal["openai"]


BackendConfig = Annotated[LocalBackendConfig | OpenAIBackendConfig, Field(discriminator="kind")]


class LocalBackend(Backend):
    """See `LocalBackendConfig`.

    Raises:
        ConfigError: The path is neither a folder nor a pinned hub id, or the model is not autoregressive.
        CheckpointError: The folder is no supported checkpoint, or has no tokenizer.
    """

    def __init__(self, config: LocalBackendConfig, name: str) -> None:
        from dsprobe.judges.local_model import LocalModel  # torch

        self.config, self.own = config, LocalModel(config, name)

    def identity(self) -> dict[str, Any]:
        """See `Backend.identity`."""
        return self.own.identity() | {"sampling": {"temperature": 0, "max_tokens": self.config.max_tokens}}

    def check(self, messages: Sequence[Message]) -> None:
        """See `Backend.check`."""
        check_chat_template(self.own, messages)

    def complete(self, conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        """See `Backend.complete`."""
        rows = [self.own.reader.chat_tokens(list(messages)) for messages in conversations]
        fitting = [index for index, row in enumerate(rows) if self.own.fits(row, self.config.max_tokens)]
        texts = self.own.generate([rows[index] for index in fitting], self.config.max_tokens)
        found = dict(zip(fitting, texts, strict=True))
        return [Answer(found[i]) if i in found else Answer(None, "too long for the judge") for i in range(len(rows))]


class OpenAIBackend(Backend):
    """See `OpenAIBackendConfig`."""

    def __init__(self, config: OpenAIBackendConfig, name: str) -> None:
        self.endpoint = ChatEndpoint(config, name)

    def identity(self) -> dict[str, Any]:
        """See `Backend.identity`."""
        return self.endpoint.identity()

    def check(self, messages: Sequence[Message]) -> None:
        """Every conversation will do."""

    def complete(self, conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        """See `Backend.complete`."""
        texts = self.endpoint.complete(conversations)
        return [Answer(text) if text else NO_ANSWER for text in texts]


def build_backend(config: BackendConfig, name: str) -> Backend:
    """Build the back end that a judge is configured with.

    Args:
        config: Which one.
        name: The judge's name, for messages.

    Raises:
        ConfigError: A local path is neither a folder nor a pinned hub id, or its model is not autoregressive.
        CheckpointError: A local folder is no supported checkpoint.
    """
    return LocalBackend(config, name) if isinstance(config, LocalBackendConfig) else OpenAIBackend(config, name)


def check_chat_template(own: LocalModel, messages: Sequence[Message]) -> None:
    """See that a model's chat template takes a conversation of this shape.

    Raises:
        CheckpointError: There is no template, or it refuses the roles.
    """
    from jinja2 import TemplateError

    try:
        own.reader.chat_tokens(list(messages))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CheckpointError(f"{own.where}: its chat template refuses the roles {roles}: {error}") from error
