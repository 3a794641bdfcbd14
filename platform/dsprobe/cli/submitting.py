"""`dsprobe submit …`: the same commands as a job on a cluster, which outlives this process."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.jobs import AddressOption, follow
from dsprobe.cli.options import ConfigArgument, JsonOption, SetOption, emit, key_values, load, load_sweep
from dsprobe.cli.preflight import JobKind, checked, refuse_failed, show

if TYPE_CHECKING:
    from dsprobe.actors.job_request import JobRequest
    from dsprobe.actors.jobs import Jobs
    from dsprobe.actors.preflight import Preflight
    from dsprobe.config import RunConfig
    from dsprobe.sweeps.config import SweepConfig

app = typer.Typer(help="Run, sweep, transfer or reduce as a job on a Ray cluster.", no_args_is_help=True)

FollowOption = Annotated[
    bool, typer.Option("--follow/--no-follow", help="Show the job's log until it ends, and exit as it does.")
]
IdOption = Annotated[
    str | None, typer.Option("--id", metavar="ID", help="Id of the job; dsprobe-<kind>-<run id>-<n> unless given.")
]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Kept with the job. Repeatable.")
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME", help="Pass one more environment variable; no secrets. Repeatable."),
]
WheelOption = Annotated[
    str,
    typer.Option(help="Code for the nodes: a wheel's path; auto builds this checkout's; none uses what they have."),
]
AgainOption = Annotated[bool, typer.Option("--again", help="Even if the same work is under way.")]
LocalOutputOption = Annotated[
    bool, typer.Option("--allow-local-output", help="The output folder is a path that all nodes see.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """How a job is submitted, whatever it does."""

    address: str | None
    follow: bool
    job_id: str | None
    tags: list[str] | None
    env: list[str] | None
    wheel: str
    again: bool
    as_json: bool


def _experiment(kind: JobKind) -> Callable[..., None]:
    """The command for one kind of experiment; they differ in nothing else."""

    def command(
        config: ConfigArgument,
        overrides: SetOption = None,
        address: AddressOption = None,
        follow: FollowOption = False,
        job_id: IdOption = None,
        tags: TagOption = None,
        env: EnvOption = None,
        wheel: WheelOption = "auto",
        again: AgainOption = False,
        allow_local_output: LocalOutputOption = False,
        check: Annotated[bool, typer.Option(help="Make the checks that need no cluster first.")] = True,
        report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
        as_json: JsonOption = False,
    ) -> None:
        from dsprobe.actors.job_folder import CONFIG_FILE, JobFolder

        options = _Options(address=address, follow=follow, job_id=job_id, tags=tags, env=env, wheel=wheel,
                           again=again, as_json=as_json)  # fmt: skip
        loaded = _load(config, overrides, kind)
        with tempfile.TemporaryDirectory(prefix="dsprobe-job-") as temporary:
            staged = JobFolder(Path(temporary, "job"))
            staged.add(loaded, allow_local_output=allow_local_output)
            jobs = _server(options)
            found = _checked(staged.folder, kind, quiet=as_json) if check else None
            run = [kind.value, CONFIG_FILE, *([] if report else ["--no-report"])]
            commands = [["preflight", CONFIG_FILE, "--kind", kind.value], run]
            _note(staged.notes)
            request = _request(options, temporary, kind=kind.value, work=_work_id(loaded, staged.folder, found),
                               source=config, commands=commands, folder=staged.folder)  # fmt: skip
            staged.use_pool(request.wheel.name if request.wheel else None)
            job_id = _send(jobs, request, options, found)
        _follow(jobs, job_id, options)

    return command


for _kind in JobKind:
    app.command(_kind.value, help=f"`dsprobe {_kind.value}` as a job, after its pre-flight.")(_experiment(_kind))


@app.command("reduce")
def reduce(
    url: Annotated[str, typer.Argument(metavar="URL", help="A run's URL, or step logs, as for `dsprobe reduce`.")],
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Harm threshold.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Conditions, as for `dsprobe reduce`. Repeatable.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URL of the results.")] = None,
    address: AddressOption = None,
    follow: FollowOption = False,
    job_id: IdOption = None,
    tags: TagOption = None,
    env: EnvOption = None,
    wheel: WheelOption = "auto",
    again: AgainOption = False,
    allow_local_output: LocalOutputOption = False,
    as_json: JsonOption = False,
) -> None:
    """`dsprobe reduce` as a job."""
    from dsprobe.actors.job_folder import job_output
    from dsprobe.actors.job_request import digest_id

    options = _Options(address=address, follow=follow, job_id=job_id, tags=tags, env=env, wheel=wheel, again=again,
                       as_json=as_json)  # fmt: skip
    command = ["reduce", job_output(url, allow_local=allow_local_output, what="URL"), "--address", "auto"]
    command += [] if threshold is None else ["--threshold", str(threshold)]
    command += [part for condition in where or () for part in ("--where", condition)]
    command += [] if out is None else ["--out", job_output(out, allow_local=allow_local_output, what="--out")]
    name = url.rstrip("/").rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="dsprobe-job-") as temporary:
        request = _request(options, temporary, kind="reduce", work=digest_id(name, command), source=url,
                           commands=[command], folder=None)  # fmt: skip
        jobs = _server(options)
        job_id = _send(jobs, request, options, None)
    _follow(jobs, job_id, options)


def _load(source: str, overrides: list[str] | None, kind: JobKind) -> RunConfig | SweepConfig:
    if kind is JobKind.SWEEP:
        return load_sweep(source, overrides).config
    return load(source, overrides, "transfer" if kind is JobKind.TRANSFER else "run").config


def _checked(folder: Path, kind: JobKind, *, quiet: bool) -> Preflight:
    """The pre-flight's local part, on the files that travel and from where the job will see them."""
    from dsprobe.actors.job_folder import CONFIG_FILE

    with contextlib.chdir(folder):
        found = checked(CONFIG_FILE, kind, None, local=True)
    if not quiet:
        show(found)
    elif found.failed:
        emit({"job_id": None, "preflight": found.to_dict()})
    refuse_failed(found)
    return found


