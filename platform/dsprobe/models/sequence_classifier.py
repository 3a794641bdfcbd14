"""Sequence classifiers on native transformers classes: loaded from data files, run in batches of fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from dsprobe.config import ModelConfig
from dsprobe.errors import CheckpointError, ConfigError, unknown_name
from dsprobe.models.checkpoint import model_files
from dsprobe.models.checkpoint_files import weight_files

SHORTEST: Final = 16
"""Texts are padded to a power of two of at least this many classifier tokens."""

Text = str | tuple[str, str]
"""One text, or a pair of texts as the classifier's tokenizer joins them."""


class SequenceClassifier:
    """A sequence classifier and the label that is asked for; weights are loaded at first use.

    A row's result does not depend on its neighbours: every forward pass has `batch_size` rows (repeats fill it up) and
    a length that follows from the text alone.

    Args:
        config: Where it is.
        label: The label asked for: its name in `id2label`, or its index.
        where: Who asks, for messages.
        batch_size: Rows of every forward pass.
        max_length: Classifier tokens of a text; the rest is cut off on the right.
        device: Where it runs.

    Raises:
        ConfigError: The label is unknown, the length out of range, or the path neither a folder nor a pinned hub id.
        CheckpointError: The folder is no sequence classifier in safetensors with a fast tokenizer.
        PrerequisiteError: A hub id is not cached and cannot be fetched.
    """

    def __init__(
        self,
        config: ModelConfig,
        label: int | str,
        *,
        where: str,
        batch_size: int,
        max_length: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.folder = model_files(config, weights=False)
        self.batch_size, self.max_length, self.device = batch_size, max_length, device
        self.settings = _load_config(self.folder)
        self.tokenizer = _load_tokenizer(self.folder)
        self.label = _label_index(label, self.settings.id2label, self.folder, where)
        self._check_length(where)

    @cached_property
    def module(self) -> Any:
        """The classifier, frozen and in evaluation mode."""
        return _load_classifier(model_files(self.config)).to(self.device)

    def batches(self, texts: Sequence[Text], **options: Any) -> Iterator[tuple[list[Text], dict[str, Any]]]:
        """Texts of one padded length, `batch_size` at a time, and their encodings filled up to `batch_size` rows.

        Args:
            texts: What to encode.
            options: More arguments of the tokenizer.
        """
        buckets: dict[int, list[Text]] = {}
        for text, tokens in zip(texts, self._encode(texts)["input_ids"] if texts else [], strict=True):
            length = max(SHORTEST, 1 << (len(tokens) - 1).bit_length())
            buckets.setdefault(min(length, self.max_length), []).append(text)
        for length, members in sorted(buckets.items()):
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                filled = part + part[-1:] * (self.batch_size - len(part))
                yield part, self._encode(filled, padding="max_length", length=length, **options)

    def tensors(self, encoded: dict[str, Any]) -> dict[str, Tensor]:
        """An encoding as tensors on the classifier's device."""
        return {name: torch.tensor(values, device=self.module.device) for name, values in encoded.items()}

    def log_odds(self, logits_BK: Tensor) -> Tensor:
        """Log-odds of the label ``[B]``: its logit where labels are independent, else against all other labels."""
        asked_B = logits_BK[:, self.label]
        independent = self.settings.problem_type == "multi_label_classification"
        if independent or logits_BK.shape[1] == 1:
            return asked_B
        others = [label for label in range(logits_BK.shape[1]) if label != self.label]
        return asked_B - logits_BK[:, others].logsumexp(dim=1)

    def _encode(self, texts: Sequence[Text], *, length: int | None = None, **options: Any) -> dict[str, Any]:
        return dict(self.tokenizer(list(texts), truncation=True, max_length=length or self.max_length, **options))

    def _check_length(self, where: str) -> None:
        known = (self.tokenizer.model_max_length, getattr(self.settings, "max_position_embeddings", None))
        longest = min(length for length in known if length)
        if not SHORTEST <= self.max_length <= longest:
            problem = "long" if self.max_length > longest else "short"
            raise ConfigError(
                f"{where}: max_length {self.max_length} is too {problem} for {self.folder}. "
                f"Allowed: {SHORTEST} to {longest}."
            )


def _load_config(folder: Path) -> Any:
    weight_files(folder)  # refuses pickles
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: no sequence classifier can be loaded: {error}") from error


def _load_classifier(folder: Path) -> Any:
    try:
        classifier, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: no sequence classifier can be loaded: {error}") from error
    missing = sorted(str(key) for key in report["missing_keys"])
    if missing:
        # transformers would fill them with random numbers.
        raise CheckpointError(f"{folder}: weights are missing, as of a model without a classification head: {missing}.")
    return classifier.eval().requires_grad_(False)


def _load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: the classifier's tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise CheckpointError(f"{folder}: the classifier needs a fast tokenizer with a padding token.")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _label_index(label: int | str, names: dict[int, str], folder: Path, where: str) -> int:
    """Index of a label given by name or index."""
    if isinstance(label, int):
        if label not in names:
            raise ConfigError(f"{where}: {folder} has no label {label}. Allowed: {names}.")
        return label
    by_name = {name: index for index, name in names.items()}
    if label not in by_name:
        raise unknown_name(f"harmful_label of the classifier at {folder}", label, by_name)
    return by_name[label]
