"""Loading: from a `ModelConfig` to a model on its device."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dsprobe.config import ModelConfig
from dsprobe.errors import CheckpointError, ConfigError, PrerequisiteError
from dsprobe.models import hub, remote
from dsprobe.models.base import LanguageModel
from dsprobe.models.causal import TransformersCausalModel
from dsprobe.models.checkpoint import CheckpointFacts, inspect_checkpoint, inspect_folder
from dsprobe.models.checkpoint_files import read_json, stored_dtype
from dsprobe.models.dream import DreamModel
from dsprobe.models.info import model_info
from dsprobe.models.layouts import Family, key_mapping, native_config
from dsprobe.models.llada import LladaModel
from dsprobe.models.native import NativeModel
from dsprobe.models.tokenization import load_tokenizer
from dsprobe.models.toy import ToyDiffusionModel

LOGGER = logging.getLogger("dsprobe.models.load")

ADAPTERS: Final[dict[Family, type[NativeModel]]] = {
    "dream": DreamModel,
    "llada": LladaModel,
    "causal": TransformersCausalModel,
    "toy-diffusion": ToyDiffusionModel,
    "toy-autoregressive": TransformersCausalModel,
}

_DIFFUSION_CLASSES: Final[dict[str, type[PreTrainedModel]]] = {
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "llama": LlamaForCausalLM,
}
"""Native classes that honour `is_causal = False`."""

_STORED_DTYPES: Final = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_model(config: ModelConfig) -> LanguageModel:
    """Load a model, frozen and in evaluation mode.

    Weights are read from safetensors into native transformers classes; code beside them is never run.

    Args:
        config: Which model, from where, and how it is placed.

    Raises:
        ConfigError: The model's name, path or revision is wrong.
        CheckpointError: The folder is not a supported layout, or its weights do not match its configuration.
        PrerequisiteError: The device is missing, a hub id is not cached and cannot be fetched, or the disk has no room
            for the weights behind a URL.
        StorageError: The store behind a URL fails.
    """
    began = time.monotonic()
    facts, folder = _here(config)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device, folder)
    module: Any = load_module(folder, facts.family, dtype, config.attention)
    tokenizer = load_tokenizer(folder, facts)
    extra = {
        "attention": config.attention,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "parameter_bytes": facts.parameter_bytes,
    }
    suppressed = getattr(module.config, "suppressed_token_ids", None) or ()
    info = dataclasses.replace(
        model_info(facts, tokenizer, suppressed),
        source=config.path or str(folder),
        revision=config.revision,
        digest=facts.digest,
        extra=extra,
    )
    model = ADAPTERS[facts.family](module.to(device), info, tokenizer)
    if config.compile:
        if facts.kind != "diffusion":
            raise ConfigError(f"Model `{config.name}`: `compile` is for diffusion models; this one is {facts.kind}.")
        module.base_model.compile(dynamic=False)
    seconds = time.monotonic() - began
    LOGGER.info("Loaded model `%s`: %d bytes, %s, %.1f s", config.name, facts.parameter_bytes, device, seconds)
    return model


def _here(config: ModelConfig) -> tuple[CheckpointFacts, Path]:
    """A model's facts and its folder on this machine, fetched first where it is a hub id or URL."""
    if remote.is_url(config.path):
        copy = remote.source(config).fetch(config.path or "")
        return inspect_folder(config, copy.folder, copy.digest), copy.folder
    facts = inspect_checkpoint(config)
    folder = facts.path or hub.fetch_folder(config)
    return (facts if facts.path else inspect_folder(config, folder, facts.digest)), folder


def load_module(folder: Path, family: Family, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Load the native transformers module of a folder on the CPU.

    Raises:
        CheckpointError: The weights lack a tensor, hold one too many, or have the wrong shape.
    """
    raw = read_json(folder / "config.json")
    native = native_config(raw, family, str(folder))
    native_type: Any = native_class(native.model_type, family, folder)
    try:
        with _quiet():
            module, report = native_type.from_pretrained(
                folder,
                config=native,
                key_mapping=key_mapping(raw),
                # Set here, not by `.to(dtype)`, which would cast the rotary frequencies too.
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                # Reported below by name, instead of transformers' error that names nothing.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be loaded: {error}") from error
    _check_report(report, folder)
    loaded: PreTrainedModel = module
    return loaded


def native_class(model_type: str, family: Family, where: object) -> type[PreTrainedModel]:
    """The transformers class of a native configuration.

    Raises:
        CheckpointError: The class is not known to honour bidirectional attention.
    """
    if family in ("causal", "toy-autoregressive"):
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        name = names if isinstance(names, str) else names[0]
        found: type[PreTrainedModel] = getattr(transformers, name)
        return found
    if model_type not in _DIFFUSION_CLASSES:
        raise CheckpointError(
            f"{where}: model_type `{model_type}` cannot be a `{family}` model. "
            f"Allowed: {', '.join(sorted(_DIFFUSION_CLASSES))}."
        )
    return _DIFFUSION_CLASSES[model_type]


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device.

    Raises:
        PrerequisiteError: The device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise PrerequisiteError(f"Unknown device `{name}`. Allowed: auto, cpu, cuda, cuda:N.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise PrerequisiteError(
            f"Device `{name}` does not exist: {torch.cuda.device_count()} CUDA devices are visible."
        )
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device, folder: Path) -> torch.dtype:
    """The dtype asked for; `auto` is float32 on the CPU and the stored dtype elsewhere.

    Raises:
        CheckpointError: The stored dtype is none of float32, bfloat16 and float16.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cpu":
        return torch.float32
    stored = stored_dtype(folder)
    if stored not in _STORED_DTYPES:
        raise CheckpointError(f"{folder}: weights are stored as {stored}; set `dtype`.")
    return _STORED_DTYPES[stored]


def _check_report(report: Any, folder: Path) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report.get(kind, ()))
        if keys:
            shown = ", ".join(keys[:8]) + (f", … ({len(keys)} in all)" if len(keys) > 8 else "")
            raise CheckpointError(f"{folder}: {kind.replace('_', ' ')} in the weights: {shown}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and its printed report; `_check_report` raises on what matters."""
    transformers_logging: Any = transformers.utils.logging
    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
