"""A world for actors without a real model: a runner that behaves as its condition says, and a slow or sick store.

Ray workers import this module by name (see `conftest.py`) and put `ScriptedRunner` in the place of the real runner.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from tests.actors.actor_store import log

from dsprobe.config import (
    DecodingConfig,
    ExecutionConfig,
    ModelConfig,
    PromptsConfig,
    RunConfig,
    Spec,
)
from dsprobe.decoding.records import RowKey, TrajectoryBatch
from dsprobe.experiment.evaluated import Condition, EvaluatedBatch
from dsprobe.experiment.plan import Plan, RowRef, Shard
from dsprobe.prompts.base import Prompt, PromptSet


class ScriptedRunner:
    """Yields deterministic batches; the attack's label says how: `steady`, `slow`, `boom`, `crash`, `stuck`, `big`."""

    def __init__(self, plan: Plan, model: str, load: object) -> None:
        self.plan = plan
        log("runner", model)

    def run(self, shard: Shard) -> Iterator[EvaluatedBatch]:
        manner = shard.condition.attack
        size = self.plan.config.execution.batch_size
        for start in range(0, len(shard.rows), size):
            if manner == "boom" and start > 0:
                raise ValueError("two plus\ntwo is five")
            if manner == "crash":
                os._exit(13)
            if manner == "stuck" and start > 0:
                time.sleep(600)
            time.sleep(0.06 if manner == "slow" else 0)
            log("batch", shard.id, start)
            yield make_batch(shard, shard.rows[start : start + size], 4000 if manner == "big" else 16)


def make_batch(shard: Shard, rows: tuple[RowRef, ...], length: int) -> EvaluatedBatch:
    B, S, L = len(rows), 4, length
    seed = int.from_bytes(hashlib.sha256(shard.id.encode()).digest()[:4], "big")
    rng = np.random.default_rng([seed, *(row.prompt for row in rows)])
    ints = rng.integers(0, 99, (S, B, L), dtype=np.int32)
    reals = rng.random((S, B, L)).astype(np.float16)
    true_BL = np.ones((B, L), dtype=np.bool_)
    trajectories = TrajectoryBatch(
        keys=[RowKey(f"p{row.prompt}", row.sample) for row in rows],
        canvas_BL=ints[0], real_BL=true_BL, response_BL=true_BL, tokens_BL=ints[-1],
        num_steps_B=np.full(B, S, np.int16), forward_passes_B=np.full(B, S, np.int16),
        commit_step_BL=np.ones((B, L), np.int16), predicted_SBL=ints,
        committed_SBL=np.ones((S, B, L), np.bool_), canvas_SBL=ints,
        probability_SBL=reals, entropy_SBL=reals, kl_SBL=reals, attribution_SBL=reals,
        risk_committed_SB=reals[:, :, 0].astype(np.float32),
        risk_predicted_SB=reals[:, :, 1].astype(np.float32),
        action_SB=np.zeros((S, B), np.int8), margin_B=np.ones(B, np.float32),
        wall_seconds_B=np.zeros(B, np.float32), events=[[] for _ in rows],
    )  # fmt: skip
    return EvaluatedBatch(
        condition=shard.condition,
        trajectories=trajectories,
        prompts=[Prompt(id=f"p{row.prompt}", text="hello", harmful=False, source="toy") for row in rows],
        texts=["fine"] * B,
        empty_B=np.zeros(B, np.bool_),
        verdicts={"keyword": [False] * B},
        fhs_B={"committed": np.ones(B, np.int32), "predicted": np.ones(B, np.int32)},
        fhs_event_B={"committed": true_BL[:, 0], "predicted": true_BL[:, 0]},
        tri_B={"committed": np.zeros(B), "predicted": np.zeros(B)},
        kl_slope_B=np.zeros(B),
    )


def make_plan(
    *manners: str, shards: int = 2, rows: int = 8, execution: ExecutionConfig | None = None, run_id: str = "run-1"
) -> Plan:
    """A plan of `shards` shards of `rows` rows for each manner."""
    conditions = tuple(
        Condition(model="scripted", prompts="toy", attack=manner, decoding="default") for manner in manners
    )
    config = RunConfig(
        models=(ModelConfig(name="scripted"),),
        prompts=(PromptsConfig(source="toy"),),
        attacks=tuple(Spec.model_validate({"name": "direct", "alias": manner}) for manner in manners),
        decodings=(DecodingConfig(),),
        execution=execution or ExecutionConfig(batch_size=2, replicas=1),
    )
    parts = tuple(
        Shard(
            id=f"{condition.attack}-{index}",
            condition=condition,
            rows=tuple(RowRef(index * rows + row, 0) for row in range(rows)),
        )
        for condition in conditions
        for index in range(shards)
    )
    prompts = tuple(Prompt(id=f"p{i}", text="hello", harmful=False, source="toy") for i in range(shards * rows))
    return Plan(
        run_id=run_id,
        config=config,
        prompt_sets={"toy": PromptSet(name="toy", prompts=prompts, digest="0", synthetic=True)},
        models={},
        conditions=conditions,
        skipped={},
        shards=parts,
    )


def scripted_model(config: ModelConfig) -> str:
    log("load", config.name)
    return config.name


def shout(model: Any, text: str) -> tuple[str, int]:
    """A function to run beside a pinned model."""
    return f"{model}: {text.upper()}", os.getpid()
