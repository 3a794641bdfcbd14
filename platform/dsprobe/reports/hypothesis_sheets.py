"""The tables of the hypotheses, made from the document that a run keeps (``hypotheses.json``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dsprobe.metrics.intervals import Interval
from dsprobe.reports.sheets import Sheet, p_value, points, shown, signed

_UNITS: Final[Mapping[str, str]] = {
    "width": "width, steps",
    "irr_renoise": "irr_renoise",
    "asr": "Δ ASR, points",
    "asr against end-only": "Δ ASR against end-only, points",
    "fhs": "Δ FHS, steps",
    "hypervolume": "Δ hypervolume",
    "asymmetry": "asymmetry of the index",
    "transfer_index": "transfer index",
}
"""Name of an estimate → what it is called in a table."""


def rules_sheets(document: Mapping[str, Any]) -> Iterator[Sheet]:
    """One table a hypothesis: the rule alone.

    Args:
        document: `dsprobe.metrics.preregistration.rules_document`, or any that holds it.
    """
    for rule in document["rules"]:
        names = ("conditions", "estimate", "supported", "not_supported", "undecided")
        rows = [[name.replace("_", " "), rule[name]] for name in names]
        note = f"At least {rule['minimum_n']} prompts."
        yield Sheet(f"{rule['id']}: {rule['statement']}", note, ["part", "rule"], rows, 2)


def rules_name(document: Mapping[str, Any]) -> str:
    """What identifies the rules."""
    return f"Rules version {document['rules_version']}, SHA-256 {document['rules_digest']}"


def decided_sheets(document: Mapping[str, Any]) -> Iterator[Sheet]:
    """The verdicts, then each hypothesis with its rule and findings.

    Args:
        document: `dsprobe.experiment.hypotheses.Decided.to_dict`.
    """
    yield _overview(document["decisions"])
    rules = {rule["id"]: rule for rule in document["rules"]}
    for decision in document["decisions"]:
        yield _of(decision, rules[decision["hypothesis"]])


def _overview(decisions: list[dict[str, Any]]) -> Sheet:
    rows = [
        [
            decision["hypothesis"],
            decision["statement"],
            decision["verdict"],
            _UNITS[decision["outcome"]],
            _number(decision["outcome"], decision["estimate"]),
            "–" if decision["test"] is None else p_value(_float(decision["test"]["p_value"])),
            str(decision["n"]),
        ]
        for decision in decisions
    ]
    note = (
        "95 % intervals; p: Holm within the hypothesis, where the rule has a test. Undecided: the data could not have "
        "shown it, or both answers are still open."
    )
    return Sheet("Hypotheses", note, ["id", "hypothesis", "verdict", "estimate", "value", "p", "n"], rows, 4)


def _of(decision: Mapping[str, Any], rule: Mapping[str, Any]) -> Sheet:
    rows = [
        [
            finding["name"],
            _UNITS.get(finding["outcome"], finding["outcome"]),
            finding["evidence"],
            finding["reason"] or "–",
            _number(finding["outcome"], finding["estimate"]),
            p_value(_float(finding["p_holm"])),
            str(finding["estimate"]["n"]),
        ]
        for finding in decision["findings"]
    ]
    test = f" Test: {decision['test']['method']}." if decision["test"] else ""
    where = f" Conditions: {', '.join(decision['conditions'])}." if decision["conditions"] else ""
    note = (
        f"Estimate: {rule['estimate']}. Supported: {rule['supported']}. Not supported: {rule['not_supported']}. "
        f"Undecided: {rule['undecided']}.{test}{where}"
    )
    title = f"{decision['hypothesis']} {decision['verdict']}: {decision['reason']}"
    return Sheet(title, note, ["finding", "estimate", "evidence", "why", "value", "p Holm", "n"], rows, 4)


def _number(outcome: str, raw: Mapping[str, Any]) -> str:
    """An estimate in the unit of its outcome; a bound that JSON could not hold is infinite."""
    value = _float(raw["value"])
    low, high = (
        bound * math.inf if raw[name] is None else raw[name] for name, bound in (("low", -1), ("high", 1))
    )  # fmt: skip
    interval = Interval(value, low, high, raw["n"], raw["method"], raw["confidence"])
    if outcome.startswith("asr"):
        return points(interval)
    if outcome == "fhs":
        return signed(interval.value, interval.low, interval.high)
    if outcome == "irr_renoise":
        return shown(interval, ".1%")
    return shown(interval, {"width": ".1f", "hypervolume": ".4f"}.get(outcome, ".2f"))


def _float(value: float | None) -> float:
    return math.nan if value is None else value
