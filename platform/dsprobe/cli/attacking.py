"""`dsprobe attack`: one prompt against one model at the terminal, step by step while it is decoded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsprobe.cli.options import (
    EXIT_INTERRUPTED,
    JsonOption,
    ShowTextOption,
    component,
    emit,
    key_values,
    read_guardrail,
)
from dsprobe.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from dsprobe.adhoc import AttackRequest, AttackResult
    from dsprobe.attacks.case import AttackCase
    from dsprobe.config import ModelConfig
    from dsprobe.models.base import LanguageModel


def attack(
    prompt: Annotated[str, typer.Option("--prompt", help="The request; `-` reads standard input.")],
    model: Annotated[
        str, typer.Option("--model", help="An embedded model, a checkpoint folder, or a hub id.")
    ] = "toy-diffusion",
    revision: Annotated[str | None, typer.Option(help="Commit hash; needed for hub ids.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    attack: Annotated[str, typer.Option("--attack", help="Name of an attack (`dsprobe list attacks`).")] = "direct",
    params: Annotated[
        list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="Parameter of the attack. Repeatable.")
    ] = None,
    case: Annotated[Path | None, typer.Option(metavar="FILE", help="Saved cases instead of --attack.")] = None,
    case_id: Annotated[str | None, typer.Option(metavar="ID", help="Which case, where the file holds several.")] = None,
    guardrail: Annotated[Path | None, typer.Option(metavar="FILE", help="A guardrail: `name:` and `stack:`.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    reply_length: Annotated[int | None, typer.Option(min=1, help="Response positions.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    decoding: Annotated[
        list[str] | None,
        typer.Option("-d", metavar="KEY=VALUE", help="Another decoding setting, e.g. block_length=8. Repeatable."),
    ] = None,
    scorer: Annotated[str, typer.Option(help="In-loop risk: a name, `name key=value …`, `auto`, or `none`.")] = "auto",
    judge: Annotated[
        list[str] | None, typer.Option("--judge", help="A judge that needs no model of its own. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed.")] = 0,
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait after every step.")] = 0.0,
    show_text: ShowTextOption = False,
    as_json: JsonOption = False,
) -> None:
    """Attack a model with one prompt and watch the canvas: text, risk of both views, what attack and guardrail do.

    Texts of the embedded models are shown; those of real models only with --show-text.
    """
    from dsprobe.adhoc import make_request

    overrides = {"steps": steps, "reply_length": reply_length, "temperature": temperature}
    given = {key: value for key, value in overrides.items() if value is not None}
    spec: Any = {"name": attack, **key_values(params, "-p")}
    request = make_request(
        [_prompt_text(prompt)],
        attack=spec if case is None else _case(case, case_id, spec),
        decoding=key_values(decoding, "-d") | given,
        guardrail=None if guardrail is None else read_guardrail(guardrail),
        scorer=None if scorer == "none" else component(scorer, "scorer"),
        judges=[component(text, "judge") for text in judge or ()],
        seed=seed,
        show_text=show_text,
    )
    try:
        result = _run(model_config(model, revision, device), request, delay, as_json=as_json)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        emit(result.to_dict())


def _run(config: ModelConfig, request: AttackRequest, delay: float, *, as_json: bool) -> AttackResult:
    """Check what can be checked without weights, load the model, and show the attack."""
    from dsprobe.adhoc import run_request
    from dsprobe.models.load import load_model

    _check_without_weights(config, request)
    model = load_model(config)
    if as_json:
        return run_request(model, request)[0]
    return _shown(model, request, delay)


def _shown(model: LanguageModel, request: AttackRequest, delay: float) -> AttackResult:
    from dsprobe.adhoc import run_request
    from dsprobe.cli.attack_display import show_attack

    with show_attack(model, request, delay) as view:
        result = run_request(model, request, on_step=view.step)[0]
        view.end(result)
    return result


def _check_without_weights(config: ModelConfig, request: AttackRequest) -> None:
    """Kind, words and lengths, by the checkpoint's facts and its tokenizer alone."""
    from dsprobe.attacks import ATTACKS
    from dsprobe.attacks.realise import realise
    from dsprobe.experiment.preflight import stand_in
    from dsprobe.models.checkpoint import inspect_checkpoint

    facts = inspect_checkpoint(config)
    request.check_kind(facts.kind)
    model = stand_in(facts)
    if model is None:  # a hub id, whose tokenizer comes with the weights
        return
    prompt, case, length = request.prompts[0], request.cases[0], request.decoding.reply_length
    if case is not None:
        realise(case, prompt, model, length)
    elif not ATTACKS.get(request.attack.name).searches:
        ATTACKS.build(request.attack.name, request.attack.params).render(prompt, model, length)


def model_config(model: str, revision: str | None, device: str) -> ModelConfig:
    """An embedded model by name, or a folder or hub id.

    Raises:
        ConfigError: It is none of these.
    """
    from dsprobe.config import ModelConfig
    from dsprobe.toy.assets import EMBEDDED_MODELS
    from dsprobe.untrusted import local_path

    if model in EMBEDDED_MODELS and revision is None:
        return ModelConfig(name=model, device=device)
    if not local_path(model, "--model").is_dir() and "/" not in model:
        raise ConfigError(f"{unknown_name('embedded model', model, EMBEDDED_MODELS)} Or give a folder or a hub id.")
    return ModelConfig(name=Path(model).name, path=model, revision=revision, device=device)


def _prompt_text(given: str) -> str:
    """The request, from standard input where it is ``-``.

    Raises:
        ConfigError: It is blank.
    """
    text = sys.stdin.read().strip() if given == "-" else given
    if not text.strip():
        raise ConfigError("The prompt is empty.")
    return text


def _case(file: Path, wanted: str | None, attack: dict[str, Any]) -> AttackCase:
    """One case of a file.

    Raises:
        ConfigError: An attack is given too, or it is not clear which case is meant.
    """
    from dsprobe.attacks.case import load_cases

    if attack != {"name": "direct"}:
        raise ConfigError("A saved case is the attack; leave out --attack and -p where --case is given.")
    cases = {case.prompt_id: case for case in load_cases(file)}
    if wanted is None and len(cases) == 1:
        return next(iter(cases.values()))
    if wanted not in cases:
        names = ", ".join(list(cases)[:8])
        raise ConfigError(f"{file} holds {len(cases)} cases ({names}); choose one with --case-id.")
    return cases[wanted]
