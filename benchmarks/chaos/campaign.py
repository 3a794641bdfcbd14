"""One disturbed run: kill, begin again with the same command, compare at the end."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.chaos.cluster import RAY_ENVIRONMENT, Cluster
from benchmarks.chaos.processes import (
    RAYLET,
    REDUCER,
    REPLICA,
    Driver,
    Forked,
    Started,
    descendants,
    kill,
    matching,
    wait_until,
)
from benchmarks.chaos.world import SHARDS, TRAJECTORIES, committed, difference, sweep, tables_of
from dsprobe.errors import StorageError

LOCAL_KINDS = ("driver", "compaction")
"""Faults of runs without Ray."""
RAY_KINDS = ("replica", "reducer", "ray driver", "raylet", "node", "own raylet")
"""Faults of runs on the cluster; `own raylet`: of a driver that has a private Ray instance."""

ATTEMPT_LIMIT_S = 600.0
"""A command that takes longer counts as hung."""
ATTEMPTS = 12
"""The same command is given at most so often."""

UNIT_S, START_UNITS = 0.15, 8
"""Seconds that a commit takes, about, and start-up in such units."""


@dataclass(kw_only=True)
class Kill:
    """One process or node that was killed."""

    what: str
    after_s: float
    """Seconds since its command was started."""
    committed: int
    """Shards that were committed then."""


@dataclass(kw_only=True)
class Result:
    """What became of one disturbed run."""

    number: int
    kind: str
    seed: str
    kills: list[Kill] = field(default_factory=list)
    exits: list[int | None] = field(default_factory=list)
    """Exit code of each attempt; `None` if it was stopped for taking too long."""
    generated: int | None = None
    """Trajectories generated in all attempts, if they could be counted."""
    swept: Counter[str] = field(default_factory=Counter)
    """What the killed processes had left, by kind of garbage."""
    wrong: str = ""
    """What differs from the undisturbed run; empty for nothing."""
    seconds: float = 0.0

    def line(self) -> str:
        """For the log."""
        kills = ", ".join(f"{k.what} at {k.after_s:.1f} s ({k.committed}/{SHARDS} shards)" for k in self.kills)
        repeated = "" if self.generated is None else f"; {self.generated - TRAJECTORIES} trajectories repeated"
        verdict = f"DIFFERENT: {self.wrong}" if self.wrong else "identical" if self.kills else "ended unharmed"
        exits = " ".join("hung" if code is None else str(code) for code in self.exits)
        return f"run {self.number:3} {self.kind:11} killed {kills or 'nothing'}; exits {exits}{repeated}; {verdict}"


class Watch(Protocol):
    """Sees how far runs are."""

    def units(self, root: str) -> int:
        """Shards committed and table files written below an output root."""


class Lane:
    """Carries out disturbed runs, one at a time.

    Args:
        root: Output root of all runs, as the drivers are told and as this process can read it.
        environment: The drivers' way to the store.
        config: File with the configuration.
        folder: Logs of drivers go here.
        cluster: For runs on Ray.
        watch: Tells the moments of the kills.
        seed: Of the campaign.
    """

    def __init__(
        self,
        root: str,
        environment: dict[str, str],
        config: Path,
        folder: Path,
        watch: Watch,
        seed: int,
        cluster: Cluster | None = None,
    ) -> None:
        self._root, self._environment, self._config, self._folder = root, environment, config, folder
        self._watch, self._seed, self._cluster = watch, seed, cluster

    def disturb(self, number: int, kind: str, expected: dict[str, str]) -> Result:
        """Carry out a run of a kind to its end and compare its tables."""
        result = Result(number=number, kind=kind, seed=f"{self._seed}:{number}")
        rng = random.Random(result.seed)
        begin = time.monotonic()
        blows = 1 + (kind in LOCAL_KINDS and rng.random() < 0.5) + (kind == "driver" and rng.random() < 0.3)
        while len(result.exits) < ATTEMPTS:
            moment = self._moment(number, kind, len(expected), rng) if len(result.kills) < blows else None
            result.exits.append(self._attempt(number, kind, moment, rng, result))
            if result.exits[-1] in (None, 0):
                break
        if self._cluster is not None:
            self._cluster.mend()
        result.wrong = self._judge(number, result, expected)
        result.generated = self._generated(number) if kind in LOCAL_KINDS else None
        result.seconds = time.monotonic() - begin
        return result

    def undisturbed(self, number: int, kind: str) -> float:
        """Carry out a run without kills; returns its seconds."""
        begin = time.monotonic()
        code = self._driver(number, kind).wait(ATTEMPT_LIMIT_S)
        if code != 0:
            raise RuntimeError(f"The run without kills ended with {code}:\n{self.log(number).read_text()[-3000:]}")
        return time.monotonic() - begin

    def root(self, number: int) -> str:
        """Output root of a run."""
        return f"{self._root}/run-{number:03}"

    def log(self, number: int) -> Path:
        """Both outputs of a run's drivers."""
        return self._folder / f"run-{number:03}.log"

    def command(self, number: int, kind: str) -> list[str]:
        """Arguments of `dsprobe` for a run."""
        arguments = ["run", str(self._config), "--out", self.root(number), "--no-report"]
        if kind in LOCAL_KINDS:
            return [*arguments, "--executor", "local"]
        assert self._cluster is not None
        address = "local" if kind == "own raylet" else self._cluster.address
        return [*arguments, "--executor", "ray", "--set", f"execution.address={address}"]

    def _driver(self, number: int, kind: str) -> Driver:
        arguments, log = self.command(number, kind), self.log(number)
        if kind == "own raylet":
            return Started(arguments, RAY_ENVIRONMENT | self._environment, log)
        environment = self._environment if kind in LOCAL_KINDS else RAY_ENVIRONMENT | self._environment
        return Forked(arguments, environment, log, self._counter(number))

    def _moment(self, number: int, kind: str, files: int, rng: random.Random) -> tuple[int, float]:
        """When to strike: once so many units are there (`Watch.units`), and so many seconds later.

        Uniform over what the attempt has before it, its start-up counted as much as `START_UNITS` units.
        """
        done, end = self._watch.units(self.root(number)), SHARDS + files
        if kind == "compaction":
            done = max(done, SHARDS - 1)
        elif kind in RAY_KINDS and kind != "ray driver":
            end = SHARDS - 1  # from then on replicas and reducers idle
        unit = rng.randint(done + 1 - START_UNITS * (kind != "compaction"), max(end, done + 1))
        return (unit, rng.random() * UNIT_S) if done < unit <= end else (0, rng.random() * UNIT_S * START_UNITS)

    def _attempt(
        self, number: int, kind: str, moment: tuple[int, float] | None, rng: random.Random, result: Result
    ) -> int | None:
        begin = time.monotonic()
        driver = self._driver(number, kind)
        if moment is not None:
            unit, later = moment
            wait_until(lambda: self._watch.units(self.root(number)) >= unit, driver, ATTEMPT_LIMIT_S)
            if driver.wait(later) is None:
                there = committed(self.root(number))
                what = self._strike(kind, driver, rng)
                if what:
                    result.kills.append(Kill(what=what, after_s=time.monotonic() - begin, committed=there))
        code = driver.wait(ATTEMPT_LIMIT_S)
        if code is None:
            for pid in descendants(driver.pid):
                kill(pid)
        return code

    def _strike(self, kind: str, driver: Driver, rng: random.Random) -> str:
        """Kill the victim of this kind as soon as it exists; names it, or nothing if the driver ended before."""
        if kind in ("driver", "compaction", "ray driver"):
            return "driver" if kill(driver.pid) else ""
        if kind == "node":
            assert self._cluster is not None
            node = rng.choice(self._cluster.nodes)
            self._cluster.kill_node(node)
            return f"node {node}"
        candidates = self._candidates(kind, driver, rng)
        if wait_until(candidates, driver, ATTEMPT_LIMIT_S) and (found := candidates()):
            return kind if kill(rng.choice(found)) else ""
        return ""

    def _candidates(self, kind: str, driver: Driver, rng: random.Random) -> Callable[[], Sequence[int]]:
        assert self._cluster is not None
        if kind == "own raylet":
            return lambda: sorted(descendants(driver.pid) & set(matching(RAYLET)))
        if kind == "raylet":
            node = rng.choice(self._cluster.nodes)
            cluster = self._cluster
            return lambda: cluster.raylet(node)
        return lambda: matching(REPLICA if kind == "replica" else REDUCER)

    def _judge(self, number: int, result: Result, expected: dict[str, str]) -> str:
        if result.exits[-1] is None:
            return f"hung for {ATTEMPT_LIMIT_S:.0f} s"
        if result.exits[-1] != 0:
            return f"not complete after {ATTEMPTS} attempts"
        try:
            wrong = difference(expected, tables_of(self.root(number)))
            if not wrong:
                left, result.swept = sweep(self.root(number))
                wrong = difference(expected, left)
            return wrong
        except StorageError as error:
            return str(error)

    def _counter(self, number: int) -> Path:
        return self._folder / f"run-{number:03}.generated"

    def _generated(self, number: int) -> int:
        return self._counter(number).stat().st_size


def phases(results: Sequence[Result]) -> Counter[str]:
    """When the kills fell: before the first commit, between commits, or after the last (compaction)."""
    found: Counter[str] = Counter()
    for result in results:
        for blow in result.kills:
            name = "before the first commit" if blow.committed == 0 else "between commits"
            found["after the last commit" if blow.committed == SHARDS else name] += 1
    return found
