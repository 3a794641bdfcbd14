"""What a report is made from: tables in memory, never paths.

The laboratory knows no storage, so whoever calls `dsprobe.reports.build.build_report` reads the tables and hands them
over. The columns are those of the run's ``tables/`` folder; this module checks that they are there and gives the
other modules a stable order of conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsprobe.config import UNGUARDED
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.experiment.evaluated import Condition
from dsprobe.judges.base import QUESTIONS, Decides
from dsprobe.metrics.summary import TWIN_COLUMNS, ConditionSummary, summarise_condition
from dsprobe.reports.sweep_data import SweepData

if TYPE_CHECKING:
    from dsprobe.experiment.judge_agreement import LabelledJudge
    from dsprobe.experiment.transfer import TransferStudy

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

KEYS: Final = ("condition", "model", "prompts", "attack", "decoding", "guardrail")

_REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "trajectories": (
        *KEYS, "prompt_id", "sample", "harmful", "canvas", "response_start", "response_end", "tokens",
        "commit_step", "events", "interventions", "empty", "num_steps", "forward_passes",
        "fhs_committed", "fhs_committed_event", "fhs_predicted", "fhs_predicted_event",
        "tri_committed", "tri_predicted", "risk_committed_final", "risk_predicted_final", "kl_slope", "margin",
    ),
    "steps": (*KEYS, "prompt_id", "sample", "step", "risk_committed", "risk_predicted", "action", "remasked"),
    "positions": (
        *KEYS, "prompt_id", "sample", "step", "position", "token", "in_canvas", "probability",
        "entropy", "kl", "attribution", "selection",
    ),
    "step_stats": (*KEYS, "step", "quantity", "n", "mean", "q05", "q25", "q50", "q75", "q95"),
    "position_stats": (*KEYS, "step", "position", "quantity", "n", "mean"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows, as tables and facts about them.

    Attributes:
        manifest: The run's manifest; shown as it is, and read for name, seed and versions.
        trajectories: One row per prompt × sample × condition.
        steps: One row per trajectory × step.
        positions: One row per trajectory × step × response position, of the stored subset.
        step_stats: One row per condition × step × quantity.
        position_stats: One row per condition × step × position × quantity.
        decode_token: ``(model, token id) → text`` of one token. Its result is untrusted text.
        judges: Judge key → what it decides; each needs a column ``verdict_<key>`` in `trajectories`.
        theta: Harm threshold θ in [0, 1].
        synthetic_sets: Prompt sets whose text may be shown without `show_text`.
        show_text: Show prompts and replies of every prompt set. Off by default.
        limited_sets: Prompt sets cut by a limit; the report marks them.
        sweep: The search behind the run's guardrails; its section comes first.
        hypotheses: What was decided about the programme's hypotheses from the run, see
            `dsprobe.experiment.hypotheses.Decided.to_dict`; it gets a section.
        labelled: Judges beside human labels, where replies were labelled.

    Raises:
        ConfigError: A column is missing, θ is out of range, or a judge decides an unknown question.
    """

    manifest: Mapping[str, Any]
    trajectories: pa.Table
    steps: pa.Table
    positions: pa.Table
    step_stats: pa.Table
    position_stats: pa.Table
    decode_token: Callable[[str, int], str]
    judges: Mapping[str, Decides] = field(default_factory=dict)
    theta: float = 0.5
    synthetic_sets: frozenset[str] | set[str] = frozenset()
    show_text: bool = False
    limited_sets: frozenset[str] | set[str] = frozenset()
    sweep: SweepData | None = None
    hypotheses: Mapping[str, Any] | None = None
    labelled: Sequence[LabelledJudge] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.theta <= 1.0:
            raise ConfigError(f"theta must lie in [0, 1] (given: {self.theta}).")
        for name, required in _REQUIRED.items():
            _check_columns(name, getattr(self, name), required)
        for judge, decides in self.judges.items():
            if decides not in QUESTIONS:
                raise unknown_name(f"question of judge `{judge}`", decides, QUESTIONS)
            _check_columns("trajectories", self.trajectories, (f"verdict_{judge}",))

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions in reading order: that of the manifest's ``conditions``, then whatever else was seen."""
        rows = self.trajectories.select(KEYS[1:]).group_by(KEYS[1:], use_threads=False).aggregate([])
        found = [Condition(**row) for row in rows.to_pylist()]
        planned = {name: place for place, name in enumerate(self.manifest.get("conditions", ()))}
        return tuple(sorted(found, key=lambda condition: planned.get(condition.id, len(planned))))

    @cached_property
    def summaries(self) -> dict[Condition, ConditionSummary]:
        """Every measure of every condition, in reading order."""
        return {condition: self._summary(condition) for condition in self.conditions}

    @cached_property
    def study(self) -> TransferStudy | None:
        """Attacks, judges and transfer; `None` where the run compares none of them."""
        from dsprobe.reports.attack_data import attack_study

        return attack_study(self)

    @cached_property
    def guardrails(self) -> tuple[str, ...]:
        """Guardrail labels in reading order, the unguarded one first."""
        found = dict.fromkeys(condition.guardrail for condition in self.conditions)
        return tuple(sorted(found, key=lambda name: name != UNGUARDED))

    @property
    def guarded(self) -> bool:
        """Whether any condition has a guardrail."""
        return self.guardrails not in ((), (UNGUARDED,))

    @property
    def compares_guardrails(self) -> bool:
        """Whether conditions differ by their guardrail, so that figures overlay them and colour tells them apart."""
        return len(self.guardrails) > 1

    def without_attacks(self, attacks: Collection[str]) -> ReportData:
        """The same run without some attacks, by key; measures that were computed stay computed."""
        keys = pa.array(sorted(attacks), pa.string())
        tables = {name: getattr(self, name) for name in _REQUIRED}
        tables = {name: t.filter(pc.invert(pc.is_in(t["attack"], value_set=keys))) for name, t in tables.items()}
        smaller = replace(self, **tables)
        kept = {condition: found for condition, found in self.summaries.items() if condition.attack not in attacks}
        vars(smaller)["summaries"] = kept
        return smaller

    def _summary(self, condition: Condition) -> ConditionSummary:
        twin = replace(condition, guardrail=UNGUARDED)
        paired = condition != twin and twin in self.conditions
        unguarded = columns(self.rows("trajectories", twin).select(TWIN_COLUMNS)) if paired else None
        rows = columns(self.rows("trajectories", condition))
        return summarise_condition(rows, self.judges, self.theta, unguarded=unguarded)

    def rows(self, table: str, condition: Condition, **equal: object) -> pa.Table:
        """Rows of one table that belong to a condition, optionally narrowed by equal columns."""
        frame: pa.Table = getattr(self, table)
        mask = pc.equal(frame["condition"], condition.id)
        for column, value in equal.items():
            mask = pc.and_(mask, pc.equal(frame[column], value))
        return frame.filter(mask)

    def text_allowed(self, prompts: str) -> bool:
        """Whether text of a prompt set may appear in the report."""
        return self.show_text or prompts in self.synthetic_sets

    def judge_for(self, decides: Decides) -> str | None:
        """Key of the first judge that decides a question, or `None`."""
        return next((key for key, value in self.judges.items() if value == decides), None)


def floats(table: pa.Table, column: str) -> F64:
    """A column as float64, nulls as NaN."""
    values = table[column].combine_chunks()
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """All columns as the arrays that `dsprobe.metrics.summary` takes; lists and nullable booleans as objects."""
    return {name: _array(table[name]) for name in table.column_names}


def _array(values: pa.ChunkedArray) -> npt.NDArray[Any]:
    if pa.types.is_floating(values.type) or (pa.types.is_integer(values.type) and not values.null_count):
        return np.asarray(values.to_numpy())
    found = np.empty(len(values), dtype=object)
    found[:] = values.to_pylist()
    return found


def integers(table: pa.Table, column: str) -> I64:
    """A column without nulls as int64."""
    return np.asarray(table[column].to_numpy(), dtype=np.int64)


def _check_columns(name: str, table: pa.Table, required: tuple[str, ...]) -> None:
    missing = [column for column in required if column not in table.column_names]
    if missing:
        raise ConfigError(f"Table `{name}` has no column `{missing[0]}`. It has: {', '.join(table.column_names)}.")
