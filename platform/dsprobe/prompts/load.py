"""From a configuration to a prompt set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.prompts.base import PromptSet, digest_of
from dsprobe.prompts.layouts import BENCHMARKS, Layout, choose_layout, expected, official
from dsprobe.prompts.selection import select
from dsprobe.prompts.tables import Table, read_prompts
from dsprobe.untrusted import local_path

if TYPE_CHECKING:
    from dsprobe.prompts.toy import Split

FORMATS: Final = ("csv", "jsonl", "parquet")
"""File formats that are sources of their own. A benchmark's file is read by its ending, as CSV where it has another."""

SOURCES: Final = ("toy", *BENCHMARKS, *FORMATS, "hf")
"""What `PromptsConfig.source` may be."""

_FROM_ROWS: Final = frozenset({"path", "columns", "labels", "categories", "keep", "sample"})
_SPECIFIC: Final = _FROM_ROWS | {"split", "seed", "revision", "subset"}
"""Settings that only some sources use."""
_ENDINGS: Final = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_OFFICIAL_SPLITS: Final = {"harmful-behaviors": "harmful", "benign-behaviors": "benign"}
"""Names of JailbreakBench's files, whose columns do not tell them apart."""


def load_prompts(config: PromptsConfig) -> PromptSet:
    """Load a prompt set: generated (`toy`), from a file, or from a Hugging Face dataset.

    Benchmark files are not shipped; the path says where yours lies. What is harmful is decided by the split in the
    toy world and JailbreakBench, row by row in files with labels (XSTest), and by the configuration in all others.

    Args:
        config: Source, place, columns, filters, sample, limit; applied in this order.

    Returns:
        The prompts in their source's order, named by the configuration's key.

    Raises:
        ConfigError: The source is unknown, the file missing or malformed, or a setting does not belong to the source.
        PrerequisiteError: A dataset needs a package that is not installed, or cannot be fetched.
    """
    if config.source not in SOURCES:
        raise unknown_name("prompt source", config.source, SOURCES)
    _refuse_unused(config)
    if config.source == "toy":
        prompts = _toy(config)
    elif config.source == "hf":
        from dsprobe.prompts.datasets_hub import dataset_table

        found = dataset_table(config)
        prompts = replace(_from_rows(found.table, config, found.split), revision=found.revision)
    else:
        prompts = _file(config)
    return replace(prompts, name=config.key)


def _toy(config: PromptsConfig) -> PromptSet:
    from dsprobe.prompts.toy import toy_prompts

    split = config.split or "restricted"
    if split == "restricted" and not config.harmful:
        raise ConfigError(
            f"prompts `{config.key}`: restricted toy requests count as harmful; "
            "`harmful: false` goes with `split: benign` or `split: oversensitive`."
        )
    # `toy_prompts` checks the split's name itself.
    return toy_prompts(cast("Split", split), config.limit, config.seed)


def _file(config: PromptsConfig) -> PromptSet:
    path = _existing(config)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompts `{config.key}`: {path} cannot be read: {error.strerror}.") from None
    prompts = _from_rows(_reader(config, path)(data, str(path)), config, _file_split(config, path))
    return replace(prompts, file_digest=hashlib.sha256(data).hexdigest())


def _from_rows(table: Table, config: PromptsConfig, split: str) -> PromptSet:
    layout = choose_layout(table.columns, table.header, config)
    harmful = _counts_as_harmful(config, layout, split)
    found = read_prompts(table, layout, config.source, split=split, harmful=harmful)
    selected = select(found, config)
    kept = tuple(selected[: config.limit])
    return PromptSet(name=config.key, prompts=kept, digest=digest_of(kept), limited=len(kept) < len(selected))


def _reader(config: PromptsConfig, path: Path) -> Callable[[bytes, str], Table]:
    kind = config.source if config.source in FORMATS else _ENDINGS.get(path.suffix.lower(), "csv")
    if kind == "jsonl":
        from dsprobe.prompts.jsonl_files import jsonl_table

        return jsonl_table
    if kind == "parquet":
        from dsprobe.prompts.arrow_files import parquet_table

        return parquet_table
    from dsprobe.prompts.csv_files import csv_table

    return csv_table


def _existing(config: PromptsConfig) -> Path:
    wanted = f"Expected: {expected(config.source)}. {official(config.source)}".strip()
    if config.path is None:
        raise ConfigError(f"prompts `{config.key}`: source `{config.source}` needs `path`. {wanted}")
    path = local_path(config.path, f"prompts `{config.key}`")
    if not path.is_file():
        raise ConfigError(f"prompts `{config.key}`: no file at {path.absolute()}. {wanted}")
    return path


def _file_split(config: PromptsConfig, path: Path) -> str:
    """The split of a JailbreakBench file; empty for all other sources."""
    if config.source != "jailbreakbench":
        return ""
    splits = sorted(set(_OFFICIAL_SPLITS.values()))
    named = _OFFICIAL_SPLITS.get(path.stem, "")
    split = config.split or named
    if not split:
        raise ConfigError(f"prompts `{config.key}`: say which split {path} is: `split: harmful` or `split: benign`.")
    if split not in splits:
        raise unknown_name("split of jailbreakbench", split, splits)
    if named and split != named:
        raise ConfigError(f"prompts `{config.key}`: {path} is the {named} split by its name, not `{split}`.")
    return split


def _counts_as_harmful(config: PromptsConfig, layout: Layout, split: str) -> bool:
    harmful = layout.splits.get(split, config.harmful)
    if harmful and not config.harmful:
        raise ConfigError(f"prompts `{config.key}`: `split: {split}` counts as harmful, against `harmful: false`.")
    return harmful


def _refuse_unused(config: PromptsConfig) -> None:
    """Refuse a setting that the source would ignore."""
    used, why = _uses(config.source)
    for name in sorted(_SPECIFIC - used):
        default = PromptsConfig.model_fields[name].get_default(call_default_factory=True)
        if getattr(config, name) != default:
            raise ConfigError(f"prompts `{config.key}`: source `{config.source}` has no use for `{name}`: {why}.")


def _uses(source: str) -> tuple[frozenset[str], str]:
    """The specific settings that a source uses, and why it uses no others."""
    extra: Mapping[str, frozenset[str]] = {
        "toy": frozenset({"split", "seed"}),
        "jailbreakbench": _FROM_ROWS | {"split"},
        "hf": _FROM_ROWS | {"revision", "subset", "split"},
    }
    why = {"toy": "its prompts are generated", "hf": "its prompts come from a dataset as they are"}
    return extra.get(source, _FROM_ROWS), why.get(source, "its prompts come from a file as they are")
