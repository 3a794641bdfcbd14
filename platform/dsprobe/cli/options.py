"""Options and helpers that several commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dsprobe.config import GuardrailConfig, RunConfig, Spec
    from dsprobe.config_loader import LoadedConfig
    from dsprobe.sweeps.config import SweepConfig
    from dsprobe.sweeps.library import Kind

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value: --set decodings.0.steps=16. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on standard output.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder or URL, or a run id under ./runs.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Recipes: keep the first N prompts of every set.")]
OutputOption = Annotated[str | None, typer.Option("--out", help="Recipes: output root, a folder or URL.")]
ExecutorOption = Annotated[str | None, typer.Option(help="Recipes: ray or local.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Markdown tables on standard output.")]
ShowTextOption = Annotated[
    bool, typer.Option("--show-text", help="Show prompts and replies of real prompt sets instead of redacting them.")
]


def load(source: str, overrides: list[str] | None, kind: Kind = "run") -> LoadedConfig[RunConfig]:
    """Load a run's configuration by path, or by the name of a recipe of a kind."""
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config
    from dsprobe.sweeps.library import recipes

    return load_config(source, overrides or (), os.environ, schema=RunConfig, recipes=recipes(kind))


def load_sweep(source: str, overrides: list[str] | None) -> LoadedConfig[SweepConfig]:
    """Load a sweep's configuration by path or recipe name."""
    from dsprobe.config_loader import load_config
    from dsprobe.sweeps.config import SweepConfig
    from dsprobe.sweeps.library import recipes

    return load_config(source, overrides or (), os.environ, schema=SweepConfig, recipes=recipes("sweep"))


def key_values(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Repeated ``KEY=VALUE`` options as a mapping.

    A value is a YAML scalar, or a YAML list or mapping in brackets; all else is text as it stands, such as
    ``step {i} :``, which YAML would read as a mapping.

    Raises:
        ConfigError: One is not of that form, or what stands in brackets or quotes is not YAML.
    """
    from dsprobe.errors import ConfigError

    values = {}
    for text in given or ():
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"`{option} {text}` is not of the form KEY=VALUE.")
        values[key] = _value(value, f"{option} {text}")
    return values


def _value(text: str, where: str) -> Any:
    from dsprobe.errors import ConfigError
    from dsprobe.strict_yaml import parse_yaml

    if text.startswith(("[", "{", '"', "'")):
        return parse_yaml(text, where)
    try:
        value = parse_yaml(text, where)
    except ConfigError:
        return text
    return text if isinstance(value, dict | list) else value


def component(text: str, what: str) -> Spec:
    """A component from the command line: a name, a name with ``key=value`` parameters, or a YAML mapping.

    Raises:
        ConfigError: It is none of these.
    """
    from dsprobe.config import Spec
    from dsprobe.errors import ConfigError
    from dsprobe.registry import validated
    from dsprobe.strict_yaml import parse_yaml

    name, *params = text.split() or [""]
    if not params or all("=" in param for param in params):
        return validated(Spec, {"name": name, **key_values(params, f"{what} {name}:")}, f"{what} `{text}`")
    content = parse_yaml(text, f"{what} `{text}`")
    if not isinstance(content, dict):
        raise ConfigError(f"{what} `{text}`: a name, `name key=value …`, or a mapping with `name:` is needed.")
    return validated(Spec, content, f"{what} `{text}`")


def read_guardrail(file: Path) -> GuardrailConfig:
    """A guardrail from a YAML file with ``name:`` and ``stack:``, such as those that a sweep writes.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    from dsprobe.config import GuardrailConfig
    from dsprobe.errors import ConfigError
    from dsprobe.registry import validated
    from dsprobe.strict_yaml import parse_yaml

    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), f"file {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read guardrail `{file}`: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"Guardrail `{file}` must hold a mapping with `name:` and `stack:`.")
    return validated(GuardrailConfig, content, f"file {file}")


def emit(value: Any) -> None:
    """Print one JSON document."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
