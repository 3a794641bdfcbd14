"""Prompts and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request. `text` is untrusted input."""

    id: str
    """Stable within its source; part of the randomness counter and of every stored row."""
    text: str
    harmful: bool
    """True when a harmful-behaviour benchmark lists it; False for benign prompts."""
    source: str
    """Benchmark whose columns it came with, or the source of the configuration: `toy`, `harmbench`, `csv`, …"""
    category: str = ""
    context: str = ""
    """HarmBench's context string, put before the request."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Further columns. `target`: how a complying answer starts. `pair`: the base type that a safe XSTest prompt and
    its unsafe contrast share. `reference`: a whole made-up answer to a restricted toy request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts with the provenance that the manifest records."""

    name: str
    prompts: tuple[Prompt, ...]
    digest: str
    """`digest_of` the prompts."""
    synthetic: bool = False
    """True for the toy world, whose texts need no redaction."""
    limited: bool = False
    """True when a limit cut the set; the report says so."""
    file_digest: str = ""
    """SHA-256 of the file's bytes; empty for generated prompts and dataset folders."""
    revision: str = ""
    """Commit of the hub dataset; empty for all else."""

    def facts(self) -> dict[str, Any]:
        """What the manifest and `dsprobe validate` say about the set, JSON-ready and without any prompt's text."""
        harmful = sum(prompt.harmful for prompt in self.prompts)
        return {
            "count": len(self.prompts),
            "harmful": harmful,
            "benign": len(self.prompts) - harmful,
            "categories": dict(sorted(Counter(prompt.category for prompt in self.prompts).items())),
            "digest": self.digest,
            "file_sha256": self.file_digest or None,
            "revision": self.revision or None,
            "synthetic": self.synthetic,
            "limited": self.limited,
        }


def digest_of(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over every field of every prompt, in order.

    It follows whatever changes the prompts (file, column mapping, filters, sample, limit, seed) and nothing else: not
    the file's place, nor whether the rows stood in CSV, JSONL, Parquet or a dataset.
    """
    return hashlib.sha256(json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True).encode()).hexdigest()
