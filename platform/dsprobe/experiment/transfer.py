"""Does safety failure carry over between diffusion and autoregressive models? From a finished run's trajectories.

What is compared is decided here: which conditions are the same artefacts on two models, which attacks belong to one
dose–response curve. What is estimated is in `dsprobe.metrics`.

Attacks of a grid (`dsprobe.config_grid`) are points of a curve; only attacks of their own enter a pooled transfer
index, so that a finely sampled curve does not outweigh a published attack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.attacks import ATTACKS
from dsprobe.config import UNGUARDED, RunConfig, Spec
from dsprobe.errors import ConfigError
from dsprobe.experiment.evaluated import Condition
from dsprobe.judges.base import Decides
from dsprobe.metrics.agreement import AgreementTable, agreement_table
from dsprobe.metrics.curves import DoseResponse, dose_response
from dsprobe.metrics.outputs import as_float
from dsprobe.metrics.paired import PairedEstimate, compare_rates
from dsprobe.metrics.summary import ConditionSummary, summarise_condition
from dsprobe.metrics.transfer import TransferTable, transfer_table
from dsprobe.reports.data import columns

Columns = dict[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.intp]

VERDICT: Final = "verdict_"
"""Prefix of the verdict columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One unguarded condition with harmful requests: every judge's rate, and the measures over the steps."""

    condition: Condition
    family: str
    """Key of the grid that the attack is a point of; empty for an attack of its own."""
    summary: ConditionSummary

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "condition": self.condition.id,
            "family": self.family,
            **asdict(self.condition),
            **self.summary.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTransfer:
    """Transfer between a diffusion and an autoregressive model on one prompt set, by one judge."""

    prompts: str
    judge: str
    diffusion: str
    autoregressive: str
    decoding: str
    """Decoding of the diffusion model."""
    own: tuple[str, ...]
    """Attacks of the set that are no points of a grid."""
    table: TransferTable
    """`forward` is diffusion → autoregressive."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Utility of two models on the same benign prompts."""

    prompts: str
    judge: str
    attack: str
    diffusion: str
    autoregressive: str
    estimate: PairedEstimate
    """`level` is the diffusion model, `baseline` the autoregressive one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStudy:
    """Everything that a run says about transfer and sensitivity."""

    attacks: tuple[AttackRow, ...]
    transfers: tuple[PairTransfer, ...]
    curves: tuple[Curve, ...]
    capability: tuple[Capability, ...]
    agreement: Mapping[Decides, AgreementTable]
    """Question → agreement of its judges, over all conditions."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "attacks": [row.to_dict() for row in self.attacks],
            "transfers": [_flat(part, "table") for part in self.transfers],
            "curves": [_flat(part, "response") for part in self.curves],
            "capability": [_flat(part, "estimate") for part in self.capability],
            "agreement": {question: table.to_dict() for question, table in self.agreement.items()},
        }


def study_transfer(trajectories: pa.Table, manifest: Mapping[str, Any], judges: Mapping[str, Decides]) -> TransferStudy:
    """Compute transfer, curves, capability and agreement of a run.

    Args:
        trajectories: The run's table.
        manifest: Its manifest, for configuration and model kinds.
        judges: Judge key → question, of all judges with a verdict column.

    Raises:
        ConfigError: The run has no harm judge.
    """
    return _Study(trajectories, manifest, judges).result()


def transfers(
    trajectories: pa.Table, manifest: Mapping[str, Any], judges: Mapping[str, Decides]
) -> tuple[PairTransfer, ...]:
    """The transfers of `study_transfer` alone; arguments and errors are the same."""
    return tuple(_Study(trajectories, manifest, judges).transfers())


