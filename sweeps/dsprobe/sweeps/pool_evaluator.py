"""An evaluator that leaves the work to a named replica pool; what it holds itself is a name and a reference."""

from __future__ import annotations

import functools
import hashlib
import json
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import ray
from ray import ObjectRef
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.room import GROWTH_LIMIT_S
from dsprobe.actors.session import current_tenant
from dsprobe.config import GuardrailConfig, ModelConfig
from dsprobe.errors import DSProbeError, PrerequisiteError
from dsprobe.experiment.outcome_runner import OutcomeRunner, Share, in_plan_order
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.experiment.plan import Plan
from dsprobe.models.base import CausalModel, DiffusionModel, LanguageModel
from dsprobe.models.load import load_model

RETRIES: Final = 3
"""How often a share is tried again after its replica died."""

EXPERIMENTS: Final = 4
"""Experiments whose logged trajectories a replica keeps: sweeps that take turns do not log theirs again."""

_RUNNERS: weakref.WeakKeyDictionary[LanguageModel, OrderedDict[str, OutcomeRunner]] = weakref.WeakKeyDictionary()
"""In a replica: the runners of each pinned model, the last used at the end."""


@dataclass(frozen=True, slots=True)
class Job:
    """An experiment that trials run guardrails on."""

    plan: Plan
    fluency: tuple[ModelConfig, ...]

    @property
    def id(self) -> str:
        """Digest of everything that determines the rows."""
        content = [shard.id for shard in self.plan.shards], [model.model_dump_json() for model in self.fluency]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class PoolEvaluator:
    """Runs guardrails on a replica pool; see `dsprobe.sweeps.evaluation.Evaluator`.

    Row r always goes to replica ``r mod replicas``, so a row's logged trajectories are where its next trial runs. A
    replica that dies is replaced; its rows' trajectories are decoded again, with the same results.

    Args:
        pool: Name of a running pool.
        job: The experiment; all conditions of one model.
        fork: Start from logged trajectories.
    """

    def __init__(self, pool: str, job: Job, *, fork: bool = True) -> None:
        self._pool, self._fork = pool, fork
        self._tenant = current_tenant()  # trials are one tenant with their driver, wherever they run
        self._job_id, self._model = job.id, job.plan.config.models[0]
        self._conditions = [condition.id for condition in job.plan.conditions]
        self._job: ObjectRef[Job] = ray.put(job)

    def evaluate(self, guardrail: GuardrailConfig, start: float, stop: float) -> RowOutcomes:
        """See `Evaluator.evaluate`."""
        pool = _connected(self._pool, ray.get_runtime_context().get_job_id())
        pool.tenant = self._tenant
        parts = len(pool.replicas)
        shares = [Share(start=start, stop=stop, part=part, parts=parts) for part in range(parts)]
        waiting = [self._submit(pool, guardrail, share) for share in shares]
        found = [
            self._result(pool, guardrail, share, reference) for share, reference in zip(shares, waiting, strict=True)
        ]
        return in_plan_order(found, self._conditions)

    def _submit(self, pool: ReplicaPool, guardrail: GuardrailConfig, share: Share) -> ObjectRef[RowOutcomes]:
        return pool.submit_to(
            share.part, self._model, outcomes_of, [self._job], self._job_id, guardrail, share, self._fork
        )

    def _result(
        self, pool: ReplicaPool, guardrail: GuardrailConfig, share: Share, reference: ObjectRef[RowOutcomes]
    ) -> RowOutcomes:
        """Wait for a share; replace its replica where that died.

        Raises:
            DSProbeError: What the replica raised.
            PrerequisiteError: Replicas keep dying.
        """
        for attempt in range(RETRIES + 1):
            try:
                return ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, DSProbeError):
                    raise error.cause from error
                raise
            except (ActorDiedError, ActorUnavailableError):
                if attempt < RETRIES:
                    time.sleep(0.2 * 4**attempt)  # one that is only out of reach comes back
                    ping: ObjectRef[int] = pool.replace(share.part).ping.remote()
                    if not ray.wait([ping], timeout=GROWTH_LIMIT_S)[0]:
                        raise PrerequisiteError(
                            f"Replica {share.part} of pool `{self._pool}` died, and no other came up within "
                            f"{GROWTH_LIMIT_S:.0f} s: there is no room for one."
                        ) from None
                    reference = self._submit(pool, guardrail, share)
        raise PrerequisiteError(f"Replica {share.part} of pool `{self._pool}` died {RETRIES + 1} times on one share.")


@functools.cache
def _connected(pool: str, job_id: str) -> ReplicaPool:
    """The pool's handles, once a connection of this process: those of a closed one are of no use."""
    del job_id
    return ReplicaPool.connect(pool)


def outcomes_of(
    model: LanguageModel,
    job: Sequence[ObjectRef[Job]],
    job_id: str,
    guardrail: GuardrailConfig,
    share: Share,
    fork: bool,
) -> RowOutcomes:
    """Run a share beside the pinned model; called in a replica.

    Args:
        model: The pinned model.
        job: The experiment's reference, in a list so that it is fetched once and not with every call.
        job_id: Its digest.
        guardrail: The stack.
        share: Which rows.
        fork: Start from logged trajectories.
    """
    runners = _RUNNERS.setdefault(model, OrderedDict())
    if job_id not in runners:
        fetched = ray.get(job[0])
        runners[job_id] = OutcomeRunner(fetched.plan, cast("DiffusionModel", model), _fluency_models(fetched, model))
    runners.move_to_end(job_id)
    while len(runners) > EXPERIMENTS:
        runners.popitem(last=False)
    return runners[job_id].run(guardrail, share, fork=fork)


def _fluency_models(job: Job, beside: LanguageModel) -> list[CausalModel]:
    """The causal scorers, on the device of the model they judge."""
    placed = [config.model_copy(update={"device": str(beside.device)}) for config in job.fluency]
    return [cast("CausalModel", load_model(config)) for config in placed]
