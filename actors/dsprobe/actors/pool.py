"""A named pool of detached replicas: created once, reused by every later call, experiment and notebook."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from dsprobe.actors.dispatching import START_LIMIT_S
from dsprobe.actors.keeper import end_keeper
from dsprobe.actors.names import all_members, members, replica_name
from dsprobe.actors.placement import spread
from dsprobe.actors.replica import THREADS, Replica, ReplicaInfo, ReplicaSpec
from dsprobe.actors.room import GROWTH_LIMIT_S, await_room, describe_room, may_grow, room_limit
from dsprobe.actors.session import LOGGER, NAMESPACE, current_tenant, is_private
from dsprobe.config import ExecutionConfig, ModelConfig
from dsprobe.errors import ConfigError, PrerequisiteError, unknown_name
from dsprobe.models.base import LanguageModel

P = ParamSpec("P")
T = TypeVar("T")

STOP_LIMIT_S: Final = 15.0
"""How long a stopped pool may take to give its names back."""
JOIN_LIMIT_S: Final = 20.0
"""How long `ReplicaPool.connect` waits for replicas that are coming up; those without room may take for ever."""

Told = Callable[[int, int], None]
"""Told how many replicas are up, and how many are not."""


class ReplicaPool:
    """Replicas ``<name>:0``, ``<name>:1``, … in the Ray namespace ``dsprobe``.

    The names are the truth: Ray gives a name to one live actor only, so two drivers that create the same pool at once
    end up with the same replicas, and a dead replica's name is free for its successor. Use `get_or_create` or
    `connect`.

    Args:
        name: Pool name.
        spec: What each replica was given.
        replicas: Handles by number, which is the last part of the name.
        idle_s: Seconds without work after which the pool is ended; 0 never.
    """

    def __init__(
        self, name: str, spec: ReplicaSpec, replicas: Mapping[int, ActorHandle[Replica]], idle_s: float
    ) -> None:
        self.name = name
        self.spec = spec
        self.idle_s = idle_s
        self.tenant = current_tenant()
        """Whose turn is taken by what is submitted here."""
        self._handles = dict(replicas)
        self._up = set(replicas)
        self._turn = itertools.count()

    @property
    def numbers(self) -> list[int]:
        """Numbers of the replicas that were up when this was made, sorted."""
        return sorted(self._up)

    @property
    def replicas(self) -> list[ActorHandle[Replica]]:
        """Their handles, in the same order."""
        return [self._handles[number] for number in self.numbers]

    @property
    def pending(self) -> dict[int, ActorHandle[Replica]]:
        """The others by number: they are coming up, or wait for room."""
        return {number: handle for number, handle in self._handles.items() if number not in self._up}

    @classmethod
    def get_or_create(
        cls,
        name: str,
        execution: ExecutionConfig,
        models: Sequence[ModelConfig] = (),
        *,
        room_limit_s: float | None = None,
        told: Told = lambda up, pending: None,
    ) -> ReplicaPool:
        """Return the pool with enough replicas answering; missing ones are started, running ones kept.

        Enough are `ExecutionConfig.least_replicas`. The others are left to come up when there is room, and until then
        they are what an autoscaler sees as demand.

        Args:
            name: Pool name.
            execution: Number of replicas and what each is given. A larger running pool is used in part.
            models: Models that the replicas begin to load at once. An error shows at the first shard that needs it.
            room_limit_s: Seconds to wait for resources on a cluster that does not grow; as `room_limit`, unless given.
            told: Called about once a second while replicas are awaited.

        Raises:
            PrerequisiteError: The cluster has no room, or a replica does not come up.
            ConfigError: The running pool was created with other resources.
        """
        spec, least, grows = ReplicaSpec.of(execution), execution.least_replicas, may_grow(execution)
        existing, wanted = members(name), set(range(execution.replicas))
        running = _check_spec(name, spec, existing)
        if not grows:
            await_room(
                f"replica pool `{name}`",
                spec,
                least,
                lambda: least - len(wanted & members(name).keys()),
                limit_s=room_limit(execution) if room_limit_s is None else room_limit_s,
                remedy="Lower `execution.replicas`, `num_gpus` or `num_cpus`, stop other pools, or add nodes.",
            )
        idle_s = 0.0 if is_private() else execution.pool_idle_s
        pool = cls(name, spec, {}, idle_s if running is None else running.pool_idle_s)  # a pool has one limit
        try:
            for number in sorted(wanted):
                pool.restart(number).preload.remote(pool.tenant, list(models))
            pool._await(least, GROWTH_LIMIT_S if grows else START_LIMIT_S, told)
            _check_spec(name, spec, dict(zip(pool.numbers, pool.replicas, strict=True)))  # another driver may be first
        except BaseException:  # an interrupt, too: detached, they would wait for room without an end
            for number in pool.pending.keys() - existing.keys():
                pool.release(number)
            raise
        return pool

    @classmethod
    def connect(cls, name: str) -> ReplicaPool:
        """Attach to a running pool, e.g. from a notebook: to the replicas that are up, or come up in a moment.

        Raises:
            ConfigError: No pool of that name runs; the message lists those that do.
            PrerequisiteError: None of its replicas is up.
        """
        found = members(name)
        if not found:
            raise unknown_name("replica pool", name, cls.running())
        answers = infos(found)
        if not answers:
            raise PrerequisiteError(f"None of the {len(found)} replicas of pool `{name}` is up yet.")
        first = answers[min(answers)]
        return cls(name, first.spec, {number: found[number] for number in answers}, first.pool_idle_s)

    @staticmethod
    def running() -> list[str]:
        """Names of the pools that run on the connected cluster, sorted."""
        return sorted({pool for pool, _ in all_members()})

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
        reference: ObjectRef[T] = replica.call.remote(self.tenant, config, function, *args, **kwargs)
        return reference

    def info(self) -> list[ReplicaInfo]:
        """State of every replica, busy ones included."""
        return [_info(replica) for replica in self.replicas]

    def loaded(self) -> dict[int, tuple[ModelConfig, ...]]:
        """Models that the replicas have loaded, by number."""
        answers = infos({number: self._handles[number] for number in self.numbers})
        return {number: info.configs for number, info in answers.items()}

    def replace(self, index: int) -> ActorHandle[Replica]:
        """Start a successor for a replica that died, given by its place in `replicas`; see `restart`."""
        return self.restart(self.numbers[index])

    def restart(self, number: int) -> ActorHandle[Replica]:
        """Start a successor under a replica's number; returns at once, calls to the handle wait for it."""
        self._handles[number] = self._start(number)
        return self._handles[number]

    def release(self, number: int) -> None:
        """End a replica, up or not, and give its resources back."""
        if (handle := self._handles.pop(number, None)) is not None:
            self._up.discard(number)
            ray.kill(handle)

    def stop(self) -> None:
        """End every replica of the pool, also those that other drivers started."""
        self.end(self.name)
        self._handles, self._up = {}, set()

    @staticmethod
    def end(name: str) -> bool:
        """Likewise by name, also where no replica is up.

        Returns:
            Whether it is gone; a run that is under way starts it anew.
        """
        for replica in members(name).values():
            ray.kill(replica)
        deadline = time.monotonic() + STOP_LIMIT_S
        while members(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        gone = not members(name)
        if gone:
            end_keeper(name)
        return gone

    def _start(self, index: int) -> ActorHandle[Replica]:
        """Return the replica of that index, starting it if the name is free."""
        remote: Any = ray.remote  # its type hints do not know concurrency groups
        actor = remote(concurrency_groups={"control": 1})(Replica)
        handle: ActorHandle[Replica] = actor.options(
            name=replica_name(self.name, index),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_gpus=self.spec.num_gpus,
            num_cpus=self.spec.num_cpus,
            **spread(),
            max_concurrency=THREADS,
            # A lost shard is retried by the executor, which knows what it cost; Ray's own restarts would hide it.
            max_restarts=0,
            runtime_env={"env_vars": self.spec.environment},
        ).remote(self.spec, self.name, self.idle_s)
        return handle

    def _await(self, least: int, limit_s: float, told: Told) -> None:
        """Wait until enough replicas answer; one that dies meanwhile is started once more."""
        pings: dict[ObjectRef[int], int] = {handle.ping.remote(): number for number, handle in self._handles.items()}
        deadline, again = time.monotonic() + limit_s, set[int]()
        while len(self._up) < least:
            told(len(self._up), len(pings))
            for number in self._up:
                self._handles[number].ping.remote()  # those that wait for the others are not idle
            ready, _ = ray.wait(list(pings), timeout=1.0)
            for ref in ready:
                number = pings.pop(ref)
                try:
                    ray.get(ref)
                    self._up.add(number)
                except RayError as error:
                    if number in again:
                        if len(self._up) + len(pings) < least:
                            raise PrerequisiteError(
                                f"A replica of pool `{self.name}` did not start: {error}"
                            ) from error
                        continue  # enough others are coming; whoever runs shards tries this one again
                    LOGGER.info("A replica of pool `%s` is started once more: %s", self.name, error)
                    again.add(number)
                    time.sleep(0.2)  # the dead one may still have the name
                    pings[self.restart(number).ping.remote()] = number
            if not ready and time.monotonic() > deadline:
                raise PrerequisiteError(
                    f"{len(self._up)} of {least} replicas of pool `{self.name}` came up within {limit_s:.0f} s. "
                    f"{describe_room(self.spec, least)}"
                )


def _check_spec(name: str, asked: ReplicaSpec, running: Mapping[int, ActorHandle[Replica]]) -> ReplicaInfo | None:
    """Compare with what a running pool was created with; the first replica to answer speaks for it, and is returned."""
    for info in infos(running, enough=1).values():
        if asked != info.spec:
            raise ConfigError(
                f"Pool `{name}` runs with num_gpus={info.spec.num_gpus:g}, num_cpus={info.spec.num_cpus:g}, "
                f"threads={info.spec.threads}; asked for num_gpus={asked.num_gpus:g}, num_cpus={asked.num_cpus:g}, "
                f"threads={asked.threads}. Stop it, or choose another `execution.pool`."
            )
        return info
    return None


def infos(
    replicas: Mapping[int, ActorHandle[Replica]], enough: int | None = None, limit_s: float = JOIN_LIMIT_S
) -> dict[int, ReplicaInfo]:
    """State by number of the replicas that answer in time, in order of the numbers.

    Args:
        replicas: Handles by number.
        enough: How many answers are waited for; all, unless given.
        limit_s: Seconds to wait.
    """
    waiting: dict[ObjectRef[ReplicaInfo], int] = {replica.info.remote(): n for n, replica in replicas.items()}
    found: dict[int, ReplicaInfo] = {}
    deadline = time.monotonic() + limit_s
    while waiting and len(found) < (enough or len(replicas)):
        ready, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for ref in ready:
            number = waiting.pop(ref)
            with suppress(RayError):  # dead: its name is free
                found[number] = ray.get(ref)
    return dict(sorted(found.items()))


def _info(replica: ActorHandle[Replica]) -> ReplicaInfo:
    reference: ObjectRef[ReplicaInfo] = replica.info.remote()
    return ray.get(reference)
