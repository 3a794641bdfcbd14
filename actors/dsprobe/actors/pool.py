"""A named pool of detached replicas: created once, reused by every later call, experiment and notebook."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from dsprobe.actors.dispatching import START_LIMIT_S
from dsprobe.actors.replica import Replica, ReplicaInfo, ReplicaSpec
from dsprobe.actors.room import await_room, describe_room
from dsprobe.actors.session import LOGGER, NAMESPACE
from dsprobe.config import ExecutionConfig, ModelConfig
from dsprobe.errors import ConfigError, PrerequisiteError, unknown_name
from dsprobe.models.base import LanguageModel

P = ParamSpec("P")
T = TypeVar("T")

STOP_LIMIT_S = 15.0
"""How long a stopped pool may take to give its names back."""


class ReplicaPool:
    """Replicas ``<name>:0``, ``<name>:1``, … in the Ray namespace ``dsprobe``.

    The names are the truth: Ray gives a name to one live actor only, so two drivers that create the same pool at once
    end up with the same replicas, and a dead replica's name is free for its successor. Use `get_or_create` or
    `connect`.

    Args:
        name: Pool name.
        spec: What each replica was given.
        replicas: Handles by index.
    """

    def __init__(self, name: str, spec: ReplicaSpec, replicas: Sequence[ActorHandle[Replica]]) -> None:
        self.name = name
        self.spec = spec
        self.replicas = list(replicas)
        self._turn = itertools.count()

    @classmethod
    def get_or_create(
        cls,
        name: str,
        execution: ExecutionConfig,
        models: Sequence[ModelConfig] = (),
        *,
        room_limit_s: float = 3.0,
    ) -> ReplicaPool:
        """Return the pool with all its replicas answering; missing ones are started, running ones kept.

        Args:
            name: Pool name.
            execution: Number of replicas and what each is given. A larger running pool is used in part.
            models: Models that the replicas begin to load at once. An error shows at the first shard that needs it.
            room_limit_s: Seconds to wait for resources before giving up.

        Raises:
            PrerequisiteError: The cluster has no room, or a replica does not come up.
            ConfigError: The running pool was created with other resources.
        """
        spec = ReplicaSpec.of(execution)
        existing = _members(name)
        if existing:
            _check_spec(name, spec, _info(existing[min(existing)]).spec)
        wanted = set(range(execution.replicas))
        await_room(
            f"replica pool `{name}`",
            spec,
            len(wanted),
            lambda: len(wanted - _members(name).keys()),
            limit_s=room_limit_s,
            remedy="Lower `execution.replicas`, `num_gpus` or `num_cpus`, stop other pools, or add nodes.",
        )
        pool = cls(name, spec, [_start(name, i, spec) for i in range(execution.replicas)])
        pool._await_ready(new=set(range(execution.replicas)) - existing.keys())
        for replica in pool.replicas:
            replica.preload.remote(list(models))
        return pool

    @classmethod
    def connect(cls, name: str) -> ReplicaPool:
        """Attach to a running pool, e.g. from a notebook.

        Raises:
            ConfigError: No pool of that name runs; the message lists those that do.
        """
        members = _members(name)
        if not members:
            raise unknown_name("replica pool", name, cls.running())
        spec = _info(members[min(members)]).spec
        return cls(name, spec, [members[index] for index in sorted(members)])

    @staticmethod
    def running() -> list[str]:
        """Names of the pools that run on the connected cluster, sorted."""
        return sorted({pool for pool, _ in _all_members()})

    def submit(
        self,
        config: ModelConfig,
        function: Callable[Concatenate[LanguageModel, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ObjectRef[T]:
        """Run ``function(model, ...)`` beside a pinned model, on the replicas in turn; see `Replica.call`."""
        return self.submit_to(next(self._turn), config, function, *args, **kwargs)

    def submit_to(
        self,
        index: int,
        config: ModelConfig,
        function: Callable[Concatenate[LanguageModel, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ObjectRef[T]:
        """Likewise on one replica (counted round the pool), which keeps what the function keeps there."""
        replica = self.replicas[index % len(self.replicas)]
        reference: ObjectRef[T] = replica.call.remote(config, function, *args, **kwargs)
        return reference

    def info(self) -> list[ReplicaInfo]:
        """State of every replica, busy ones included."""
        return [_info(replica) for replica in self.replicas]

    def replace(self, index: int) -> ActorHandle[Replica]:
        """Start a successor for a replica that died; returns at once, calls to the handle wait for it."""
        self.replicas[index] = _start(self.name, index, self.spec)
        return self.replicas[index]

    def stop(self) -> None:
        """End every replica of the pool, also those that other drivers started."""
        for replica in _members(self.name).values():
            ray.kill(replica)
        deadline = time.monotonic() + STOP_LIMIT_S
        while _members(self.name) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.replicas = []

    def _await_ready(self, new: set[int]) -> None:
        """Wait until all replicas answer; one that dies meanwhile is started once more."""
        for index, error in self._pinged(new, range(len(self.replicas))):
            LOGGER.info("A replica of pool `%s` did not start, and is started once more: %s", self.name, error)
            self.replicas[index] = _start(self.name, index, self.spec)
            for _, again in self._pinged(new, [index]):
                raise PrerequisiteError(f"A replica of pool `{self.name}` did not start: {again}") from again

    def _pinged(self, new: set[int], indices: Sequence[int]) -> list[tuple[int, RayError]]:
        """Index and error of replicas that are dead instead of answering."""
        pings: dict[ObjectRef[int], int] = {self.replicas[i].ping.remote(): i for i in indices}
        ready, late = ray.wait(list(pings), num_returns=len(pings), timeout=START_LIMIT_S)
        if late:
            for index in new & {pings[ref] for ref in late}:
                ray.kill(self.replicas[index])
            raise PrerequisiteError(
                f"{len(late)} of {len(pings)} replicas of pool `{self.name}` did not answer within "
                f"{START_LIMIT_S:.0f} s. {describe_room(self.spec, len(pings))}"
            )
        dead = []
        for ref in ready:
            try:
                ray.get(ref)
            except RayError as error:
                dead.append((pings[ref], error))
        return dead


def _check_spec(name: str, asked: ReplicaSpec, running: ReplicaSpec) -> None:
    if asked != running:
        raise ConfigError(
            f"Pool `{name}` runs with num_gpus={running.num_gpus:g}, num_cpus={running.num_cpus:g}, "
            f"threads={running.threads}; asked for num_gpus={asked.num_gpus:g}, num_cpus={asked.num_cpus:g}, "
            f"threads={asked.threads}. Stop it, or choose another `execution.pool`."
        )


def _start(name: str, index: int, spec: ReplicaSpec) -> ActorHandle[Replica]:
    """Return the replica of that index, starting it if the name is free."""
    remote: Any = ray.remote  # its type hints do not know concurrency groups
    actor = remote(concurrency_groups={"control": 1})(Replica)
    handle: ActorHandle[Replica] = actor.options(
        name=f"{name}:{index}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_gpus=spec.num_gpus,
        num_cpus=spec.num_cpus,
        # A lost shard is retried by the executor, which knows what it cost; Ray's own restarts would hide it.
        max_restarts=0,
        runtime_env={"env_vars": spec.environment},
    ).remote(spec)
    return handle


def _all_members() -> list[tuple[str, int]]:
    """Pool name and index of every live replica."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [a["name"].rpartition(":") for a in actors if a["namespace"] == NAMESPACE]
    return [(pool, int(index)) for pool, _, index in names if index.isdigit()]


def _members(name: str) -> dict[int, ActorHandle[Replica]]:
    """Live replicas of a pool by index."""
    members: dict[int, ActorHandle[Replica]] = {}
    for pool, index in _all_members():
        if pool == name:
            try:
                members[index] = ray.get_actor(f"{name}:{index}", namespace=NAMESPACE)
            except ValueError:  # died since it was listed
                continue
    return members


def _info(replica: ActorHandle[Replica]) -> ReplicaInfo:
    reference: ObjectRef[ReplicaInfo] = replica.info.remote()
    return ray.get(reference)
