"""Commands that take a finished run, or something to run first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsprobe.errors import unknown_name

if TYPE_CHECKING:
    from dsprobe.storage.run_store import RunStore
    from dsprobe.sweeps.library import Kind


def is_experiment(source: str, kind: Kind) -> bool:
    """Whether a source is something to run: a file or the name of a recipe of a kind."""
    from dsprobe.sweeps.library import recipes

    return Path(source).is_file() or source in recipes(kind) or Path(source).suffix in (".yaml", ".yml")


def opened(source: str, kind: Kind) -> RunStore:
    """A finished run.

    Raises:
        ConfigError: There is no such run and no recipe of that name; the nearest match is named.
        StorageError: The place holds no run.
    """
    from dsprobe.storage.query import open_run
    from dsprobe.sweeps.library import recipes

    if "://" not in source and not Path(source).exists() and not Path("runs", source).exists():
        runs = [path.name for path in Path("runs").glob("*") if path.is_dir()]
        raise unknown_name("run or recipe", source, [*recipes(kind), *runs])
    return open_run(source)


def given(**options: Any) -> list[str]:
    """The options that were given, as they are written on the command line."""
    return [f"--{name}" for name, value in options.items() if value is not None]
