"""Does safety failure carry over between diffusion and autoregressive models? From a finished run's trajectories.

What is compared is decided here: which conditions are the same artefacts on two models, which attacks belong to one
dose–response curve. What is estimated is in `dsprobe.metrics`.

Attacks of a grid (`dsprobe.config_grid`) are points of a curve; only attacks of their own enter a pooled transfer
index, so that a finely sampled curve does not outweigh a published attack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dsprobe.attacks import ATTACKS
from dsprobe.config import Spec
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.judge_agreement import agreements
from dsprobe.experiment.sensitivity import Capability, Curve, capability, curves, flat
from dsprobe.experiment.transfer_rows import TransferRows
from dsprobe.judges.base import Decides
from dsprobe.metrics.agreement import AgreementTable
from dsprobe.metrics.summary import ConditionSummary, summarise_condition
from dsprobe.metrics.transfer import TransferTable, transfer_table


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
    native: tuple[str, ...]
    """Those of them that were made for one kind of model, and are pooled in that direction."""
    table: TransferTable
    """`forward` is diffusion → autoregressive."""


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
            "transfers": [flat(part, "table") for part in self.transfers],
            "curves": [part.to_dict() for part in self.curves],
            "capability": [part.to_dict() for part in self.capability],
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
    run = TransferRows(trajectories, manifest, judges)
    return TransferStudy(
        attacks=tuple(_attacks(run)),
        transfers=tuple(_transfers(run)),
        curves=tuple(curves(run)),
        capability=tuple(capability(run)),
        agreement=agreements(trajectories, judges, {}),
    )


def transfers(
    trajectories: pa.Table, manifest: Mapping[str, Any], judges: Mapping[str, Decides]
) -> tuple[PairTransfer, ...]:
    """The transfers of `study_transfer` alone; arguments and errors are the same."""
    return tuple(_transfers(TransferRows(trajectories, manifest, judges)))


def _attacks(run: TransferRows) -> Iterator[AttackRow]:
    for condition, rows in run.conditions.items():
        if bool(run.columns["harmful"][rows].any()):
            mine = {name: column[rows] for name, column in run.columns.items()}
            summary = summarise_condition(mine, run.judges, run.config.risk.threshold)
            yield AttackRow(condition=condition, family=run.specs[condition.attack].family, summary=summary)


def _transfers(run: TransferRows) -> Iterator[PairTransfer]:
    """One of every pair of models, harmful prompt set and harm judge."""
    for first, second, prompts in run.twins(harmful=True):
        found = run.pairs(first, second, prompts, harmful=True)
        pairs = [pair for pair in found if _is_shared(run.specs[pair[0]])]
        if not pairs:
            continue
        decoding = pairs[0][1]
        rows = [(attack, *matched) for attack, found, matched in pairs if found == decoding]
        attack_N = np.concatenate([np.full(len(one), attack) for attack, one, _ in rows])
        first_N, second_N = (np.concatenate([row[k] for row in rows]) for k in (1, 2))
        own = tuple(attack for attack, *_ in rows if not run.specs[attack].family)
        native = {kind: [a for a in own if _native_kinds(run, a) == {kind}] for kind in ("diffusion", "autoregressive")}
        for judge in run.harm:
            table = transfer_table(
                attack_N,
                run.columns["prompt_id"][first_N],
                run.verdict(judge, first_N),
                run.verdict(judge, second_N),
                first_native=native["diffusion"],
                second_native=native["autoregressive"],
            )
            yield PairTransfer(
                prompts=prompts,
                judge=judge,
                diffusion=first,
                autoregressive=second,
                decoding=decoding,
                own=own,
                native=tuple(attack for attack in own if any(attack in part for part in native.values())),
                table=table,
            )


def _native_kinds(run: TransferRows, attack: str) -> frozenset[str]:
    """Kinds of models that an attack was published for, or that its artefacts were searched for on."""
    spec = run.specs[attack]
    searched_on = _surrogate(spec)
    native: frozenset[str] = ATTACKS.get(spec.name).native
    return native if searched_on is None else frozenset({run.kinds[searched_on]})


def _is_shared(spec: Spec) -> bool:
    """Whether both models meet the same artefacts: not where each is searched for on the model that it attacks."""
    return not ATTACKS.get(spec.name).searches or _surrogate(spec) is not None


def _surrogate(spec: Spec) -> str | None:
    """Label of the model that an attack's artefacts are searched for on, where that is a fixed one."""
    return ATTACKS.get(spec.name).needs_model(ATTACKS.config(spec.name, spec.params))
