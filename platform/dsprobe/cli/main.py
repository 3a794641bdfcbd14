"""`dsprobe`: the entry hall. Each command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import io
import os
import sys

import typer

from dsprobe.cli import (
    attacking,
    attacks,
    comparing,
    decoding,
    hypotheses,
    inspection,
    irreversibility,
    jobs,
    policy,
    pools,
    preflight,
    reducing,
    results,
    running,
    scoring,
    status,
    submitting,
    sweeping,
    toy,
    tracing,
    transferring,
    upkeep,
)
from dsprobe.errors import ConfigError, DSProbeError
from dsprobe.models import remote

EXIT_FAILED, EXIT_USAGE = 1, 2

app = typer.Typer(
    name="dsprobe",
    help="Diffusion Safety Probe: record, reduce and steer every denoising step of masked-diffusion language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 complete, 1 failed or incomplete, 2 usage, 130 interrupted.",
)
app.command("run", rich_help_panel="Experiments")(running.run)
app.command("sweep", rich_help_panel="Experiments")(sweeping.sweep)
app.command("validate", rich_help_panel="Experiments")(inspection.validate)
app.command("list", rich_help_panel="Experiments")(inspection.list_components)
app.command("compare", rich_help_panel="Experiments")(comparing.compare)
app.command("transfer", rich_help_panel="Experiments")(transferring.transfer)
app.command("irreversibility", rich_help_panel="Experiments")(irreversibility.irreversibility)
app.command("hypotheses", rich_help_panel="Experiments")(hypotheses.hypotheses)
app.command("attack", rich_help_panel="Experiments")(attacking.attack)
app.command("score", rich_help_panel="Results")(scoring.score)
app.command("status", rich_help_panel="Results")(status.status)
app.command("trace", rich_help_panel="Results")(tracing.trace)
app.command("compact", rich_help_panel="Results")(results.compact)
app.command("reduce", rich_help_panel="Results")(reducing.reduce)
app.command("report", rich_help_panel="Results")(results.report)
app.command("query", rich_help_panel="Results")(results.query)
app.command("verify", rich_help_panel="Results")(upkeep.verify)
app.command("gc", rich_help_panel="Results")(upkeep.gc)
app.command("parity", rich_help_panel="Models")(decoding.parity)
app.add_typer(attacks.app, name="attacks", rich_help_panel="Experiments")
app.add_typer(policy.app, name="policy", rich_help_panel="Experiments")
app.add_typer(toy.app, name="toy", rich_help_panel="Models")
app.command("preflight", rich_help_panel="Cluster")(preflight.preflight)
app.add_typer(submitting.app, name="submit", rich_help_panel="Cluster")
app.add_typer(pools.app, name="pool", rich_help_panel="Cluster")
app.add_typer(jobs.app, name="jobs", rich_help_panel="Cluster")
app.command("doctor", rich_help_panel="Environment")(inspection.doctor)

remote.use("dsprobe.actors.weights:WeightCache")


def main() -> None:
    """Run the command line and turn known errors into one message and an exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _print_any_text()
    try:
        _begin_log()
        app()
    except ConfigError as error:
        _complain(error)
        sys.exit(EXIT_USAGE)
    except DSProbeError as error:
        _complain(error)
        sys.exit(EXIT_FAILED)


def _begin_log() -> None:
    if os.environ.get("DSPROBE_LOG"):  # what it imports would make every `--help` slower
        from dsprobe.telemetry.logs import configure_logging

        configure_logging()


def _complain(error: Exception) -> None:
    """One message: a document may have put terminal sequences into it, and a URL a password."""
    from dsprobe.untrusted import redacted
    from dsprobe.visible_text import visible

    shown = "\n".join(visible(line) for line in redacted(str(error)).split("\n"))
    print(f"dsprobe: {shown}", file=sys.stderr)


def _print_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes: paths and replies may hold any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
