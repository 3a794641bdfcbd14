"""From configurations to guardrails."""

from __future__ import annotations

from collections.abc import Sequence

from dsprobe.config import DecodingConfig, GuardrailConfig
from dsprobe.guardrails import GUARDRAILS, Guardrail, Setting
from dsprobe.prompts.base import Prompt


def check_guardrail(config: GuardrailConfig, decoding: DecodingConfig) -> None:
    """Validate every part of a stack against a decoding; loads no model.

    Raises:
        ConfigError: A name, a parameter or a window is wrong.
    """
    for spec in config.stack:
        GUARDRAILS.get(spec.name).check(GUARDRAILS.config(spec.name, spec.params), decoding)


def build_guardrails(config: GuardrailConfig, setting: Setting) -> list[Guardrail]:
    """Build a stack for one model and decoding.

    Raises:
        ConfigError: A part does not fit the model or the decoding.
    """
    return [GUARDRAILS.build(spec.name, spec.params, setting) for spec in config.stack]


def rewritten(prompt: Prompt, guardrails: Sequence[Guardrail]) -> Prompt:
    """A prompt after every prompt-level defence of a stack."""
    for guardrail in guardrails:
        prompt = guardrail.rewrite(prompt)
    return prompt
