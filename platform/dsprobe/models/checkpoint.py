"""What a checkpoint says about itself, read without its weights.

Reads `config.json`, `generation_config.json`, the tokenizer's JSON files, safetensors headers and file hashes. A plan
is made from these facts alone; nothing here builds a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

from dsprobe.config import ModelConfig
from dsprobe.errors import CheckpointError, unknown_name
from dsprobe.models import hub, remote
from dsprobe.models.base import ModelKind
from dsprobe.models.checkpoint_files import folder_digest, read_json, tensor_bytes, tensor_count, weight_files
from dsprobe.models.layouts import (
    DIFFUSION_FAMILIES,
    MAX_SIZE,
    Family,
    detect_family,
    native_config,
)
from dsprobe.untrusted import local_path, parse_record

MASK_TEXTS: Final = ("<|mask|>", "<|mdm_mask|>", "<mask>", "[MASK]")
"""Spellings of the mask token in published tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """Facts about a checkpoint that need no weights."""

    name: str
    """Label from the configuration."""
    path: Path | None
    """Resolved local folder; of a URL its outline, see `dsprobe.models.remote`; `None` for a hub id. The weights of the
    last two are fetched at load."""
    family: Family
    kind: ModelKind
    vocab_size: int
    """Rows of the output head, padding rows included."""
    num_layers: int
    hidden_size: int
    max_positions: int
    """Longest canvas the model was trained for; 0 when unknown."""
    mask_token_id: int | None
    """`None` for autoregressive models, and for hub ids whose `config.json` does not name it."""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    parameter_bytes: int
    """Size of all weights on disk; 0 for a hub id."""
    digest: str
    """SHA-256 over all files that loading reads; for a hub id over id and commit, for a URL over what the store tells
    of each file."""
    revision: str | None


def inspect_checkpoint(config: ModelConfig) -> CheckpointFacts:
    """Read what a checkpoint says about itself.

    Args:
        config: Embedded model (no `path`), local folder, URL, or hub id with a pinned `revision`.

    Raises:
        ConfigError: Unknown embedded model, path that is neither folder nor hub id, or missing revision.
        CheckpointError: The folder is not a supported layout, or holds no safetensors file.
        PrerequisiteError: A hub id is not cached and cannot be fetched, or no room for a URL's outline.
        StorageError: The store behind a URL fails.
    """
    if remote.is_url(config.path):
        return _inspect_url(config, remote.source(config))
    folder = local_folder(config)
    return _inspect_hub(config) if folder is None else inspect_folder(config, folder)


def local_folder(config: ModelConfig) -> Path | None:
    """The folder of an embedded or local model; `None` for a hub id or URL."""
    if config.path is None:
        from dsprobe.toy.assets import EMBEDDED_MODELS, checkpoint_dir

        if config.name not in EMBEDDED_MODELS:
            error = unknown_name("embedded model", config.name, EMBEDDED_MODELS)
            raise type(error)(f"{error} Other models need `path`.")
        return checkpoint_dir(config.name)
    folder = local_path(config.path, f"model `{config.name}`")
    return folder.resolve() if folder.is_dir() else None


def model_files(config: ModelConfig, *, weights: bool = True) -> Path:
    """A local folder with a model's files, fetched first where they are not here.

    Args:
        config: As for `inspect_checkpoint`.
        weights: Whether the weights are wanted too.

    Raises:
        ConfigError: See `inspect_checkpoint`; so are the other errors.
    """
    if remote.is_url(config.path):
        source, url = remote.source(config), config.path or ""
        return (source.fetch(url) if weights else source.outline(url)).folder
    return local_folder(config) or hub.fetch_folder(config, weights=weights)


def inspect_folder(config: ModelConfig, folder: Path, digest: str = "") -> CheckpointFacts:
    """Facts of a local folder; see `inspect_checkpoint`.

    Args:
        config: The model.
        folder: Where its files are.
        digest: Its digest, where it is known: reading all weights takes seconds a gigabyte.
    """
    raw = read_json(folder / "config.json")
    weights = weight_files(folder)
    parameter_bytes = sum(tensor_bytes(file).total() for file in weights)
    facts = _facts(config, raw, folder, parameter_bytes, digest or folder_digest(folder))
    _check_plausible(facts, sum(tensor_count(file) for file in weights))
    return facts


def _check_plausible(facts: CheckpointFacts, tensors: int) -> None:
    """Refuse sizes that the weights cannot have: a network of that size would be built before they are compared.

    Every layer has a tensor of its own, and the embedding a value for each token and hidden unit; a byte holds eight
    values at most.
    """
    embedding = facts.vocab_size * facts.hidden_size
    if facts.num_layers > tensors or embedding > 8 * facts.parameter_bytes:
        raise CheckpointError(
            f"{facts.path}: config.json speaks of {facts.num_layers} layers, {facts.vocab_size} tokens and width "
            f"{facts.hidden_size}; the weights are {tensors} tensors of {facts.parameter_bytes} bytes in all."
        )


