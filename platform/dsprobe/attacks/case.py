"""An attack on one prompt as data: saved to a file, replayed exactly, carried over to other models.

A case is written in texts and counts of masks, never in token ids, and refers to the request by its place instead of
quoting it: a file of cases holds no benchmark text unless the attack rewrote the request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from dsprobe.config import Strict
from dsprobe.errors import ConfigError
from dsprobe.registry import describe_validation
from dsprobe.untrusted import parse_json

CASE_VERSION: Final = 1
"""Version of the file format, in the first line of a file."""

MAX_RUN: Final = 4096
"""Longest run of masks in a case: files of cases may come from anywhere."""

Count = Annotated[int, Field(ge=1, le=MAX_RUN)]
Step = Annotated[int, Field(ge=1)]
Position = Annotated[int, Field(ge=0)]

DEFAULT_BLANK: Final = "____"


class WriteText(Strict):
    """A text written at a reply position after a step's commits."""

    kind: Literal["write"] = "write"
    step: Step
    position: Position
    text: str = Field(min_length=1)


class RemaskText(Strict):
    """Committed tokens of some phrases, and optionally end-of-text tokens, masked again after a step's commits."""

    kind: Literal["remask"] = "remask"
    step: Step
    phrases: tuple[str, ...] = ()
    end_of_text: bool = True


class AnchorText(Strict):
    """The reply replaced by a partly masked version of a given one at a step."""

    kind: Literal["anchor"] = "anchor"
    step: Step
    text: str = Field(min_length=1)


CaseAction = Annotated[WriteText | RemaskText | AnchorText, Field(discriminator="kind")]


class AttackCase(Strict):
    """An attack on one prompt.

    `user` and `reply` are sequences of segments: a text stands for itself, a number for so many masks, and (in `user`
    only) null for the request, after its context where it has one.
    """

    prompt_id: str
    attack: str = ""
    """Name of the attack that made it; empty where unknown."""
    user: tuple[str | Count | None, ...] = Field(default=(None,), min_length=1, repr=False)
    """The user's turn."""
    blank: str = DEFAULT_BLANK
    """What a run of masks in the user's turn becomes for a model that fills no masks."""
    reply: tuple[str | Count, ...] = Field(default=(), repr=False)
    """What is written into the reply before the first step."""
    tail: Literal["mask", "eos"] = "mask"
    """What fills the rest of the reply: masks, or end-of-text (the reply ends there)."""
    judged: Literal["reply", "turn"] = "reply"
    """What is judged: the reply, or for diffusion models the part of the user's turn from the first token in which it
    differs from the bare request to its last mask, with no reply behind it."""
    actions: tuple[CaseAction, ...] = Field(default=(), repr=False)
    """What is done between the steps, to a model whose loop the attacker controls."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """Where the case came from, and what a search found out."""

    @model_validator(mode="after")
    def _turn_needs_masks(self) -> AttackCase:
        if self.judged == "turn" and (not any(isinstance(s, int) for s in self.user) or self.reply or self.actions):
            raise ValueError("judged `turn` needs masks in `user`, and neither `reply` nor `actions`")
        return self

    @model_validator(mode="after")
    def _one_anchor_and_remask_a_step(self) -> AttackCase:
        """Two of them at once have no order; two writes do not meet unless they overlap, which `realise` finds."""
        for kind in ("anchor", "remask"):
            steps = [action.step for action in self.actions if action.kind == kind]
            if len(steps) != len(set(steps)):
                raise ValueError(f"several actions of kind `{kind}` after one step; one is allowed")
        return self

    @property
    def has_request(self) -> bool:
        """Whether the user's turn holds the request itself, so that prompt-level defences can reach it."""
        return None in self.user


def save_cases(cases: Iterable[AttackCase], path: Path) -> int:
    """Write a file of cases: JSON lines, the first one a header with the version.

    Args:
        cases: In the order in which they are written.
        path: Replaced in one piece where it exists; its folder must exist.

    Returns:
        Number of cases.
    """
    lines = [json.dumps({"format": "dsprobe attack cases", "version": CASE_VERSION})]
    lines += [_line(case) for case in cases]
    part = path.with_name(path.name + ".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)
    return len(lines) - 1


def _line(case: AttackCase) -> str:
    """A case without the fields that hold their defaults; those of its actions stay, which are told apart by `kind`."""
    fields = AttackCase.model_fields.items()
    plain = {name for name, field in fields if getattr(case, name) == field.get_default(call_default_factory=True)}
    return json.dumps(case.model_dump(mode="json", exclude=plain))


def load_cases(path: Path, digest: str = "") -> list[AttackCase]:
    """Read what `save_cases` wrote.

    Args:
        path: The file.
        digest: Its SHA-256, where it is known; empty for any content.

    Raises:
        ConfigError: No such file, not a file of cases, of a newer version, of another digest, or a malformed line; the
            message names the file, the line and what is wrong, and never shows a case's text.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read attack cases `{path}`: {error}") from None
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError(f"{path} has SHA-256 {hashlib.sha256(data).hexdigest()}; the configuration wants {digest}.")
    _check_header(lines, path)
    return [_case(line, path, number) for number, line in enumerate(lines[1:], start=2) if line.strip()]


def _check_header(lines: list[str], path: Path) -> None:
    header = _json(lines[0], path, 1) if lines else None
    if not isinstance(header, dict) or header.get("format") != "dsprobe attack cases":
        raise ConfigError(
            f"{path}, line 1: not a file of attack cases. Make one with `dsprobe attacks save` or `dsprobe attacks "
            "import`."
        )
    version = header.get("version")
    if version != CASE_VERSION:
        raise ConfigError(f"{path} has version {version!r} of attack cases, and this dsprobe reads {CASE_VERSION}.")


def _case(line: str, path: Path, number: int) -> AttackCase:
    try:
        return AttackCase.model_validate(_json(line, path, number))
    except ValidationError as error:
        problems = describe_validation(error, f"{path}, line {number}", show_input=False)
        raise ConfigError(problems) from None


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{path}, line {number}: not JSON ({error}).") from None
