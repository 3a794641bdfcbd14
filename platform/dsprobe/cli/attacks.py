"""`dsprobe attacks`: attacks as files of cases, from a configuration, published artefacts, or a refiner model."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.options import ConfigArgument, JsonOption, SetOption, emit, load
from dsprobe.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dsprobe.attacks.case import AttackCase
    from dsprobe.judges.backends import BackendConfig
    from dsprobe.prompts.base import PromptSet

app = typer.Typer(
    help="Attacks as files of cases: save, import, refine, show. Attack `cases` replays a file.", no_args_is_help=True
)

OutOption = Annotated[Path, typer.Option("--out", help="File of cases to write.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Write over an existing file.")]
PromptsOption = Annotated[
    str,
    typer.Option(
        "--prompts",
        metavar="SOURCE:PATH",
        help="A prompt set: harmbench:FILE, csv:FILE …, toy:SPLIT, or a YAML mapping as in a configuration.",
    ),
]
CaseTextOption = Annotated[
    bool, typer.Option("--show-text", help="Show texts instead of their lengths; they may be harmful.")
]


@app.command()
def save(
    config: ConfigArgument,
    out: OutOption,
    attack: Annotated[str, typer.Option(help="Key of an attack of the configuration.")],
    model: Annotated[str, typer.Option(help="Name of a model of the configuration: lengths are in its tokens.")],
    prompts: Annotated[str | None, typer.Option(help="Key of one prompt set; all of the attack's otherwise.")] = None,
    decoding: Annotated[str | None, typer.Option(help="Name of a decoding, where reply lengths differ.")] = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compose the cases of a configuration's attack; an attack that searches is run."""
    from dsprobe.attacks.case import save_cases
    from dsprobe.cli.case_composing import composed

    _refuse_existing(out, force=force)
    cases = composed(load(config, overrides).config, attack, model, prompts, decoding)
    save_cases(cases, out)
    _conclude(out, cases, as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Published artefacts.")],
    out: OutOption,
    prompts: PromptsOption,
    format: Annotated[  # noqa: A002  the name of the option
        str, typer.Option(help="auto, harmbench, jailbreakbench, dija or csv.")
    ] = "auto",
    which: Annotated[int, typer.Option(min=1, help="Which artefact of a prompt that has several, from 1.")] = 1,
    attack: Annotated[str, typer.Option(help="Name of the attack, kept in the cases; the format otherwise.")] = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Skip artefacts without a prompt, prompts without an artefact.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn published artefacts into cases, matched to a prompt set by id or by the request's text."""
    from dsprobe.attacks.case import save_cases
    from dsprobe.attacks.imports import import_cases

    _refuse_existing(out, force=force)
    found = import_cases(
        file, _prompt_set(prompts), format=format, which=which, attack=attack, allow_missing=allow_missing
    )
    save_cases(found.cases, out)
    left_out = {"format": found.format, "unmatched": found.unmatched, "missing": found.missing}
    if not as_json:
        print(f"{found.format}: {found.unmatched} artefacts without a prompt, {found.missing} prompts without one")
    _conclude(out, found.cases, as_json, **left_out)


@app.command()
def refine(
    out: OutOption,
    prompts: PromptsOption,
    refiner: Annotated[
        str,
        typer.Option(help="`openai base_url=… model=…`, `local path=…`, or a YAML mapping or file with `name`."),
    ],
    tries: Annotated[int, typer.Option(min=1, max=5, help="Most tries for a request.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Let a model write a DIJA scaffold for each request; an existing file is gone on with."""
    from dsprobe.attacks.case import load_cases, save_cases
    from dsprobe.attacks.refiner import Refiner, refine_all

    _refuse_existing(out, force=True)
    requests = _prompt_set(prompts).prompts
    known = load_cases(out) if out.exists() else []

    def keep(cases: list[AttackCase]) -> None:
        save_cases(cases, out)
        print(f"{len(cases)}/{len(requests)} refined", file=sys.stderr)

    cases = refine_all(Refiner(_backend(refiner), tries), requests, known, keep)
    _conclude(out, cases, as_json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of cases.")],
    show_text: CaseTextOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the cases of a file write where; texts are redacted."""
    from dsprobe.attacks.case import load_cases

    cases = load_cases(file)
    from dsprobe.cli.case_display import in_words, plain

    rows = [in_words(case, show_text=show_text) for case in cases]
    if as_json:
        _conclude(file, cases, as_json, rows=rows)
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("prompt", "attack", "user", "reply", "judged", "actions")
    table = Table(title=plain(f"Cases of {file.name}"), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain(row[column]) for column in columns))
    Console().print(table)
    _conclude(file, cases, as_json)


# ---- what the commands share ---------------------------------------------------------------------------------------


def _refuse_existing(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(f"`{out}` exists. Choose another file with --out, or write over it with --force.")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder `{out.absolute().parent}` to write `{out.name}` into.")


def _conclude(path: Path, cases: Sequence[AttackCase], as_json: bool, **facts: Any) -> None:
    """Print counts and the digest that pins the file in a configuration."""
    from dsprobe.visible_text import visible

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fallbacks = Counter(case.metadata["fallback"] for case in cases if "fallback" in case.metadata)
    hidden = sum(not case.has_request for case in cases)
    if as_json:
        counts = {"cases": len(cases), "without_request": hidden, "fallbacks": dict(fallbacks)}
        emit({"path": str(path), "sha256": digest, **counts, **facts})
        return
    print(f"{len(cases)} cases: {path}")
    if hidden:
        print(f"{hidden} do not hold the request as it is: prompt-level guardrails do not reach them")
    for reason, count in sorted(fallbacks.items()):
        print(f"{count} fallbacks: {visible(reason)}")
    print(f"Attack: {{name: cases, path: {path}, digest: {digest}}}")


def _prompt_set(text: str) -> PromptSet:
    """A prompt set from the command line."""
    from dsprobe.config import PromptsConfig
    from dsprobe.prompts.load import load_prompts
    from dsprobe.registry import validated
    from dsprobe.strict_yaml import parse_yaml

    where = f"--prompts `{text}`"
    if text.lstrip().startswith("{"):
        values = parse_yaml(text, where)
    else:
        source, _, place = text.partition(":")
        values = {"source": source} | ({("split" if source == "toy" else "path"): place} if place else {})
    return load_prompts(validated(PromptsConfig, values, where))


def _backend(text: str) -> BackendConfig:
    from dsprobe.cli.scoring import parse_judges
    from dsprobe.judges.backends import LocalBackendConfig, OpenAIBackendConfig
    from dsprobe.registry import validated

    kinds: dict[str, type[LocalBackendConfig] | type[OpenAIBackendConfig]] = {
        "local": LocalBackendConfig,
        "openai": OpenAIBackendConfig,
    }
    specs = parse_judges([text])
    if len(specs) != 1:
        raise ConfigError(f"--refiner `{text}`: {len(specs)} models; one is needed.")
    name = specs[0].name
    if name not in kinds:
        raise unknown_name("refiner", name, kinds)
    return validated(kinds[name], {"kind": name, **specs[0].params}, f"refiner `{name}`")