def _work_id(config: RunConfig | SweepConfig, folder: Path, found: Preflight | None) -> str:
    """The run's or sweep's id; without checks, one that is the same for the same configuration."""
    from dsprobe.actors.job_folder import CONFIG_FILE
    from dsprobe.actors.job_request import digest_id

    if found is not None and found.resolved is not None:
        return found.resolved.id
    return digest_id(config.name, [(folder / CONFIG_FILE).read_text(encoding="utf-8")])


def _request(
    options: _Options,
    temporary: str,
    *,
    kind: str,
    work: str,
    source: str,
    commands: list[list[str]],
    folder: Path | None,
) -> JobRequest:
    from dsprobe.actors.job_request import JobRequest, job_environment
    from dsprobe.actors.wheel import job_wheel
    from dsprobe.experiment.manifest import code_revision

    return JobRequest(
        kind=kind,
        id=work,
        source=source,
        commands=commands,
        folder=folder,
        env=job_environment(os.environ, options.env or ()),
        tags={name: str(value) for name, value in key_values(options.tags, "--tag").items()},
        commit=code_revision(),
        wheel=job_wheel(options.wheel, Path(temporary, "wheel")),
    )


def _server(options: _Options) -> Jobs:
    from dsprobe.actors.job_server import server_address
    from dsprobe.actors.jobs import Jobs

    return Jobs(server_address(options.address, os.environ))


def _send(jobs: Jobs, request: JobRequest, options: _Options, found: Preflight | None) -> str:
    """Submit and say so; returns the job's id."""
    job_id = jobs.submit(request, job_id=options.job_id, again=options.again)
    if options.as_json:
        emit(_facts(jobs, job_id, request, found))
    else:
        print(f"Job {job_id}: {request.kind} {request.id} on {jobs.address}")
        print(f"It goes on without this machine. Follow: dsprobe jobs logs {job_id} --follow", file=sys.stderr)
    return job_id


def _follow(jobs: Jobs, job_id: str, options: _Options) -> None:
    """Follow where that was asked for; what travelled is no longer needed here."""
    if options.follow:
        follow(jobs, job_id, to=sys.stderr if options.as_json else sys.stdout)


def _facts(jobs: Jobs, job_id: str, request: JobRequest, found: Preflight | None) -> Mapping[str, Any]:
    wheel = request.wheel and request.wheel.name
    return {"job_id": job_id, "address": jobs.address, "kind": request.kind, "id": request.id, "wheel": wheel,
            "preflight": found and found.to_dict()}  # fmt: skip


def _note(notes: list[str]) -> None:
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
