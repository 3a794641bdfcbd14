from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.sweeps.search_world import COARSE, World, sweep_config
from tests.sweeps.sweep_outcomes import EXPERIMENT

from dsprobe.errors import IncompleteRunError, StorageError
from dsprobe.storage.objects import ObjectStore
from dsprobe.sweeps.archive import Archive, increments
from dsprobe.sweeps.replay import Difference, replay, trial_records
from dsprobe.sweeps.space import SearchSpace, guardrail_digest
from dsprobe.sweeps.study import FinishedTrial

RUNGS = (0.5, 1.0)
SPACE = SearchSpace(sweep_config(COARSE).space, EXPERIMENT.decodings[0])
POINTS = SPACE.grid()


def finished(number, point, *, rung=1.0, cached=(), state="complete"):
    digest = guardrail_digest(SPACE.guardrail(POINTS[point]))
    attributes = {"digest": digest} | ({} if state == "failed" else {"rung": rung, "cached": list(cached)})
    return FinishedTrial(number=number, state=state, parameters=POINTS[point], values=None, attributes=attributes)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """The first two settings on both rungs, the third one on the first."""
    archive = Archive(ObjectStore(str(tmp_path)))
    for point, ran in ((0, RUNGS), (1, RUNGS), (2, RUNGS[:1])):
        guardrail = SPACE.guardrail(POINTS[point])
        for start, stop in increments(ran):
            archive.put(guardrail_digest(guardrail), start, stop, World().evaluate(guardrail, start, stop))
    return archive


def used(record):
    return record.outcomes.passes_used[0], record.outcomes.passes_used[-1]


def test_each_pass_counts_once(archive):
    trials = [finished(3, 0, cached=[0.5]), finished(0, 0, rung=0.5, state="stopped"), finished(5, 0, cached=RUNGS)]
    first, later, last = trial_records(trials, SPACE, archive, RUNGS)
    assert [record.number for record in (first, later, last)] == [0, 3, 5]
    full = first.outcomes.passes[0]
    assert (used(first), used(later), used(last)) == ((full, full), (0, full), (0, 0))
    assert (first.cached, later.cached, last.cached) == (False, False, True)
    assert (first.rung, first.state, len(first.outcomes)) == (0.5, "stopped", 48)
    assert len(later.outcomes) == 96


def test_rows_of_a_killed_process_count_for_the_first_that_took_them(archive):
    trials = [finished(1, 0, cached=RUNGS), finished(2, 0, cached=RUNGS)]
    first, second = trial_records(trials, SPACE, archive, RUNGS)
    assert (first.cached, second.cached) == (False, True)
    assert (used(first) == (0, 0), used(second)) == (False, (0, 0))


def test_rows_that_two_trials_computed_at_once_count_twice(archive):
    trials = [finished(1, 0, cached=[0.5]), finished(2, 0)]
    first, second = trial_records(trials, SPACE, archive, RUNGS)
    assert used(first) == (0, second.outcomes.passes[-1])
    assert used(second) == (second.outcomes.passes[0],) * 2


def test_failed_trials_have_no_rows(archive):
    nowhere = FinishedTrial(
        number=1, state="failed", parameters={"renoise.threshold": 9.0}, values=None,
        attributes={"digest": ""}, reason="too high",
    )  # fmt: skip
    failed, none = trial_records([finished(0, 2, state="failed"), nowhere], SPACE, archive, RUNGS)
    assert (failed.outcomes, failed.rung, failed.cached) == (None, 0.0, False)
    assert failed.guardrail == SPACE.guardrail(POINTS[2])
    assert (none.guardrail, none.digest, none.reason) == (None, "", "too high")


def test_lost_rows_are_named(archive):
    with pytest.raises(StorageError, match=r"-0\.5-1\.0\.parquet is missing"):
        trial_records([finished(0, 2)], SPACE, archive, RUNGS)


