"""Commands that take a finished run, or something to run first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsprobe.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan
    from dsprobe.storage.run_store import RunStore
    from dsprobe.sweeps.library import Kind


def is_experiment(source: str, kind: Kind) -> bool:
    """Whether a source is something to run: a file or the name of a recipe of a kind."""
    from dsprobe.sweeps.library import recipes

    return _is_there(source, Path.is_file) or source in recipes(kind) or Path(source).suffix in (".yaml", ".yml")


def _is_there(source: str, kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether there is such a file or folder; a text that can be no path is not there."""
    try:
        return kind(Path(source))
    except (OSError, ValueError):
        return False


def opened(source: str, kind: Kind) -> RunStore:
    """A finished run.

    Raises:
        ConfigError: There is no such run and no recipe of that name; the nearest match is named.
        StorageError: The place holds no run.
    """
    from dsprobe.storage.query import open_run
    from dsprobe.sweeps.library import recipes

    if "://" not in source and not _is_there(source) and not _is_there(f"runs/{source}"):
        runs = [path.name for path in Path("runs").glob("*") if path.is_dir()]
        raise unknown_name("run or recipe", source, [*recipes(kind), *runs])
    return open_run(source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Options that change what is run; a finished run takes none."""

    overrides: Sequence[str] = ()
    """``--set`` values."""
    limit: int | None = None
    output: str | None = None
    executor: str | None = None

    @property
    def named(self) -> list[str]:
        """Those that were given, as they are written on the command line."""
        options = {"limit": self.limit, "out": self.output, "executor": self.executor}
        return [*self.overrides, *(f"--{name}" for name, value in options.items() if value is not None)]

    def values(self, source: str, kind: Kind) -> list[str]:
        """All of them as ``--set`` values for a configuration."""
        from dsprobe.cli.running import shorthands

        overrides = list(self.overrides)
        return [*overrides, *shorthands(self.limit, self.output, self.executor, source, overrides, kind)]

    def refuse(self, source: str) -> None:
        """Raise where something was given: a finished run is as it is.

        Raises:
            ConfigError: Names the first option.
        """
        if self.named:
            raise ConfigError(f"`{self.named[0]}` changes what is run, and `{source}` is a finished run. Leave it out.")


def finished(
    source: str, kind: Kind, changes: Changes, *, quiet: bool, check: Callable[[Plan], None] = lambda plan: None
) -> RunStore:
    """A finished run, or an experiment of which what is missing is run first.

    Args:
        source: A run, or a file or recipe.
        kind: Kind of recipes that a name is looked for in.
        changes: Options that change what is run.
        quiet: Print nothing while it runs.
        check: Called with the plan of an experiment before it is run.

    Raises:
        ConfigError: There is no such source, or a finished run was to be changed.
        IncompleteRunError: Some shards failed.
    """
    if not is_experiment(source, kind):
        changes.refuse(source)
        return opened(source, kind)
    from dsprobe.cli.options import load
    from dsprobe.cli.running import carry_out
    from dsprobe.experiment.plan import resolve

    loaded = load(source, changes.values(source, kind), kind)
    plan = resolve(loaded.config)
    check(plan)
    store, outcome = carry_out(plan, loaded.sources, quiet=quiet)
    outcome.raise_if_incomplete()
    return store
