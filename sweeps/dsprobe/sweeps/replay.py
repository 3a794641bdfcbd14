"""The recorded trials of a search with their rows, and running them again to compare every row bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from dsprobe.config import GuardrailConfig
from dsprobe.errors import ConfigError, IncompleteRunError
from dsprobe.experiment.outcomes import Bool, RowOutcomes
from dsprobe.sweeps.archive import Archive, increments
from dsprobe.sweeps.evaluation import Evaluator
from dsprobe.sweeps.records import TrialRecord
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import FinishedTrial

NOT_COMPARED: Final = frozenset({"passes_used", "margin"})
"""Columns that depend on what was computed before: how much could be forked, and the margins seen on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A trial whose rows came out otherwise."""

    number: int
    """Number of the trial."""
    columns: tuple[str, ...]
    """Columns that differ, judges as ``verdict_<judge>``."""
    rows: int
    """Rows that differ in one of them; all where the two have different numbers of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay found."""

    replayed: int
    """Trials whose rows were compared."""
    skipped: int
    """Trials without rows: they failed."""
    differing: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        """True when no row of any trial differs."""
        return not self.differing

    def raise_if_different(self) -> None:
        """Turn differences into an error.

        Raises:
            IncompleteRunError: Some trial differs; the message names each.
        """
        if self.differing:
            lines = "\n".join(
                f"  trial {found.number}: {found.rows} row(s) in {', '.join(found.columns)}" for found in self.differing
            )
            raise IncompleteRunError(f"{len(self.differing)} of {self.replayed} replayed trial(s) differ.\n{lines}")


def trial_records(
    trials: Sequence[FinishedTrial], space: SearchSpace, archive: Archive, rungs: Sequence[float]
) -> list[TrialRecord]:
    """Finished trials with their rows, by number.

    Rows that a trial took from the archive have ``passes_used`` 0, so that sums over trials count each pass once.
    Where none of the trials computed them (their process was killed after they were kept), the first one counts.

    Args:
        trials: From `Study.finished`.
        space: What was searched.
        archive: Where the rows are.
        rungs: Shares of the prompts on which trials ran.

    Raises:
        StorageError: Rows of a trial that ran are missing.
    """
    ran = [trial for trial in sorted(trials, key=lambda trial: trial.number) if trial.state != "failed"]
    computed = {
        (trial.attributes["digest"], rung)
        for trial in ran
        for rung in _shares(trial, rungs)
        if rung not in trial.attributes["cached"]
    }
    records = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        shares = _shares(trial, rungs)
        digest = str(trial.attributes.get("digest", ""))
        free = [rung for rung in shares if rung in trial.attributes["cached"] and (digest, rung) in computed]
        computed |= {(digest, rung) for rung in shares}
        records.append(
            TrialRecord(
                number=trial.number,
                state=trial.state,
                parameters=trial.parameters,
                guardrail=_guardrail(space, trial.parameters),
                digest=digest,
                outcomes=_rows(archive, digest, shares, free) if shares else None,
                rung=shares[-1] if shares else 0.0,
                reason=trial.reason,
                wall_seconds=float(trial.attributes.get("wall_seconds", 0.0)),
                cached=bool(shares) and free == shares,
            )
        )
    return records


def _shares(trial: FinishedTrial, rungs: Sequence[float]) -> list[float]:
    """Rungs that a trial ran."""
    return [] if trial.state == "failed" else [rung for rung in rungs if rung <= trial.attributes["rung"]]


def _rows(archive: Archive, digest: str, shares: Sequence[float], free: Sequence[float]) -> RowOutcomes:
    parts = zip(shares, archive.parts(digest, shares), strict=True)
    return RowOutcomes.concatenate(
        [replace(part, passes_used=np.zeros_like(part.passes_used)) if rung in free else part for rung, part in parts]
    )


def _guardrail(space: SearchSpace, parameters: Mapping[str, Any]) -> GuardrailConfig | None:
    try:
        return space.guardrail(parameters)
    except ConfigError:
        return None


def replay(
    trials: Sequence[TrialRecord],
    evaluator: Evaluator,
    *,
    rungs: Sequence[float],
    on_progress: Callable[[int, int], None] | None = None,
) -> ReplayReport:
    """Evaluate the settings of a recorded trial list in its order, on the same rungs, and compare the outcomes.

    This needs no sampler and no scheduler, so the list of a parallel search can be replayed although the search itself
    cannot be repeated. Settings that occur again are run once.

    Args:
        trials: The list, from `trial_records`.
        evaluator: Runs the settings; must not read the recorded outcomes.
        rungs: Shares of the prompts on which the trials ran.
        on_progress: Called with the trials done and their total.

    Raises:
        DSProbeError: A setting that ran cannot run now.
    """
    known: dict[tuple[str, float], RowOutcomes] = {}
    differing = []
    ordered = sorted((trial for trial in trials if trial.outcomes is not None), key=lambda trial: trial.number)
    for done, trial in enumerate(ordered, start=1):
        found = _difference(trial, _again(trial, evaluator, rungs, known))
        if found is not None:
            differing.append(found)
        if on_progress is not None:
            on_progress(done, len(ordered))
    return ReplayReport(replayed=len(ordered), skipped=len(trials) - len(ordered), differing=tuple(differing))


def _again(
    trial: TrialRecord, evaluator: Evaluator, rungs: Sequence[float], known: dict[tuple[str, float], RowOutcomes]
) -> RowOutcomes:
    assert trial.guardrail is not None
    parts = []
    for start, stop in increments(rungs):
        if stop > trial.rung:
            break
        key = trial.digest, stop
        if key not in known:
            known[key] = evaluator.evaluate(trial.guardrail, start, stop)
        parts.append(known[key])
    return RowOutcomes.concatenate(parts)


def _difference(trial: TrialRecord, again: RowOutcomes) -> Difference | None:
    assert trial.outcomes is not None
    recorded, found = _flat(trial.outcomes), _flat(again)
    if len(again) != len(trial.outcomes):
        return Difference(number=trial.number, columns=("prompt_id",), rows=max(len(again), len(trial.outcomes)))
    differs = {
        name: ~_same_bits(recorded[name], found[name])
        if name in recorded and name in found
        else np.ones(len(again), np.bool_)
        for name in sorted(recorded.keys() | found.keys())
    }
    columns = tuple(name for name, rows_N in differs.items() if rows_N.any())
    if not columns:
        return None
    return Difference(
        number=trial.number, columns=columns, rows=int(np.any([differs[c] for c in columns], axis=0).sum())
    )


def _flat(outcomes: RowOutcomes) -> dict[str, Any]:
    """Compared columns, judges beside the others."""
    columns = outcomes.columns()
    verdicts = columns.pop("verdicts")
    compared = {name: column for name, column in columns.items() if name not in NOT_COMPARED}
    return compared | {f"verdict_{judge}": column for judge, column in verdicts.items()}


def _same_bits(a: Any, b: Any) -> Bool:
    """Where two columns agree; NaN agrees with NaN, 0 does not agree with −0."""
    if a.dtype.kind != "f":
        return np.asarray(a == b, np.bool_)
    return np.asarray((a.view(np.int64) == b.view(np.int64)) | (np.isnan(a) & np.isnan(b)), np.bool_)
