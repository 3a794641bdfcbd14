"""Models at a URL: what the laboratory asks of those who know how to reach it.

`model.path` may be a folder of an object store, such as ``s3://bucket/models/dream``. The laboratory knows no store, so
upper floors say how a URL becomes a local folder: the command line and `dsprobe.actors` give the source of
`dsprobe.actors.weights`.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dsprobe.errors import ConfigError, PrerequisiteError

if TYPE_CHECKING:
    from dsprobe.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopy:
    """What there is of a URL on this machine."""

    folder: Path
    digest: str
    """SHA-256 over the names, sizes and checksums that the store tells; another one when any file is another."""


class WeightSource(Protocol):
    """Turns URLs into local folders."""

    def outline(self, url: str) -> LocalCopy:
        """A folder to look at and not to load: of each weight file the header, and a hole in place of its tensors.

        Everything else is there whole. Costs requests, and hardly any room.
        """

    def fetch(self, url: str) -> LocalCopy:
        """A folder to load from; stays as it is while this process lives."""


_factory: str | None = None
_source: WeightSource | None = None


def use(factory: str) -> None:
    """Say who reaches URLs in this process.

    Args:
        factory: ``module:class`` of a `WeightSource`, imported when the first URL is met.
    """
    global _factory, _source
    _factory, _source = factory, None


def is_url(path: str | None) -> bool:
    """Whether a model's path is a URL and no folder or hub id."""
    return path is not None and "://" in path


def source(config: ModelConfig) -> WeightSource:
    """Who reaches a model's URL.

    Raises:
        ConfigError: The model has a revision, which a URL cannot have.
        PrerequisiteError: Nobody in this process can.
    """
    global _source
    if config.revision is not None:
        raise ConfigError(
            f"Model `{config.name}`: `revision` is for hub ids; what lies at {config.path} is known by its checksums."
        )
    if _source is None:
        if _factory is None:
            raise PrerequisiteError(
                f"Model `{config.name}`: {config.path} is a URL, and nothing in this process can reach one; "
                "`import dsprobe.actors` first, or give a local folder."
            )
        _source = pkgutil.resolve_name(_factory)()
    return _source
