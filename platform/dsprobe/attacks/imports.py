"""Published attack artefacts as cases: HarmBench test cases, JailbreakBench, DIJA's refined prompts, CSV files.

The artefacts are not shipped, and their texts never stand in a message. Where an artefact quotes its request, the case
refers to it instead, so that a file of cases holds no benchmark text and prompt-level defences reach the request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dsprobe.attacks.artefacts import Artefact, read_artefacts
from dsprobe.attacks.case import MAX_RUN, AttackCase
from dsprobe.attacks.rendering import request_text
from dsprobe.errors import ConfigError
from dsprobe.prompts.base import Prompt, PromptSet

Segments = tuple[str | int | None, ...]

MASK_RUN: Final = re.compile(r"<mask:(\d{1,9})>|<\|mdm_mask\|>|<\|mask\|>")
"""DIJA's notation for a run, and the mask tokens of LLaDA and Dream."""

APPENDED_MASKS: Final = 36
"""Run that DIJA's code appends to a refined prompt without any (`mask_counts`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was found."""

    cases: tuple[AttackCase, ...]
    format: str
    unmatched: int
    """Artefacts that belong to no prompt of the set."""
    missing: int
    """Prompts of the set without an artefact."""


def import_cases(
    path: Path,
    prompts: PromptSet,
    *,
    format: str = "auto",  # noqa: A002  the name of the option
    which: int = 1,
    attack: str = "",
    allow_missing: bool = False,
) -> Imported:
    """Turn a file of artefacts into one case for each prompt.

    Args:
        path: The file.
        prompts: Prompts, matched by id, else by the request's text (letter case and white space do not count).
        format: `auto`, `harmbench`, `jailbreakbench`, `dija` or `csv`.
        which: Which artefact of a prompt that has several, from 1.
        attack: Name of the attack, where the file does not tell.
        allow_missing: Skip artefacts without a prompt, and prompts without an artefact.

    Raises:
        ConfigError: The file is malformed or of another format, or something is unmatched.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read artefacts `{path}`: {error}") from None
    name, artefacts = read_artefacts(data, path, format)
    provenance = {"source": name, "file": path.name, "file_sha256": hashlib.sha256(data).hexdigest()}
    found, unmatched = _matched(artefacts, prompts.prompts)
    chosen = {key: texts[which - 1] for key, texts in found.items() if len(texts) >= which}
    cases = tuple(
        _case(chosen[prompt.id], prompt, attack or name, provenance, str(path), dija=name == "dija")
        for prompt in prompts.prompts
        if prompt.id in chosen
    )
    missing = len(prompts.prompts) - len(cases)
    if (unmatched or missing) and not allow_missing:
        raise ConfigError(
            f"{path} ({name}): {unmatched} of {len(artefacts)} artefacts belong to no prompt of `{prompts.name}`, and "
            f"{missing} of its {len(prompts.prompts)} prompts have no artefact number {which}. `--allow-missing` takes "
            "what matches."
        )
    if not cases:
        raise ConfigError(f"{path} ({name}): no artefact belongs to a prompt of `{prompts.name}`.")
    return Imported(cases=cases, format=name, unmatched=unmatched, missing=missing)


def mask_segments(text: str, where: str) -> tuple[str | int, ...]:
    """Split a text at its runs of masks; neighbouring runs become one.

    Args:
        text: With ``<mask:N>`` or the mask tokens of LLaDA or Dream.
        where: What holds it, for messages.

    Raises:
        ConfigError: A run is empty or longer than `MAX_RUN`.
    """
    segments: list[str | int] = []
    end = 0
    for match in MASK_RUN.finditer(text):
        if match.start() > end:
            segments.append(text[end : match.start()])
        count = int(match[1]) if match[1] else 1
        if segments and isinstance(last := segments[-1], int):
            count += last if count else 0
            segments.pop()
        if not 1 <= count <= MAX_RUN:
            raise ConfigError(f"{where}: a run of {count} masks; allowed: 1 to {MAX_RUN}.")
        segments.append(count)
        end = match.end()
    return (*segments, text[end:]) if end < len(text) else tuple(segments)


def with_request(segments: Iterable[str | int], request: str) -> Segments:
    """Put the request's place where a text quotes it verbatim, everywhere."""
    found: list[str | int | None] = []
    for segment in segments:
        if isinstance(segment, int):
            found.append(segment)
            continue
        first, *others = segment.split(request)
        found += [first] if first else []
        for other in others:
            found += [None, other] if other else [None]
    return tuple(found)


def _case(
    artefact: Artefact, prompt: Prompt, attack: str, provenance: Mapping[str, str], where: str, *, dija: bool
) -> AttackCase:
    segments = with_request(mask_segments(artefact.text, f"{where}, prompt `{prompt.id}`"), request_text(prompt))
    metadata = {**provenance, **artefact.metadata}
    masked = any(isinstance(segment, int) for segment in segments)
    if dija and not masked:
        segments, masked = (*segments, APPENDED_MASKS), True
        metadata["fallback"] = f"{APPENDED_MASKS} masks appended"
    judged = "turn" if masked else "reply"
    return AttackCase.model_validate(
        {"prompt_id": prompt.id, "attack": attack, "user": segments, "judged": judged, "metadata": metadata}
    )


def _matched(artefacts: Sequence[Artefact], prompts: Sequence[Prompt]) -> tuple[dict[str, list[Artefact]], int]:
    """Prompt id → its artefacts in file order, and how many belong to none."""
    ids = {prompt.id for prompt in prompts}
    by_text: dict[str, list[str]] = {}
    for prompt in prompts:
        by_text.setdefault(_plain(prompt.text), []).append(prompt.id)
    found: dict[str, list[Artefact]] = {}
    unmatched = 0
    for artefact in artefacts:
        owners = [artefact.prompt_id] if artefact.prompt_id in ids else by_text.get(_plain(artefact.request), [])
        unmatched += not owners
        for owner in owners:
            found.setdefault(owner, []).append(artefact)
    return found, unmatched


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
