"""Reading what others may have written: limits and checks that every reader of documents shares.

A reader succeeds or raises an error of `dsprobe.errors`. The functions here raise `ValueError` where the caller knows
better what the document is called and which error its reader expects.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from dsprobe.errors import ConfigError, StorageError
from dsprobe.registry import describe_validation

MAX_JSON_DEPTH: Final = 100
"""Levels of nesting: far more than any document has, and few enough for every recursive reader."""

T = TypeVar("T")

_KEYS: Final = re.compile(
    r"(?:AKIA|ASIA)[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""Beginnings that AWS, OpenAI, Anthropic, Hugging Face, GitHub, Slack, Google and PEM files give their keys."""
_URL_PASSWORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s@]*:[^/\s@]*@")
_SECRET_VARIABLE: Final = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$")
_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET: Final = 16
"""Characters of an environment variable's value that is looked for; shorter ones are words such as ``none``."""


def parse_json(data: bytes | str) -> Any:
    """Parse JSON in UTF-8, nested no deeper than `MAX_JSON_DEPTH`.

    Raises:
        ValueError: It is not.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels") from None
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [inner for item in level for inner in _items(item)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")


class Facts(dict[str, Any]):
    """A JSON object out of a document; a key that it lacks is the document's fault, not the program's."""

    def __missing__(self, key: str) -> Any:
        raise StorageError(f"A stored document lacks `{key}`: it is damaged, or was not written by dsprobe.")


def parse_facts(data: bytes) -> Facts:
    """Parse a JSON object whose inner objects are `Facts` as well.

    Raises:
        ValueError: It is no JSON object; see `parse_json`.
    """
    parse_json(data)  # first its depth
    value = json.loads(data.decode("utf-8-sig"), object_hook=Facts)
    if not isinstance(value, Facts):
        raise ValueError("not a JSON object")
    return value


def parse_record(kind: type[T], value: Any) -> T:
    """Turn parsed JSON into a dataclass or other typed value, checking every type.

    Args:
        kind: A dataclass, pydantic model or other annotation.
        value: From `parse_json`.

    Raises:
        ValueError: A field is missing or of another type; the message names it and does not quote it.
    """
    try:
        # In JSON mode lists may become tuples, and everything else is strict.
        adapter: TypeAdapter[T] = _adapter(cast("Any", kind))
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError("; ".join(describe_validation(error, "field", show_input=False).split("\n")[:3])) from None


def local_path(text: str, what: str) -> Path:
    """A path from a document or the command line, ``~`` expanded, fit to be asked for.

    Args:
        text: The path as it was given.
        what: What it is, for messages.

    Raises:
        ConfigError: No file can have this path: a NUL, an unknown user's home, too long a name.
    """
    try:
        if "\0" in text:
            raise ValueError("it holds a NUL")
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise ConfigError(f"{what}: `{shown!a}` is not a usable path: {_reason(error)}.") from None
    return path


def refuse_secrets(
    values: Any,
    where: str,
    environ: Mapping[str, str] | None = None,
    *,
    fate: str = "written into the run's manifest",
) -> None:
    """Refuse a document with a key in it: it would go into manifests and logs as it is.

    Args:
        values: Parsed document.
        where: What it is, for messages.
        environ: Environment; the values of its variables called ``…KEY``, ``…TOKEN``, ``…SECRET``, ``…PASSWORD`` are
            keys too.
        fate: What would become of it, for messages.

    Raises:
        ConfigError: Names the place and never the value.
    """
    known = [
        value
        for name, value in (environ or {}).items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET
    ]
    for path, text in _texts(values, ""):
        kind = _secret_in(text, known)
        if kind:
            raise ConfigError(
                f"{where}: `{path}` holds {kind}, which would be {fate}. Give keys by the "
                "environment (AWS_*, `api_key_env`, HF_TOKEN), never in a configuration."
            )


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name may hold a secret."""
    return _SECRET_NAME.search(name) is not None


def has_password(url: str) -> bool:
    """Whether a URL carries a user name with a password."""
    return _URL_PASSWORD.search(url) is not None


def redacted(text: str) -> str:
    """A text with the passwords of its URLs and everything that looks like a key taken out."""
    hidden = _URL_PASSWORD.sub(lambda found: f"{found[0].partition('://')[0]}://…@", text)
    return _KEYS.sub("…", hidden)


@functools.lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text of a document, keys included, with the dotted path of its place."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path or "a key", str(key)
            yield from _texts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}.{index}")


def _secret_in(text: str, known: list[str]) -> str:
    if any(secret in text for secret in known):
        return "the value of a secret environment variable"
    if has_password(text):
        return "a URL with a password"
    return "what looks like a key" if _KEYS.search(text) else ""


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)
