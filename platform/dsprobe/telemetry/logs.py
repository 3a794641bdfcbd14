"""dsprobe's own log: off unless asked for; as text or as one JSON object a line, with run, shard and replica.

``DSPROBE_LOG`` is the lowest level that is shown, ``DSPROBE_LOG_FORMAT`` is ``text`` or ``json``. It goes to standard
error; that of a replica or reducer is a file in Ray's session folder. At INFO it holds no text of prompts and replies;
at DEBUG it may. Passwords in URLs and what looks like a key are taken out at every level.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from pythonjsonlogger.json import JsonFormatter

from dsprobe.errors import unknown_name
from dsprobe.untrusted import redacted
from dsprobe.visible_text import visible_log

LEVEL: Final = "DSPROBE_LOG"
FORMAT: Final = "DSPROBE_LOG_FORMAT"
FORMATS: Final = ("text", "json")

_FACTS: ContextVar[Mapping[str, str | int]] = ContextVar("facts", default={})  # noqa: B039 - never changed in place
_PROCESS: Final[dict[str, str | int]] = {}
"""What is true of all threads; a new thread's context is empty."""


def begin_actor(role: str, name: str) -> None:
    """Called once where an actor's process begins: show its log, with its role and name on every line.

    Args:
        role: ``replica``, ``reducer`` or ``judge``.
        name: The actor's name among those of its role.
    """
    _PROCESS[role] = name
    configure_logging()


def configure_logging(environ: Mapping[str, str] = os.environ) -> None:
    """Show dsprobe's log as the environment asks; called where a process begins.

    Raises:
        ConfigError: The level or the format is unknown.
    """
    level, form = environ.get(LEVEL, ""), environ.get(FORMAT, "text")
    levels = logging.getLevelNamesMapping()
    if not level:
        return
    if level.upper() not in levels:
        raise unknown_name(f"level in {LEVEL}", level, levels)
    if form not in FORMATS:
        raise unknown_name(f"format in {FORMAT}", form, FORMATS)
    logger = logging.getLogger("dsprobe")
    logger.setLevel(levels[level.upper()])
    if not any(isinstance(handler.formatter, _Json | _Text) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.addFilter(_add_facts)
        handler.setFormatter(_Json() if form == "json" else _Text())
        logger.addHandler(handler)


def log_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that make another process log as this one does."""
    return {name: environ[name] for name in (LEVEL, FORMAT) if environ.get(name)}


def facts() -> Mapping[str, str | int]:
    """What is known of the work under way in this thread: run, shard, batch, and in an actor its role and name."""
    return {**_PROCESS, **_FACTS.get()}


@contextmanager
def log_context(**facts: str | int) -> Iterator[None]:
    """Put facts such as ``run`` and ``shard`` on every line of the block, in this thread."""
    token = _FACTS.set({**_FACTS.get(), **facts})
    try:
        yield
    finally:
        _FACTS.reset(token)


def _add_facts(record: logging.LogRecord) -> bool:
    for name, value in facts().items():
        setattr(record, name, value)
    return True


class _Json(JsonFormatter):
    """One object a line."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s %(process)d",
            rename_fields={"levelname": "level", "name": "logger", "process": "pid"},
            timestamp=True,
        )

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _Text(logging.Formatter):
    """The message, and the facts behind it; control characters are shown, not obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        known = " ".join(f"{name}={value}" for name, value in facts().items())
        return visible_log(redacted(super().format(record) + (f" [{known}]" if known else "")))
