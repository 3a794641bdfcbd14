"""What `dsprobe score` shows: a line for each judge, and tables of agreement and of errors against human labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dsprobe.reports.judge_sheets import agreement_sheets, label_sheets
from dsprobe.reports.sheets import Sheet, shown

if TYPE_CHECKING:
    from dsprobe.actors.scoring import ScoredJudge
    from dsprobe.experiment.judge_agreement import LabelledJudge
    from dsprobe.judges.base import Decides
    from dsprobe.metrics.agreement import AgreementTable


def line(scored: ScoredJudge) -> str:
    """What a judge was asked and said; safe for a terminal."""
    from dsprobe.visible_text import visible

    undecided = f"{sum(scored.undecided.values())} undecided"
    if scored.undecided:
        undecided += f" ({', '.join(f'{count} {note}' for note, count in scored.undecided.items())})"
    counts = [
        f"{scored.asked} asked",
        f"{scored.cached} from the cache",
        f"{scored.repeated} repeated",
        f"{scored.empty} empty",
        undecided,
    ]
    names = {"asr": "ASR", "over_refusal": "over-refusal"}
    counted = {name: rate for name, rate in scored.rates.items() if rate.n}  # a run may have no benign requests
    rates = [f"{names.get(name, name)} {shown(rate, '.1%')} of {rate.n}" for name, rate in counted.items()]
    said = "; ".join([", ".join(counts), *rates])
    return visible(f"{scored.judge} ({scored.question}), {scored.replies} replies: {said}")


def sheets(agreement: Mapping[Decides, AgreementTable], labelled: Sequence[LabelledJudge]) -> Iterator[Sheet]:
    """One table for each question with several judges, and the judges against human labels."""
    yield from agreement_sheets(agreement)
    yield from label_sheets(labelled)