class _Study:
    """One run's rows, sorted out."""

    def __init__(self, trajectories: pa.Table, manifest: Mapping[str, Any], judges: Mapping[str, Decides]) -> None:
        self.config = RunConfig.model_validate(manifest["config"])
        self.kinds: dict[str, str] = {name: facts["kind"] for name, facts in manifest["models"].items()}
        self.judges = judges
        self.harm = [judge for judge, question in self.judges.items() if question == "harm"]
        if not self.harm:
            raise ConfigError(
                "The run has no judge of harm, so nothing can transfer. Score it: `dsprobe score RUN --judge …`."
            )
        self.columns = trajectory_columns(trajectories)

    def result(self) -> TransferStudy:
        return TransferStudy(
            attacks=tuple(self._attacks()),
            transfers=tuple(self.transfers()),
            curves=tuple(self._curves()),
            capability=tuple(self._capability()),
            agreement=self._agreement(),
        )

    @cached_property
    def conditions(self) -> dict[Condition, Rows]:
        """Unguarded conditions and their rows, in the order of the configuration's grid."""
        labels = ("model", "prompts", "attack", "decoding")
        found: dict[Condition, list[int]] = {}
        for row, values in enumerate(zip(*(self.columns[name].tolist() for name in labels), strict=True)):
            if self.columns["guardrail"][row] == UNGUARDED:
                found.setdefault(Condition(**dict(zip(labels, values, strict=True))), []).append(row)
        config = self.config
        places = (
            {m.name: i for i, m in enumerate(config.models)},
            {p.key: i for i, p in enumerate(config.prompts)},
            {a.key: i for i, a in enumerate(config.attacks)},
            {d.name: i for i, d in enumerate(config.decodings)},
        )

        def place(condition: Condition) -> tuple[int, ...]:
            values = (condition.model, condition.prompts, condition.attack, condition.decoding)
            return tuple(order[value] for order, value in zip(places, values, strict=True))

        return {c: np.array(found[c], np.intp) for c in sorted(found, key=place)}

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Attack key → its configuration."""
        return {attack.key: attack for attack in self.config.attacks}

    def _attacks(self) -> Iterator[AttackRow]:
        for condition, rows in self.conditions.items():
            if bool(self.columns["harmful"][rows].any()):
                mine = {name: column[rows] for name, column in self.columns.items()}
                summary = summarise_condition(mine, self.judges, self.config.risk.threshold)
                yield AttackRow(condition=condition, family=self.specs[condition.attack].family, summary=summary)

    # ---- transfer --------------------------------------------------------------------------------------------------

    def transfers(self) -> Iterator[PairTransfer]:
        """One of every pair of models, harmful prompt set and harm judge."""
        for first, second, prompts in self._twins(harmful=True):
            found = self._pairs(first, second, prompts, harmful=True)
            pairs = [pair for pair in found if self._is_shared(self.specs[pair[0]])]
            if not pairs:
                continue
            decoding = pairs[0][1]
            rows = [(attack, *matched) for attack, found, matched in pairs if found == decoding]
            attack_N = np.concatenate([np.full(len(one), attack) for attack, one, _ in rows])
            first_N, second_N = (np.concatenate([row[k] for row in rows]) for k in (1, 2))
            for judge in self.harm:
                table = transfer_table(
                    attack_N,
                    self.columns["prompt_id"][first_N],
                    self._verdict(judge, first_N),
                    self._verdict(judge, second_N),
                    first_native=self._native("diffusion"),
                    second_native=self._native("autoregressive"),
                )
                yield PairTransfer(
                    prompts=prompts,
                    judge=judge,
                    diffusion=first,
                    autoregressive=second,
                    decoding=decoding,
                    own=tuple(attack for attack, *_ in rows if not self.specs[attack].family),
                    table=table,
                )

    def _twins(self, *, harmful: bool) -> Iterator[tuple[str, str, str]]:
        """Every diffusion model beside every autoregressive one, on every prompt set of a kind."""
        for prompts in self.config.prompts:
            mine = self.columns["prompts"] == prompts.key
            if not bool((self.columns["harmful"][mine] == harmful).any()):
                continue
            for first in self._models("diffusion"):
                for second in self._models("autoregressive"):
                    yield first, second, prompts.key

    def _models(self, kind: str) -> list[str]:
        return [model.name for model in self.config.models if self.kinds[model.name] == kind]

    def _pairs(
        self, first: str, second: str, prompts: str, *, harmful: bool
    ) -> Iterator[tuple[str, str, tuple[Rows, Rows]]]:
        """Attack, decoding of the diffusion model, and the rows of the same requests and samples on both models."""
        theirs = {c.attack: rows for c, rows in self.conditions.items() if c.model == second and c.prompts == prompts}
        for condition, rows in self.conditions.items():
            if condition.model == first and condition.prompts == prompts and condition.attack in theirs:
                one, two = self._matched(rows, theirs[condition.attack])
                kept = self.columns["harmful"][one] == harmful
                yield condition.attack, condition.decoding, (one[kept], two[kept])

    def _matched(self, first: Rows, second: Rows) -> tuple[Rows, Rows]:
        keys = self.columns["row"]
        _, one, two = np.intersect1d(keys[first], keys[second], assume_unique=True, return_indices=True)
        return first[one], second[two]

    def _native(self, kind: str) -> set[str]:
        """Attacks of their own that were published, or searched for, on one kind of model and not for both."""
        return {
            key for key, spec in self.specs.items() if not spec.family and self._native_kinds(spec) == frozenset({kind})
        }

    def _native_kinds(self, spec: Spec) -> frozenset[str]:
        searched_on = _surrogate(spec)
        native: frozenset[str] = ATTACKS.get(spec.name).native
        return native if searched_on is None else frozenset({self.kinds[searched_on]})

    def _is_shared(self, spec: Spec) -> bool:
        """Whether both models meet the same artefacts: not where each is searched for on the model that it attacks."""
        return not ATTACKS.get(spec.name).searches or _surrogate(spec) is not None

    def _verdict(self, judge: str, rows: Rows) -> npt.NDArray[np.float64]:
        return verdict_values(self.columns, judge, rows)

    # ---- curves ----------------------------------------------------------------------------------------------------

    def _curves(self) -> Iterator[Curve]:
        cells: dict[tuple[str, str, str, str], dict[str, Rows]] = {}
        for c, rows in self.conditions.items():
            harmful = rows[self.columns["harmful"][rows]]
            if (family := self.specs[c.attack].family) and len(harmful):
                cells.setdefault((family, c.model, c.prompts, c.decoding), {})[c.attack] = harmful
        for (family, model, prompts, decoding), members in cells.items():
            doses = varied_parameters([self.specs[key] for key in members])
            if not doses:
                continue
            row_N = np.concatenate(list(members.values()))
            dose_N = {
                name: np.concatenate([np.full(len(rows), values[key]) for key, rows in members.items()])
                for name, values in doses.items()
            }
            for judge in self.harm:
                response = dose_response(self._verdict(judge, row_N), dose_N, self.columns["prompt_id"][row_N])
                yield Curve(
                    family=family,
                    attack=self.specs[next(iter(members))].name,
                    model=model,
                    prompts=prompts,
                    decoding=decoding,
                    judge=judge,
                    response=response,
                )

    # ---- beside ----------------------------------------------------------------------------------------------------

    def _capability(self) -> Iterator[Capability]:
        useful = [judge for judge, question in self.judges.items() if question == "utility"]
        for first, second, prompts in self._twins(harmful=False):
            for attack, _, (one, two) in self._pairs(first, second, prompts, harmful=False):
                for judge in useful:
                    verdict = self.columns[VERDICT + judge]
                    estimate = compare_rates(verdict[one], verdict[two], self.columns["prompt_id"][one])
                    yield Capability(
                        prompts=prompts,
                        judge=judge,
                        attack=attack,
                        diffusion=first,
                        autoregressive=second,
                        estimate=estimate,
                    )

    def _agreement(self) -> dict[Decides, AgreementTable]:
        found: dict[Decides, AgreementTable] = {}
        for question in dict.fromkeys(self.judges.values()):
            verdicts = {j: self.columns[VERDICT + j] for j, what in self.judges.items() if what == question}
            if len(verdicts) > 1:
                found[question] = agreement_table(verdicts, self.columns["prompt_id"])
        return found


def verdict_values(columns: Columns, judge: str, rows: Rows) -> npt.NDArray[np.float64]:
    """Verdicts of some rows, NaN where undecided; an empty reply has no quality, as in `dsprobe.metrics.outputs`."""
    return np.where(columns["empty"][rows], 0.0, as_float(columns[VERDICT + judge][rows]))


def _surrogate(spec: Spec) -> str | None:
    """Label of the model that an attack's artefacts are searched for on, where that is a fixed one."""
    return ATTACKS.get(spec.name).needs_model(ATTACKS.config(spec.name, spec.params))


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


def trajectory_columns(table: pa.Table) -> Columns:
    """Columns of `trajectories` as arrays, flags as bool, and `row`: what pairs with what.

    Args:
        table: The table, or those of its columns that are needed; `prompt_id`, `sample`, `harmful` and `empty` are.
    """
    found: Columns = columns(table)
    found |= {name: found[name].astype(np.bool_) for name in ("harmful", "empty")}
    rows = zip(found["sample"], found["prompt_id"], strict=True)
    return {**found, "row": np.array([f"{sample}:{prompt}" for sample, prompt in rows], np.str_)}


def _flat(part: Any, nested: str) -> dict[str, Any]:
    """Labels of a part beside the JSON form of its statistics."""
    labels = {name: value for name, value in asdict(part).items() if name != nested}
    return {**labels, nested: getattr(part, nested).to_dict()}
