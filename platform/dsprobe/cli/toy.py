"""`dsprobe toy`: the embedded world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsprobe.errors import ConfigError

app = typer.Typer(help="The embedded toy world: rebuild its models, measure their behaviour.", no_args_is_help=True)


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="Folder for the rebuilt checkpoints and their behaviour card.")] = Path(
        "toy-models"
    ),
    seed: Annotated[int, typer.Option(help="Seed of data order and initial weights.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="Torch threads; 2, as the packaged models were trained, when omitted.")
    ] = None,
) -> None:
    """Rebuild the embedded models from scratch and write their behaviour card (about 20 minutes on 2 cores)."""
    from dsprobe.toy.training import train as rebuild

    rebuild(output, seed=seed, threads=threads, progress=_print_progress)
    print(output / "card.md")


@app.command()
def card(
    models: Annotated[Path | None, typer.Option(help="Folder of checkpoints; the packaged ones when omitted.")] = None,
    output: Annotated[Path, typer.Option(help="Where card.json and card.md go.")] = Path("."),
) -> None:
    """Measure the embedded models' behaviour on held-out phrasings and write the card."""
    from dsprobe.toy.card import write_card

    try:
        write_card(models, output)
    except OSError as error:
        raise ConfigError(f"The card cannot be written: {error}") from None
    print(output / "card.md")


def _print_progress(stage: str, step: int, total: int) -> None:
    if step == total or step % 100 == 0:
        print(f"{stage} {step}/{total}", flush=True)
