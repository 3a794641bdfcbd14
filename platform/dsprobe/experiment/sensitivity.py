"""What stands beside transfer: success against the settings of a grid of attacks, and utility on benign requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dsprobe.config import Spec
from dsprobe.decoding.schedule import planned_steps
from dsprobe.experiment.transfer_rows import Rows, TransferRows
from dsprobe.judges.base import VERDICT_PREFIX
from dsprobe.metrics.anchoring import AnchoringCurve, anchoring_curve
from dsprobe.metrics.curves import DoseResponse, cue_amplification, dose_response
from dsprobe.metrics.intervals import F64
from dsprobe.metrics.outputs import Labels
from dsprobe.metrics.paired import PairedEstimate, compare_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Success of a grid of attacks against the parameters that the grid varies."""

    family: str
    """Key of the grid."""
    attack: str
    """Name of the attack."""
    model: str
    prompts: str
    decoding: str
    judge: str
    response: DoseResponse
    anchoring: AnchoringCurve | None
    """Against t/T, beside the published curve; of the anchoring attack over its step only."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return flat(self, "response", "anchoring")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Utility of two models on the same benign prompts."""

    prompts: str
    judge: str
    attack: str
    diffusion: str
    autoregressive: str
    decoding: str
    """Decoding of the diffusion model."""
    estimate: PairedEstimate
    """`level` is the diffusion model, `baseline` the autoregressive one."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return flat(self, "estimate")


def flat(part: Any, *nested: str) -> dict[str, Any]:
    """Labels of a part beside the JSON form of its statistics.

    Args:
        part: A dataclass.
        nested: Its fields that have a `to_dict`, or are `None`.
    """
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return values | {name: None if values[name] is None else values[name].to_dict() for name in nested}


def curves(run: TransferRows) -> Iterator[Curve]:
    """Of every grid of attacks on every model, prompt set and decoding, by every harm judge."""
    cells: dict[tuple[str, str, str, str], dict[str, Rows]] = {}
    for c, rows in run.conditions.items():
        harmful = rows[run.columns["harmful"][rows]]
        if (family := run.specs[c.attack].family) and len(harmful):
            cells.setdefault((family, c.model, c.prompts, c.decoding), {})[c.attack] = harmful
    for (family, model, prompts, decoding), members in cells.items():
        doses = varied_parameters([run.specs[key] for key in members])
        if not doses:
            continue
        attack = run.specs[next(iter(members))].name
        row_N = np.concatenate(list(members.values()))
        dose_N = {
            name: np.concatenate([np.full(len(rows), values[key]) for key, rows in members.items()])
            for name, values in doses.items()
        }
        prompt_N = run.columns["prompt_id"][row_N]
        # Other settings of the attack beside its step have no published curve.
        anchored = _anchored(run, model, decoding) if (attack, *doses) == ("anchoring", "step") else None
        for judge in run.harm:
            success_N = run.verdict(judge, row_N)
            yield Curve(
                family=family,
                attack=attack,
                model=model,
                prompts=prompts,
                decoding=decoding,
                judge=judge,
                response=_response(success_N, dose_N, prompt_N),
                anchoring=anchored(success_N, dose_N["step"], prompt_N) if anchored else None,
            )


def _response(success_N: F64, dose_N: Mapping[str, F64], prompt_N: Labels) -> DoseResponse:
    """A grid of cues is read per cue, in whatever order it was written."""
    if "cues" in dose_N and dose_N.keys() <= {"cues", "spacing"}:
        return cue_amplification(success_N, dose_N["cues"], dose_N.get("spacing"), prompt_N)
    return dose_response(success_N, dose_N, prompt_N)


def _anchored(run: TransferRows, model: str, decoding: str) -> Callable[[F64, F64, Labels], AnchoringCurve]:
    """Success against t/T. T is the steps of the decoding; a step of an autoregressive model is a token of the reply.

    An autoregressive model says the first t tokens, and no more than its reply has.
    """
    settings = next(d for d in run.config.decodings if d.name == decoding)
    autoregressive = run.kinds[model] == "autoregressive"
    total = settings.reply_length if autoregressive else planned_steps(settings)

    def against(success_N: F64, step_N: F64, prompt_N: Labels) -> AnchoringCurve:
        return anchoring_curve(success_N, np.minimum(step_N, total) if autoregressive else step_N, total, prompt_N)

    return against


def capability(run: TransferRows) -> Iterator[Capability]:
    """Of every pair of models, benign prompt set, attack and decoding, by every judge of utility."""
    useful = [judge for judge, question in run.judges.items() if question == "utility"]
    for first, second, prompts in run.twins(harmful=False):
        for attack, decoding, (one, two) in run.pairs(first, second, prompts, harmful=False):
            for judge in useful:
                verdict = run.columns[VERDICT_PREFIX + judge]
                yield Capability(
                    prompts=prompts,
                    judge=judge,
                    attack=attack,
                    diffusion=first,
                    autoregressive=second,
                    decoding=decoding,
                    estimate=compare_rates(verdict[one], verdict[two], run.columns["prompt_id"][one]),
                )


def varied_parameters(specs: Sequence[Spec]) -> dict[str, dict[str, float]]:
    """The numeric parameters in which attacks of one grid differ.

    Args:
        specs: Configurations of one attack.

    Returns:
        Parameter → attack key → value; empty where they differ in nothing, or in something that is no number.
    """
    names = dict.fromkeys(name for spec in specs for name in spec.params)
    varied = [name for name in names if len({repr(spec.params.get(name)) for spec in specs}) > 1]
    values: dict[str, dict[str, float]] = {}
    for name in varied:
        column = {spec.key: spec.params.get(name) for spec in specs}
        numbers = {k: float(v) for k, v in column.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if len(numbers) < len(column):
            return {}
        values[name] = numbers
    return values
