"""From measured figures to 3 TB of step logs on 64 GPUs: the arithmetic of docs/scale.md.

Run as ``python -m benchmarks.scale.extrapolate scale.json``; every assumption that was not measured is an option.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from dsprobe.storage.run_store import READERS

HOUR: Final = 3600.0

GROWING: Final = ("trajectories.parquet", "steps.parquet")
"""Files with a row a trajectory or step; reducer states and candidate positions have one size a shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What the measurement does not say."""

    log_tb: float = 3.0
    """TB of step logs."""
    row_bytes: float = 24.0
    """Bytes of a step log's row: one response position at one step."""
    gpus: int = 64
    gpus_per_node: int = 8
    shard_size: int = 64
    """Trajectories a shard."""
    request_ms: float = 20.0
    """Milliseconds of a small request to the object store."""
    put_price: float = 5.0
    """Dollars a million PUT or LIST requests."""
    get_price: float = 0.4
    """Dollars a million GET requests."""
    put_limit: float = 3500.0
    """PUT requests a second that a bucket prefix takes."""
    scan_rows_per_s: float = 0.0
    """Position rows a second and core of `dsprobe reduce`; 0 where not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the page's table."""

    topic: str
    what: str
    value: str


class Projection:
    """All derived numbers; times in seconds, sizes in bytes, rates a second.

    Args:
        figures: As `python -m benchmarks.scale` wrote them, with the scaling suite.
        assumed: The rest.
    """

    def __init__(self, figures: dict[str, Any], assumed: Assumptions) -> None:
        self.assumed = assumed
        self.case = max(figures["scaling"], key=lambda case: case["replicas"])
        self.work, self.plan = figures["settings"]["work"], figures["plan"]
        self.stored, self.compaction = figures["stored"], figures["compaction"]
        self.positions_per_trajectory: float = self.work["steps"] * self.work["length"]
        self.position_rows: float = assumed.log_tb * 1e12 / assumed.row_bytes
        self.trajectories: float = self.position_rows / self.positions_per_trajectory
        self.batch_s: float = self.work["steps"] * self.work["step_ms"] / 1e3
        self.batches_per_s: float = assumed.gpus / self.batch_s
        self.seconds: float = self.trajectories / (self.batches_per_s * self.work["rows"])
        self.shards: float = self.trajectories / assumed.shard_size
        self.reducers: float = assumed.gpus * self.case["reducers"] / self.case["replicas"]

    @property
    def batch_log_bytes(self) -> float:
        """Step log of a batch."""
        return float(self.work["rows"] * self.positions_per_trajectory * self.assumed.row_bytes)

    def cores(self, role: str) -> float:
        """Processors that a role keeps busy."""
        return float(self.case["cpu_s_per_batch"][role] * self.batches_per_s)

    @property
    def created_bytes(self) -> float:
        """Bytes that come into the object stores a second, copies on other nodes included."""
        copies = self.case["object_store_mb_per_s"] / self.case["written_mb_per_s"]
        return float(self.case["batch_mb"] * copies) * 1e6 * self.batches_per_s

    @property
    def puts(self) -> float:
        """PUT requests: the files of every shard and its commit record."""
        return self.shards * float(self.stored["files"] / self.stored["shards"] + 1)

    @property
    def shard_bytes(self) -> float:
        """Bytes of all shards' files: some are of one size a shard, some grow with its trajectories."""
        grown = sum(size for name, size in self.stored["bytes"].items() if name in GROWING)
        fixed = sum(self.stored["bytes"].values()) - grown
        return float(
            self.shards * fixed / self.stored["shards"] + self.trajectories * grown / self.stored["trajectories"]
        )

    @property
    def compaction_s(self) -> float:
        """Processor seconds of one compaction of everything, if it takes as long a byte as in the measurement."""
        return self.shard_bytes * float(self.compaction["cpu_s"] / sum(self.stored["bytes"].values()))


def lines(figures: dict[str, Any], assumed: Assumptions) -> list[Line]:
    """The rows of the table, in order."""
    p = Projection(figures, assumed)
    topics = {
        "work": _work,
        "online path": _online,
        "memory": _memory,
        "object store": _store,
        "afterwards": _after,
        "limits": _limits,
    }
    return [Line(topic=topic, what=what, value=value) for topic, part in topics.items() for what, value in part(p)]


def _work(p: Projection) -> Iterator[tuple[str, str]]:
    yield "step log rows (position × step)", f"{p.position_rows / 1e9:.0f} billion"
    yield (
        f"trajectories of {p.work['steps']} steps × {p.work['length']} positions",
        f"{p.trajectories / 1e6:.1f} million",
    )
    yield "modelled seconds of a batch, of a trajectory", f"{p.batch_s:.1f}, {p.batch_s / p.work['rows']:.2f}"
    yield f"hours on {p.assumed.gpus} GPUs", f"{p.seconds / HOUR:.0f}"
    yield "trajectories/s, batches/s", f"{p.batches_per_s * p.work['rows']:.0f}, {p.batches_per_s:.1f}"


