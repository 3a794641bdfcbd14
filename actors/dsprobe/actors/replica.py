"""A replica: a thin actor around pinned models that streams evaluated shards."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
import torch
from ray import ObjectRef

from dsprobe.actors import meters
from dsprobe.actors.heartbeat import Beat
from dsprobe.actors.pinned import PinnedModels
from dsprobe.actors.reducer import Gate
from dsprobe.actors.window import batch_bytes
from dsprobe.config import ExecutionConfig, ModelConfig
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.models.base import LanguageModel
from dsprobe.telemetry.logs import configure_logging, log_context
from dsprobe.telemetry.metrics import ADMISSION_SECONDS, MODEL_LOAD_SECONDS

LOGGER = logging.getLogger("dsprobe.actors.replica")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """What every replica of a pool is given."""

    num_gpus: float
    num_cpus: float
    threads: int

    @classmethod
    def of(cls, execution: ExecutionConfig) -> ReplicaSpec:
        """The spec that an execution asks for."""
        return cls(num_gpus=execution.num_gpus, num_cpus=execution.num_cpus, threads=execution.threads)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that must be set before torch is imported."""
        variables = {
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # replicas share cores; a spinning team starves the others
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.num_gpus == 0:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        return variables


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """A replica's facts and state."""

    spec: ReplicaSpec
    pid: int
    node_id: str
    gpus: tuple[str, ...]
    """Device ids that Ray assigned."""
    models: tuple[str, ...]
    """Labels of loaded models."""
    configs: tuple[ModelConfig, ...]
    """Their configurations, which name them in `Replica.call`."""
    shard_id: str | None
    """Shard under way."""
    batches: int
    """Batches produced since the start."""


class Replica:
    """Pins models and runs shards; one shard at a time.

    Nothing random or stateful survives a shard, so a shard may be run again from its first row and gives the same
    batches. The constructor cannot fail: models are loaded on first use, where an error belongs to a shard.

    Args:
        spec: Resources and threads.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        configure_logging()
        torch.set_num_threads(spec.threads)
        self._spec = spec
        self._models = PinnedModels(spec.num_gpus, on_load=_observe_load)
        self._plan_ref: ObjectRef[Plan] | None = None
        self._plan: Plan | None = None
        self._shard_id: str | None = None
        self._batches = 0
        self._blocked = False

    def preload(self, configs: Sequence[ModelConfig]) -> None:
        """Load models ahead of their first shard.

        Raises:
            CheckpointError: A model cannot be loaded.
        """
        for config in configs:
            self._models.get(config)

    def run_shard(self, plan_ref: Sequence[ObjectRef[Plan]], shard: Shard, gate: Gate) -> Iterator[EvaluatedBatch]:
        """Stream a shard's batches; call with ``num_returns="streaming"``.

        Args:
            plan_ref: The plan's reference, in a list so that Ray hands over the reference and not the value: it is
                fetched once per plan and not once per shard.
            shard: The shard.
            gate: Told when the shard begins, and asked before each batch is handed over.

        Raises:
            RayError: The plan or the reducer is gone.
        """
        gate.begin()
        self._shard_id = shard.id
        try:
            plan = self._fetch(plan_ref[0])
            with log_context(run=plan.run_id, shard=shard.id):
                LOGGER.info("Begins with %d trajectories of %s", len(shard.rows), shard.condition.id)
            began = time.monotonic()
            for batch in self._models.run(plan, shard):
                self._batches += 1
                meters.count_batch(batch, plan.run_id, time.monotonic() - began)
                if not self._admitted(gate, batch, plan.run_id):
                    return
                yield batch
                began = time.monotonic()
        finally:
            self._shard_id = None

    def _admitted(self, gate: Gate, batch: EvaluatedBatch, run: str) -> bool:
        self._blocked, began = True, time.monotonic()
        try:
            return gate.admit(batch_bytes(batch))
        finally:
            self._blocked = False
            meters.add(ADMISSION_SECONDS, time.monotonic() - began, run=run)

    def call(
        self,
        config: ModelConfig,
        function: Callable[Concatenate[LanguageModel, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``function(model, ...)`` beside the pinned model; the model itself never travels."""
        return function(self._models.get(config), *args, **kwargs)

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """Answer with the process id, also while a shard runs."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Sign of life, also while a shard runs; a replica that waits for its reducer is not at work."""
        return Beat(at_work=self._shard_id is not None and not self._blocked, count=self._batches)

    @ray.method(concurrency_group="control")
    def info(self) -> ReplicaInfo:
        """Facts and state, also while a shard runs."""
        context = ray.get_runtime_context()
        accelerators: dict[str, list[Any]] = context.get_accelerator_ids()
        return ReplicaInfo(
            spec=self._spec,
            pid=os.getpid(),
            node_id=context.get_node_id(),
            gpus=tuple(str(gpu) for gpu in accelerators.get("GPU", [])),
            models=self._models.names,
            configs=self._models.configs,
            shard_id=self._shard_id,
            batches=self._batches,
        )

    def _fetch(self, ref: ObjectRef[Plan]) -> Plan:
        if self._plan is None or ref != self._plan_ref:
            self._plan = ray.get(ref)
            self._plan_ref = ref
        return self._plan


def _observe_load(config: ModelConfig, seconds: float) -> None:
    LOGGER.info("Loaded model `%s` in %.1f s", config.name, seconds)
    meters.observe(MODEL_LOAD_SECONDS, seconds, model=config.name)
