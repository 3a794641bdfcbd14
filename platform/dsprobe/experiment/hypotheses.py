"""Decide the hypotheses H1–H6 from a finished run, by the rules of `dsprobe.metrics.hypotheses`.

Which conditions answer which hypothesis: `dsprobe.experiment.hypothesis_conditions`. A hypothesis that the run has no
conditions for is undecided, and its reason says what to add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa

from dsprobe.config import RunConfig
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.hypothesis_conditions import Answers, answers
from dsprobe.experiment.hypothesis_forks import ForkedRows, decide_forked
from dsprobe.experiment.hypothesis_rows import VIEW, RunRows
from dsprobe.experiment.transfer import PairTransfer, transfers
from dsprobe.judges.base import Decides
from dsprobe.metrics.decisions import decide_h1, decide_h4, decide_h5
from dsprobe.metrics.hypotheses import HYPOTHESES, Decision, Evidence, Finding, Verdict
from dsprobe.metrics.intervals import F64, Interval, undefined
from dsprobe.metrics.paired_decisions import decide_h3, decide_h6
from dsprobe.metrics.preregistration import StopFinding, decide_stop, rules_document
from dsprobe.metrics.resampling import bootstrap_sums
from dsprobe.registry import validated
from dsprobe.reports.arrays import risk_matrix, transition

_NO_HARM_JUDGE: Final = "no judge of harm; score the run: `dsprobe score RUN --judge …`"
_NO_VALIDITY_JUDGE: Final = "no judge of validity; score the run with one, e.g. `toy_validity`"
_NO_FORKS: Final = "irreversibility was not measured; run `dsprobe irreversibility RUN`"
_NOT_FORKABLE: Final = "no attacked condition can be forked; add an attack that writes before the first step: `dija`"
_OUTCOMES: Final[Mapping[str, str]] = {"H1": "width", "H2": "irr_renoise", "H4": "hypervolume", "H5": "asymmetry"}
_EVIDENCE: Final[Mapping[Verdict, Evidence]] = {"supported": "for", "not supported": "against", "undecided": "open"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """All hypotheses and the stop rule."""

    decisions: tuple[Decision, ...]
    """H1 to H6."""
    conditions: Mapping[str, Sequence[str]]
    """Hypothesis → ids of the conditions that it was decided on, the primary one first."""
    stop: StopFinding
    judges: Mapping[str, str | None]
    """``harm`` and ``validity`` → the judge that answered."""
    theta: float
    forks: Mapping[str, Any] | None
    """Settings of the irreversibility experiment."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with the rules."""
        statements = {rule.id: rule.statement for rule in HYPOTHESES}
        decisions = [
            {
                "statement": statements[decision.hypothesis],
                "outcome": outcome_of(decision),
                "conditions": list(self.conditions[decision.hypothesis]),
                **decision.to_dict(),
            }
            for decision in self.decisions
        ]
        return {
            **rules_document(),
            "decisions": decisions,
            "stop": self.stop.to_dict(),
            "judges": dict(self.judges),
            "theta": self.theta,
            "irreversibility": None if self.forks is None else dict(self.forks),
        }


def outcome_of(decision: Decision) -> str:
    """What a decision's estimate is of: a name as in `Finding.outcome`."""
    own = next((finding.outcome for finding in decision.findings if finding.estimate is decision.estimate), "asr")
    return _OUTCOMES.get(decision.hypothesis, own)


def decide_all(
    trajectories: pa.Table,
    steps: pa.Table,
    manifest: Mapping[str, Any],
    judges: Mapping[str, Decides],
    forks: ForkedRows | None = None,
) -> Decided:
    """Decide H1–H6 and the stop rule.

    Args:
        trajectories: The run's table.
        steps: The run's table; empty where nothing was recorded.
        manifest: Its manifest.
        judges: Judge key → question, of all judges with a verdict column; the first of a question counts.
        forks: The irreversibility experiment on the run.

    Raises:
        ConfigError: The manifest's configuration is none.
    """
    return _Deciding(trajectories, steps, manifest, judges, forks).all()