def _online(p: Projection) -> Iterator[tuple[str, str]]:
    nodes = p.assumed.gpus / p.assumed.gpus_per_node
    yield "step log made, MB/s", f"{p.batches_per_s * p.batch_log_bytes / 1e6:.0f}"
    yield (
        "reducer CPU seconds a GB of step log",
        f"{p.case['cpu_s_per_batch']['reducers'] / p.batch_log_bytes * 1e9:.1f}",
    )
    yield "reducers, and cores that they keep busy", f"{p.reducers:.0f}, {p.cores('reducers'):.2f}"
    yield "share of a core that one reducer needs", f"{p.cores('reducers') / p.reducers:.1%}"
    yield (
        "cores of replicas (without the model), Ray, driver",
        ", ".join(f"{p.cores(role):.2f}" for role in ("replicas", "ray", "driver")),
    )
    yield "object stores, MB/s in all and a node", f"{p.created_bytes / 1e6:.0f}, {p.created_bytes / nodes / 1e6:.1f}"
    yield "network between nodes at most, Gbit/s in all", f"{p.created_bytes * 8 / 1e9:.2f}"


def _memory(p: Projection) -> Iterator[tuple[str, str]]:
    own = p.case["memory_mib"]["reducers_own"] / p.case["reducers"]
    yield "a reducer's own memory, MiB", f"{own:.0f}"
    window = p.case["window_mib"] * p.reducers * 2**20
    yield "batches waiting at most (all windows full), GB", f"{window / 1e9:.1f}"
    yield (
        "the plan in the driver, and in every replica, GB",
        f"{p.plan['bytes_per_trajectory'] * p.trajectories / 1e9:.2f}",
    )
    yield "the plan on its way to replicas, MB", f"{p.plan['pickled_bytes_per_trajectory'] * p.trajectories / 1e6:.0f}"


def _store(p: Projection) -> Iterator[tuple[str, str]]:
    rate = p.puts / p.seconds
    price = p.puts / 1e6 * p.assumed.put_price
    yield "shards, and a second", f"{p.shards:,.0f}, {p.shards / p.seconds:.2f}"
    yield (
        "PUT requests, and a second",
        f"{p.puts / 1e6:.2f} million, {rate:.1f} ({rate / p.assumed.put_limit:.2%} of a prefix)",
    )
    yield "price of the PUT requests, $", f"{price:.2f}"
    yield (
        "shards' files, GB and share of the step log",
        f"{p.shard_bytes / 1e9:.0f}, {p.shard_bytes / p.assumed.log_tb / 1e12:.1%}",
    )


def _after(p: Projection) -> Iterator[tuple[str, str]]:
    reading = p.shards * p.assumed.request_ms / 1e3 / READERS
    yield f"reading all commit records, {READERS} at a time, for a compaction, minutes", f"{reading / 60:.1f}"
    yield "price of those GET requests, $", f"{p.shards / 1e6 * p.assumed.get_price:.2f}"
    yield "one compaction of everything, CPU hours", f"{p.compaction_s / HOUR:.1f}"
    if p.assumed.scan_rows_per_s:
        scan = p.position_rows / p.assumed.scan_rows_per_s
        yield "offline scan of the stored step log, core hours", f"{scan / HOUR:.0f}"


def _limits(p: Projection) -> Iterator[tuple[str, str]]:
    yield "GPUs at which the one driver is always busy", f"{p.assumed.gpus / p.cores('driver'):,.0f}"
    yield "times as fast a GPU as this at which reducers are always busy", f"{p.reducers / p.cores('reducers'):.0f}"
    yield (
        "GPUs at which a prefix takes no more PUTs",
        f"{p.assumed.gpus * p.assumed.put_limit * p.seconds / p.puts:,.0f}",
    )


def table(figures: dict[str, Any], assumed: Assumptions, shard_sizes: Sequence[int]) -> str:
    """The lines as Markdown; those that depend on the size of shards have a value for each."""
    columns = [lines(figures, replace(assumed, shard_size=size)) for size in shard_sizes]
    rows = [["", "", *(f"shards of {size:,}" for size in shard_sizes)], ["---"] * (2 + len(shard_sizes))]
    for same in zip(*columns, strict=True):
        values = [line.value for line in same]
        rows.append(
            [same[0].topic, same[0].what, *(values if len(set(values)) > 1 else [values[0], *[""] * (len(values) - 1)])]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.scale.extrapolate")
    parser.add_argument("figures", type=Path)
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[64, 1024], help="trajectories a shard")
    assumptions = [field for field in fields(Assumptions) if field.name != "shard_size"]
    for field in assumptions:
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    arguments = parser.parse_args()
    figures = json.loads(arguments.figures.read_text())
    if "stored" not in figures:
        parser.error(f"{arguments.figures} has no case that committed a shard; measure with --suites scaling.")
    assumed = Assumptions(**{field.name: getattr(arguments, field.name) for field in assumptions})
    print(table(figures, assumed, arguments.shard_sizes))


if __name__ == "__main__":
    main()
