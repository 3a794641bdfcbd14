"""Tables about judges: how far they agree, how often they err by human labels, and the rates behind theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dsprobe.reports.sheets import Sheet, shown

if TYPE_CHECKING:
    from dsprobe.experiment.judge_agreement import LabelledJudge
    from dsprobe.judges.base import Decides
    from dsprobe.metrics.agreement import AgreementTable


def agreement_sheets(agreement: Mapping[Decides, AgreementTable]) -> Iterator[Sheet]:
    """The judges of every question that has several, human labels among them where there are any."""
    for question, table in agreement.items():
        yield _agreement_sheet(question, table)


def label_sheets(labelled: Sequence[LabelledJudge]) -> Iterator[Sheet]:
    """The errors of the judges, and for judges of harm the corrected rates; nothing without labels."""
    if labelled:
        yield _errors_sheet(labelled)
    if any(judge.corrected for judge in labelled):
        yield _corrected_sheet(labelled)


def _agreement_sheet(question: str, table: AgreementTable) -> Sheet:
    rows = [
        [
            f"{pair.first} · {pair.second}",
            str(pair.n),
            str(pair.both_yes),
            str(pair.only_first),
            str(pair.only_second),
            str(pair.both_no),
            shown(pair.raw, ".1%"),
            shown(pair.kappa, ".2f"),
        ]
        for pair in table.pairs
    ]
    headings = ["judges", "n", "both yes", "only first", "only second", "both no", "agree", "Cohen κ"]
    note = (
        f"All conditions. Krippendorff α of all judges: {shown(table.alpha, '.2f')}, n = {table.n} replies. Rows that "
        f"a judge left open are left out. Intervals: {table.alpha.method}. –: undefined, since all verdicts are alike."
    )
    return Sheet(f"Agreement of the judges of {question}", note, headings, rows, 1)


def _errors_sheet(labelled: Sequence[LabelledJudge]) -> Sheet:
    rows = []
    for judge in labelled:
        rates = (judge.calibration.sensitivity, judge.calibration.specificity)
        numbers = [text for rate in rates for text in (shown(rate, ".1%"), str(rate.n))]
        rows.append([judge.judge, judge.question, *numbers, str(judge.calibration.undecided)])
    headings = ["judge", "question", "sensitivity", "labelled yes", "specificity", "labelled no", "undecided"]
    return Sheet("Judges against human labels", "Wilson intervals over labelled replies.", headings, rows, 2)


def _corrected_sheet(labelled: Sequence[LabelledJudge]) -> Sheet:
    found = [(judge.judge, condition, rate) for judge in labelled for condition, rate in judge.corrected.items()]
    rows = [
        [judge, condition, str(rate.observed.n), shown(rate.observed, ".1%"), shown(rate.corrected, ".1%")]
        for judge, condition, rate in found
    ]
    note = (
        "Of all attacked requests: an empty reply is no success, other replies without a verdict are left out. "
        "Corrected: the rate behind the judge's, by its errors on the labelled replies "
        f"({found[0][2].corrected.method})."
    )
    reasons = dict.fromkeys(f"{judge}: {rate.reason}" for judge, _, rate in found if rate.reason)
    if reasons:
        note += f" –: {'; '.join(reasons)}."
    return Sheet("Attack success, corrected", note, ["judge", "condition", "replies", "observed", "corrected"], rows, 2)