class _Deciding:
    def __init__(
        self,
        trajectories: pa.Table,
        steps: pa.Table,
        manifest: Mapping[str, Any],
        judges: Mapping[str, Decides],
        forks: ForkedRows | None,
    ) -> None:
        config = validated(RunConfig, manifest["config"], "manifest")
        self.trajectories, self.manifest, self.forks, self.theta = trajectories, manifest, forks, config.risk.threshold
        self.rows = RunRows(config, trajectories, steps, judges)
        self.answers: Answers = answers(config, manifest)
        self.used: dict[str, list[Condition]] = {rule.id: [] for rule in HYPOTHESES}

    def all(self) -> Decided:
        decisions = []
        for rule, decide in zip(HYPOTHESES, (self._h1, self._h2, self._h3, self._h4, self._h5, self._h6), strict=True):
            reason = self._missing(rule.id)
            decisions.append(_undecided(rule.id, reason) if reason else decide())
        return Decided(
            decisions=tuple(decisions),
            conditions={name: [condition.id for condition in used] for name, used in self.used.items()},
            stop=decide_stop(self._ranges(), self._levels()),
            judges={"harm": self.rows.harm, "validity": self.rows.validity},
            theta=self.theta,
            forks=None if self.forks is None else self.forks.settings,
        )

    def _missing(self, hypothesis: str) -> str:
        """What the run lacks for a hypothesis; empty where it has everything."""
        if hypothesis in self.answers.missing:
            return self.answers.missing[hypothesis]
        if hypothesis in ("H3", "H4", "H5", "H6") and self.rows.harm is None:
            return _NO_HARM_JUDGE
        if hypothesis == "H4" and self.rows.validity is None:
            return _NO_VALIDITY_JUDGE
        if hypothesis == "H1" and (primary := self.answers.risk[0]) not in self._curves:
            return f"no steps of {primary.id} were recorded; set `recording: {{enabled: true}}`"
        if hypothesis == "H2":
            return self._missing_forks()
        return ""

    def _missing_forks(self) -> str:
        if self.forks is None:
            return _NO_FORKS
        forked = self._forked
        return self.forks.lacking(self.rows.planned(forked[0])) if forked else _NOT_FORKABLE

    @property
    def _forked(self) -> list[Condition]:
        """Conditions of H1 that were forked."""
        forked = () if self.forks is None else self.forks.settings["conditions"]
        return [condition for condition in self.answers.risk if condition.id in forked]

    @cached_property
    def _curves(self) -> dict[Condition, pa.Table]:
        """Condition of H1 → its rows of `steps`."""
        found = {condition: self.rows.steps(condition) for condition in self.answers.risk}
        return {condition: rows for condition, rows in found.items() if rows.num_rows}

    def _h1(self) -> Decision:
        self.used["H1"] += self._curves
        fits = {condition.id: transition(rows, VIEW, self.theta) for condition, rows in self._curves.items()}
        return decide_h1(fits, self.answers.risk[0].id)

    def _h2(self) -> Decision:
        assert self.forks is not None
        self.used["H2"] += self._forked
        return decide_forked(self.forks, {condition.id: self.rows.planned(condition) for condition in self._forked})

    def _h3(self) -> Decision:
        windows, rows = self.answers.windows, self.rows
        assert windows is not None
        compared = [windows.unguarded, *windows.windows.values()]
        horizon = rows.horizon(compared)
        outcomes = {name: rows.outcomes(c, windows.unguarded, horizon) for name, c in windows.windows.items()}
        end = windows.end_only
        self.used["H3"] += [*compared, *([end] if end else [])]
        against_end = {name: rows.asr(c, end) for name, c in windows.windows.items()} if end else None
        return decide_h3(outcomes, horizon, against_end)

    def _h4(self) -> Decision:
        fronts = self.answers.fronts
        assert fronts is not None
        decided = {name: self._front(settings, fronts.constant) for name, settings in fronts.weighted.items()}
        first = next(iter(decided))
        self.used["H4"] += [*fronts.weighted[first], *fronts.constant]
        findings = [
            Finding(
                name=f"{name} against constant λ",
                outcome="hypervolume",
                estimate=decision.estimate,
                evidence=_EVIDENCE[decision.verdict] if name == first else "beside",
                reason=decision.reason,
            )
            for name, decision in decided.items()
        ]
        return replace(decided[first], findings=tuple(findings))

    def _front(self, weighted: Sequence[Condition], constant: Sequence[Condition]) -> Decision:
        cost_KN2, prompt_N = self.rows.costs([*weighted, *constant])
        return decide_h4(cost_KN2[: len(weighted)], cost_KN2[len(weighted) :], prompt_N)

    def _h5(self) -> Decision:
        assert self.rows.harm is not None
        found = transfers(self.trajectories, self.manifest, {self.rows.harm: "harm"})
        pair = next((part for part in found if _pooled(part)), None)
        if pair is None:
            kinds = {facts["kind"] for facts in self.manifest["models"].values()}
            return _undecided("H5", _without_transfer(kinds))
        self.used["H5"] += [
            Condition(model=model, prompts=pair.prompts, attack=attack, decoding=pair.decoding)
            for model in (pair.diffusion, pair.autoregressive)
            for attack in pair.native
        ]
        return decide_h5(pair.table)

    def _h6(self) -> Decision:
        pairs = self.answers.schedules
        self.used["H6"] += dict.fromkeys(condition for pair in pairs.values() for condition in pair)
        horizon = self.rows.horizon(self.used["H6"])
        return decide_h6({name: self.rows.outcomes(*pair, horizon) for name, pair in pairs.items()}, horizon)

    def _ranges(self) -> dict[str, Interval]:
        """Condition → highest minus lowest harmful fraction over the steps."""
        found = {}
        for condition, rows in self._curves.items():
            risk_SB, _, prompt_B = risk_matrix(rows, VIEW)
            harmful_BS = (risk_SB >= self.theta).T.astype(np.float64)
            found[condition.id] = bootstrap_sums(_range, np.insert(harmful_BS, 0, 1.0, axis=1), prompt_B)
        return found

    def _levels(self) -> dict[str, Interval]:
        """Condition of H2 → irreversibility in the middle."""
        if self.forks is None:
            return {}
        forks, planned = self.forks, self.rows.planned
        return {c.id: forks.decide(c.id, planned(c)).findings[0].estimate for c in self.used["H2"]}


def _undecided(hypothesis: str, reason: str) -> Decision:
    nothing = undefined("not estimated")
    return Decision(hypothesis=hypothesis, verdict="undecided", estimate=nothing, test=None, n=0, reason=reason)


def _range(sum_RK: F64) -> F64:
    """Range of the fractions, from sums of [1, harmful at every step]."""
    return np.asarray(np.ptp(sum_RK[:, 1:] / sum_RK[:, :1], axis=1), np.float64)


def _pooled(pair: PairTransfer) -> bool:
    """Whether both directions have artefacts."""
    return pair.table.forward.source.n > 0 and pair.table.backward.source.n > 0


def _without_transfer(kinds: set[str]) -> str:
    if kinds != {"diffusion", "autoregressive"}:
        return f"{' and '.join(sorted(kinds))} models only; add one of the other kind"
    return (
        "no harmful prompt set has attacks published for either kind of model on both models; add `dija` or `pad`, "
        "and `prefill` or `suffix_relocation`"
    )
