"""Prompts from Hugging Face datasets: a pinned hub id or a local folder, data files only, never code.

A hub dataset is fetched as files and then read like a local folder, so both take one path, and reading needs no
network. The library's scripts (and `trust_remote_code`) went with its version 4, the oldest that the extra allows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import huggingface_hub

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError, missing_package, unknown_name
from dsprobe.models.hub import hub_errors, pinned
from dsprobe.prompts.tables import Table
from dsprobe.untrusted import local_path

if TYPE_CHECKING:
    from datasets import Dataset

DATA_FILES: Final = ("*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl", "*.arrow", "README.md")
"""What is downloaded: data in formats without code, and the card, which names configurations and splits."""


MAX_ENTRIES: Final = 20_000
"""Files and folders of a dataset's folder at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDataset:
    """One split of a dataset."""

    table: Table
    split: str
    revision: str
    """Commit of a hub dataset; empty for a local folder."""


def dataset_table(config: PromptsConfig) -> FoundDataset:
    """Read one split of a dataset.

    Args:
        config: `path` is a local folder (data files, or what `Dataset.save_to_disk` wrote) or a hub id with `revision`;
            `subset` and `split` choose among several.

    Raises:
        ConfigError: Not a folder and not a pinned hub id, an unknown subset or split, or data that cannot be read.
        PrerequisiteError: `datasets` is not installed, or a hub id is not cached and cannot be fetched.
    """
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise missing_package("Prompt source `hf`", "data") from None
    folder, revision = _folder(config)
    with _reading_errors(config):
        table, split = _saved(folder, config) if _is_saved(folder) else _files(folder, config)
    return FoundDataset(table=table, split=split, revision=revision)


def _folder(config: PromptsConfig) -> tuple[Path, str]:
    """The dataset's local folder, fetched where it is a hub id, and the commit."""
    if config.path is None:
        raise ConfigError(f"prompts `{config.key}`: source `hf` needs `path`: a hub id or a dataset folder.")
    local = local_path(config.path, f"prompts `{config.key}`")
    if local.is_dir():
        if config.revision is not None:
            raise ConfigError(f"prompts `{config.key}`: {local} is a folder; `revision` is for hub ids.")
        _check_few(local, config)
        return local.resolve(), ""
    repo, revision = pinned(f"prompts `{config.key}`", config.path, config.revision, "the same prompts")
    with hub_errors(repo, revision, kind="dataset"):
        folder = huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=list(DATA_FILES)
        )
    return Path(folder), revision


def _check_few(folder: Path, config: PromptsConfig) -> None:
    """Refuse a folder such as a whole home or disk, which the library would search for data files."""
    entries = 0
    for _, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            raise ConfigError(
                f"prompts `{config.key}`: {folder} holds more than {MAX_ENTRIES} files and folders. Give the folder of "
                "one dataset."
            )


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved(folder: Path, config: PromptsConfig) -> tuple[Table, str]:
    """Read what `save_to_disk` wrote: Arrow files and JSON, no pickles."""
    from datasets import DatasetDict, load_from_disk

    if config.subset is not None:
        raise ConfigError(f"prompts `{config.key}`: {folder} is a saved dataset, which has no subsets.")
    found = load_from_disk(str(folder))
    if isinstance(found, DatasetDict):
        split = _one_of("split", config.split, list(map(str, found)), config)
        return _table(found[split], split, config), split
    own = str(found.split or "")
    split = _one_of("split", config.split, [own] if own else [], config)
    return _table(found, split, config), split


def _files(folder: Path, config: PromptsConfig) -> tuple[Table, str]:
    """Read a folder of data files through a cache that does not outlive the call, so that it cannot be stale."""
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    place = str(folder)
    with tempfile.TemporaryDirectory(prefix="dsprobe-") as cache:
        subset = _one_of("subset", config.subset, get_dataset_config_names(place), config)
        split = _one_of("split", config.split, list(map(str, get_dataset_split_names(place, subset))), config)
        return _table(load_dataset(place, subset, split=split, cache_dir=cache), split, config), split


def _one_of(what: str, asked: str | None, found: Sequence[str], config: PromptsConfig) -> str:
    if asked is not None and asked not in found:
        raise unknown_name(f"{what} of dataset {config.path}", asked, found)
    if asked is None and len(found) > 1:
        choices = ", ".join(found)
        raise ConfigError(f"prompts `{config.key}`: {config.path} has several {what}s; give `{what}`: {choices}.")
    return asked if asked is not None else (found[0] if found else "")


def _table(dataset: Dataset, split: str, config: PromptsConfig) -> Table:
    from dsprobe.prompts.arrow_files import arrow_table

    where = f"{config.path} (split {split})" if split else str(config.path)
    rows: Any = dataset.with_format("arrow")[:]
    return arrow_table(rows, where)


@contextmanager
def _reading_errors(config: PromptsConfig) -> Iterator[None]:
    """Turn the library's errors about data into ones that name the dataset; keep its progress bars off the terminal."""
    import pyarrow as pa
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from datasets.exceptions import DatasetsError

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except ConfigError:
        raise
    # `RuntimeError` is how the library refuses a folder that brings a script.
    except (DatasetsError, pa.ArrowException, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"prompts `{config.key}`: {config.path} is not a readable dataset ({cause}).") from error
    finally:
        if shown:
            enable_progress_bars()
