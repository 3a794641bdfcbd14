"""A replica: a thin actor around pinned models that streams evaluated shards, for several tenants in fair turns.

This module is imported wherever a handle arrives, so neither torch nor models are imported with it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from dsprobe.actors import meters
from dsprobe.actors.heartbeat import Beat
from dsprobe.actors.keeper import ensure_keeper
from dsprobe.actors.reducer import Gate
from dsprobe.actors.turns import Tenant, Turns, TurnState, Work
from dsprobe.actors.window import batch_bytes
from dsprobe.config import ExecutionConfig, ModelConfig
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.telemetry.logs import begin_actor, log_context, log_variables
from dsprobe.telemetry.metrics import ADMISSION_SECONDS, MODEL_LOAD_SECONDS
from dsprobe.telemetry.spans import SPANS, span

if TYPE_CHECKING:
    from dsprobe.experiment.plan import Plan, Shard
    from dsprobe.models.base import LanguageModel

LOGGER = logging.getLogger("dsprobe.actors.replica")

THREADS: Final = 32
"""Calls and shards that may wait for a turn; beyond them Ray queues in order of arrival, whoever's they are."""
PLANS: Final = 4
"""Plans that a replica keeps, so that tenants in turns do not fetch theirs again with every shard."""
KEEPER_S: Final = 60.0
"""Seconds between two looks whether the pool has its keeper."""
LEAVING_S: Final = 5.0
"""How long a replica that agreed to leave waits for its keeper to end it."""

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
        """Variables that must be set before torch is imported, and this process's log settings."""
        variables = {
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # replicas share cores; a spinning team starves the others
            "TOKENIZERS_PARALLELISM": "false",
            **log_variables(),
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
    """Shard under way; where several tenants have one, the one that has the turn."""
    turns: TurnState
    """Who uses the model, and who waits."""
    batches: int
    """Batches produced since the start."""
    pool_idle_s: float
    """Seconds without work after which the pool is ended; 0 never."""


class Replica:
    """Pins models and runs shards and calls; one batch of a shard, or one call, at a time.

    Nothing random or stateful survives a batch, so tenants may take turns between batches, and a shard may be run again
    from its first row and gives the same batches. Whatever touches a model does so on one thread, whoever's it is.
    Models are loaded on first use, where an error belongs to a shard and not to the replica.

    Args:
        spec: Resources and threads.
        pool: Name of its pool.
        pool_idle_s: Seconds without work after which the pool is ended; 0 never.
    """

    def __init__(self, spec: ReplicaSpec, pool: str, pool_idle_s: float) -> None:
        import torch

        from dsprobe.actors.pinned import PinnedModels

        begin_actor("replica", ray.get_runtime_context().get_actor_name() or pool)
        torch.set_num_threads(spec.threads)
        self._spec, self._pool, self._pool_idle_s = spec, pool, pool_idle_s
        self._models = PinnedModels(spec.num_gpus, on_load=_observe_load, plans=PLANS)
        self._plans: OrderedDict[ObjectRef[Plan], Plan] = OrderedDict()
        self._fetching = threading.Lock()
        self._turns = Turns()
        self._thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (spec.threads,))
        self._batches = 0
        LOGGER.info("Started")
        if pool_idle_s:
            threading.Thread(target=self._have_keeper, name="keeper", daemon=True).start()

    def preload(self, tenant: Tenant, configs: Sequence[ModelConfig]) -> None:
        """Load models ahead of their first shard.

        Raises:
            CheckpointError: A model cannot be loaded.
        """
        with self._turns.visit(Work(tenant=tenant, kind="load")) as visit:
            for config in configs:
                with self._turns.turn(visit):
                    self._beside_models(self._models.get, config)

    def run_shard(self, plan_ref: Sequence[ObjectRef[Plan]], shard: Shard, gate: Gate) -> Iterator[EvaluatedBatch]:
        """Stream a shard's batches; call with ``num_returns="streaming"``. The turn is given back after each batch.

        Args:
            plan_ref: The plan's reference, in a list so that Ray hands over the reference and not the value: it is
                fetched once per plan and not once per shard.
            shard: The shard.
            gate: Whose the shard is; told when it begins, and asked before each batch is handed over.

        Raises:
            RayError: The plan or the reducer is gone.
        """
        work = Work(tenant=gate.tenant, kind="shard", run=gate.run, shard=shard.id, stall_s=gate.stall_s)
        with self._turns.visit(work) as visit:
            plan = self._fetch(plan_ref[0])  # without the turn: if its driver does not answer, only its tenant waits
            batches, known = self._models.run(plan, shard, gate.stream), False
            while True:
                with self._turns.turn(visit):
                    if not known:
                        gate.begin()
                    began = time.monotonic()
                    batch: EvaluatedBatch | None = self._beside_models(next, batches, None)
                    seconds = time.monotonic() - began
                    self._batches += batch is not None
                if batch is None:
                    return
                meters.count_batch(batch, gate.run, seconds)
                known = not self._turns.is_shared(gate.tenant)  # or the reducer takes it for another's turn
                if not self._admitted(gate, shard.id, batch, shared=not known):
                    return
                yield batch
                del batch  # or it would be kept while others have their turns

    def call(
        self,
        tenant: Tenant,
        config: ModelConfig,
        function: Callable[Concatenate[LanguageModel, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``function(model, ...)`` beside the pinned model in one turn; the model itself never travels.

        Raises:
            RuntimeError: It called `sys.exit`, which is not to end the replica of all.
        """
        with self._turns.visit(Work(tenant=tenant, kind="call")) as visit, self._turns.turn(visit):
            try:
                return self._beside_models(lambda: function(self._models.get(config), *args, **kwargs))
            except SystemExit as error:
                raise RuntimeError(f"The function called sys.exit({error.code!r}).") from error

    def _have_keeper(self) -> None:
        """See to it that the pool has a keeper, whoever ended the last one."""
        while True:
            try:
                ensure_keeper(self._pool, self._pool_idle_s)
            except (RayError, OSError, ValueError) as error:  # the control store is out of reach
                LOGGER.info("The keeper of pool `%s` could not be looked for: %s", self._pool, error)
            time.sleep(KEEPER_S)

    def _beside_models(self, function: Callable[..., T], *args: Any) -> T:
        """Run something on the models' thread: torch and CUDA keep state for each thread."""
        return self._thread.submit(copy_context().run, function, *args).result()

    def _admitted(self, gate: Gate, shard_id: str, batch: EvaluatedBatch, *, shared: bool) -> bool:
        began = time.monotonic()
        try:
            with log_context(run=gate.run, shard=shard_id, stream=gate.stream), span("wait", "wait for admission"):
                return gate.admit(batch_bytes(batch), shared=shared, spans=SPANS.take(gate.run, ""))
        finally:
            meters.add(ADMISSION_SECONDS, time.monotonic() - began, run=gate.run)

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """Answer with the process id, also while a shard runs; counts as use. One that leaves lets it wait and dies."""
        self._turns.touch()
        return os.getpid()

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Sign of life, also while a shard runs; at work while one has the turn, and not while it waits for others."""
        holder = self._turns.state().holder
        if holder is None or holder.kind != "shard":
            return Beat(at_work=False, count=self._batches)
        return Beat(at_work=True, count=self._batches, stall_s=holder.stall_s)

    @ray.method(concurrency_group="control")
    def idle_s(self) -> float:
        """Seconds since the last use; 0 while there is work."""
        return self._turns.state().idle_s

    @ray.method(concurrency_group="control")
    def leave(self, idle_s: float) -> bool:
        """Agree to be ended if nobody was here for so long; who comes from then on waits, and sees the replica die.

        One that nobody ends after all ends itself, so that nobody waits for longer than `LEAVING_S`.
        """
        left = self._turns.leave(idle_s)
        if left:
            timer = threading.Timer(LEAVING_S, os._exit, (0,))
            timer.daemon = True
            timer.start()
        return left

    @ray.method(concurrency_group="control")
    def info(self) -> ReplicaInfo:
        """Facts and state, also while a shard runs."""
        context = ray.get_runtime_context()
        accelerators: dict[str, list[Any]] = context.get_accelerator_ids()
        turns = self._turns.state()
        works = turns.works
        return ReplicaInfo(
            spec=self._spec,
            pid=os.getpid(),
            node_id=context.get_node_id(),
            gpus=tuple(str(gpu) for gpu in accelerators.get("GPU", [])),
            models=self._models.names,
            configs=self._models.configs,
            shard_id=next((work.shard for work in works if work.kind == "shard"), None),
            turns=turns,
            batches=self._batches,
            pool_idle_s=self._pool_idle_s,
        )

    def _fetch(self, ref: ObjectRef[Plan]) -> Plan:
        """The plan, of which the replica keeps the last few."""
        with self._fetching:
            plan = self._plans.get(ref)
        if plan is None:
            plan = ray.get(ref)
        with self._fetching:
            plan = self._plans.setdefault(ref, plan)  # another thread's, if it was faster: runners go by identity
            self._plans.move_to_end(ref)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return plan


def _observe_load(config: ModelConfig, seconds: float) -> None:
    meters.observe(MODEL_LOAD_SECONDS, seconds, model=config.name)