def _inspect_url(config: ModelConfig, source: remote.WeightSource) -> CheckpointFacts:
    copy = source.outline(config.path or "")
    try:
        return inspect_folder(config, copy.folder, copy.digest)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(copy.folder), config.path or "")) from None


def _inspect_hub(config: ModelConfig) -> CheckpointFacts:
    repo, revision = hub.hub_id(config)
    raw = read_json(hub.fetch_file(config, "config.json"))
    # A commit hash fixes every file, so the weights need not be here to be told apart.
    digest = hashlib.sha256(f"{repo}@{revision}".encode()).hexdigest()
    return _facts(config, raw, None, 0, digest)


def _facts(config: ModelConfig, raw: dict[str, Any], folder: Path | None, size: int, digest: str) -> CheckpointFacts:
    where = str(folder or config.path)
    family: Family = detect_family(raw, where) if config.family == "auto" else config.family
    native = native_config(raw, family, where)
    vocab_size = _sizes(native, where)["vocab_size"]
    kind: ModelKind = "diffusion" if family in DIFFUSION_FAMILIES else "autoregressive"
    mask = _mask_token_id(config, raw, folder, vocab_size) if kind == "diffusion" else None
    if kind == "diffusion" and mask is None and folder is not None:
        raise CheckpointError(
            f"{where}: neither config.json nor the tokenizer names a mask token; set `mask_token_id`."
        )
    generation = folder / "generation_config.json" if folder else None
    extra = read_json(generation) if generation and generation.is_file() else {}
    return CheckpointFacts(
        name=config.name,
        path=folder,
        family=family,
        kind=kind,
        **_sizes(native, where),
        mask_token_id=mask,
        eos_token_ids=_named_ids("eos_token_id", raw, extra, where),
        pad_token_id=_first(_named_ids("pad_token_id", raw, extra, where)),
        parameter_bytes=size,
        digest=digest,
        revision=config.revision,
    )


def _sizes(native: PreTrainedConfig, where: str) -> dict[str, int]:
    """Sizes of a network, whatever a library's class lets through."""
    named = {
        "vocab_size": getattr(native, "vocab_size", None),
        "num_layers": getattr(native, "num_hidden_layers", None),
        "hidden_size": getattr(native, "hidden_size", None),
    }
    sizes: dict[str, int] = {}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise CheckpointError(f"{where}: {name} in config.json is {str(value)[:40]!a}. Allowed: 1 to {MAX_SIZE}.")
        sizes[name] = value
    positions = getattr(native, "max_position_embeddings", 0) or 0
    if isinstance(positions, bool) or not isinstance(positions, int) or not 0 <= positions <= 2**40:
        raise CheckpointError(f"{where}: max_position_embeddings in config.json is {str(positions)[:40]!a}.")
    return {**sizes, "max_positions": positions}


def _named_ids(name: str, raw: Mapping[str, Any], extra: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Token ids that `config.json` or `generation_config.json` gives by a name."""
    found = [content.get(name) for content in (raw, extra)]
    try:
        return unique_ids(*(parse_record(int | list[int] | None, ids) for ids in found))  # type: ignore[arg-type]
    except ValueError:
        raise CheckpointError(f"{where}: `{name}` is no token id and no list of them.") from None


def unique_ids(*found: int | Iterable[int] | None) -> tuple[int, ...]:
    """Flatten token ids given as numbers, lists or nothing, keeping first occurrences."""
    ids: list[int] = []
    for item in found:
        ids.extend([] if item is None else [item] if isinstance(item, int) else item)
    return tuple(dict.fromkeys(ids))


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _mask_token_id(config: ModelConfig, raw: Mapping[str, Any], folder: Path | None, vocab_size: int) -> int | None:
    """The override, else what `config.json` names, else what the tokenizer's files name."""
    found = config.mask_token_id
    if found is None:
        found = raw.get("mask_token_id")
    if found is None and folder is not None:
        found = _mask_in_tokenizer(folder)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < vocab_size:
        raise CheckpointError(
            f"{folder or config.path}: mask token id {str(found)[:40]} is outside the vocabulary "
            f"(0 to {vocab_size - 1})."
        )
    return found


def _mask_in_tokenizer(folder: Path) -> int | None:
    texts = list(MASK_TEXTS)
    added: dict[str, int] = {}
    try:
        if (folder / "tokenizer_config.json").is_file():
            settings = read_json(folder / "tokenizer_config.json")
            named = settings.get("mask_token")
            if named is not None:
                texts.insert(0, named["content"] if isinstance(named, dict) else named)
            decoder = settings.get("added_tokens_decoder") or {}
            added |= {token["content"]: int(token_id) for token_id, token in decoder.items()}
        if (folder / "tokenizer.json").is_file():
            tokens = read_json(folder / "tokenizer.json").get("added_tokens") or []
            added |= {token["content"]: token["id"] for token in tokens}
        return next((added[text] for text in texts if text in added), None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: the tokenizer's files do not describe their tokens ({error!r}).") from None


__all__ = ["CheckpointFacts", "inspect_checkpoint", "inspect_folder", "model_files"]
