"""`dsprobe pool`: replica pools of a running cluster, which outlive the jobs that started them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.options import JsonOption, SetOption, emit

if TYPE_CHECKING:
    from dsprobe.actors.replica import ReplicaInfo

app = typer.Typer(name="pool", help="Replica pools of a running cluster.", no_args_is_help=True)

AddressOption = Annotated[
    str, typer.Option(help="Ray address; auto follows RAY_ADDRESS or finds a cluster on this machine.")
]


@app.command()
def start(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A run's YAML file or recipe: its `execution` and its models.")
    ],
    overrides: SetOption = None,
    name: Annotated[str | None, typer.Option(help="Pool name; `execution.pool` unless given.")] = None,
    address: AddressOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Start the pool that a configuration asks for, and let it load the models; a running one gets what is missing."""
    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.actors.room import room_limit
    from dsprobe.cli.options import load
    from dsprobe.models.checkpoint import inspect_checkpoint

    loaded = load(config, [*(overrides or ()), f"execution.address={address}"]).config
    _require_cluster(loaded.execution.address)
    for model in loaded.models:
        inspect_checkpoint(model)
    execution = loaded.execution
    with _connected(address):
        pool = ReplicaPool.get_or_create(
            name or execution.pool, execution, loaded.models, room_limit_s=room_limit(execution)
        )
        infos = pool.info()
    emit(_content(pool.name, infos)) if as_json else print(f"Pool `{pool.name}`: {len(infos)} replicas.")


@app.command("list")
def list_pools(address: AddressOption = "auto", as_json: JsonOption = False) -> None:
    """Show every pool: its replicas, where they are, the models that they hold, and what they do."""
    from dsprobe.actors.pool import ReplicaPool

    _require_cluster(address)
    with _connected(address):
        found = {name: ReplicaPool.connect(name).info() for name in ReplicaPool.running()}
    if as_json:
        emit([_content(name, infos) for name, infos in found.items()])
    elif not found:
        print("No pool runs.")
    else:
        _print(found)


@app.command()
def stop(
    name: Annotated[str, typer.Argument(help="Pool name.")],
    force: Annotated[bool, typer.Option("--force", help="Even while a replica runs somebody's shard.")] = False,
    address: AddressOption = "auto",
) -> None:
    """End a pool and give its resources back. Shards under way are run again by whoever asked for them."""
    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.errors import ConfigError

    _require_cluster(address)
    with _connected(address):
        pool = ReplicaPool.connect(name)
        busy = [info.shard_id for info in pool.info() if info.shard_id is not None]
        if busy and not force:
            raise ConfigError(f"{len(busy)} replicas of pool `{name}` run a shard, e.g. {busy[0]}. Wait, or --force.")
        count = len(pool.replicas)
        pool.stop()
    print(f"Pool `{name}` is gone: {count} replicas.")


def _require_cluster(address: str) -> None:
    from dsprobe.errors import ConfigError

    if address == "local":
        raise ConfigError("`local` would start an instance that ends with this command. Give a cluster's address.")


def _connected(address: str) -> Any:
    from dsprobe.actors.session import ray_session
    from dsprobe.config import ExecutionConfig

    return ray_session(ExecutionConfig(address=address))


def _content(name: str, infos: list[ReplicaInfo]) -> dict[str, Any]:
    replicas = [
        {key: value for key, value in asdict(info).items() if key != "configs"} | {"index": index}
        for index, info in enumerate(infos)
    ]
    return {"pool": name, "replicas": replicas}


def _print(found: dict[str, list[ReplicaInfo]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in ("pool", "replica", "node", "process", "GPUs", "CPUs", "models", "batches", "at"):
        table.add_column(column)
    for name, infos in found.items():
        for index, info in enumerate(infos):
            cells = (
                name, str(index), info.node_id[:8], str(info.pid), ", ".join(info.gpus) or "none",
                f"{info.spec.num_cpus:g}", ", ".join(info.models), str(info.batches), info.shard_id or "idle",
            )  # fmt: skip
            table.add_row(*map(escape, cells))
    Console().print(table)
