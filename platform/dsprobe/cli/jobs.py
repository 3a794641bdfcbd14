"""`dsprobe jobs …`: list, look at, follow and stop what was submitted."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from dsprobe.cli.options import EXIT_INTERRUPTED, JsonOption, emit

if TYPE_CHECKING:
    from dsprobe.actors.jobs import JobRecord, Jobs

app = typer.Typer(help="Jobs on a Ray cluster.", no_args_is_help=True)

AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ray dashboard, http://host:8265; RAY_API_SERVER_ADDRESS, RAY_ADDRESS or 127.0.0.1 unless given.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, from `dsprobe submit` or `jobs list`.")]


@app.command("list")
def list_jobs(
    address: AddressOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Jobs that something else submitted too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Jobs of this cluster, the latest last."""
    records = _jobs(address).list(everything=everything)
    if as_json:
        emit([record.to_dict() for record in records])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsprobe.visible_text import visible

    table = Table(title="Jobs", title_justify="left")
    for column in ("job", "status", "kind", "run", "config", "started", "minutes"):
        table.add_column(column, overflow="fold")
    for record in records:
        facts = [record.fact(key) for key in ("kind", "id", "config")]
        cells = [record.id, record.status, *facts, _clock(record.started), _minutes(record)]
        table.add_row(*(Text(visible(cell) if cell else "") for cell in cells))
    Console().print(table)


@app.command("status")
def status(job_id: JobArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """What the cluster says of a job. Exit 0 while it runs and when it succeeded, otherwise as the job did."""
    record = _jobs(address).get(job_id)
    if as_json:
        emit(record.to_dict())
    else:
        from dsprobe.visible_text import visible

        facts = {key: record.fact(key) for key in ("kind", "id", "config", "version", "commit")}
        lines = {"status": record.status, **facts, "started": _clock(record.started), "minutes": _minutes(record)}
        lines["message"] = record.message.split("\n")[0][:300]
        for name, value in lines.items():
            if value:
                print(f"{name:8} {visible(value)}")
    if record.finished and record.exit_code:
        raise typer.Exit(record.exit_code)


@app.command("logs")
def logs(
    job_id: JobArgument,
    follows: Annotated[bool, typer.Option("--follow", help="Until the job ends; then exit as it did.")] = False,
    address: AddressOption = None,
) -> None:
    """What a job has written."""
    jobs = _jobs(address)
    if follows:
        follow(jobs, job_id, to=sys.stdout)
    else:
        _write(jobs.logs(job_id), sys.stdout)


@app.command("stop")
def stop(job_id: JobArgument, address: AddressOption = None) -> None:
    """Ask a job to end. What it has committed is kept; submitting the same again resumes it."""
    jobs = _jobs(address)
    print(f"Job {job_id} is asked to stop." if jobs.stop(job_id) else f"Job {job_id} was not running.")


def follow(jobs: Jobs, job_id: str, *, to: TextIO) -> None:
    """Show a job's log until it ends, then exit as it did; an interrupt ends the showing and not the job.

    Args:
        jobs: Its cluster.
        job_id: The job.
        to: Where the log goes.
    """
    try:
        record = jobs.follow(job_id, lambda text: _write(text, to))
    except KeyboardInterrupt:
        print(
            f"\nNo longer following; the job goes on. Again: dsprobe jobs logs {job_id} --follow. To end it: dsprobe "
            f"jobs stop {job_id}",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print(f"Job {job_id}: {record.status}", file=sys.stderr)
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def _jobs(address: str | None) -> Jobs:
    from dsprobe.actors.job_server import server_address
    from dsprobe.actors.jobs import Jobs

    return Jobs(server_address(address, os.environ))


def _write(text: str, to: TextIO) -> None:
    """A log may hold anything that a model wrote."""
    from dsprobe.untrusted import redacted
    from dsprobe.visible_text import visible_log

    to.write(visible_log(redacted(text)))
    to.flush()


def _clock(moment: float | None) -> str:
    return "" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}Z"


def _minutes(record: JobRecord) -> str:
    return "" if record.started is None else f"{((record.ended or time.time()) - record.started) / 60:.1f}"
