"""`dsprobe trace`: what a run's processes did when, for Perfetto."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Annotated

import typer

from dsprobe.cli.options import JsonOption, RunArgument, emit


def trace(
    run: RunArgument,
    output: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write; a name that ends in .gz is compressed.")
    ] = Path("trace.json"),
    as_json: JsonOption = False,
) -> None:
    """Write a run's spans as a Chrome trace: open it at https://ui.perfetto.dev, or in chrome://tracing.

    Loading, generating, waiting for the reducer, writing, committing and judging, of every process. Hosts' times are
    as their clocks are.
    """
    from dsprobe.errors import ConfigError, StorageError
    from dsprobe.storage.query import open_run
    from dsprobe.storage.spans import read_spans
    from dsprobe.telemetry.trace_events import chrome_trace

    store = open_run(run)
    store.manifest()
    spans = read_spans(store.objects)
    if not spans:
        raise StorageError(f"{store.url} holds no spans: its driver wrote none, or was killed before it could.")
    data = json.dumps(chrome_trace(spans), separators=(",", ":")).encode()
    try:
        output.write_bytes(gzip.compress(data) if output.suffix == ".gz" else data)
    except OSError as error:
        raise ConfigError(f"--out: {output} cannot be written: {error}") from None
    seconds = (max(span.start_ns + span.duration_ns for span in spans) - spans[0].start_ns) / 1e9
    if as_json:
        emit({"trace": str(output), "spans": len(spans), "seconds": seconds})
    else:
        print(f"{len(spans)} spans of {seconds:.1f} s: {output}; open it at https://ui.perfetto.dev")
