"""The tables of `dsprobe transfer`, and of the report's section on attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsprobe.reports.judge_sheets import agreement_sheets
from dsprobe.reports.sheets import Sheet, p_value, points, shown

if TYPE_CHECKING:
    from dsprobe.experiment.sensitivity import Capability, Curve
    from dsprobe.experiment.transfer import AttackRow, PairTransfer, TransferStudy
    from dsprobe.metrics.curves import DoseResponse


def transfer_sheets(study: TransferStudy) -> Iterator[Sheet]:
    """Attack success, transfer, curves, agreement, capability; points of curves stand in their curves only."""
    yield from attack_sheets(study)
    yield from pair_sheets(study)
    yield from curve_sheets(study)
    yield from agreement_sheets(study.agreement)
    yield from capability_sheets(study)


def attack_sheets(study: TransferStudy) -> Iterator[Sheet]:
    """Of every prompt set attack × model × judge, and what stands beside the verdicts."""
    for prompts in dict.fromkeys(row.condition.prompts for row in study.attacks):
        rows = [row for row in study.attacks if row.condition.prompts == prompts and not row.family]
        if rows:
            yield _success_sheet(prompts, rows)
            yield _steps_sheet(prompts, rows)


def pair_sheets(study: TransferStudy) -> Iterator[Sheet]:
    """Transfer indices of every pair of models, prompt set and judge."""
    for pair in study.transfers:
        if pair.own:
            yield _transfer_sheet(pair)


def curve_sheets(study: TransferStudy) -> Iterator[Sheet]:
    """Every grid on every prompt set."""
    for family, prompts in dict.fromkeys((curve.family, curve.prompts) for curve in study.curves):
        yield _curve_sheet([c for c in study.curves if (c.family, c.prompts) == (family, prompts)])


def capability_sheets(study: TransferStudy) -> Iterator[Sheet]:
    """Utility of every pair of models, where there is one."""
    for pair in dict.fromkeys((part.diffusion, part.autoregressive) for part in study.capability):
        yield _capability_sheet([c for c in study.capability if (c.diffusion, c.autoregressive) == pair])


def _success_sheet(prompts: str, rows: Sequence[AttackRow]) -> Sheet:
    """Attack × (model, decoding) × judge."""
    sides = list(dict.fromkeys((row.condition.model, row.condition.decoding) for row in rows))
    judges = list(dict.fromkeys(judge for row in rows for judge in row.summary.asr))
    found = {(row.condition.attack, row.condition.model, row.condition.decoding): row.summary for row in rows}
    several = len({decoding for _, decoding in sides}) > 1
    names = [f"{model}{f' {decoding}' if several else ''}" for model, decoding in sides]
    cells = []
    for attack in dict.fromkeys(row.condition.attack for row in rows):
        summaries = [found.get((attack, *side)) for side in sides]
        rates = [[s.asr[judge] if s else None for judge in judges] for s in summaries]
        cells.append([attack, *("–" if rate is None else shown(rate, ".1%") for part in rates for rate in part)])
    headings = ["attack", *(f"{name} {judge}" for name in names for judge in judges)]
    counts = sorted({row.summary.n for row in rows})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    note = f"Share of harmful requests whose reply the judge calls harmful, Wilson 95 %; n = {n} each."
    return Sheet(f"Attack success on `{prompts}`", note, headings, cells, 1)


def _steps_sheet(prompts: str, rows: Sequence[AttackRow]) -> Sheet:
    """What stands beside the verdicts: refusals, empty replies, and the measures over the steps."""
    refusals = list(dict.fromkeys(judge for row in rows for judge in row.summary.refusal))
    headings = ["attack", "model", "decoding", *(f"refused {judge}" for judge in refusals), "empty", "P(cross)", "FHS"]
    cells = []
    for row in rows:
        summary, view = row.summary, row.summary.views["predicted"]
        labels = [row.condition.attack, row.condition.model, row.condition.decoding]
        numbers = [
            *(shown(summary.refusal[judge], ".1%") for judge in refusals),
            shown(summary.empty, ".1%"),
            shown(view.crossing, ".1%"),
            shown(view.fhs_restricted_mean, ".1f"),
            shown(view.tri, ".2f"),
            shown(summary.order_correlation, ".2f"),
        ]
        cells.append([*labels, *numbers])
    note = (
        "Harm and refusal are two verdicts. P(cross), FHS (mean steps spent unharmed; a step is a token for "
        "autoregressive models) and TRI: predicted view. order τ: Kendall's τ-b of position and commit step."
    )
    return Sheet(f"Refusals and risk over the steps on `{prompts}`", note, [*headings, "TRI", "order τ"], cells, 3)


def _transfer_sheet(pair: PairTransfer) -> Sheet:
    table, unknown = pair.table, "–"
    rows = [
        [
            part.attack,
            shown(part.forward.source, ".1%"),
            shown(part.backward.source, ".1%"),
            shown(part.forward.index, ".2f"),
            shown(part.backward.index, ".2f"),
        ]
        for part in table.attacks
        if part.attack in pair.own
    ]
    ahead, back = table.forward, table.backward
    rows += [
        ["pooled, published for diffusion", shown(ahead.source, ".1%"), shown(ahead.target, ".1%"),
         shown(ahead.index, ".2f"), unknown],
        ["pooled, published for autoregressive", shown(back.target, ".1%"), shown(back.source, ".1%"), unknown,
         shown(back.index, ".2f")],
        ["asymmetry: first pooled index minus second", unknown, unknown, shown(table.asymmetry, ".2f"), unknown],
    ]  # fmt: skip
    note = (
        f"Transfer index: ASR on the target over ASR on the source, same artefacts ({ahead.index.method}); – where "
        "nothing succeeds on the source."
    )
    headings = ["attack", f"ASR {pair.diffusion}", f"ASR {pair.autoregressive}"]
    headings += [f"index → {pair.autoregressive}", f"index → {pair.diffusion}"]
    return Sheet(f"Transfer on `{pair.prompts}`, judged by {pair.judge}", note, headings, rows, 1)


def _curve_sheet(curves: Sequence[Curve]) -> Sheet:
    doses = [point.at for point in curves[0].response.curve]
    names = curves[0].response.variables
    several = _several_decodings(curves)
    labels = [", ".join(f"{name} {value:g}" for name, value in zip(names, at, strict=True)) for at in doses]
    rows = []
    for curve in curves:
        found = {point.at: point.rate for point in curve.response.curve}
        cells = [shown(found[at], ".0%") if at in found else "–" for at in doses]
        decoding = [curve.decoding] * several
        rows.append([curve.model, *decoding, curve.judge, *cells, *_slopes(curve.response), _trend(curve.response)])
    headings = ["model", *["decoding"] * several, "judge", *labels, *(f"slope {name}" for name in names), "trend p"]
    note = (
        f"ASR (Wilson) of `{curves[0].attack}` at each setting. Slope: log-odds per unit "
        f"({curves[0].response.slope.method}). * rises: a positive trend and no significant fall on the way."
        f"{_doublings(curves)}"
    )
    return Sheet(f"{curves[0].family} on `{curves[0].prompts}`", note, headings, rows, 2 + several)


def _doublings(curves: Sequence[Curve]) -> str:
    """What a doubling of the step adds, beside the published slope; empty for other attacks."""
    found = [(curve, curve.anchoring) for curve in curves if curve.anchoring]
    if not found:
        return ""
    several = _several_decodings(curves)
    ours = "; ".join(
        f"{' '.join([curve.model, *[curve.decoding] * several])}, {curve.judge}: {shown(it.slope_per_doubling, '.2f')}"
        for curve, it in found
    )
    published = found[0][1].published
    return (
        f" Slope per doubling of t: {ours}; published ({published.model}, {published.source.split(',')[0]}): "
        f"{published.slope_per_doubling:.2f}."
    )


def _several_decodings(parts: Sequence[Curve] | Sequence[Capability]) -> bool:
    return len({part.decoding for part in parts}) > 1


def _slopes(response: DoseResponse) -> list[str]:
    return [shown(slope, ".2f") for slope in response.slopes]


def _trend(response: DoseResponse) -> str:
    return "–" if response.trend is None else p_value(response.trend.p_value) + " *" * response.rises()


def _capability_sheet(found: Sequence[Capability]) -> Sheet:
    several, attacks = _several_decodings(found), len({part.attack for part in found}) > 1
    rows = [
        [
            part.prompts,
            *[part.attack] * attacks,
            *[part.decoding] * several,
            part.judge,
            str(part.estimate.pairs),
            shown(part.estimate.level, ".1%"),
            shown(part.estimate.baseline, ".1%"),
            points(part.estimate.difference),
            p_value(part.estimate.test.p_value),
        ]
        for part in found
    ]
    headings = ["prompts", *["attack"] * attacks, *["decoding"] * several, "judge", "pairs"]
    headings += [found[0].diffusion, found[0].autoregressive, "difference", "p"]
    note = f"Utility on the same benign requests; percentage points ({found[0].estimate.difference.method})."
    return Sheet("Capability beside safety", note, headings, rows, 2 + attacks + several)
