"""What metrics and logs cost: processor time of the demo with both on, against both off.

Run as ``python -m benchmarks.telemetry [--pairs 6] [--limit 48]``; prints one JSON line. Every measurement is a fresh
process with a fresh private Ray instance: one run brings replicas up and loads the models, the next one is measured,
over all processes of the instance (driver, replicas, reducers, Ray's own). Both kinds take turns, first one and then
the other in front; the ratio is the median over pairs, its spread the quartiles. On a busy machine the spread is wider
than what is looked for, so the time inside the meters themselves is measured too (``direct_percent``): a batch is
counted a few hundred times in a process that Ray exports from. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.processes import descendants
from benchmarks.common import show

KINDS: Final = {
    "off": {"DSPROBE_METRICS": "0"},
    "on": {"DSPROBE_METRICS": "1", "DSPROBE_LOG": "INFO", "DSPROBE_LOG_FORMAT": "json"},
}
"""Kind → environment."""
VARIABLES: Final = ("DSPROBE_METRICS", "DSPROBE_LOG", "DSPROBE_LOG_FORMAT")
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
COUNTS: Final = 300
"""How often a batch is counted for the direct cost."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--limit", type=int, default=48, help="Prompts of each set of the demo.")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.limit)))
        return
    pairs: list[dict[str, dict[str, float]]] = []
    for number in range(options.pairs):
        order = list(KINDS) if number % 2 == 0 else list(KINDS)[::-1]
        pairs.append({kind: run(kind, options.limit) for kind in order})
    show("telemetry", figures(pairs))


def run(kind: str, limit: int) -> dict[str, float]:
    """Measure one kind in a process of its own."""
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES} | KINDS[kind]
    command = [sys.executable, "-m", "benchmarks.telemetry", "--measure", "--limit", str(limit)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def figures(pairs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Ratios of the pairs, and the direct cost as a share of a run."""
    ratios = [pair["on"]["cpu_s"] / pair["off"]["cpu_s"] for pair in pairs]
    on = [pair["on"] for pair in pairs]
    direct = [100 * kind["batches"] * kind["count_s"] / kind["cpu_s"] for kind in on]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "pairs": len(pairs),
        "trajectories": on[0]["trajectories"],
        "cpu_s_off": statistics.median(pair["off"]["cpu_s"] for pair in pairs),
        "cpu_s_on": statistics.median(kind["cpu_s"] for kind in on),
        "ratio": middle,
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "count_us": 1e6 * statistics.median(kind["count_s"] for kind in on),
        "direct_percent": statistics.median(direct),
        "load_average": round(os.getloadavg()[0], 1),
    }


def measure(limit: int) -> dict[str, float]:
    """Run the demo twice in one private instance.

    Returns:
        Processor seconds of the second run, its trajectories and batches, and seconds to count a batch (0 when off).
    """
    from dsprobe.actors.executor import execute
    from dsprobe.actors.session import ray_session
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config
    from dsprobe.experiment.plan import resolve
    from dsprobe.storage.run_store import RunStore, plan_facts
    from dsprobe.sweeps.library import recipes
    from dsprobe.telemetry.logs import configure_logging

    configure_logging()
    spent = 0.0
    with tempfile.TemporaryDirectory() as root:
        given = [f"prompts.{number}.limit={limit}" for number in (0, 1)]
        config = load_config("demo", given, schema=RunConfig, recipes=recipes("run")).config
        plan = resolve(config)
        with ray_session(config.execution, include_dashboard=False):
            for attempt in ("warm", "measured"):
                store = RunStore(f"{root}/{attempt}", plan.run_id)
                store.write_manifest(plan_facts(plan))
                before = cpu_seconds()
                execute(plan, store, progress=lambda progress: None).raise_if_incomplete()
                spent = cpu_seconds() - before
            counted = count_seconds()
    sizes = [len(shard.rows) for shard in plan.shards]
    batches = sum(-(-size // config.execution.batch_size) for size in sizes)
    return {"cpu_s": spent, "trajectories": sum(sizes), "batches": batches, "count_s": counted}


def cpu_seconds() -> float:
    """Processor seconds of this process and all that came of it, ended ones included."""
    ticks = 0
    for pid in descendants(os.getpid()):
        try:
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:  # it has just ended, and is in its parent's sum from now on
            continue
    return ticks * TICK_S


def count_seconds() -> float:
    """Thread seconds to count one batch in the replica and in the reducer, with a real batch's arrays."""
    from dsprobe.actors import meters
    from dsprobe.actors.pinned import PinnedModels
    from dsprobe.telemetry.metrics import ADMISSION_SECONDS, BATCHES_WRITTEN, REDUCER_LAG_SECONDS, REDUCER_WAITING_BYTES

    plan = batch_plan()
    batch = next(iter(PinnedModels().run(plan, plan.shards[0])))
    meters.count_batch(batch, "benchmark", 1.0)  # makes the instruments
    begin = time.thread_time()
    for _ in range(COUNTS):
        meters.count_batch(batch, "benchmark", 1.0)
        meters.add(ADMISSION_SECONDS, 1.0, run="benchmark")
        meters.observe(REDUCER_LAG_SECONDS, 1.0, run="benchmark")
        meters.add(BATCHES_WRITTEN, run="benchmark")
        meters.put(REDUCER_WAITING_BYTES, 1.0, run="benchmark")
        meters.count_storage_retries("benchmark")
    return (time.thread_time() - begin) / COUNTS


def batch_plan() -> Any:
    """A batch of the demo's size that a guardrail has changed."""
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config
    from dsprobe.experiment.plan import resolve
    from dsprobe.sweeps.library import recipes

    given = [
        "models=[toy-diffusion]", "prompts.0.limit=32", "prompts.1.limit=1",
        "guardrails=[{name: early, stack: [{name: renoise, scorer: toy_lexicon, threshold: 0.3}]}]",
        "attacks=[{name: dija, placement: reply, label: 'step {i} :', spans: 4, masks_per_span: 6}]",
        "prompts.1.attacks=[dija]",
    ]  # fmt: skip
    return resolve(load_config("demo", given, schema=RunConfig, recipes=recipes("run")).config)


if __name__ == "__main__":
    main()
