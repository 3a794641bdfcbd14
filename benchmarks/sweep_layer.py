"""What the search layer costs: trials a minute when a trial does nothing, with this project's searcher and with Ray's.

Run as ``python -m benchmarks.sweep_layer [--trials 60]``; prints one JSON line. Both searches run in one Ray instance,
taking turns, one trial at a time, with random proposals over one space, one rung, and no repeated settings. A trial's
time is the median one between the ends of two trials, so that neither the start of the trial process (``start_s``)
nor a busy moment of the machine counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import show
from dsprobe.actors.session import ray_session
from dsprobe.config import GuardrailConfig, ModelConfig, PromptsConfig, RunConfig
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.storage.objects import ObjectStore
from dsprobe.sweeps.archive import Archive
from dsprobe.sweeps.config import ObjectiveConfig, SearchConfig, SpaceConfig, SweepConfig
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.search import SearchProgress, search
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import Study

ROWS = 200
"""Rows of a trial."""
ROUNDS = 2
"""Searches of each kind."""


@dataclass(frozen=True)
class Nothing:
    """An evaluator that generates nothing."""

    def evaluate(self, guardrail: GuardrailConfig, start: float, stop: float) -> RowOutcomes:
        """The same rows for every setting."""
        text = np.full(ROWS, "x", np.str_)
        ones = np.ones(ROWS, np.int64)
        return RowOutcomes(
            condition=text,
            prompts=text,
            attack=text,
            prompt_index=np.arange(ROWS),
            prompt_id=np.arange(ROWS).astype(np.str_),
            sample=0 * ones,
            harmful=ones > 0,
            verdicts={},
            empty=ones < 0,
            log_perplexity=np.full(ROWS, np.nan),
            num_steps=ones,
            passes=ones,
            passes_used=ones,
            positions=ones,
            interventions=ones,
            margin=np.ones(ROWS),
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    trials = parser.parse_args().trials
    ends: dict[str, list[list[float]]] = {"dsprobe": [], "optuna_search": []}
    with ray_session(sweep("dsprobe", 1).experiment.execution, include_dashboard=False):
        for _ in range(ROUNDS):
            for searcher, found in ends.items():
                found.append(timed(searcher, trials))
    figures: dict[str, float] = {}
    for searcher, found in ends.items():
        between = np.concatenate([np.diff(times) for times in found])
        figures[f"{searcher}_trials_per_min"] = 60 / float(np.median(between))
        figures[f"{searcher}_start_s"] = min(times[0] for times in found)
    figures["ratio"] = figures["dsprobe_trials_per_min"] / figures["optuna_search_trials_per_min"]
    show("sweep layer", {"trials": trials, **figures})


def sweep(searcher: str, trials: int) -> SweepConfig:
    """A sweep over two numbers."""
    stack = {"name": "renoise", "threshold": {"low": 0.0, "high": 1.0}, "every": {"low": 1, "high": 8}}
    return SweepConfig(
        experiment=RunConfig(models=(ModelConfig(name="toy-diffusion"),), prompts=(PromptsConfig(source="toy"),)),
        space=SpaceConfig(stack=(stack,)),
        objectives=(ObjectiveConfig(name="delta_nfe"),),
        search=SearchConfig.model_validate(
            {"trials": trials, "sampler": "random", "searcher": searcher, "rungs": (1.0,)}
        ),
    )


def timed(searcher: str, trials: int) -> list[float]:
    """Seconds from the start of a search to the end of each trial, its study and archive in files."""
    config = sweep(searcher, trials)
    space = SearchSpace(config.space, config.experiment.decodings[0])
    objectives = ObjectiveSet(config.objectives, (), config.experiment)
    ends: list[float] = []

    def note(progress: SearchProgress) -> None:
        if progress.finished:
            ends.append(time.perf_counter() - began)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        journal = str(Path(folder) / "study.journal")
        own = searcher == "dsprobe"
        opened = open_study(journal, objectives, space, config) if own else None
        with opened or nullcontext() as study:
            records = search(
                config,
                space=space,
                objectives=objectives,
                archive=Archive(ObjectStore(folder)),
                evaluator=Nothing(),
                study=study,
                baseline=Nothing().evaluate(GuardrailConfig(), 0.0, 1.0),
                on_progress=note,
            )
    assert [record.state for record in records] == ["complete"] * trials
    return ends


def open_study(journal: str, objectives: ObjectiveSet, space: SearchSpace, config: SweepConfig) -> Study:
    """A fresh study in a journal file."""
    told = objectives.told_constraints
    return Study.open(journal, "benchmark", objectives.names, space, config.search.sampler, 0, constraints=told)


if __name__ == "__main__":
    main()
