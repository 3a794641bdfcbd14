"""Risk from any Hugging Face sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from dsprobe.config import ModelConfig
from dsprobe.models.base import LanguageModel
from dsprobe.models.gradients import watched_embeddings
from dsprobe.models.sequence_classifier import SHORTEST, SequenceClassifier
from dsprobe.registry import ComponentConfig
from dsprobe.risk.base import RiskInput, RiskOutput, RiskScorer, View
from dsprobe.risk.canvas_text import CanvasReader, CanvasText


class ClassifierScorer(RiskScorer):
    """Probability of the harmful label for the visible response, with input × gradient as attribution.

    Masks are dropped, or shown as a filler. A canvas that shows no word has risk 0.

    Attribution: input × gradient (Shrikumar et al. 1605.01713) of the harmful label's log-odds with respect to the
    classifier's token embeddings, summed over the embedding, positive part; one backward pass a batch, where leaving
    tokens out one by one would take a forward pass a token. A classifier token's value is spread evenly over its
    characters, which carry it to the canvas positions they came from; a row's values are divided by their sum.

    A row's score does not depend on its neighbours: every forward pass has `batch_size` rows (repeats fill it up) and a
    length that follows from the text alone. Equal texts are scored once.

    Args:
        config: Which classifier, and how canvases are shown to it.
        model: The model whose canvases are read; its device is used.

    Raises:
        ConfigError: The label is unknown, the length too long, or the path neither a folder nor a pinned hub id.
        CheckpointError: The folder is no complete sequence classifier in safetensors with a fast tokenizer.
        PrerequisiteError: A hub id is not cached and cannot be fetched.
    """

    class Config(ComponentConfig):
        """Settings."""

        path: str
        """Local folder or hub id."""
        revision: str | None = None
        """Commit hash; required for hub ids."""
        harmful_label: int | str
        """The label that means harmful: its name in the classifier's `id2label`, or its index."""
        mask_rendering: Literal["drop", "filler"] = "drop"
        """Leave masks out, or show each run of masks as `filler`."""
        filler: str = "…"
        """Neutral text for a run of masks; `mask_rendering: filler` only."""
        batch_size: int = Field(default=16, ge=1)
        """Rows of every forward pass."""
        max_length: int = Field(default=256, ge=SHORTEST)
        """Classifier tokens of a text; the rest is cut off on the right."""

        @model_validator(mode="after")
        def _filler_is_used(self) -> Self:
            if self.mask_rendering == "drop" and "filler" in self.model_fields_set:
                raise ValueError("`filler` belongs to `mask_rendering: filler`")
            return self

    calibrated_on: ClassVar[View] = "predicted"

    def __init__(self, config: Config, model: LanguageModel) -> None:
        self.config = config
        self._classifier = SequenceClassifier(
            ModelConfig(name="risk classifier", path=config.path, revision=config.revision),
            config.harmful_label,
            where="Scorer `classifier`",
            batch_size=config.batch_size,
            max_length=config.max_length,
            device=model.device,
        )
        self._module = self._classifier.module
        self._reader = CanvasReader(model, config.filler if config.mask_rendering == "filler" else None)

    def score(self, batch: RiskInput) -> RiskOutput:
        """See `RiskScorer.score`."""
        rows = zip(batch.tokens_NL.tolist(), batch.response_NL.tolist(), strict=True)
        texts = [self._reader.read(tokens_L, response_L) for tokens_L, response_L in rows]
        scored = self._score_texts(sorted({text.text for text in texts if not text.is_blank}))
        risk_N = np.zeros(len(texts), dtype=np.float32)
        attribution_NL = np.zeros(batch.tokens_NL.shape, dtype=np.float32)
        for row, text in enumerate(texts):
            if not text.is_blank:
                risk_N[row], gain_C = scored[text.text]
                attribution_NL[row] = _shares(text, gain_C, attribution_NL.shape[1])
        device = batch.tokens_NL.device
        return RiskOutput(
            risk_N=torch.from_numpy(risk_N).to(device), attribution_NL=torch.from_numpy(attribution_NL).to(device)
        )

    def _score_texts(self, texts: Sequence[str]) -> dict[str, tuple[float, npt.NDArray[np.float64]]]:
        """Text → risk, and the gain of each of its characters."""
        scored = {}
        for part, encoded in self._classifier.batches(texts, return_offsets_mapping=True):
            offsets = encoded.pop("offset_mapping")
            risk_B, gain_BT = self._forward(encoded)
            for row, text in enumerate(part):
                assert isinstance(text, str)
                scored[text] = (float(risk_B[row]), _per_character(gain_BT[row], offsets[row], len(text)))
        return scored

    def _forward(self, encoded: dict[str, Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Risk of each row and positive input × gradient of each classifier token."""
        # The denoising loop runs in inference mode, where nothing can be differentiated.
        with watched_embeddings(self._module) as leaves:
            logits_BK = self._module(**self._classifier.tensors(encoded)).logits.float()
            margin_B = self._classifier.log_odds(logits_BK)
            (grad_BTD,) = torch.autograd.grad(margin_B.sum(), leaves)
            gain_BT = (grad_BTD * leaves[0]).sum(dim=-1).clamp_min(0)
            return torch.sigmoid(margin_B).detach().cpu().numpy(), gain_BT.detach().float().cpu().numpy()


def _per_character(
    gain_T: npt.NDArray[np.float32], offsets_T: Sequence[tuple[int, int]], length: int
) -> npt.NDArray[np.float64]:
    """Spread each classifier token's gain evenly over its characters."""
    gain_C = np.zeros(length)
    for gain, (start, end) in zip(gain_T, offsets_T, strict=True):
        if end > start:
            gain_C[start:end] += gain / (end - start)
    return gain_C


def _shares(text: CanvasText, gain_C: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """Sum gains by canvas position and divide by their sum; zeros where nothing speaks for harm."""
    written_C = text.position_C >= 0
    gain_L = np.zeros(length)
    np.add.at(gain_L, text.position_C[written_C], gain_C[written_C])
    total = gain_L.sum()
    return gain_L / total if total > 0 else gain_L
