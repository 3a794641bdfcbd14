"""Options and helpers that several commands share."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import LoadedConfig
    from dsprobe.sweeps.config import SweepConfig

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value: --set decodings.0.steps=16. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on standard output.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder or URL, or a run id under ./runs.")]
ShowTextOption = Annotated[
    bool, typer.Option("--show-text", help="Show prompts and replies of real prompt sets instead of redacting them.")
]


def load(source: str, overrides: list[str] | None) -> LoadedConfig[RunConfig]:
    """Load a run's configuration by path or recipe name."""
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config
    from dsprobe.sweeps.library import recipes

    return load_config(source, overrides or (), os.environ, schema=RunConfig, recipes=recipes("run"))


def load_sweep(source: str, overrides: list[str] | None) -> LoadedConfig[SweepConfig]:
    """Load a sweep's configuration by path or recipe name."""
    from dsprobe.config_loader import load_config
    from dsprobe.sweeps.config import SweepConfig
    from dsprobe.sweeps.library import recipes

    return load_config(source, overrides or (), os.environ, schema=SweepConfig, recipes=recipes("sweep"))


def emit(value: Any) -> None:
    """Print one JSON document."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
