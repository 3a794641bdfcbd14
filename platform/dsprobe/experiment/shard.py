"""From a shard to evaluated trajectories: render, decode, record, judge, measure.

Rows are batched by canvas length, in powers of two up to the configured batch size, so that a row meets few shapes and
its arithmetic is the same whoever its neighbours are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from dsprobe.attacks import ATTACKS, Attack
from dsprobe.attacks.base import Rendered
from dsprobe.decoding.autoregressive import generate
from dsprobe.decoding.canvas import batch_canvases, by_width, in_batches
from dsprobe.decoding.loop import denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.recorder import Recorder, statistics_needs
from dsprobe.decoding.records import RowKey, TrajectoryBatch
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.experiment.plan import Plan, RowRef, Shard
from dsprobe.guardrails import Guardrail, Setting
from dsprobe.guardrails.build import build_guardrails, rewritten
from dsprobe.judges import JUDGES, Judge, Reply
from dsprobe.judges.run import judge_all
from dsprobe.metrics.temporal import first_harmful_step, kl_slope, kl_step_mean, temporal_risk_integral
from dsprobe.models.base import CausalModel, DiffusionModel, LanguageModel
from dsprobe.models.chat import decode_reply
from dsprobe.prompts.base import Prompt
from dsprobe.risk import SCORERS, RiskScorer


class ShardRunner:
    """Runs the shards of a plan on one loaded model.

    Args:
        plan: The resolved experiment.
        model: A loaded model; its name must be one of the plan's.
    """

    def __init__(self, plan: Plan, model: LanguageModel) -> None:
        self.plan, self.model = plan, model
        scorer = plan.config.risk.scorer
        self.scorer: RiskScorer = SCORERS.build(scorer.name, scorer.params, model)
        self.judges: dict[str, Judge] = {j.key: JUDGES.build(j.name, j.params) for j in plan.config.judges}

    def run(self, shard: Shard) -> Iterator[EvaluatedBatch]:
        """Yield the shard's trajectories batch by batch.

        The order and content of the batches are a pure function of the shard, so a re-run may replace a lost attempt.
        """
        spec = self.plan.attack(shard.condition)
        attack = ATTACKS.build(spec.name, spec.params)
        guardrails = self._guardrails(shard.condition)
        for rows, rendered in self._batches(shard, attack, guardrails):
            prompts = [self._prompt(shard.condition, row) for row in rows]
            keys = [RowKey(prompt.id, row.sample) for prompt, row in zip(prompts, rows, strict=True)]
            yield self.evaluate(shard.condition, prompts, self._decode(shard.condition, rendered, keys, guardrails))

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
        rendered = [attack.render(prompt, self.model, length) for prompt in prompts]
        for indices in by_width(rendered):
            for part in in_batches(indices, self.plan.config.execution.batch_size):
                yield [shard.rows[i] for i in part], [rendered[i] for i in part]

    def _decode(
        self,
        condition: Condition,
        rendered: Sequence[Rendered],
        keys: Sequence[RowKey],
        guardrails: Sequence[Guardrail],
    ) -> TrajectoryBatch:
        config, decoding = self.plan.config, self.plan.decoding(condition)
        if self.model.info.kind == "autoregressive":
            causal = cast("CausalModel", self.model)
            return generate(
                causal, rendered, keys, decoding, recording=config.recording, scorer=self.scorer, seed=config.seed
            )
        model = cast("DiffusionModel", self.model)
        canvas = batch_canvases(rendered, keys, model.info, seed=config.seed, device=model.device)
        recorder = Recorder(config.recording, model, self.scorer)
        needs = statistics_needs(config.recording, model, int(canvas.masked_BL.sum()))
        policy = SchedulePolicy(decoding, model.info, model.device)
        return recorder.finish(denoise(model, canvas, policy, hooks=[*guardrails, recorder], needs=needs))

    def evaluate(self, condition: Condition, prompts: list[Prompt], batch: TrajectoryBatch) -> EvaluatedBatch:
        """Add texts, verdicts and temporal measures to a batch of trajectories.

        Args:
            condition: The cell of the grid they belong to.
            prompts: Prompt of each row.
            batch: The trajectories.
        """
        texts = [
            decode_reply(self.model, batch.tokens_BL[row][batch.response_BL[row]].tolist())
            for row in range(batch.num_rows)
        ]
        empty_B = np.array([not text for text in texts])
        replies = [Reply(prompt=prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
        threshold = self.plan.config.risk.threshold
        risks = {"committed": batch.risk_committed_SB, "predicted": batch.risk_predicted_SB}
        fhs = {view: first_harmful_step(risk, threshold, batch.num_steps_B) for view, risk in risks.items()}
        return EvaluatedBatch(
            condition=condition,
            trajectories=batch,
            prompts=prompts,
            texts=texts,
            empty_B=empty_B,
            verdicts=judge_all(self.judges, replies, empty_B),
            fhs_B={view: step for view, (step, _) in fhs.items()},
            fhs_event_B={view: event for view, (_, event) in fhs.items()},
            tri_B={view: temporal_risk_integral(risk, batch.num_steps_B) for view, risk in risks.items()},
            kl_slope_B=kl_slope(kl_step_mean(batch.kl_SBL), batch.num_steps_B),
        )
