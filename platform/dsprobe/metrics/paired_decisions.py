"""Apply the rules of H3 and H6, which ask whether a paired change of ASR or FHS goes one way in some condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsprobe.metrics import hypotheses as h
from dsprobe.metrics.comparisons import holm
from dsprobe.metrics.hypotheses import Decision, Evidence, Finding, Verdict
from dsprobe.metrics.intervals import TestResult, undefined
from dsprobe.metrics.paired import PairedEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedOutcomes:
    """A condition against its baseline on the same prompts."""

    asr: PairedEstimate
    """From `dsprobe.metrics.paired.compare_rates`."""
    fhs: PairedEstimate | None = None
    """From `dsprobe.metrics.paired.compare_times`; without it a hypothesis cannot be "not supported"."""


def decide_h3(
    windows: Mapping[str, PairedOutcomes],
    horizon: int,
    against_end_only: Mapping[str, PairedEstimate] | None = None,
) -> Decision:
    """Interventions in a window of the trajectory against none.

    Args:
        windows: Window → intervention there against no intervention, same prompts.
        horizon: h of the FHS comparisons, in steps.
        against_end_only: Window → ASR of the intervention there against end-only filtering; reported, decides nothing.
    """
    beside = tuple(
        Finding(name=name, outcome="asr against end-only", estimate=pair.difference, evidence="beside")
        for name, pair in (against_end_only or {}).items()
    )
    return _decide_paired("H3", windows, -1, h.H3_MARGIN, horizon, beside)


def decide_h6(attacks: Mapping[str, PairedOutcomes], horizon: int) -> Decision:
    """Dilated against linear schedules.

    Args:
        attacks: Attack → dilated schedule against linear, same prompts.
        horizon: h of the FHS comparisons, in steps.
    """
    return _decide_paired("H6", attacks, +1, h.H6_MARGIN, horizon)


def _decide_paired(
    hypothesis: str,
    outcomes: Mapping[str, PairedOutcomes],
    sign: int,
    margin: float,
    horizon: int,
    beside: tuple[Finding, ...] = (),
) -> Decision:
    """H3 and H6: does some condition change ASR by `sign`, or FHS the other way?"""
    n = min((pair.asr.prompts for pair in outcomes.values()), default=0)
    findings, tests = _paired_findings(outcomes, sign, margin, horizon)
    with_fhs = bool(outcomes) and all(pair.fhs is not None for pair in outcomes.values())
    verdict: Verdict = "undecided"
    if n < h.MIN_PROMPTS:
        reason = h.too_few(n)
    elif any(finding.evidence == "for" for finding in findings):
        verdict = "supported"
        reason = "in " + ", ".join(f"{f.name} ({f.outcome})" for f in findings if f.evidence == "for")
    elif all(finding.evidence == "against" for finding in findings) and with_fhs:
        verdict, reason = "not supported", "a change of the margin or more is excluded everywhere"
    elif all(finding.evidence == "against" for finding in findings):
        reason = "ASR excludes a change of the margin everywhere, but FHS was not compared"
    else:
        still_open = [f"{f.name} ({f.outcome}): {f.reason}" for f in findings if f.evidence == "open"]
        reason = "; ".join(still_open)
    best = _deciding(findings, sign)
    return Decision(
        hypothesis=hypothesis,
        verdict=verdict,
        estimate=findings[best].estimate if findings else undefined("paired difference"),
        test=replace(tests[best], p_value=findings[best].p_holm, method=f"{tests[best].method}, Holm")
        if findings
        else None,
        n=n,
        reason=reason,
        findings=(*findings, *beside),
    )


def _paired_findings(
    outcomes: Mapping[str, PairedOutcomes], sign: int, margin: float, horizon: int
) -> tuple[list[Finding], list[TestResult]]:
    """Findings of both outcomes of every condition, with p-values of one Holm family."""
    rows: list[tuple[str, str, PairedEstimate, int, float, float]] = []
    for name, pair in outcomes.items():
        rows.append((name, "asr", pair.asr, sign, margin, 1.0))
        if pair.fhs is not None:
            rows.append((name, "fhs", pair.fhs, -sign, margin * horizon, float(horizon)))
    p_holm = holm([estimate.test.p_value for _, _, estimate, *_ in rows])
    findings = []
    for (name, outcome, estimate, direction, least, top), p in zip(rows, p_holm.tolist(), strict=True):
        evidence, reason = _paired_evidence(estimate, p, direction, least, top)
        findings.append(
            Finding(
                name=name, outcome=outcome, estimate=estimate.difference, evidence=evidence, p_holm=p, reason=reason
            )
        )
    return findings, [estimate.test for _, _, estimate, *_ in rows]


def _paired_evidence(
    estimate: PairedEstimate, p_holm: float, direction: int, margin: float, top: float
) -> tuple[Evidence, str]:
    """Whether a difference goes in a direction, is shown to be below the margin, or neither.

    Args:
        estimate: A quantity in [0, top].
        p_holm: Adjusted p-value of its test.
        direction: +1 for a rise, −1 for a fall.
        margin: Smallest change worth having.
        top: Largest value of the quantity.
    """
    bounds = (direction * estimate.difference.low, direction * estimate.difference.high)
    low, high = min(bounds), max(bounds)
    room = top - estimate.baseline.value if direction > 0 else estimate.baseline.value
    if not room >= h.ROOM * margin:
        return "open", f"the baseline of {estimate.baseline.value:.3g} leaves too little room"
    if high < margin:
        return "against", "a change of the margin or more is excluded"
    if low > 0 and p_holm < h.ALPHA:
        return "for", "the change is there"
    return "open", "neither no change nor one of the margin is excluded"


def _deciding(findings: Sequence[Finding], sign: int) -> int:
    """Index of the finding for the hypothesis with the smallest p-value, or of the largest change of ASR."""
    order = range(len(findings))
    supporting = [k for k in order if findings[k].evidence == "for"]
    if supporting:
        return min(supporting, key=lambda k: findings[k].p_holm)
    asr = [k for k in order if findings[k].outcome == "asr"]
    return max(asr, key=lambda k: sign * np.nan_to_num(findings[k].estimate.value), default=0)
