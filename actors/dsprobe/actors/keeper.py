"""The keeper of a pool: ends it once all its replicas were idle for long enough, which gives its nodes back.

The decision about a replica is the replica's own (`Replica.leave`), in one step with admitting work. So whoever comes
while a pool is ended either finds a replica that lives on, or sees one die, as by any other loss, and starts another.
Replicas make sure that their pool has a keeper (`ensure_keeper`), so one that is lost is replaced, and a pool that
somebody revives is kept again.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dsprobe.actors.names import keeper_name, members
from dsprobe.actors.session import NAMESPACE
from dsprobe.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from dsprobe.actors.replica import Replica

T = TypeVar("T")

LOGGER = logging.getLogger("dsprobe.actors.keeper")

ASKED_S: Final = 30.0
"""Seconds between two looks at a pool, at most."""
ANSWER_S: Final = 10.0
"""Seconds that a replica is given to answer."""


class Keeper:
    """Watches a pool's replicas until there are none.

    Args:
        pool: Its name.
        idle_s: Seconds without work, of all replicas, after which they are ended.
    """

    def __init__(self, pool: str, idle_s: float) -> None:
        configure_logging()
        self._pool, self._idle_s = pool, idle_s
        self._seen = time.monotonic()
        """When there were replicas last."""
        self._silent: dict[int, float] = {}
        """Replicas that do not answer, by number, and since when."""
        threading.Thread(target=self._watch, name="keeper", daemon=True).start()

    def _watch(self) -> None:
        try:
            while not self._is_over():
                time.sleep(min(ASKED_S, max(self._idle_s / 10, 0.2)))
        finally:
            # Nobody asks a keeper for anything that would be lost. If it failed, or a replica comes up now, the pool's
            # replicas start another.
            ray.kill(ray.get_runtime_context().current_actor)

    def _is_over(self) -> bool:
        """Look at the pool, end it if it is idle, and say whether it is gone."""
        try:
            replicas = members(self._pool)
            if replicas:
                self._seen = time.monotonic()
                return self._all_idle(replicas) and self._all_left(replicas)
        except RayError as error:  # the control store is out of reach, or a replica died meanwhile
            LOGGER.info("Pool `%s` could not be looked at: %s", self._pool, error)
        return time.monotonic() - self._seen > self._idle_s

    def _all_idle(self, replicas: dict[int, ActorHandle[Replica]]) -> bool:
        """Whether all are idle for long enough. One that hangs, or waits for a node, is silent, which counts alike."""
        asked: dict[int, ObjectRef[float]] = {number: replica.idle_s.remote() for number, replica in replicas.items()}
        answers = _answers(asked)
        now = time.monotonic()
        self._silent = {number: self._silent.get(number, now) for number in replicas.keys() - answers.keys()}
        idle = [*answers.values(), *(now - since for since in self._silent.values())]
        return min(idle) >= self._idle_s

    def _all_left(self, replicas: dict[int, ActorHandle[Replica]]) -> bool:
        """End those that agree, and the silent ones; whether those are all."""
        asked: dict[int, ObjectRef[bool]] = {n: replica.leave.remote(self._idle_s) for n, replica in replicas.items()}
        left = _answers(asked)
        ended = [number for number in replicas if left.get(number, number in self._silent)]
        for number in ended:
            ray.kill(replicas[number])
        LOGGER.info("Pool `%s` was idle for %.0f s: ended %d replicas", self._pool, self._idle_s, len(ended))
        return len(ended) == len(replicas)


def ensure_keeper(pool: str, idle_s: float) -> ActorHandle[Keeper]:
    """Return the pool's keeper, starting it if there is none; the first one's limit holds.

    It takes no resources and is on the head node, which no autoscaler ends. Ray restarts it where its process dies.
    """
    name = keeper_name(pool)
    with suppress(ValueError):
        found: ActorHandle[Keeper] = ray.get_actor(name, namespace=NAMESPACE)
        return found
    remote: Any = ray.remote
    handle: ActorHandle[Keeper] = (
        remote(Keeper)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=_head_node(),
        )
        .remote(pool, idle_s)
    )
    return handle


def end_keeper(pool: str) -> None:
    """End a pool's keeper, if it has one."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(keeper_name(pool), namespace=NAMESPACE))


def _head_node() -> Any:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    heads = [node["NodeID"] for node in nodes if node["Alive"] and "node:__internal_head__" in node["Resources"]]
    # Not soft: an actor that takes nothing would be put anywhere, and keep a node that is drained from going.
    return NodeAffinitySchedulingStrategy(heads[0], soft=False) if heads else "DEFAULT"


def _answers(references: dict[int, ObjectRef[T]]) -> dict[int, T]:
    """What replicas answer, without those that do not, or are dead."""
    ready, _ = ray.wait(list(references.values()), num_returns=len(references), timeout=ANSWER_S)
    found: dict[int, T] = {}
    for number, reference in references.items():
        if reference in ready:
            with suppress(RayError):
                found[number] = ray.get(reference)
    return found
