"""From a shard to evaluated trajectories: render, decode, record, judge, measure.

Rows are batched by canvas length, in powers of two up to the configured batch size, so that a row meets few shapes and
its arithmetic is the same whoever its neighbours are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dsprobe.attacks import ATTACKS, Attack
from dsprobe.attacks.base import Rendered
from dsprobe.config import ModelConfig
from dsprobe.decoding.canvas import by_width, in_batches
from dsprobe.decoding.records import I8, RAW_NONE, RowKey, TrajectoryBatch
from dsprobe.errors import CheckpointError
from dsprobe.experiment.decode import decode_rows, evaluate_rows
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.experiment.plan import Plan, RowRef, Shard
from dsprobe.experiment.raw_rows import raw_rows
from dsprobe.guardrails import Guardrail, Setting
from dsprobe.guardrails.build import build_guardrails, rewritten
from dsprobe.judges import build_judges
from dsprobe.models.base import LanguageModel
from dsprobe.prompts.base import Prompt
from dsprobe.risk import SCORERS, RiskScorer
from dsprobe.telemetry.spans import span


class ShardRunner:
    """Runs the shards of a plan on one loaded model.

    Args:
        plan: The resolved experiment.
        model: A loaded model; its name must be one of the plan's.
        load: Gives other models of the plan, for attacks that search on a surrogate.
    """

    def __init__(self, plan: Plan, model: LanguageModel, load: Callable[[ModelConfig], LanguageModel]) -> None:
        _check_weights(plan, model)
        self.plan, self.model, self._load = plan, model, load
        scorer = plan.config.risk.scorer
        self.scorer: RiskScorer = SCORERS.build(scorer.name, scorer.params, model)
        self.judges = build_judges(plan.config.judges)

    def run(self, shard: Shard) -> Iterator[EvaluatedBatch]:
        """Yield the shard's trajectories batch by batch.

        The order and content of the batches are a pure function of the shard, so a re-run may replace a lost attempt.
        """
        attack = self._attack(shard.condition)
        guardrails = self._guardrails(shard.condition)
        logged = raw_rows(self.plan, shard) if self.plan.config.recording.raw.keep else None
        for rows, rendered in self._batches(shard, attack, guardrails):
            prompts = [self._prompt(shard.condition, row) for row in rows]
            keys = [RowKey(prompt.id, row.sample) for prompt, row in zip(prompts, rows, strict=True)]
            raw_B = None
            if logged is not None:
                raw_B = np.array([logged.get((key.prompt_id, key.sample), RAW_NONE) for key in keys], np.int8)
            batch = self._decode(shard.condition, rendered, keys, guardrails, raw_B)
            yield self.evaluate(shard.condition, prompts, batch)

    def _attack(self, condition: Condition) -> Attack:
        spec = self.plan.attack(condition)
        config = ATTACKS.config(spec.name, spec.params)
        attack = ATTACKS.build(spec.name, spec.params)
        label = attack.needs_model(config)
        if label is not None:
            attack.surrogates = {label: self._load(next(m for m in self.plan.config.models if m.name == label))}
        return attack

    def _guardrails(self, condition: Condition) -> list[Guardrail]:
        setting = Setting(model=self.model, decoding=self.plan.decoding(condition))
        return build_guardrails(self.plan.guardrail(condition), setting)

    def _prompt(self, condition: Condition, row: RowRef) -> Prompt:
        return self.plan.prompt_sets[condition.prompts].prompts[row.prompt]

    def _batches(
        self, shard: Shard, attack: Attack, guardrails: Sequence[Guardrail]
    ) -> Iterator[tuple[list[RowRef], list[Rendered]]]:
        """Group rows of one canvas length, then cut the groups into batches of fixed sizes."""
        length = self.plan.decoding(shard.condition).reply_length
        prompts = [rewritten(self._prompt(shard.condition, row), guardrails) for row in shard.rows]
        rendered = attack.render_all(prompts, self.model, length)
        for indices in by_width(rendered):
            for part in in_batches(indices, self.plan.config.execution.batch_size):
                yield [shard.rows[i] for i in part], [rendered[i] for i in part]

    @span("generate", "decode")
    def _decode(
        self,
        condition: Condition,
        rendered: Sequence[Rendered],
        keys: Sequence[RowKey],
        guardrails: Sequence[Guardrail],
        raw_B: I8 | None,
    ) -> TrajectoryBatch:
        config = self.plan.config
        return decode_rows(
            self.model,
            rendered,
            keys,
            self.plan.decoding(condition),
            recording=config.recording,
            scorer=self.scorer,
            guardrails=guardrails,
            seed=config.seed,
            raw_B=raw_B,
        )

    @span("judge", "judge and measure")
    def evaluate(self, condition: Condition, prompts: list[Prompt], batch: TrajectoryBatch) -> EvaluatedBatch:
        """Add texts, verdicts and temporal measures to a batch of trajectories.

        Args:
            condition: The cell of the grid they belong to.
            prompts: Prompt of each row.
            batch: The trajectories.
        """
        threshold = self.plan.config.risk.threshold
        return evaluate_rows(self.model, condition, prompts, batch, judges=self.judges, threshold=threshold)


def _check_weights(plan: Plan, model: LanguageModel) -> None:
    """Refuse a model that is not the one that the plan was made for.

    Its files may differ from machine to machine, or have been replaced since the plan was made or a pool loaded them.

    Raises:
        CheckpointError: Its digest is another.
    """
    planned = plan.models[model.info.name].digest
    if planned != model.info.digest:
        raise CheckpointError(
            f"Model `{model.info.name}` was loaded from {model.info.source} with digest {model.info.digest[:12]}…; the "
            f"plan was made for {planned[:12]}…. Give every machine the same files, or end the pool and run again."
        )
