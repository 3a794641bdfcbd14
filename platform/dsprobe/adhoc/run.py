"""Running a request on a loaded model: the same rendering, decoding, recording and judging as in an experiment."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from dsprobe.adhoc.frames import Frame, FrameMaker, frames_of, separator_of
from dsprobe.adhoc.request import (
    AUTO,
    AttackLike,
    AttackRequest,
    DecodingLike,
    GuardrailLike,
    HandwrittenCanvas,
    PromptLike,
    SpecLike,
    make_request,
)
from dsprobe.adhoc.result import AttackResult
from dsprobe.attacks import ATTACKS
from dsprobe.attacks.base import Rendered
from dsprobe.attacks.case import AttackCase
from dsprobe.attacks.realise import realise
from dsprobe.config import RecordingConfig, Spec
from dsprobe.decoding.canvas import by_width, in_batches
from dsprobe.decoding.records import RowKey
from dsprobe.decoding.watching import OnStep
from dsprobe.experiment.decode import decode_rows, evaluate_rows
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.guardrails import Setting
from dsprobe.guardrails.build import build_guardrails, rewritten
from dsprobe.judges import build_judges
from dsprobe.models.base import LanguageModel
from dsprobe.prompts.base import Prompt
from dsprobe.risk import SCORERS, RiskScorer
from dsprobe.toy.tokenizer import build_tokenizer, tokenizer_digest

BATCH_SIZE: Final = 32
"""Most rows decoded at once."""


def attack(
    model: LanguageModel,
    prompt: PromptLike,
    *,
    attack: AttackLike = "direct",
    decoding: DecodingLike = None,
    guardrail: GuardrailLike = None,
    scorer: SpecLike | None = AUTO,
    threshold: float = 0.5,
    judges: Sequence[SpecLike] = (),
    seed: int = 0,
    show_text: bool = False,
    on_step: OnStep | None = None,
) -> AttackResult:
    """Attack a model once, in this process.

    Args:
        model: A loaded model of either kind.
        prompt: A text, a prompt, or a canvas written by hand (`canvas`).
        attack: See `make_request`, as for all that follow.
        decoding: How the reply is decoded.
        guardrail: What acts in the loop.
        scorer: In-loop risk scorer.
        threshold: θ.
        judges: Judges of the finished reply.
        seed: Seed.
        show_text: Show the text of real models too.
        on_step: Called after every step, while decoding goes on.

    Returns:
        Every step of the trajectory, and what became of it.

    Raises:
        ConfigError: The request is wrong, or does not fit the model.
        CheckpointError: The model has no tokenizer or no chat template.
    """
    request = make_request(
        [prompt], attack=attack, decoding=decoding, guardrail=guardrail, scorer=scorer, threshold=threshold,
        judges=judges, seed=seed, show_text=show_text,
    )  # fmt: skip
    return run_request(model, request, on_step=on_step)[0]


def attack_all(
    model: LanguageModel,
    prompts: Sequence[PromptLike],
    *,
    attack: AttackLike = "direct",
    decoding: DecodingLike = None,
    guardrail: GuardrailLike = None,
    scorer: SpecLike | None = AUTO,
    threshold: float = 0.5,
    judges: Sequence[SpecLike] = (),
    samples: int = 1,
    seed: int = 0,
    show_text: bool = False,
) -> list[AttackResult]:
    """Attack a model with several prompts in batches; arguments and errors as in `attack`.

    Returns:
        Results in the order of the prompts, the samples of a prompt one after the other. A row's result is the same as
        alone.
    """
    request = make_request(
        prompts, attack=attack, decoding=decoding, guardrail=guardrail, scorer=scorer, threshold=threshold,
        judges=judges, samples=samples, seed=seed, show_text=show_text,
    )  # fmt: skip
    return run_request(model, request)


def run_request(model: LanguageModel, request: AttackRequest, on_step: OnStep | None = None) -> list[AttackResult]:
    """Run a validated request; see `attack_all` for the results and `attack` for the errors."""
    request.check_kind(model.info.kind)
    scorer, judges = _scorer(model, request.scorer), build_judges(request.judges)
    guardrails = build_guardrails(request.guardrail, Setting(model=model, decoding=request.decoding))
    prompts = [prompt for prompt in request.prompts for _ in range(request.samples)]
    shielded = [rewritten(prompt, guardrails) for prompt in request.prompts]
    cases, rendered = _rendered(model, request, shielded)
    rows = [index for index in range(len(request.prompts)) for _ in range(request.samples)]
    condition = _condition(model, request)
    results: dict[int, AttackResult] = {}
    for indices in by_width([rendered[row] for row in rows]):
        for part in in_batches(indices, BATCH_SIZE):
            keys = [RowKey(prompts[i].id, i % request.samples) for i in part]
            batch = decode_rows(
                model, [rendered[rows[i]] for i in part], keys, request.decoding, recording=RecordingConfig(),
                scorer=scorer, guardrails=guardrails, seed=request.seed, on_step=on_step,
            )  # fmt: skip
            evaluated = evaluate_rows(
                model, condition, [prompts[i] for i in part], batch, judges=judges,
                threshold=None if scorer is None else request.threshold,
            )  # fmt: skip
            for place, i in enumerate(part):
                results[i] = _result(model, request, cases[rows[i]], evaluated, place)
    return [results[i] for i in range(len(rows))]


def check_canvas(model: LanguageModel, drawn: HandwrittenCanvas, reply_length: int) -> Frame:
    """What a canvas is on a model, without running it.

    Args:
        model: Supplies tokenizer, chat template and kind.
        drawn: The canvas.
        reply_length: Response positions.

    Returns:
        The reply before the first step; for an autoregressive model what it is given, the rest undecided.

    Raises:
        ConfigError: The canvas does not fit the reply, or holds words that the tokenizer lacks.
    """
    row = realise(drawn.case, drawn.prompt, model, reply_length)
    given = dict(enumerate(row.tokens)) | dict(row.forced)
    return FrameMaker(model).given([
        None if (token := given.get(position)) == model.info.mask_token_id else token
        for position in range(row.response_start, row.response_end)
    ])  # fmt: skip


@functools.cache
def _toy_digest() -> str:
    return tokenizer_digest(build_tokenizer())


def is_synthetic(model: LanguageModel) -> bool:
    """Whether a model can only write words of the made-up world, so that its text needs no redaction."""
    return model.tokenizer is not None and tokenizer_digest(model.tokenizer) == _toy_digest()


def _scorer(model: LanguageModel, spec: Spec | None) -> RiskScorer | None:
    if spec is None:
        return None
    if spec.name == AUTO:
        spec = Spec(name="toy_lexicon" if is_synthetic(model) else "logit_mass")
    return SCORERS.build(spec.name, spec.params, model)


def _rendered(
    model: LanguageModel, request: AttackRequest, prompts: Sequence[Prompt]
) -> tuple[list[AttackCase], list[Rendered]]:
    """Cases and rows of the prompts; a search runs here."""
    length = request.decoding.reply_length
    open_rows = [index for index, case in enumerate(request.cases) if case is None]
    composed: list[AttackCase] = []
    if open_rows:
        spec = request.attack
        built = ATTACKS.build(spec.name, spec.params)
        composed = built.compose_all([prompts[index] for index in open_rows], model, length)
    found = dict(enumerate(request.cases)) | dict(zip(open_rows, composed, strict=True))
    cases = [case for case in found.values() if case is not None]
    return cases, [realise(case, prompt, model, length) for case, prompt in zip(cases, prompts, strict=True)]


def _condition(model: LanguageModel, request: AttackRequest) -> Condition:
    return Condition(
        model=model.info.name,
        prompts="adhoc",
        attack=request.attack.key,
        decoding=request.decoding.name,
        guardrail=request.guardrail.name,
    )


def _result(
    model: LanguageModel, request: AttackRequest, case: AttackCase, evaluated: EvaluatedBatch, row: int
) -> AttackResult:
    initial, *steps = frames_of(model, evaluated.trajectories, row)
    batch = evaluated.trajectories
    return AttackResult(
        model=model.info.name,
        kind=model.info.kind,
        prompt=evaluated.prompts[row],
        sample=batch.keys[row].sample,
        attack=case.attack or "case",
        case=case,
        guardrail=request.guardrail.name,
        threshold=request.threshold,
        initial=initial,
        steps=tuple(steps),
        text=evaluated.texts[row],
        verdicts={key: verdicts[row] for key, verdicts in evaluated.verdicts.items()},
        first_harmful_step={
            view: int(step[row]) if evaluated.fhs_event_B[view][row] else None for view, step in evaluated.fhs_B.items()
        },
        tri={view: float(value[row]) for view, value in evaluated.tri_B.items()},
        forward_passes=int(batch.forward_passes_B[row]),
        separator=separator_of(model),
        synthetic=is_synthetic(model),
        show_text=request.show_text,
        trajectories=batch,
        row=row,
    )
