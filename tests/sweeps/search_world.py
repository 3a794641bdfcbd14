"""A world without models: what a renoising guardrail does to each row is a formula, and every evaluation is logged."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tests.sweeps.sweep_outcomes import EXPERIMENT, objective_set, outcomes

from dsprobe.config import ExecutionConfig, GuardrailConfig
from dsprobe.errors import DSProbeError
from dsprobe.storage.objects import ObjectStore
from dsprobe.sweeps.archive import Archive
from dsprobe.sweeps.config import SweepConfig
from dsprobe.sweeps.search import search
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import Study

HARMFUL, BENIGN = 64, 32
DRAWS = np.random.default_rng(7).random(HARMFUL)
FINE = {
    "name": "renoise",
    "threshold": {"low": 0.05, "high": 0.95},
    "every": {"low": 1, "high": 4},
    "margin": {"low": 0, "high": 3},
}
COARSE = {
    "name": "renoise",
    "threshold": {"low": 0.2, "high": 0.8, "step": 0.3},
    "every": {"low": 1, "high": 2},
    "margin": {"choices": [0, 3]},
}


@dataclass(frozen=True)
class World:
    """An evaluator. A higher threshold lets more harm through and spoils less; a margin only spoils."""

    log: str = ""
    raises_above: float = 2.0
    dies_above: float = 2.0
    undefined_above: float = 2.0
    killed_above: float = 2.0
    delay: float = 0.0

    def evaluate(self, guardrail: GuardrailConfig, start: float, stop: float):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{guardrail.model_dump_json()} {start} {stop} {os.getpid()}\n")
        time.sleep(self.delay)
        setting = guardrail.stack[0].params if guardrail.stack else {}
        threshold, every, margin = (setting.get(k, d) for k, d in (("threshold", 1.0), ("every", 4), ("margin", 0)))
        if guardrail.stack and threshold > self.killed_above:
            os.kill(os.getpid(), signal.SIGKILL)
        if guardrail.stack and threshold > self.raises_above:
            raise DSProbeError(f"no scorer reaches {threshold:.1f}\non this world")
        if guardrail.stack and threshold > self.dies_above:
            raise ZeroDivisionError("a bug")
        harm = 0.8 * threshold + 0.15 * (every - 1) > DRAWS
        log_perplexity = 1.0 + 0.01 * np.arange(BENIGN) + (1.0 - threshold) ** 2 + 0.4 * margin
        rows = outcomes(
            [None] * HARMFUL if guardrail.stack and threshold > self.undefined_above else harm.astype(float).tolist(),
            log_perplexity.tolist(),
            passes=32 + int(20 * (1 - threshold) / every),
        )
        size = np.where(rows.harmful, HARMFUL, BENIGN)
        chosen = (rows.prompt_index >= np.ceil(start * size)) & (rows.prompt_index < np.ceil(stop * size))
        return rows.select(chosen)


BASELINE = World().evaluate(GuardrailConfig(), 0.0, 1.0)
OBJECTIVES = objective_set("asr", "fluency_loss", "delta_nfe")


def sweep_config(stack=FINE, *, address="local", **search_settings) -> SweepConfig:
    return SweepConfig(
        experiment=EXPERIMENT.model_copy(update={"execution": ExecutionConfig(address=address)}),
        fluency=("toy-autoregressive",),
        space={"stack": [stack]},
        objectives=tuple(objective.config for objective in OBJECTIVES.objectives),
        search=search_settings,
    )


def run(folder, config, world=None, *, objectives=OBJECTIVES, on_progress=lambda progress: None):
    """One session of a sweep below a folder; the evaluations are logged in ``evaluations``."""
    world = replace(world or World(), log=str(Path(folder) / "evaluations"))
    space = SearchSpace(config.space, config.experiment.decodings[0])
    shared = {"space": space, "objectives": objectives, "archive": Archive(ObjectStore(str(folder)))}
    if config.search.searcher == "optuna_search":
        return search(
            config, **shared, evaluator=world, study=None, baseline=BASELINE, on_progress=on_progress
        )  # fmt: skip
    names = objectives.told_constraints
    with open_study(folder, config, objectives.names, names) as study:
        return search(config, **shared, evaluator=world, study=study, baseline=BASELINE, on_progress=on_progress)


def open_study(folder, config, names=OBJECTIVES.names, constraints=OBJECTIVES.told_constraints):
    space = SearchSpace(config.space, config.experiment.decodings[0])
    path = str(Path(folder) / "study.journal")
    return Study.open(
        path, "sweep", names, space, config.search.sampler, config.search.seed, constraints=constraints
    )  # fmt: skip


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    run(job["folder"], sweep_config(COARSE, address=job["address"], **job["search"]), World(delay=job["delay"]))
