"""What can be wrong with a search space, found before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsprobe.config import DecodingConfig, Spec
from dsprobe.errors import ConfigError
from dsprobe.guardrails import GUARDRAILS
from dsprobe.sweeps.domains import Domain
from dsprobe.sweeps.space_tree import Node


def validate_spec(spec: Mapping[str, Any], decoding: DecodingConfig) -> None:
    """Refuse one guardrail's settings where its own ``Config`` or `Guardrail.check` does."""
    parsed = Spec.model_validate(spec)
    GUARDRAILS.get(parsed.name).check(GUARDRAILS.config(parsed.name, parsed.params), decoding)


class SpaceCheck:
    """Tries each end and each choice of one guardrail's domains.

    An end is refused if it fails whatever the other domains are: with all of them at their lower ends, and with all at
    their upper ends. Combinations that fit badly together (a window whose first step follows its last) are possible
    in a space; such a trial fails with its reason.
    """

    def __init__(self, key: str, guardrail: Node, decoding: DecodingConfig) -> None:
        self.key, self.guardrail, self.decoding = key, guardrail, decoding
        self.domains = {domain.path: domain for domain in guardrail.domains()}

    def run(self) -> None:
        """Raise what is wrong, with its path."""
        for path, end in [(domain.path, end) for domain in self.domains.values() for end in domain.ends] or [
            ("", None)
        ]:
            problems = [self._problem(path, end, place) for place in (0, -1)]
            if problems[0] is not None and problems[1] is not None:
                raise ConfigError(f"space: {self._culprit(path, end)}: {problems[0]}")

    def _problem(self, path: str, end: Any, place: int, also: Mapping[str, Any] | None = None) -> str | None:
        """What is wrong with one end, all else being at its first or last end."""
        forced = {path: end, **(also or {})}
        domain = self.domains.get(path)
        while domain is not None and domain.parent is not None and domain.parent[0] in self.domains:
            forced[domain.parent[0]] = domain.parent[1]
            domain = self.domains[domain.parent[0]]

        def pick(domain: Domain) -> Any:
            return forced[domain.path] if domain.path in forced else domain.ends[place]

        try:
            validate_spec(self.guardrail.resolve(pick), self.decoding)
        except ConfigError as error:
            return str(error)
        return None

    def _culprit(self, path: str, end: Any) -> str:
        """The parameter on which the problem depends: varying it changes the message."""
        message = self._problem(path, end, 0)
        others = [domain for domain in self.domains.values() if domain.path != path]
        mine = [self.domains[path]] if path else []
        for domain in mine + others:
            for other in domain.ends:
                told = (domain.path, other, 0) if domain.path == path else (path, end, 0, {domain.path: other})
                if self._problem(*told) != message:
                    return f"{domain.path} = {end if domain.path == path else domain.ends[0]!r}"
        return path or self.key
