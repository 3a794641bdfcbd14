"""Replaying saved cases: published artefacts, the results of a search, or cases made for another model."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from dsprobe.attacks.base import Attack
from dsprobe.attacks.case import AttackCase, load_cases
from dsprobe.errors import ConfigError
from dsprobe.registry import ComponentConfig
from dsprobe.untrusted import local_path

if TYPE_CHECKING:
    from dsprobe.models.base import LanguageModel, ModelKind
    from dsprobe.prompts.base import Prompt


class Cases(Attack):
    """The case that a file holds for each prompt, by the prompt's id.

    Rendering is exact: on the tokenizer for which a case was made it gives the row that was attacked then.
    """

    class Config(ComponentConfig):
        """Settings."""

        path: str
        """File of cases, from `dsprobe attacks save` or `dsprobe attacks import`."""
        digest: str = ""
        """SHA-256 of the file, where it is pinned; a file of another content is refused."""

    source: ClassVar[str] = "the file: each case says where it comes from"
    assumes: ClassVar[str] = "what the attack that made the cases assumes"
    native: ClassVar[frozenset[ModelKind]] = frozenset({"diffusion", "autoregressive"})

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def files(cls, config: ComponentConfig) -> tuple[str, ...]:
        """See `Attack.files`."""
        assert isinstance(config, Cases.Config)
        return (config.path,)

    def compose(self, prompt: Prompt, model: LanguageModel, reply_length: int) -> AttackCase:
        """See `Attack.compose`."""
        case = self._cases.get(prompt.id)
        if case is None:
            raise ConfigError(
                f"{self.config.path} holds no case for prompt `{prompt.id}`; it has {len(self._cases)} others, e.g. "
                f"`{next(iter(self._cases), '')}`."
            )
        return case

    @cached_property
    def _cases(self) -> dict[str, AttackCase]:
        path = local_path(self.config.path, "attack `cases`")
        cases: dict[str, AttackCase] = {}
        for case in load_cases(path, self.config.digest):
            if case.prompt_id in cases:
                raise ConfigError(f"{path}: prompt `{case.prompt_id}` has several cases; keep one for each prompt.")
            cases[case.prompt_id] = case
        return cases
