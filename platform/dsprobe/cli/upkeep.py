"""Commands that look after a stored run: `gc`, `verify`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dsprobe.cli.display import show_counts
from dsprobe.cli.options import JsonOption, RunArgument, emit
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from dsprobe.storage.garbage import Collected, Kind, Tally
    from dsprobe.storage.run_store import RunStore
    from dsprobe.storage.verifying import Verified

EXIT_DAMAGED = 1

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def gc(
    run: RunArgument,
    grace: Annotated[
        str,
        typer.Option(help="Remove only what is older: 24h, 90m, 7d. Longer than a writer may sleep within a shard."),
    ] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what killed or late writers left in a run's folder: whatever no record names, once it is old enough."""
    from dsprobe.storage.garbage import collect
    from dsprobe.storage.query import open_run

    age = _duration(grace)
    store = open_run(run)
    found = collect(store, age, dry_run=dry_run)
    if as_json:
        emit(_collected(store, found, dry_run))
        return
    verb = "Would remove" if dry_run else "Removed"
    print(f"{verb} from {store.url}: {_tallies(found.removed)}")
    if found.waiting:
        print(f"Younger than {grace}, left: {_tallies(found.waiting)}")
    if found.unknown.count:
        print(f"Not written by dsprobe, left: {_tally(found.unknown, 'files')}")


def verify(
    run: RunArgument,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Take damaged shards' commits back, to be run again; make damaged tables again."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every file of a run and compare it with its checksum; names each that is damaged or missing."""
    from dsprobe.storage.query import open_run
    from dsprobe.storage.verifying import verify as compare

    store = open_run(run)
    with show_counts("files", quiet=as_json) as watch:
        found = compare(store, repair=repair, watch=watch)
    if as_json:
        emit(_verified(store, found))
    else:
        _show_verified(store, found)
    if found.left:
        raise typer.Exit(EXIT_DAMAGED)


def _show_verified(store: RunStore, found: Verified) -> None:
    from rich.filesize import decimal

    from dsprobe.storage.verifying import REMEDIES

    print(f"{found.files} files, {decimal(found.bytes)} of {store.url}: {len(found.damage)} damaged or missing")
    for damage in found.damage:
        print(damage.problem, file=sys.stderr)
    for part in dict.fromkeys(damage.part for damage in found.left):
        print(f"{part.capitalize()}: {REMEDIES[part]}", file=sys.stderr)
    if found.rebuilt:
        print("The tables were made again.")
    if found.revoked:
        print(
            f"Commits of {len(found.revoked)} shards were taken back and are kept in {store.url}/revoked. "
            "The same `dsprobe run` runs these shards again and makes the tables."
        )


def _verified(store: RunStore, found: Verified) -> dict[str, Any]:
    left = {damage.name for damage in found.left}
    return {
        "url": store.url,
        "files": found.files,
        "bytes": found.bytes,
        "damage": [
            {"part": one.part, "file": one.name, "shard": one.shard or None, "problem": one.problem,
             "repaired": one.name not in left}
            for one in found.damage
        ],
        "revoked": found.revoked,
        "tables_rebuilt": found.rebuilt,
    }  # fmt: skip


def _collected(store: RunStore, found: Collected, dry_run: bool) -> dict[str, Any]:
    def plain(tallies: Mapping[Kind, Tally]) -> dict[str, Any]:
        return {kind: {"count": tally.count, "bytes": tally.bytes} for kind, tally in tallies.items()}

    unknown = {"count": found.unknown.count, "bytes": found.unknown.bytes}
    return {
        "url": store.url,
        "dry_run": dry_run,
        "removed": plain(found.removed),
        "waiting": plain(found.waiting),
        "unknown": unknown,
    }


def _duration(text: str) -> timedelta:
    """A length of time such as ``24h``.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if not found:
        raise ConfigError(f"--grace `{text}` is no length of time; give a whole number with s, m, h or d, such as 24h.")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _tallies(tallies: Mapping[Kind, Tally]) -> str:
    return ", ".join(_tally(tally, kind) for kind, tally in tallies.items()) or "nothing"


def _tally(tally: Tally, what: str) -> str:
    from rich.filesize import decimal

    return f"{tally.count} {what} ({decimal(tally.bytes)})"
