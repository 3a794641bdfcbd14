"""Models that stay loaded, and the shard runners on them, wherever shards run. No Ray here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from dsprobe.config import ModelConfig
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.experiment.shard import ShardRunner
from dsprobe.models.base import LanguageModel
from dsprobe.models.load import load_model


class PinnedModels:
    """Models that are loaded once and kept for the life of the process.

    Args:
        num_gpus: GPUs this process may use; with 0, models whose device is ``auto`` go to the CPU.
        on_load: Called after a model was loaded, with its configuration and the seconds that it took.
    """

    def __init__(
        self, num_gpus: float = 0.0, on_load: Callable[[ModelConfig, float], None] = lambda config, seconds: None
    ) -> None:
        self._num_gpus, self._on_load = num_gpus, on_load
        self._models: dict[ModelConfig, LanguageModel] = {}
        self._runners: dict[ModelConfig, ShardRunner] = {}
        self._plan: Plan | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the models loaded so far."""
        return tuple(config.name for config in self._models)

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
            model = self._models[config] = load_model(config.model_copy(update={"device": device}))
            self._on_load(config, time.monotonic() - began)
        return model

    def run(self, plan: Plan, shard: Shard) -> Iterator[EvaluatedBatch]:
        """Generate and evaluate a shard, batch by batch; the same batches whenever it is run."""
        if plan is not self._plan:  # scorers and judges belong to a plan, models outlive it
            self._runners.clear()
            self._plan = plan
        config = plan.model(shard.condition)
        runner = self._runners.get(config)
        if runner is None:
            runner = self._runners[config] = ShardRunner(plan, self.get(config), self.get)
        return runner.run(shard)
