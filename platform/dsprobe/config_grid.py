"""Grids of attacks: one entry of a configuration that stands for an attack at several settings.

``{name: anchoring, grid: {step: [1, 4, 8]}}`` becomes three attacks with the aliases ``anchoring-step1``, …; two keys
give all combinations. A prompt set that names ``anchoring`` among its attacks gets all of them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

from dsprobe.errors import ConfigError

GRID: Final = "grid"
MAX_POINTS: Final = 10_000
"""Combinations of one grid at most: a few short lists multiply to more than can be run."""

Sources = dict[str, str]


def expand_attacks(config: dict[str, Any], sources: Sources) -> Sources:
    """Expand the grids of a run's attacks in place.

    Args:
        config: A run's configuration before validation; `attacks` and `prompts` are replaced.
        sources: Dotted path of every leaf → origin.

    Returns:
        The sources with the paths of the expanded attacks.

    Raises:
        ConfigError: A grid is not a mapping of parameters to lists of values.
    """
    attacks = config.get("attacks")
    if not isinstance(attacks, list) or not any(isinstance(a, dict) and GRID in a for a in attacks):
        return sources
    kept = {path: origin for path, origin in sources.items() if not path.startswith("attacks.")}
    expanded: list[Any] = []
    members: dict[str, list[str]] = {}
    for index, attack in enumerate(attacks):
        mine = {p.removeprefix(f"attacks.{index}."): o for p, o in sources.items() if p.startswith(f"attacks.{index}.")}
        parts = list(_points(attack, index)) if isinstance(attack, dict) and GRID in attack else [attack]
        if isinstance(attack, dict) and GRID in attack:
            members[str(attack.get("alias") or attack.get("name"))] = [part["alias"] for part in parts]
        for part in parts:
            grid_origin = next((origin for path, origin in mine.items() if path.startswith(GRID)), "default")
            for key in part if isinstance(part, dict) else ():
                kept[f"attacks.{len(expanded)}.{key}"] = mine.get(key, grid_origin)
            expanded.append(part)
    config["attacks"] = expanded
    _rename(config.get("prompts"), members)
    return kept


def _points(attack: dict[str, Any], index: int) -> Any:
    grid = attack[GRID]
    if not isinstance(grid, dict) or not grid or not all(isinstance(v, list) and v for v in grid.values()):
        raise ConfigError(
            f"attacks.{index}.grid: {grid!r} is not a mapping of parameters to lists of values, e.g. `grid: {{step: "
            "[1, 4, 8]}`."
        )
    if not attack.get("name"):
        raise ConfigError(f"attacks.{index}: a grid needs the `name` of an attack.")
    points = math.prod(len(values) for values in grid.values())
    if points > MAX_POINTS:
        raise ConfigError(f"attacks.{index}.grid: {points} combinations. Allowed: {MAX_POINTS}.")
    base = {key: value for key, value in attack.items() if key not in (GRID, "alias", "family")}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = "-".join(f"{key}{_shown(value, grid[key])}" for key, value in chosen.items())
        key = attack.get("alias") or attack.get("name")
        yield {**base, **chosen, "alias": f"{key}-{label}", "family": key}


def _shown(value: Any, among: list[Any]) -> str:
    """A value as part of a label: numbers as they are, anything else by its place, from 1."""
    return str(value) if isinstance(value, int | float) else str(among.index(value) + 1)


def _rename(prompts: Any, members: dict[str, list[str]]) -> None:
    """Let prompt sets that name a grid mean its members."""
    for entry in prompts if isinstance(prompts, list) else ():
        wanted = entry.get("attacks") if isinstance(entry, dict) else None
        if isinstance(wanted, list):
            entry["attacks"] = [key for name in wanted for key in members.get(name, [name])]
