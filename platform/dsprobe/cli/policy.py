"""`dsprobe policy`: the learned temporal policy head."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dsprobe.cli.options import JsonOption, RunArgument, emit
from dsprobe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dsprobe.experiment.plan import Plan
    from dsprobe.guardrails.policy_training import Outcome, Trained
    from dsprobe.models.base import DiffusionModel

app = typer.Typer(help="The learned temporal policy head: train it on a run's trajectories.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `train` a sub-command while it is the only one."""


@app.command()
def train(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--out", help="File to write; policy-<model>.safetensors when omitted.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the run, where it has several diffusion models.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep the first N prompts of every set.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split, exploration and initial weights.")] = 0,
    intervention_cost: Annotated[float, typer.Option(min=0.0, help="Cost of one intervention.")] = 0.01,
    fluency_cost: Annotated[
        float, typer.Option(min=0.0, help="Cost of one nat of lost fluency, or of one spoilt benign answer.")
    ] = 0.1,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a policy on a run's unguarded trajectories and compare it with never and always intervening."""
    from dsprobe.guardrails.policy_settings import PolicyTraining
    from dsprobe.guardrails.policy_training import train as fit
    from dsprobe.models.load import load_model

    plan, name = _plan(run, model)
    path = output or Path(f"policy-{name}.safetensors")
    if path.exists() and not force:
        raise ConfigError(f"`{path}` exists. Choose another file with --out, or write over it with --force.")
    config = PolicyTraining(seed=seed, limit=limit, intervention_cost=intervention_cost, fluency_cost=fluency_cost)
    loaded = load_model(next(m for m in plan.config.models if m.name == name))
    trained = fit(plan, cast("DiffusionModel", loaded), config)
    trained.network.save(path)
    _show(trained, path, as_json=as_json)


def _plan(run: str, model: str | None) -> tuple[Plan, str]:
    """The run's unguarded plan, and which of its diffusion models to train on.

    Raises:
        ConfigError: No such model, several to choose from, no harm judge, or a model that is not what it was.
    """
    from dsprobe.config import GuardrailConfig, RunConfig
    from dsprobe.experiment.plan import resolve
    from dsprobe.guardrails.policy_sampler import deciding_judges
    from dsprobe.registry import validated
    from dsprobe.storage.query import open_run

    manifest = open_run(run).manifest()
    config = validated(RunConfig, manifest["config"], f"manifest of run `{run}`")
    name = _chosen(manifest, model)
    kept = tuple(m for m in config.models if m.name == name)
    plan = resolve(config.model_copy(update={"models": kept, "guardrails": (GuardrailConfig(),)}))
    deciding_judges(plan)
    recorded, found = manifest["models"][name]["digest"], plan.models[name].digest
    if recorded != found:
        raise ConfigError(
            f"Model `{name}` has digest {found[:12]}…; run `{manifest['run_id']}` was made with {recorded[:12]}…. "
            "Restore that checkpoint, or make the run again."
        )
    return plan, name


def _chosen(manifest: Mapping[str, Any], model: str | None) -> str:
    """Name of the model to train on."""
    from dsprobe.errors import unknown_name

    diffusion: list[str] = [name for name, facts in manifest["models"].items() if facts["kind"] == "diffusion"]
    if not diffusion:
        raise ConfigError(
            f"Run `{manifest['run_id']}` has no diffusion model, and a temporal policy acts on denoising steps. Its "
            f"models: {', '.join(manifest['models'])}."
        )
    if model is None:
        if len(diffusion) > 1:
            raise ConfigError(
                f"Run `{manifest['run_id']}` has several diffusion models, and a policy is for one of them. Choose "
                f"with --model: {', '.join(diffusion)}."
            )
        return diffusion[0]
    if model not in diffusion:
        raise unknown_name(f"diffusion model of run `{manifest['run_id']}`", model, diffusion)
    return model


def shortfall(outcomes: Mapping[str, Outcome]) -> str | None:
    """What to tell of a policy that does not beat both baselines on held-out prompts; `None` where it does."""
    name, best = min(((n, o) for n, o in outcomes.items() if n != "policy"), key=lambda pair: pair[1].loss)
    policy = outcomes["policy"]
    if policy.loss < best.loss:
        return None
    return (
        f"The policy (loss {policy.loss:.3f}) is no better than {name} intervening ({best.loss:.3f}) on held-out "
        "prompts: do not use it. Train on more prompts, or with other costs."
    )


def _show(trained: Trained, path: Path, *, as_json: bool) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if warning := shortfall(trained.outcomes):
        print(warning, file=sys.stderr)
    if as_json:
        emit(
            {
                "path": str(path),
                "digest": digest,
                "rows": dict(trained.rows),
                "knots": trained.network.header.knots,
                "held_out": {name: asdict(outcome) for name, outcome in trained.outcomes.items()},
            }
        )
        return
    print(_table(trained.outcomes))
    rows = trained.rows
    print(f"{rows['held_out']} rows held out, {rows['training']} in training, {rows['decisions']} decisions.")
    print("λ: " + " ".join(f"{knot:.2f}" for knot in trained.network.header.knots))
    print(f"Policy: {path}")
    print(f"Guardrail: {{name: policy, path: {path}, digest: {digest[:12]}}}")


def _table(outcomes: Mapping[str, Outcome]) -> str:
    """Held-out means, one line per way to intervene."""
    columns = ("loss", "risk", "interventions", "fluency", "extra_steps", "asr", "utility")
    lines = ["held out " + " ".join(f"{column:>13}" for column in columns)]
    for name, outcome in outcomes.items():
        values = [getattr(outcome, column) for column in columns]
        lines.append(f"{name:<8} " + " ".join(f"{'-':>13}" if v is None else f"{v:>13.3f}" for v in values))
    return "\n".join(lines)
