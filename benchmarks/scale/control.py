"""What a plan costs the driver by its size: bytes in memory and on the way to replicas, seconds of book-keeping."""

from __future__ import annotations

import pickle
import time
import tracemalloc
from typing import Any

from dsprobe.actors.executor import Ledger
from dsprobe.experiment.plan import Plan, RowRef, Shard
from dsprobe.storage.testing import synthetic_condition


def plan_costs(template: Plan, shards: int = 4096, rows: int = 64) -> dict[str, Any]:
    """Measure a plan of real shards.

    Args:
        template: Gives everything but shards.
        shards: Number of shards.
        rows: Trajectories a shard.

    Returns:
        Bytes a trajectory in memory and pickled, seconds a trajectory of pickling, and seconds a shard of one report of
        progress, of which every finished shard causes one.
    """
    tracemalloc.start()
    plan = _with_shards(template, shards, rows)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    start = time.process_time()
    pickled = len(pickle.dumps(plan))
    pickling_s = time.process_time() - start
    ledger = Ledger(plan, plan.shards, lambda progress: None)
    start = time.process_time()
    ledger.tick()
    tick_s = time.process_time() - start
    count = shards * rows
    return {
        "bytes_per_trajectory": held / count,
        "pickled_bytes_per_trajectory": pickled / count,
        "pickling_s_per_trajectory": pickling_s / count,
        "report_s_per_shard": tick_s / shards,
    }


def _with_shards(template: Plan, shards: int, rows: int) -> Plan:
    condition = synthetic_condition()
    made = tuple(
        Shard(
            id=f"{number:020d}",
            condition=condition,
            # Prompt numbers beyond 256, as most are: Python keeps the small ones once.
            rows=tuple(RowRef(1000 + number * rows + row, row % 8) for row in range(rows)),
        )
        for number in range(shards)
    )
    return Plan(
        run_id="plan-costs",
        config=template.config,
        prompt_sets={},
        models={},
        conditions=(condition,),
        skipped={},
        shards=made,
    )
