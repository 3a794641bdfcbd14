"""`dsprobe pool`: replica pools of a running cluster, which outlive the jobs that started them."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.display import duration
from dsprobe.cli.options import JsonOption, SetOption, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsprobe.actors.pools import PoolStatus
    from dsprobe.actors.session import Session
    from dsprobe.config import ExecutionConfig, ModelConfig

app = typer.Typer(name="pool", help="Replica pools of a running cluster.", no_args_is_help=True)

AddressOption = Annotated[
    str,
    typer.Option(
        help="Ray address: auto follows RAY_ADDRESS or finds a cluster on this machine; ray://HOST:10001 by Ray client."
    ),
]
NameArgument = Annotated[str, typer.Argument(help="Pool name.")]


@app.command()
def start(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|CONFIG", help="A name for a pool, or a run's YAML file or recipe: its `execution` and models."
        ),
    ],
    overrides: SetOption = None,
    name: Annotated[str | None, typer.Option(help="With CONFIG: the name; `execution.pool` unless given.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Replicas.")] = None,
    num_gpus: Annotated[float | None, typer.Option(min=0.0, help="GPUs of each.")] = None,
    num_cpus: Annotated[float | None, typer.Option(min=0.0, help="CPUs of each.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Load it at once: an embedded model or a folder. Repeatable.")
    ] = None,
    idle_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="End the pool after so long without work; 0 never.")
    ] = None,
    address: AddressOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Start a pool and let it load models; a running one gets the replicas that it lacks."""
    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.actors.pools import pool_status
    from dsprobe.models.checkpoint import inspect_checkpoint

    _require_cluster(address)
    given = {"replicas": replicas, "num_gpus": num_gpus, "num_cpus": num_cpus}
    given["pool_idle_s"] = None if idle_minutes is None else 60 * idle_minutes
    changes = [f"execution.{key}={value}" for key, value in given.items() if value is not None]
    execution, wanted = _asked(source, [*(overrides or ()), *changes, f"execution.address={address}"], models)
    for model in wanted:
        inspect_checkpoint(model)
    with _connected(address):
        pool = ReplicaPool.get_or_create(name or execution.pool, execution, wanted)
        status = pool_status(pool.name)
    if as_json:
        emit(status.to_dict())
    else:
        print(f"Pool `{status.name}`: {len(status.replicas)} replicas.")


@app.command("list")
def list_pools(address: AddressOption = "auto", as_json: JsonOption = False) -> None:
    """Show every pool: replicas, nodes, models, who has the turn, who waits, and when it ends if nobody comes."""
    from dsprobe.actors.pools import pool_statuses

    _require_cluster(address)
    with _connected(address):
        found = pool_statuses()
    if as_json:
        emit([status.to_dict() for status in found])
    elif not found:
        print("No pool runs.")
    else:
        _print(found)


@app.command()
def stop(
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Even while somebody's work is under way.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    address: AddressOption = "auto",
) -> None:
    """End a pool and give its resources back. Shards under way are run again by whoever asked for them."""
    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.actors.pools import pool_status
    from dsprobe.errors import PrerequisiteError

    _require_cluster(address)
    with _connected(address):
        status = pool_status(name)
        if not force:
            _require_idle(status)
        count = len(status.replicas) + status.pending
        if not yes and sys.stdin.isatty():
            typer.confirm(f"End pool `{name}` with {count} replicas?", abort=True)
        gone = ReplicaPool.end(name)
    if not gone:
        raise PrerequisiteError(f"Pool `{name}` was ended, and somebody's run has started it again; stop that first.")
    print(f"Pool `{name}` is gone: {count} replicas.")


def _asked(
    source: str, overrides: Sequence[str], models: Sequence[str] | None
) -> tuple[ExecutionConfig, Sequence[ModelConfig]]:
    """What an argument stands for: a configuration's execution and models, or a name with everything from options."""
    from dsprobe.cli.attacking import model_config
    from dsprobe.cli.options import load
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config
    from dsprobe.sweeps.library import recipes

    named = [model_config(model, None, "auto") for model in models or ()]
    if re.fullmatch(r"[A-Za-z0-9_-]+", source) and source not in recipes("run") and not Path(source).exists():
        text = f"{{models: [toy-diffusion], prompts: [{{source: toy}}], execution: {{pool: {json.dumps(source)}}}}}"
        loaded = load_config(source, overrides, os.environ, schema=RunConfig, recipes={source: text})
        return loaded.config.execution, named
    config = load(source, list(overrides)).config
    return config.execution, named or config.models


def _require_cluster(address: str) -> None:
    from dsprobe.errors import ConfigError

    if address == "local":
        raise ConfigError("`local` would start an instance that ends with this command. Give a cluster's address.")


def _require_idle(status: PoolStatus) -> None:
    """Refuse to end what somebody uses.

    Raises:
        ConfigError: Somebody's work is under way; the message says whose.
    """
    from dsprobe.actors.pools import describe_work
    from dsprobe.errors import ConfigError

    if status.pending and not status.replicas:
        raise ConfigError(
            f"No replica of pool `{status.name}` answers, so nobody knows whether one is at work. --force ends it."
        )
    if status.works:
        number, works = next(iter(status.works.items()))
        raise ConfigError(
            f"{len(status.works)} replicas of pool `{status.name}` are at work, e.g. replica {number} for "
            f"{describe_work(works[0])}. Wait, or --force."
        )


def _connected(address: str) -> AbstractContextManager[Session]:
    from dsprobe.actors.session import ray_session
    from dsprobe.config import ExecutionConfig

    return ray_session(ExecutionConfig(address=address))


def _print(found: Sequence[PoolStatus]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsprobe.actors.pools import describe_work
    from dsprobe.visible_text import visible

    table = Table(title="Pools", title_justify="left")
    for column in ("pool", "replica", "node", "process", "GPUs", "models", "at", "waiting", "pool ends in"):
        table.add_column(column, overflow="fold")

    def add(*cells: Any) -> None:
        table.add_row(*(Text(visible(str(cell)) if cell != "" else "") for cell in cells))

    for status in found:
        for number, info in status.replicas.items():
            works = info.turns.works
            at = describe_work(works[0]) if works else f"idle for {duration(info.turns.idle_s)}"
            gpus, models = ", ".join(info.gpus) or "none", ", ".join(info.models)
            ends = "never" if status.ends_in_s is None else "" if status.works else duration(status.ends_in_s)
            add(status.name, number, info.node_id[:8], info.pid, gpus, models, at, len(works[1:]) or "", ends)
        if status.pending:
            add(status.name, f"{status.pending} more", "", "", "", "", "coming up, or without room", "", "")
    Console().print(table)
