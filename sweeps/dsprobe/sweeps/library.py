"""Shipped recipes: complete configurations, by name."""

from __future__ import annotations

from importlib.resources import files
from typing import Final, Literal

Kind = Literal["run", "sweep", "transfer", "hypotheses"]
_FOLDERS: Final[dict[Kind, str]] = {
    "run": "recipes",
    "sweep": "recipes/sweeps",
    "transfer": "recipes/transfer",
    "hypotheses": "recipes/hypotheses",
}
_RUNS_TOO: Final[tuple[Kind, ...]] = ("transfer", "hypotheses")
"""Kinds whose recipes configure ordinary runs."""


def recipes(kind: Kind) -> dict[str, str]:
    """Name → YAML text of every shipped recipe of a kind.

    Args:
        kind: ``run`` for `dsprobe run`, `validate` and `compare`, to which the recipes of ``transfer`` and
            ``hypotheses`` count too, as ``transfer/<name>``; ``sweep``, ``transfer`` and ``hypotheses`` for the
            commands of these names.
    """
    found = _in_folder(kind)
    for other in _RUNS_TOO if kind == "run" else ():
        found |= {f"{other}/{name}": text for name, text in _in_folder(other).items()}
    return found


def _in_folder(kind: Kind) -> dict[str, str]:
    folder = files("dsprobe.sweeps").joinpath(_FOLDERS[kind])
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.name.endswith(".yaml")
    }


def summary(text: str) -> str:
    """The recipe's first comment line, for listings."""
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip()
