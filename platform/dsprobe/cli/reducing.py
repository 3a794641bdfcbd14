"""`dsprobe reduce`: new statistics over stored step logs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dsprobe.cli.options import JsonOption, emit

if TYPE_CHECKING:
    from dsprobe.storage.log_files import Logs


class Executor(StrEnum):
    """Who scans."""

    RAY = "ray"
    LOCAL = "local"


def reduce(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A run (folder, URL or id), or a file or folder of step logs, Parquet or Arrow."
        ),
    ],
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Harm threshold; the run's own unless given.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Conditions, by model, prompts, attack, decoding, guardrail or condition; repeatable.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URL of the results; reduced/<digest> in the run unless given.")
    ] = None,
    executor: Annotated[Executor, typer.Option(help="Ray tasks, or threads of this process.")] = Executor.RAY,
    address: Annotated[str, typer.Option(help="Ray address; `local` starts a private instance.")] = "local",
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="Files scanned at a time; as many as there are CPUs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute new statistics from stored step logs: another harm threshold, some of the conditions."""
    from dsprobe.actors.offline import Workers, scan_logs
    from dsprobe.storage.log_files import find_logs
    from dsprobe.storage.reduced import check_scanned, place_for, write_reduced
    from dsprobe.storage.scan import ScanSettings

    conditions = _conditions(where or ())
    logs = find_logs(url, conditions)
    settings = ScanSettings(threshold=_threshold(threshold, logs), where=conditions)
    place = place_for(logs, settings, out)
    scanned = scan_logs(logs, settings, Workers(executor=executor.value, address=address, num_cpus=num_cpus))
    check_scanned(logs, settings, scanned)
    facts = write_reduced(logs, settings, scanned, place)
    if as_json:
        emit({"url": place.address, **facts})
        return
    print(
        f"{facts['step_rows']:,} step rows and {facts['position_rows']:,} position rows of {len(facts['conditions'])} "
        f"conditions, threshold {settings.threshold:g}: {place.address}"
    )
    if not facts["position_rows"]:
        print("No position logs were found, so `position_stats` is empty.")
    if logs.dropped:
        print(f"{logs.dropped} trajectories are not counted: `recording.raw.max_bytes` left no room for their logs.")
    if facts["left_out"]:
        print(f"{len(facts['left_out'])} files hold no step log and were left out, e.g. {facts['left_out'][0]}.")


def _conditions(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    from dsprobe.errors import ConfigError

    wanted: dict[str, tuple[str, ...]] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise ConfigError(f"`--where {text}` is not of the form KEY=VALUE, e.g. --where attack=dija.")
        wanted[key] = (*wanted.get(key, ()), value)
    return wanted


def _threshold(given: float | None, logs: Logs) -> float:
    from dsprobe.errors import ConfigError

    if given is not None:
        return given
    if logs.threshold is None:
        raise ConfigError(f"{logs.objects.url} is not a run, so its harm threshold is not known. Give --threshold.")
    return logs.threshold
