"""One case: so many replicas, a store, and a while of steady work in the middle of a run that is then cut off.

The run goes through the real dispatcher, reducers, shard writer and store; only the replicas are simulated.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from benchmarks.scale.event_log import GENERATED, WRITTEN, Event, EventLog
from benchmarks.scale.measured_store import MeasuredStore
from benchmarks.scale.object_stores import ObjectStores, StoreTotals
from benchmarks.scale.processes import Memory, Role, cpu_seconds, machine_cpu_seconds, memory, roles
from benchmarks.scale.replica import SimulatedPool
from benchmarks.scale.work import Work, simulated_shards
from dsprobe.actors.executor import Ledger, Progress
from dsprobe.actors.ray_executor import ShardDispatcher
from dsprobe.config import RunConfig
from dsprobe.experiment.plan import Plan, Shard
from dsprobe.storage.run_store import RunStore, plan_facts

if TYPE_CHECKING:
    from dsprobe.actors.pool import ReplicaPool
    from dsprobe.actors.window import WindowStats


WARM_UP_LIMIT_S: Final = 60.0
"""After this long the steady part begins in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is run and for how long."""

    name: str
    replicas: int
    work: Work
    seconds: float = 0.0
    """Length of the steady part; 0 runs all shards instead."""
    batches_per_shard: int = 2
    shards: int = 0
    """0 for more than can be done in the time."""
    shards_per_condition: int = 24
    window_mib: int = 256
    delay_s: float = 0.0
    """Seconds that the store takes longer for a batch."""
    sample_s: float = 1.0
    """Seconds between two looks at memory and object stores."""

    @property
    def num_shards(self) -> int:
        """Shards of the plan."""
        if self.shards:
            return self.shards
        shortest_s = self.batches_per_shard * self.work.batch_s * (1 - self.work.jitter)
        return self.replicas * (4 + math.ceil((self.seconds + self.work.batch_s) / shortest_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the processes and stores."""

    at: float
    memory: dict[Role, Memory]
    store_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Counters at one end of the steady part."""

    at: float
    cpu: dict[Role, float]
    machine_cpu: float
    """Of all processes of the machine, also those outside this namespace."""
    stores: StoreTotals


@dataclass(slots=True, kw_only=True)
class Recorded:
    """What one case left behind."""

    case: Case
    events: dict[str, list[Event]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    first: Mark | None = None
    last: Mark | None = None
    windows: list[WindowStats] = field(default_factory=list)
    """Of each reducer, at the end."""
    store: RunStore


def make_plan(case: Case) -> Plan:
    """A plan of simulated shards; replicas do not read it."""
    config = RunConfig.model_validate(
        {
            "name": "scale",
            "models": [{"name": "toy"}],
            "prompts": [{"source": "toy"}],
            "execution": {"replicas": case.replicas, "batch_size": case.work.rows, "window_mib": case.window_mib},
        }
    )
    shards = simulated_shards(
        case.name,
        case.work,
        count=case.num_shards,
        batches=case.batches_per_shard,
        per_condition=case.shards_per_condition,
    )
    return Plan(
        run_id=case.name,
        config=config,
        prompt_sets={},
        models={},
        conditions=tuple(dict.fromkeys(shard.condition for shard in shards)),
        skipped={},
        shards=tuple(cast("Sequence[Shard]", shards)),
    )


def run_case(case: Case, pool: SimulatedPool, events: EventLog, root: str) -> Recorded:
    """Run a case into a fresh run of a root folder or bucket.

    Args:
        case: What.
        pool: Has at least as many replicas.
        events: Cleared first.
        root: fsspec URL.
    """
    plan = make_plan(case)
    store = RunStore(root, plan.run_id)
    store.write_manifest(plan_facts(plan))
    events.clear()
    recorded = Recorded(case=case, store=store)
    part = pool.first(case.replicas)
    part.begin(case.name, case.work)
    watcher = _Watcher(recorded, events)
    ledger = Ledger(plan, plan.shards, watcher.progress)
    dispatcher = ShardDispatcher(plan, MeasuredStore(store, events, case.delay_s), ledger, cast("ReplicaPool", part))
    try:
        watcher.start()
        dispatcher.run()
    except _TimeIsUpError:
        pass
    finally:
        watcher.finish()
        recorded.windows = _window_stats(dispatcher)
        dispatcher.close()
        part.begin("", case.work)
    ledger.report().raise_if_incomplete()
    recorded.events = events.read()
    return recorded


def _window_stats(dispatcher: ShardDispatcher) -> list[WindowStats]:
    import ray

    stats: list[WindowStats] = ray.get([reducer.stats.remote() for reducer in dispatcher.helpers()])
    return stats


class _TimeIsUpError(Exception):
    """Ends a run like an interrupt would."""


class _Watcher:
    """A thread that marks the steady part and samples in between.

    Args:
        recorded: Gets samples and marks.
        events: Read to see when all replicas are at work.
    """

    def __init__(self, recorded: Recorded, events: EventLog) -> None:
        self._recorded, self._events = recorded, events
        self._stores = ObjectStores()
        self._over, self._time_is_up = threading.Event(), threading.Event()
        self._own_cpu = 0.0
        self._thread = threading.Thread(target=self._watch, name="scale-watcher")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Wait for the thread."""
        self._over.set()
        self._thread.join()

    def progress(self, progress: Progress) -> None:
        """Called by the dispatcher now and then.

        Raises:
            _TimeIsUpError: The steady part is over.
        """
        del progress
        if self._time_is_up.is_set():
            raise _TimeIsUpError

    def _watch(self) -> None:
        case, recorded = self._recorded.case, self._recorded
        limit = self._events.now() + WARM_UP_LIMIT_S
        while case.seconds and not self._steady() and self._events.now() < limit:
            if self._over.wait(0.25):
                return
        recorded.first = self._mark()
        while not self._over.wait(case.sample_s):
            recorded.samples.append(self._sample())
            if case.seconds and self._events.now() - recorded.first.at > case.seconds:
                break
        recorded.last = self._mark()
        self._time_is_up.set()

    def _steady(self) -> bool:
        """Every replica has finished a batch, as many are written, and what piled up at the start is gone."""
        events, replicas = self._events.read(), self._recorded.case.replicas
        made, written = len(events[GENERATED]), len(events[WRITTEN])
        at_work = len({event["replica"] for event in events[GENERATED]}) >= replicas and written >= replicas
        return at_work and (made - written <= replicas / 4 or self._recorded.case.delay_s > 0)

    def _sample(self) -> Sample:
        return Sample(at=self._events.now(), memory=memory(roles()), store_bytes=self._stores.totals().used)

    def _mark(self) -> Mark:
        """Counters of now, without what this thread itself has used."""
        cpu = cpu_seconds(roles())
        cpu["driver"] -= time.thread_time()
        return Mark(at=self._events.now(), cpu=cpu, machine_cpu=machine_cpu_seconds(), stores=self._stores.totals())
