"""Decoding and judging a run's rows, so that a policy can be trained on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.in_loop import attack_hooks
from dsprobe.config import UNGUARDED
from dsprobe.decoding.canvas import Canvas, batch_canvases, by_width, in_batches
from dsprobe.decoding.loop import StatisticsNeeds, denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.experiment.plan import Plan
from dsprobe.guardrails.base import Setting
from dsprobe.guardrails.policy import StrengthGuardrail
from dsprobe.guardrails.policy_traces import Case, TraceLogger, Traces, concatenated
from dsprobe.guardrails.renoise import RenoiseConfig
from dsprobe.judges import Reply, beside_generation, build_judges, decides
from dsprobe.judges.run import judge_all
from dsprobe.models.base import DiffusionModel
from dsprobe.models.chat import decode_reply


def deciding_judges(plan: Plan) -> tuple[str, str | None]:
    """Keys of the run's first judges of harm and of utility, the latter if there is one.

    Raises:
        ConfigError: There is no judge of harm.
    """
    decided = {judge.key: decides(judge) for judge in beside_generation(plan.config.judges)}
    harm = next((key for key, what in decided.items() if what == "harm"), None)
    if harm is None:
        raise ConfigError(
            "The run has no judge of harm, so nothing says which trajectories end badly. Its judges: "
            f"{', '.join(decided) or 'none'}. Add one to `judges`, e.g. toy_oracle, and run it again."
        )
    return harm, next((key for key, what in decided.items() if what == "utility"), None)


class Sampler:
    """Decodes and judges rows of a plan's unguarded conditions.

    Args:
        plan: The resolved run.
        model: One of its diffusion models, loaded.
        config: What an intervention does.

    Raises:
        ConfigError: The plan has no harm judge.
    """

    def __init__(self, plan: Plan, model: DiffusionModel, config: RenoiseConfig) -> None:
        self.plan, self.model, self.config = plan, model, config
        self.judges = build_judges(plan.config.judges)
        self.harm, self.utility = deciding_judges(plan)
        self._settings = {d.name: Setting(model=model, decoding=d) for d in plan.config.decodings}

    def cases(self, limit: int | None) -> list[Case]:
        """Rows of the model's unguarded conditions, the first `limit` prompts of every set."""
        rows = []
        for condition in self.plan.conditions:
            if condition.model != self.model.info.name or condition.guardrail != UNGUARDED:
                continue
            spec = self.plan.attack(condition)
            attack = ATTACKS.build(spec.name, spec.params)
            length = self.plan.decoding(condition).reply_length
            for prompt in self.plan.prompt_sets[condition.prompts].prompts[:limit]:
                rendered = attack.render(prompt, self.model, length)
                rows.append(Case(condition=condition, prompt=prompt, rendered=rendered))
        return rows

    def rollout(self, cases: Sequence[Case], build: Callable[[Setting], StrengthGuardrail] | None = None) -> Traces:
        """Decode rows, under a guardrail or none; the result is in the order of the rows."""
        parts: list[Traces] = []
        order: list[int] = []
        for decoding, setting in self._settings.items():
            indices = [index for index, case in enumerate(cases) if case.condition.decoding == decoding]
            for group in by_width([cases[index].rendered for index in indices]):
                for chunk in in_batches([indices[place] for place in group], self.plan.config.execution.batch_size):
                    parts.append(self._batch([cases[index] for index in chunk], setting, build))
                    order += chunk
        return concatenated(parts).take(np.argsort(order))

    def _batch(
        self, cases: Sequence[Case], setting: Setting, build: Callable[[Setting], StrengthGuardrail] | None
    ) -> Traces:
        model, seed = self.model, self.plan.config.seed
        keys = [RowKey(case.prompt.id) for case in cases]
        canvas = batch_canvases([case.rendered for case in cases], keys, model.info, seed=seed, device=model.device)
        guardrail = None if build is None else build(setting)
        logger = TraceLogger(self.config, setting, guardrail)
        policy = SchedulePolicy(setting.decoding, model.info, model.device)
        attack = attack_hooks([case.rendered for case in cases], setting.planned_steps, model.info.mask_token_id)
        hooks = [*attack, logger] if guardrail is None else [*attack, logger, guardrail]
        output = denoise(model, canvas, policy, hooks=hooks, needs=StatisticsNeeds(all_masks=True))
        return Traces(**logger.arrays(output), **self._verdicts(cases, canvas))

    def _verdicts(self, cases: Sequence[Case], canvas: Canvas) -> dict[str, npt.NDArray[Any]]:
        tokens_BL, response_BL = canvas.tokens_BL.cpu().numpy(), canvas.response_BL.cpu().numpy()
        texts = [
            decode_reply(self.model, tokens[inside].tolist())
            for tokens, inside in zip(tokens_BL, response_BL, strict=True)
        ]
        replies = [Reply(prompt=case.prompt, text=text) for case, text in zip(cases, texts, strict=True)]
        verdicts = judge_all(self.judges, replies, np.array([not text for text in texts]))
        undecided: list[bool | None] = [None] * len(cases)
        return {
            "harm_N": np.array(verdicts[self.harm], dtype=np.float64),
            "utility_N": np.array(verdicts.get(self.utility or "", undecided), dtype=np.float64),
        }
