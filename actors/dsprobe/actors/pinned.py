"""Models that stay loaded, and the shard runners on them, wherever shards run. No Ray here."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from dsprobe.config import ModelConfig
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.experiment.shard import ShardRunner
from dsprobe.models.base import LanguageModel
from dsprobe.models.load import load_model
from dsprobe.telemetry.spans import each, span

LOGGER = logging.getLogger("dsprobe.actors.pinned")


class PinnedModels:
    """Models that are loaded once and kept for the life of the process.

    Args:
        num_gpus: GPUs this process may use; with 0, models whose device is ``auto`` go to the CPU.
        on_load: Called after a model was loaded, with its configuration and the seconds that it took.
        plans: How many plans' shard runners are kept, for plans whose shards come in turns.
    """

    def __init__(
        self,
        num_gpus: float = 0.0,
        on_load: Callable[[ModelConfig, float], None] = lambda config, seconds: None,
        plans: int = 1,
    ) -> None:
        self._num_gpus, self._on_load, self._most = num_gpus, on_load, plans
        self._models: dict[ModelConfig, LanguageModel] = {}
        self._runners: OrderedDict[int, tuple[Plan, dict[ModelConfig, ShardRunner]]] = OrderedDict()
        """By identity of the plan, the last used at the end: scorers and judges belong to a plan, models outlive it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the models loaded so far."""
        return tuple(config.name for config in self.configs)  # a copy: models are loaded on another thread

    @property
    def configs(self) -> tuple[ModelConfig, ...]:
        """Configurations of the models loaded so far, as they were asked for."""
        return tuple(self._models)

    def get(self, config: ModelConfig) -> LanguageModel:
        """The loaded model, loading it on first use.

        Raises:
            CheckpointError: The model cannot be loaded; the next call tries again.
        """
        model = self._models.get(config)
        if model is None:
            device = "cpu" if config.device == "auto" and self._num_gpus == 0 else config.device
            began = time.monotonic()
            with span("load", detail=config.name):
                model = self._models[config] = load_model(config.model_copy(update={"device": device}))
            self._on_load(config, time.monotonic() - began)
        return model

    def run(self, plan: Plan, shard: Shard, stream: str = "") -> Iterator[EvaluatedBatch]:
        """Generate and evaluate a shard, batch by batch; the same batches whenever it is run.

        Args:
            plan: The plan.
            shard: One of its shards.
            stream: Name of the attempt, for logs and spans.
        """
        about = {"run": plan.run_id, "shard": shard.id} | ({"stream": stream} if stream else {})
        return each(lambda: self._batches(plan, shard), "generate", **about)

    def _batches(self, plan: Plan, shard: Shard) -> Iterator[EvaluatedBatch]:
        LOGGER.info("Begins with %d trajectories of %s", len(shard.rows), shard.condition.id)
        _, runners = self._runners.setdefault(id(plan), (plan, {}))
        self._runners.move_to_end(id(plan))
        while len(self._runners) > self._most:
            self._runners.popitem(last=False)
        config = plan.model(shard.condition)
        if config not in runners:
            runners[config] = ShardRunner(plan, self.get(config), self.get)
        return runners[config].run(shard)