@dataclass
class Changed:
    """Runs the world, with something changed in one setting's last row."""

    digest: str = ""
    column: str = ""
    value: float = 0.0
    drop: bool = False
    asked: list = None

    def evaluate(self, guardrail, start, stop):
        rows = World().evaluate(guardrail, start, stop)
        (self.asked if self.asked is not None else []).append((guardrail_digest(guardrail), start, stop))
        if guardrail_digest(guardrail) != self.digest:
            return rows
        if self.drop:
            return rows.select(np.arange(len(rows) - 1))
        if self.column in rows.verdicts:
            changed = rows.verdicts[self.column].copy()
            changed[-1] = self.value
            return replace(rows, verdicts={**rows.verdicts, self.column: changed})
        changed = getattr(rows, self.column).copy()
        changed[-1] = self.value
        return replace(rows, **{self.column: changed})


@pytest.fixture
def trials(archive):
    told = [finished(0, 0), finished(1, 1), finished(2, 2, rung=0.5, state="stopped"), finished(3, 2, state="failed"),
            finished(4, 0, cached=RUNGS)]  # fmt: skip
    return trial_records(told, SPACE, archive, RUNGS)


def test_a_replay_runs_each_setting_once_and_finds_the_same(trials):
    world, seen = Changed(asked=[]), []
    report = replay(trials[::-1], world, rungs=RUNGS, on_progress=lambda done, total: seen.append((done, total)))
    assert (report.replayed, report.skipped, report.identical) == (4, 1, True)
    assert world.asked == [
        (trials[0].digest, 0.0, 0.5), (trials[0].digest, 0.5, 1.0), (trials[1].digest, 0.0, 0.5),
        (trials[1].digest, 0.5, 1.0), (trials[2].digest, 0.0, 0.5),
    ]  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    report.raise_if_different()


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("passes", 1, "passes"),
        ("log_perplexity", 99.0, "log_perplexity"),
        ("log_perplexity", float("nan"), "log_perplexity"),
        ("prompt_id", "x", "prompt_id"),
        ("empty", True, "empty"),
        ("refused", -0.0, "verdict_refused"),
        ("toy_oracle", 1.0, "verdict_toy_oracle"),
    ],
)
def test_one_changed_value_is_found(trials, column, value, name):
    report = replay(trials, Changed(trials[1].digest, column, value), rungs=RUNGS)
    assert report.differing == (Difference(number=1, columns=(name,), rows=2),)  # one row of each rung
    with pytest.raises(
        IncompleteRunError, match=rf"1 of 4 replayed trial\(s\) differ.\n  trial 1: 2 row\(s\) in {name}"
    ):
        report.raise_if_different()


@pytest.mark.parametrize(("column", "value"), [("passes_used", 0), ("margin", 0.125)])
def test_what_depends_on_earlier_work_is_not_compared(trials, column, value):
    assert replay(trials, Changed(trials[1].digest, column, value), rungs=RUNGS).identical


def test_repeated_settings_and_missing_rows_are_found(trials):
    report = replay(trials, Changed(trials[0].digest, drop=True), rungs=RUNGS)
    assert [(found.number, found.rows) for found in report.differing] == [(0, 96), (4, 96)]


def test_a_judge_more_is_a_difference():
    class Judged:
        def evaluate(self, guardrail, start, stop):
            rows = World().evaluate(guardrail, start, stop)
            return replace(rows, verdicts={**rows.verdicts, "new": np.zeros(len(rows))})

    guardrail = SPACE.guardrail(POINTS[0])
    record = trial_records([finished(0, 0)], SPACE, _Kept(guardrail), RUNGS)
    assert replay(record, Judged(), rungs=RUNGS).differing == (
        Difference(number=0, columns=("verdict_new",), rows=96),
    )  # fmt: skip


class _Kept:
    """An archive of one setting."""

    def __init__(self, guardrail):
        self.guardrail = guardrail

    def parts(self, digest, rungs):
        return [World().evaluate(self.guardrail, *share) for share in increments(rungs)]
