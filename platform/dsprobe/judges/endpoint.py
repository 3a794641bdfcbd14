"""Chat completions from any endpoint that speaks the OpenAI protocol (OpenAI, vLLM, SGLang, Ollama, llama.cpp …)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dsprobe.errors import PrerequisiteError, missing_package
from dsprobe.registry import SECRET, ComponentConfig

if TYPE_CHECKING:
    from openai import OpenAI


class EndpointConfig(ComponentConfig):
    """Where requests go, and how answers are sampled."""

    base_url: str
    """E.g. ``http://localhost:8000/v1``; without a user name, password or key."""
    model: str
    """The model's name at the endpoint; a dated name is a better record than an alias that moves."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; `None` for an endpoint without one."""
    temperature: float | None = Field(default=0.0, ge=0.0)
    """Not sent when `None`, for models that refuse it."""
    seed: int | None = 0
    """Not sent when `None`. Endpoints that take it still do not promise equal answers."""
    max_tokens: int | None = Field(default=512, ge=1)
    """Longest answer; not sent when `None`."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request's body, e.g. ``{max_completion_tokens: 512}``. No key belongs here: it goes into the
    manifest and into the judge's identity as it is."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds a request may take."""
    retries: int = Field(default=4, ge=0)
    """How often a request is sent again after a time-out, a 408, 409, 429 or a server error."""
    concurrency: int = Field(default=4, ge=1)
    """Requests under way at once."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http(s) URL, e.g. http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise PydanticCustomError(
                SECRET, "a user name, password or key does not belong here; name a variable in `api_key_env`"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _variable_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise PydanticCustomError(SECRET, "the name of an environment variable is needed, never the key itself")
        return value


class ChatEndpoint:
    """Puts conversations to an endpoint, several at once; the SDK retries with growing, jittered waits.

    Args:
        config: Which endpoint, and how.
        name: The judge's name, for messages.
    """

    def __init__(self, config: EndpointConfig, name: str) -> None:
        self.config = config
        self.where = f"Judge `{name}`: {config.base_url} (model `{config.model}`)"

    def identity(self) -> dict[str, Any]:
        """What decides an answer beside the conversation, as JSON values."""
        config = self.config
        return {"model": config.model, "endpoint": config.base_url, "sampling": self._sampling()}

    def _sampling(self) -> dict[str, Any]:
        named = {key: getattr(self.config, key) for key in ("temperature", "seed", "max_tokens")}
        return {key: value for key, value in named.items() if value is not None} | self.config.extra_body

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        """Texts of the answers, in order; empty where the endpoint gave none.

        Raises:
            PrerequisiteError: The SDK or the key is missing, or a request failed after its retries. The message holds
                neither key nor text.
        """
        if not conversations:
            return []
        with closing(self._client()) as client, ThreadPoolExecutor(self.config.concurrency) as pool:
            running = [pool.submit(self._ask, client, messages) for messages in conversations]
            try:
                return [future.result() for future in running]
            except PrerequisiteError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _client(self) -> OpenAI:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise missing_package("A judge behind an endpoint", "judges") from error
        key = os.environ.get(self.config.api_key_env) if self.config.api_key_env else "none"
        if not key:
            raise PrerequisiteError(
                f"{self.where} needs a key in the environment variable `{self.config.api_key_env}`. Set it, or set "
                "`api_key_env: null` for an endpoint without keys."
            )
        config = self.config
        return OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout, max_retries=config.retries)

    def _ask(self, client: OpenAI, messages: Sequence[dict[str, str]]) -> str:
        import openai
        from openai.types.chat import ChatCompletion

        body: dict[str, Any] = {"model": self.config.model, "messages": list(messages)} | self._sampling()
        try:
            completion = client.post("/chat/completions", body=body, cast_to=ChatCompletion)
        except openai.APIStatusError as error:
            # The body may repeat the request, so only the status is told; nor is the error chained.
            raise PrerequisiteError(self._failed(f"HTTP {error.status_code}")) from None
        except openai.APITimeoutError:
            raise PrerequisiteError(self._failed(f"no answer in {self.config.timeout:g} s")) from None
        except openai.APIConnectionError as error:
            raise PrerequisiteError(self._failed(f"no connection ({type(error.__cause__).__name__})")) from None
        except (openai.APIError, ValueError):
            raise PrerequisiteError(self._failed("not a chat completion")) from None
        if not isinstance(completion, ChatCompletion):
            raise PrerequisiteError(self._failed("not a chat completion"))
        choices = completion.choices or []
        return (choices[0].message.content or "") if choices else ""

    def _failed(self, why: str) -> str:
        tries = self.config.retries + 1
        return f"{self.where}: {why}, after up to {tries} {'try' if tries == 1 else 'tries'}."
