"""`dsprobe status`: how a run or a sweep stands, from its folder alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsprobe.cli.display import duration
from dsprobe.cli.options import JsonOption, RunArgument, emit

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from dsprobe.storage.run_status import RunStatus
    from dsprobe.storage.run_store import RunStore
    from dsprobe.storage.status import DriverStatus

EXIT_INCOMPLETE = 1
ROWS = 12
"""Points of a front, and conditions, that are shown."""


def status(
    run: RunArgument,
    live: Annotated[bool, typer.Option("--live", help="Go on until the run has ended.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 5.0,
    svg: Annotated[Path | None, typer.Option(help="Write what is shown as a picture (SVG).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Progress, time left, failures, replicas, and a sweep's front so far. Needs the run's folder, and no cluster.

    Exit 0 while it is under way and when it is complete, 1 when it is neither.
    """
    from dsprobe.storage.query import open_run
    from dsprobe.storage.run_status import run_status

    store = open_run(run)
    found = _watch(store, every, as_json=as_json) if live else run_status(store)
    if as_json:
        emit(found.to_dict())
    elif svg is not None or not live or not sys.stdout.isatty():
        _show(found, svg)
    if not (found.complete or found.under_way):
        raise typer.Exit(EXIT_INCOMPLETE)


def _watch(store: RunStore, every: float, *, as_json: bool) -> RunStatus:
    """Look again and again until nobody works on the run; a terminal shows one view, anything else a line a look."""
    from rich.live import Live

    from dsprobe.storage.run_status import run_status

    found = run_status(store)
    if as_json or not sys.stdout.isatty():
        while found.under_way:
            if not as_json:
                print(_line(found), flush=True)
            time.sleep(every)
            found = run_status(store)
        return found
    with Live(_view(found), auto_refresh=False) as screen:
        while found.under_way:
            time.sleep(every)
            found = run_status(store)
            screen.update(_view(found), refresh=True)
    return found


def _show(found: RunStatus, svg: Path | None) -> None:
    from rich.console import Console

    console = Console(record=svg is not None)
    console.print(_view(found))
    if svg is not None:
        _save(console, found, svg)


def _save(console: Console, found: RunStatus, svg: Path) -> None:
    console.save_svg(str(svg), title=f"dsprobe status {found.run_id}")


def _line(found: RunStatus) -> str:
    counts = found.driver.counts if found.driver else {}
    return f"{found.run_id}: {found.word}, {_done(found, counts)}{_left(found)}"


def _view(found: RunStatus) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(found):
        facts.add_row(name, value)
    driver = found.driver
    shown: list[RenderableType] = [facts]
    if found.harm or (driver is not None and driver.conditions):
        shown.append(_conditions(found, driver))
    if driver is not None and driver.front:
        shown.append(_front(found, driver))
    return Group(*shown)


def _facts(found: RunStatus) -> list[tuple[str, str]]:
    """What is shown, as names and texts."""
    from rich.markup import escape

    from dsprobe.visible_text import visible

    driver = found.driver
    counts = driver.counts if driver else {}
    rows = [
        (found.kind, f"{escape(visible(found.run_id))}  [bold]{found.word}[/bold]"),
        ("at", escape(visible(found.url))),
    ]
    rows.append(("done", _done(found, counts) + _left(found)))
    if found.kind == "run":
        rows.append(("conditions", str(found.conditions)))
    if driver is not None and found.under_way:
        rows += _machinery(counts)
    if counts.get("bytes_written"):
        rows.append(("written", f"{_bytes(counts['bytes_written'] or 0)} by the last driver"))
    trouble = [f"{int(counts.get(name) or 0)} {word}" for name, word in _TROUBLE.items() if counts.get(name)]
    if trouble:
        rows.append(("trouble", ", ".join(trouble)))
    reasons = driver.reasons if driver else {}
    rows += [("", f"{times} x {escape(visible(reason))}") for reason, times in reasons.items()]
    rows += [("driver", escape(visible(_driver(one)))) for one in found.drivers]
    if found.tables:
        rows.append(("tables", f"{escape(visible(found.url))}/tables"))
    return rows


