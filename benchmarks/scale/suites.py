"""The cases of the benchmark: more and more replicas, a slow store, and fifty times the data."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.scale.case import Case, Recorded, make_plan, run_case
from benchmarks.scale.cluster import cluster
from benchmarks.scale.control import plan_costs
from benchmarks.scale.event_log import EventLog
from benchmarks.scale.figures_of import figures_of
from benchmarks.scale.replica import SimulatedPool
from benchmarks.scale.stored import compaction, stored
from benchmarks.scale.work import ModelledGpu, Work
from dsprobe.actors.replica import ReplicaSpec

SMALL: Final = Work(rows=8, steps=32, length=64, prompt_length=64, step_ms=1.0)
"""Of the suites that are not about speed."""
STORE_WINDOW_MIB: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    suites: tuple[str, ...]
    replicas: tuple[int, ...]
    seconds: float
    work: Work
    nodes: int
    store_mib: int
    factor: int
    """Shards of the large memory case over those of the small one."""
    root: str | None


@dataclass(frozen=True, slots=True)
class Bench:
    """Replicas that are up, and where runs go."""

    pool: SimulatedPool
    events: EventLog
    root: str

    def run(self, case: Case) -> Recorded:
        """Run a case."""
        return run_case(case, self.pool, self.events, self.root)


@contextmanager
def bench(settings: Settings) -> Iterator[Bench]:
    """One cluster and one pool for all cases."""
    most = max([*settings.replicas, 4]) if "store" in settings.suites else max(settings.replicas)
    gpus_per_node = -(-most // settings.nodes)
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(settings.nodes, gpus_per_node, settings.store_mib),
    ):
        events = EventLog(str(Path(folder) / "events"), time.time())
        Path(events.folder).mkdir()
        pool = SimulatedPool(ReplicaSpec(num_gpus=1, num_cpus=0, threads=1), events)
        yield Bench(pool, events, settings.root or folder)


def measure(settings: Settings, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the suites.

    Args:
        settings: What.
        save: Called with all figures so far after every case.

    Returns:
        Settings, and the figures of every case by suite.
    """
    figures: dict[str, Any] = {
        "settings": asdict(settings)
        | {"gpu": asdict(ModelledGpu()), "cores": os.cpu_count(), "machine": platform.machine()}
    }
    figures["plan"] = plan_costs(make_plan(scaling(settings)[0]))
    with bench(settings) as running:
        for suite in (suite for suite in SUITES if suite in settings.suites):
            figures[suite] = []
            for case in SUITES[suite](settings):
                recorded = running.run(case)
                figures[suite].append(figures_of(recorded))
                if suite == "scaling" and recorded.store.committed():
                    figures["stored"], figures["compaction"] = stored(recorded.store), compaction(recorded.store)
                save(figures)
    return figures


def scaling(settings: Settings) -> Sequence[Case]:
    """The same work for each of more and more replicas."""
    return [
        Case(name=f"replicas-{replicas}", replicas=replicas, work=settings.work, seconds=settings.seconds)
        for replicas in settings.replicas
    ]


def slow_store(settings: Settings) -> Sequence[Case]:
    """Four replicas and one reducer with a window of a few batches; the store needs no time, or twice theirs."""
    work = replace(SMALL, step_ms=10.0)
    fast = Case(name="store-fast", replicas=4, work=work, seconds=settings.seconds, window_mib=STORE_WINDOW_MIB)
    return [fast, replace(fast, name="store-slow", delay_s=2 * work.batch_s)]


def data_growth(settings: Settings) -> Sequence[Case]:
    """Two replicas that hardly wait, and one or many times as many shards of the same four conditions."""
    small = Case(name="data-1x", replicas=2, work=SMALL, shards=4, shards_per_condition=1, sample_s=0.2)
    shards = small.shards * settings.factor
    return [small, replace(small, name=f"data-{settings.factor}x", shards=shards, shards_per_condition=shards // 4)]


SUITES = {"memory": data_growth, "store": slow_store, "scaling": scaling}
"""In this order: replicas are started when the first case needs them."""
