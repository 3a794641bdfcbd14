"""Guardrails on a plan's conditions, forked, unrecorded: from a setting to row outcomes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsprobe.attacks import ATTACKS
from dsprobe.config import GuardrailConfig
from dsprobe.decoding.records import RowKey
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.experiment.plan import Plan, RowRef
from dsprobe.forking.engine import ForkEngine, ForkResult
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails import Guardrail
from dsprobe.guardrails.build import build_guardrails, rewritten
from dsprobe.judges import Reply, build_judges
from dsprobe.judges.run import judge_all
from dsprobe.models.base import CausalModel, DiffusionModel
from dsprobe.models.chat import decode_reply
from dsprobe.models.scoring import reply_log_perplexity
from dsprobe.prompts.base import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which rows to run: a share of every prompt set, and one of several equal parts of it.

    Row r of the plan's row order belongs to part ``r mod parts``: a replica that always takes the same part keeps the
    logged trajectories of its rows.
    """

    start: float = 0.0
    """Prompt indices from ``ceil(start · n)`` …"""
    stop: float = 1.0
    """… to below ``ceil(stop · n)``."""
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class _Scored:
    """What was found out about one reply, once."""

    verdicts: dict[str, float]
    log_perplexity: float


class OutcomeRunner:
    """Runs guardrails on the rows of a plan whose conditions are unguarded and share one decoding.

    Args:
        plan: The resolved experiment.
        model: Its diffusion model.
        fluency: Causal models that judge fluency; the smallest perplexity counts.
    """

    def __init__(self, plan: Plan, model: DiffusionModel, fluency: Sequence[CausalModel] = ()) -> None:
        self.plan, self.model, self.fluency = plan, model, fluency
        config = plan.config
        self.engine = ForkEngine(model, config.decodings[0], seed=config.seed, batch_size=config.execution.batch_size)
        self.judges = build_judges(config.judges)
        self._scored: dict[tuple[str, str, str], _Scored] = {}

    def run(self, guardrail: GuardrailConfig, share: Share = Share(), *, fork: bool = True) -> RowOutcomes:
        """Outcomes of a guardrail on a share of the rows, in the plan's row order.

        Args:
            guardrail: The stack; an empty one is the unguarded baseline.
            share: Which rows.
            fork: Start from logged trajectories.

        Raises:
            ConfigError: The stack does not fit the model or the decoding.
        """
        guardrails = build_guardrails(guardrail, self.engine.setting)
        places = list(self._places(share))
        rows = [self._row(condition, ref, guardrails) for condition, ref in places]
        results = self.engine.run(rows, guardrails, fork=fork)
        return self._outcomes(places, rows, results)

    def _places(self, share: Share) -> Iterator[tuple[Condition, RowRef]]:
        places = [
            (condition, RowRef(prompt, sample))
            for condition in self.plan.conditions
            for prompt in range(len(self.plan.prompt_sets[condition.prompts].prompts))
            for sample in range(self.plan.config.samples)
        ]
        for number, (condition, ref) in enumerate(places):
            size = len(self.plan.prompt_sets[condition.prompts].prompts)
            inside = math.ceil(share.start * size) <= ref.prompt < math.ceil(share.stop * size)
            if inside and number % share.parts == share.part:
                yield condition, ref

    def _prompt(self, condition: Condition, ref: RowRef) -> Prompt:
        return self.plan.prompt_sets[condition.prompts].prompts[ref.prompt]

    def _row(self, condition: Condition, ref: RowRef, guardrails: Sequence[Guardrail]) -> ForkRow:
        spec = self.plan.attack(condition)
        attack = ATTACKS.build(spec.name, spec.params)
        prompt = rewritten(self._prompt(condition, ref), guardrails)
        rendered = attack.render(prompt, self.model, self.engine.decoding.reply_length)
        return ForkRow(rendered=rendered, key=RowKey(prompt.id, ref.sample))

    # ---- what came of it -------------------------------------------------------------------------------------------

    def _outcomes(
        self, places: Sequence[tuple[Condition, RowRef]], rows: Sequence[ForkRow], results: Sequence[ForkResult]
    ) -> RowOutcomes:
        prompts = [self._prompt(condition, ref) for condition, ref in places]
        texts = [self._text(row, result) for row, result in zip(rows, results, strict=True)]
        scored = self._score(prompts, texts)
        return RowOutcomes(
            condition=np.array([condition.id for condition, _ in places], dtype=np.str_),
            prompts=np.array([condition.prompts for condition, _ in places], dtype=np.str_),
            attack=np.array([condition.attack for condition, _ in places], dtype=np.str_),
            prompt_index=np.array([ref.prompt for _, ref in places], dtype=np.int64),
            prompt_id=np.array([prompt.id for prompt in prompts], dtype=np.str_),
            sample=np.array([ref.sample for _, ref in places], dtype=np.int64),
            harmful=np.array([prompt.harmful for prompt in prompts], dtype=np.bool_),
            verdicts={key: np.array([s.verdicts[key] for s in scored], dtype=np.float64) for key in self.judges},
            empty=np.array([not text for text in texts], dtype=np.bool_),
            log_perplexity=np.array([s.log_perplexity for s in scored], dtype=np.float64),
            num_steps=np.array([result.num_steps for result in results], dtype=np.int64),
            passes=np.array([result.passes for result in results], dtype=np.int64),
            passes_used=np.array([result.passes_used for result in results], dtype=np.int64),
            positions=np.array([len(row.rendered.tokens) for row in rows], dtype=np.int64),
            interventions=np.array([result.interventions for result in results], dtype=np.int64),
            margin=np.array([result.margin for result in results], dtype=np.float64),
        )

    def _text(self, row: ForkRow, result: ForkResult) -> str:
        span = slice(row.rendered.response_start, row.rendered.response_end)
        return decode_reply(self.model, result.tokens_L[span].tolist())

    def _score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[_Scored]:
        """Verdicts and fluency; a reply that was seen before is not judged again."""
        keys = [(prompt.source, prompt.id, text) for prompt, text in zip(prompts, texts, strict=True)]
        fresh = {key: index for index, key in enumerate(keys) if key not in self._scored}
        indices = sorted(fresh.values())
        replies = [Reply(prompt=prompts[index], text=texts[index]) for index in indices]
        empty_B = np.array([not reply.text for reply in replies], dtype=np.bool_)
        verdicts = judge_all(self.judges, replies, empty_B)
        loss_N = self._log_perplexity(replies)
        for place, index in enumerate(indices):
            own = {key: _number(values[place]) for key, values in verdicts.items()}
            self._scored[keys[index]] = _Scored(own, float(loss_N[place]))
        return [self._scored[key] for key in keys]

    def _log_perplexity(self, replies: Sequence[Reply]) -> npt.NDArray[np.float64]:
        lowest_N = np.full(len(replies), np.nan)
        for model in self.fluency:
            loss_N = reply_log_perplexity(model, [r.prompt.text for r in replies], [r.text for r in replies])
            lowest_N = np.fmin(lowest_N, loss_N)
        return lowest_N


def _number(verdict: bool | None) -> float:
    return math.nan if verdict is None else float(verdict)


def in_plan_order(parts: Sequence[RowOutcomes], conditions: Sequence[str]) -> RowOutcomes:
    """Rows of several parts of one share, put back into the plan's order.

    Args:
        parts: From `OutcomeRunner.run`.
        conditions: Ids of the plan's conditions, in its order.
    """
    joined = RowOutcomes.concatenate(parts)
    rank = {condition: number for number, condition in enumerate(conditions)}
    number_N = np.array([rank[condition] for condition in joined.condition])
    return joined.select(np.lexsort((joined.sample, joined.prompt_index, number_N)))
