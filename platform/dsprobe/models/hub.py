"""Fetching pinned checkpoints from the Hugging Face hub: data files only, never code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils._validators import validate_repo_id

from dsprobe.config import ModelConfig
from dsprobe.errors import CheckpointError, ConfigError, PrerequisiteError

WEIGHTS: Final = "*.safetensors"
ALLOWED_FILES: Final = (WEIGHTS, "*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model")
"""What is downloaded: weights, configuration and tokenizer files; no Python, no pickles."""

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def hub_id(config: ModelConfig) -> tuple[str, str]:
    """Check that a model that is not a local folder is a pinned hub id.

    Returns:
        The repository id and the commit hash.

    Raises:
        ConfigError: The path is neither a folder nor a hub id, or `revision` is not a full commit hash.
    """
    return pinned(f"model `{config.name}`", config.path or "", config.revision, "the same weights")


def pinned(what: str, path: str, revision: str | None, same: str) -> tuple[str, str]:
    """Check that something that is not a local folder is a pinned hub id.

    Args:
        what: Model or prompt set, for messages.
        path: Its path.
        revision: Its revision.
        same: What a pinned revision keeps the same.

    Returns:
        The repository id and the commit hash.

    Raises:
        ConfigError: The path is no hub id, or the revision is not a full commit hash.
    """
    if not _is_hub_id(path):
        raise ConfigError(f"{what}: path `{path}` is neither a folder nor a hub id.")
    if revision is None:
        raise ConfigError(
            f"{what}: `{path}` is no local folder, and as a hub id it needs "
            f"`revision: <commit hash>`, so that every run reads {same}."
        )
    if not _COMMIT.fullmatch(revision):
        raise ConfigError(f"{what}: revision `{revision}` can move; give the full commit hash (40 hexadecimal digits).")
    return path, revision


def _is_hub_id(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return _HUB_ID.fullmatch(path) is not None


def fetch_file(config: ModelConfig, filename: str) -> Path:
    """Download (or find in the cache) one file of a pinned checkpoint.

    Raises:
        CheckpointError: The repository has no such file.
        PrerequisiteError: It cannot be reached and is not in the cache.
    """
    repo, revision = hub_id(config)
    with hub_errors(repo, revision):
        return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision))


def fetch_folder(config: ModelConfig, *, weights: bool = True) -> Path:
    """Download (or find in the cache) the data files of a pinned checkpoint.

    Args:
        config: A pinned hub id.
        weights: Whether the weights are wanted too; without, configuration and tokenizer alone.

    Raises:
        PrerequisiteError: It cannot be reached and is not in the cache.
    """
    repo, revision = hub_id(config)
    wanted = [pattern for pattern in ALLOWED_FILES if weights or pattern != WEIGHTS]
    with hub_errors(repo, revision):
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))


@contextmanager
def hub_errors(repo: str, revision: str, kind: Literal["model", "dataset"] = "model") -> Iterator[None]:
    """Turn the hub client's errors into ones that say what to do."""
    option = "" if kind == "model" else f"--repo-type {kind} "
    advice = (
        f"Fetch it once on a connected machine with: hf download {repo} {option}--revision {revision} "
        "(and unset HF_HUB_OFFLINE here), or give a local folder as `path`."
    )
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise PrerequisiteError(f"`{repo}` is not in the local cache and cannot be fetched. {advice}") from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"`{repo}` at {revision}: {error}") from error
    except HfHubHTTPError as error:
        raise PrerequisiteError(f"`{repo}` cannot be fetched: {error} {advice}") from error
