"""Shipped recipes: complete configurations, by name."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

Kind = Literal["run", "sweep", "transfer", "hypotheses"]
_FOLDERS = {
    "run": "recipes",
    "sweep": "recipes/sweeps",
    "transfer": "recipes/transfer",
    "hypotheses": "recipes/hypotheses",
}


def recipes(kind: Kind) -> dict[str, str]:
    """Name → YAML text of every shipped recipe of a kind.

    Args:
        kind: ``run`` for `dsprobe run` and `compare`; ``sweep``, ``transfer`` and ``hypotheses`` for the commands of
            these names.
    """
    folder = files("dsprobe.sweeps").joinpath(_FOLDERS[kind])
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }


def summary(text: str) -> str:
    """The recipe's first comment line, for listings."""
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip()
