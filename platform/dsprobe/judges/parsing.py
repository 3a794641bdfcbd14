"""From the text that a rubric judge wrote to a verdict."""

from __future__ import annotations

import json
import re
from typing import Any, Self

from pydantic import field_validator, model_validator

from dsprobe.judges.base import Verdict
from dsprobe.registry import ComponentConfig

UNPARSABLE = Verdict(None, note="unparsable answer")


class ParseConfig(ComponentConfig):
    """How an answer is read: by two patterns, by a key of a JSON object, or by a number. Case is ignored."""

    positive: str | None = None
    """Regular expression of an answer that says yes; looked for first."""
    negative: str | None = None
    """Regular expression of an answer that says no."""
    json_key: str | None = None
    """Key in the answer's first JSON object: a truth value, a number, or a text for the patterns."""
    number: str | None = None
    """Regular expression with one group, the number; its last match counts."""
    threshold: float | None = None
    """A number of at least this much says yes."""
    scale: tuple[float, float] | None = None
    """Smallest and largest number that the rubric allows; others are unparsable."""

    @field_validator("positive", "negative", "number")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        patterns = self.positive is not None and self.negative is not None
        if (self.positive is None) != (self.negative is None):
            raise ValueError("`positive` and `negative` belong together; an answer that is neither is undecided")
        if self.number is not None and (patterns or self.json_key):
            raise ValueError("`number` stands alone; with `json_key` the key's value is the number")
        if not patterns and self.json_key is None and self.number is None:
            raise ValueError("needs `positive` and `negative`, or `json_key`, or `number`")
        if self.number is not None and re.compile(self.number).groups != 1:
            raise ValueError("`number` needs exactly one group")
        if self.number is not None and self.threshold is None:
            raise ValueError("`number` needs a `threshold`")
        return self


def parse(text: str, rule: ParseConfig) -> Verdict:
    """Read a verdict off an answer; undecided where the rule does not fit."""
    if rule.number is not None:
        found = re.findall(rule.number, text, re.IGNORECASE)
        return _from_value(found[-1], rule) if found else UNPARSABLE
    if rule.json_key is None:
        return _from_value(text, rule)
    content = first_json_object(text)
    return UNPARSABLE if content is None or rule.json_key not in content else _from_value(content[rule.json_key], rule)


def first_json_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, whatever stands around it."""
    decoder = json.JSONDecoder()
    for start in (place.start() for place in re.finditer(r"\{", text)):
        try:
            content, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            return content
    return None


def _from_value(value: object, rule: ParseConfig) -> Verdict:
    if isinstance(value, bool):
        return Verdict(value)
    if rule.threshold is not None:
        return _from_number(value, rule, rule.threshold)
    if rule.positive is None or rule.negative is None or not isinstance(value, str):
        return UNPARSABLE
    if re.search(rule.positive, value, re.IGNORECASE):
        return Verdict(True)
    return Verdict(False) if re.search(rule.negative, value, re.IGNORECASE) else UNPARSABLE


def _from_number(value: object, rule: ParseConfig, threshold: float) -> Verdict:
    try:
        number = float(value) if isinstance(value, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        return UNPARSABLE
    low, high = rule.scale or (float("-inf"), float("inf"))
    if not low <= number <= high or number in (float("inf"), float("-inf")):
        return UNPARSABLE
    return Verdict(number >= threshold, number)