_TROUBLE = {
    "retries": "attempts repeated",
    "shards_failed": "shards failed",
    "failed": "trials failed",
}


def _machinery(counts: dict[str, float | None]) -> list[tuple[str, str]]:
    """What a cluster does for a run, by its driver's last word."""
    if "replicas_up" not in counts:
        return []
    up, pending, draining, queued, inflight = (
        int(counts.get(name) or 0)
        for name in ("replicas_up", "replicas_pending", "replicas_draining", "queued", "inflight")
    )
    return [
        ("replicas", f"{up} up, {pending} coming up or without room, {draining} on nodes about to go"),
        ("shards", f"{queued} waiting, {inflight} handed out"),
        ("reducers", f"{counts.get('lag_s') or 0:.1f} s behind"),
    ]


def _done(found: RunStatus, counts: dict[str, float | None]) -> str:
    if found.kind == "sweep" and counts.get("trials_total"):
        finished = sum(int(counts.get(state) or 0) for state in ("complete", "stopped", "failed"))
        saved = (counts.get("passes_from_scratch") or 0) / max(counts.get("passes_used") or 0, 1)
        return (
            f"{finished} of {int(counts['trials_total'] or 0)} trials, 1/{max(saved, 1):.1f} of the passes from scratch"
        )
    return f"{found.shards_done} of {found.shards_total} shards" + _trajectories(counts)


def _trajectories(counts: dict[str, float | None]) -> str:
    total = counts.get("trajectories_total")
    if not total:
        return ""
    done = int((counts.get("trajectories_done") or 0) + (counts.get("trajectories_skipped") or 0))
    return f", {done} of {int(total)} trajectories"


def _left(found: RunStatus) -> str:
    """Rate and time left of a run that is under way, from its driver's own count."""
    counts = found.driver.counts if found.driver else {}
    done, elapsed, total = (counts.get(n) for n in ("trajectories_done", "elapsed_s", "trajectories_total"))
    if not (found.under_way and done and elapsed and total):
        return ""
    settled = done + (counts.get("trajectories_skipped") or 0) + (counts.get("trajectories_failed") or 0)
    return f", {done / elapsed:.1f}/s, about {duration((total - settled) * elapsed / done)} left"


def _driver(driver: DriverStatus) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(driver.started))
    job = f", job {driver.job}" if driver.job else ""
    state = f"not heard of for {duration(driver.silent_s)}" if driver.lost else driver.state
    stage = f" ({driver.stage})" if driver.state == "running" else ""
    return f"dsprobe {driver.command} on {driver.host}, process {driver.pid}{job}, since {began}: {state}{stage}"


def _conditions(found: RunStatus, driver: DriverStatus | None) -> RenderableType:
    """Shards by condition, and harm where there are tables; the most harmful first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from dsprobe.visible_text import visible

    progress = driver.conditions if driver else {}
    names = sorted({*progress, *found.harm}, key=lambda name: (-found.harm.get(name, 0.0), name))
    more = f"; {len(names) - ROWS} more are not shown" if len(names) > ROWS else ""
    table = Table()
    table.add_column("condition", overflow="fold")
    table.add_column("shards", justify="right")
    if found.harm_judge is not None:
        table.add_column(Text(visible(f"harmful by {found.harm_judge}")), justify="right")
    for name in names[:ROWS]:
        cells: list[RenderableType] = [
            Text(visible(name)),
            "–" if name not in progress else "{} of {}".format(*progress[name]),
        ]
        if found.harm_judge is not None:
            cells.append(f"{found.harm[name]:.1%}" if name in found.harm else "–")
        table.add_row(*cells)
    return Group(f"\nConditions{more}", table)


def _front(found: RunStatus, driver: DriverStatus) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from dsprobe.visible_text import visible

    volume = driver.counts.get("hypervolume")
    spans = f", hypervolume {volume:.3g}" if volume else ""
    table = Table()
    for name in found.objectives:
        table.add_column(Text(visible(name)), justify="right")
    for point in sorted(driver.front)[:ROWS]:
        table.add_row(*(f"{value:.3g}" for value in point))
    return Group(f"\nFront so far: {len(driver.front)} settings{spans}", table)


def _bytes(amount: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
