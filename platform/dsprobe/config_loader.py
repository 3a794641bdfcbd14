"""Loading a configuration: YAML file or shipped recipe, `--set`, environment; every value knows where it came from.

Precedence, strongest first: ``--set a.b=c``, the file, the environment (``DSPROBE_A__B=c``), defaults.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dsprobe.config import GuardrailConfig, ModelConfig, Spec
from dsprobe.config_grid import expand_attacks
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.strict_yaml import parse_yaml
from dsprobe.untrusted import refuse_secrets

ENVIRONMENT_PREFIX: Final = "DSPROBE_"

_BY_NAME: Final = (GuardrailConfig, ModelConfig, Spec)
"""Classes that a bare text stands for: ``direct`` is ``{name: direct}``."""


C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig(Generic[C]):
    """A validated configuration and the source of each of its values."""

    config: C
    sources: dict[str, str]
    """Dotted path of every leaf → ``file demo.yaml``, ``recipe demo``, ``--set``, ``environment DSPROBE_…`` or
    ``default``."""


def load_config(
    source: str,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    schema: type[C],
    recipes: Mapping[str, str] | None = None,
) -> LoadedConfig[C]:
    """Load, merge and validate a configuration.

    Args:
        source: Path of a YAML file, or the name of a recipe; a file of that name comes first.
        overrides: ``key.path=value`` strings, applied in order; values are YAML; list items by index
            (``decodings.0.steps=8``).
        environ: Environment variables. ``DSPROBE_<KEY>`` sets a top-level key and ``DSPROBE_<KEY>__<KEY>`` an inner
            one, where the file is silent; other variables that start with ``DSPROBE_`` are not read.
        schema: The configuration's class, e.g. `RunConfig`.
        recipes: Shipped recipes, name → YAML text.

    Raises:
        ConfigError: The source, a key or a value is wrong; the message names it and the nearest match or what is
            allowed. Or a value is a secret; the message names its place alone.
    """
    origin, text = _read(source, recipes or {})
    tree = _Tree(schema)
    tree.assign((), _mapping(parse_yaml(text, origin), origin, schema), origin)
    for variable, path, value in _environment(environ or {}, schema):
        tree.assign_where_silent(path, value, f"environment {variable}")
    for override in overrides:
        path, value = _parse_override(override)
        tree.assign(path, value, "--set")
    refuse_secrets(tree.value, f"Configuration `{source}`", environ)
    tree.sources = expand_attacks(tree.value, tree.sources)
    try:
        config = schema.model_validate(tree.value)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, tree))) from None
    leaves = (_dotted(path) for path, _ in _leaves(config.model_dump()))
    return LoadedConfig(config=config, sources={path: tree.sources.get(path, "default") for path in leaves})


class _Tree:
    """The values given so far, each with its origin. Keys are checked against the schema as they come in."""

    def __init__(self, schema: type[BaseModel]) -> None:
        self.schema = schema
        self.value: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def assign(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        """Put a value at a path, in place of what was there; the empty path is the whole tree."""
        if not path:
            self.value = _opened(value, self.schema, "", origin)
            self.sources = {_dotted(leaf): origin for leaf, _ in _leaves(self.value)}
            return
        node, annotation = self._container(path, origin)
        key = _index(node, path, origin) if isinstance(node, list) else path[-1]
        mine = _dotted(path)
        node[key] = _opened(value, _step(annotation, path[-1], _dotted(path[:-1]), origin), mine, origin)
        self.sources = {given: old for given, old in self.sources.items() if not _inside(given, mine)}
        self.sources |= {_dotted((*path, *leaf)): origin for leaf, _ in _leaves(node[key])}

    def _container(self, path: tuple[str, ...], origin: str) -> tuple[Any, Any]:
        """The mapping or list that holds a path's last part, with its annotation; made where nothing was given."""
        node: Any = self.value
        annotation: Any = self.schema
        for depth, part in enumerate(path[:-1], start=1):
            outer, annotation = annotation, _step(annotation, part, _dotted(path[: depth - 1]), origin)
            if isinstance(node, list):
                node = node[_index(node, path[:depth], origin)]
            else:
                if node.get(part) is None:
                    node[part] = _empty(outer, annotation, part)
                node = node[part]
            if not isinstance(node, dict | list):
                raise ConfigError(f"{origin}: `{_dotted(path[:depth])}` is `{node}` and has no `{path[depth]}`.")
        return node, annotation

    def assign_where_silent(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        """Put a value at a path unless something is given there; a mapping is put in key by key."""
        if isinstance(value, dict):
            for key, item in value.items():
                self.assign_where_silent((*path, key), item, origin)
            return
        mine = _dotted(path)
        if not any(_inside(given, mine) or _inside(mine, given) for given in self.sources):
            self.assign(path, value, origin)

    def origin(self, path: str) -> str:
        """Where the value at a path, or around it, came from."""
        found = (self.sources[key] for key in self.sources if _inside(key, path) or _inside(path, key))
        return next(found, "default")


def _read(source: str, recipes: Mapping[str, str]) -> tuple[str, str]:
    """Origin and text of a configuration."""
    path = Path(source)
    try:
        if source in recipes and not path.is_file():
            return f"recipe {source}", recipes[source]
        return f"file {source}", path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Configuration `{source}` is not UTF-8 text ({error.reason}).") from None
    except (OSError, ValueError) as error:
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
            raise ConfigError(f"Cannot read configuration `{source}`: {error}") from None
        raise ConfigError(f"{unknown_name('recipe', source, recipes)} Or give the path of a YAML file.") from None


def _mapping(value: Any, origin: str, schema: type[BaseModel]) -> dict[str, Any]:
    if not isinstance(value, dict):
        needed = [f"`{name}:`" for name, field in schema.model_fields.items() if field.is_required()]
        raise ConfigError(f"{origin} must hold a mapping with keys such as {' and '.join(needed)}.")
    return value


def _environment(environ: Mapping[str, str], schema: type[BaseModel]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Variables that set a key: inner keys by ``__``, or the name of a top-level key. ``DSPROBE_HOME`` is neither."""
    for variable in sorted(environ):
        path = tuple(variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        if variable.startswith(ENVIRONMENT_PREFIX) and (len(path) > 1 or path[0] in schema.model_fields):
            yield variable, path, parse_yaml(environ[variable], f"environment {variable}")


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, separator, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not separator or not all(path):
        raise ConfigError(f"`--set {override}` is not of the form key.path=value, e.g. execution.replicas=2.")
    return path, parse_yaml(text, f"--set {override}")


def _step(annotation: Any, part: str, place: str, origin: str) -> Any:
    """The annotation one key or index further down; parameters of components have any."""
    model = _model(annotation)
    if model is not None and part in model.model_fields:
        return model.model_fields[part].annotation
    if model is None or model.model_config.get("extra") == "allow":
        return _item(annotation)
    if part in (refused := getattr(model, "refused", {})):
        raise ConfigError(f"{origin}: `{place}` has no key `{part}`. {refused[part]}")
    raise unknown_name(f"key in {place} of {origin}" if place else f"key in {origin}", part, model.model_fields)


def _opened(value: Any, annotation: Any, place: str, origin: str) -> Any:
    """Check the keys of a value and open bare names up to ``{name: …}``, all the way down."""
    model = _model(annotation)
    if isinstance(value, list):
        item = _item(annotation)
        return [_opened(entry, item, f"{place}[{index}]", origin) for index, entry in enumerate(value)]
    if isinstance(value, str) and model in _BY_NAME:
        return {"name": value}
    if isinstance(value, dict):
        return {
            key: _opened(entry, _step(annotation, key, place, origin), f"{place}.{key}".removeprefix("."), origin)
            for key, entry in value.items()
        }
    return value


def _empty(outer: Any, annotation: Any, part: str) -> Any:
    """What to step into where nothing was given: the default list, or an empty mapping."""
    model = _model(outer)
    if model is None or part not in model.model_fields or get_origin(annotation) is not tuple:
        return {}
    default = model.model_fields[part].default
    return [entry.model_dump(exclude_unset=True) for entry in default] if isinstance(default, tuple) else []


def _index(items: Sequence[Any], path: tuple[str, ...], origin: str) -> int:
    """The last part of a path as an index of the list it points into."""
    part = path[-1]
    if part not in map(str, range(len(items))):
        allowed = f"Allowed: 0 to {len(items) - 1}" if items else "It has no items"
        raise ConfigError(f"{origin}: `{part}` is not an index of `{_dotted(path[:-1])}`. {allowed}.")
    return int(part)


def _model(annotation: Any) -> type[BaseModel] | None:
    """The configuration class of an annotation that is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _item(annotation: Any) -> Any:
    """What a ``tuple[X, ...]`` holds; anything for all else."""
    return get_args(annotation)[0] if get_origin(annotation) is tuple else Any


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths of all values that hold no other: scalars, empty collections, and lists of scalars as a whole."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    else:
        yield path, value


def _dotted(path: Sequence[str]) -> str:
    return ".".join(path)


def _inside(path: str, outer: str) -> bool:
    """Whether a path is another one or lies below it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def _problems(error: ValidationError, tree: _Tree) -> Iterator[str]:
    """One line per problem: path, what is allowed, what was given, and by whom."""
    for problem in error.errors():
        path = _dotted([str(part) for part in problem["loc"]])
        if problem["type"] == "missing":
            yield f"{path}: a value is needed."
        elif problem["type"] == "value_error":
            yield str(problem["ctx"]["error"])
        else:
            yield f"{path}: {problem['msg']} (given: {reprlib.repr(problem['input'])}, from {tree.origin(path)})."
