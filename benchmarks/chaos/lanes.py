"""The campaign: a store with faults, two lanes of disturbed runs, one comparison, one summary."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote

from tests.s3.fault_proxy import FaultProxy
from tests.s3.rados_gateway import s3_server

from benchmarks.chaos.campaign import LOCAL_KINDS, RAY_KINDS, Lane, Result, Watch, phases
from benchmarks.chaos.cluster import cluster
from benchmarks.chaos.processes import warm_up
from benchmarks.chaos.world import SHARDS, TRAJECTORIES, tables_of, write_config
from dsprobe.storage.objects import ObjectStore

RATES = {
    "error_500": 0.007, "error_503": 0.007, "reset": 0.007, "lost": 0.007, "truncate": 0.007, "delay": 0.007,
    "late": 0.003,
}  # fmt: skip
"""Share of the requests that meet each storage fault."""

SHARES = {"replica": 0.3, "reducer": 0.25, "ray driver": 0.15, "node": 0.15, "raylet": 0.1, "own raylet": 0.05}
"""Of the runs on Ray."""
COMPACTION_SHARE = 0.2
"""Of the runs without Ray: killed while the tables are made."""


class FolderWatch:
    """Looks into a local folder."""

    def units(self, root: str) -> int:
        """See `benchmarks.chaos.campaign.Watch`."""
        return sum(1 for pattern in _UNITS for _ in Path(root).glob(f"runs/*/{pattern}"))


class ProxyWatch:
    """Looks at what passes a proxy, which costs the store nothing.

    Args:
        proxy: In front of the drivers' store.
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy, self._seen, self._lock = proxy, 0, threading.Lock()
        self._put: dict[str, set[str]] = defaultdict(set)

    def units(self, root: str) -> int:
        """See `benchmarks.chaos.campaign.Watch`."""
        with self._lock:
            fresh = self._proxy.requests[self._seen :]
            self._seen += len(fresh)
            for request in fresh:
                path = unquote(request.path.partition("?")[0])
                run, _, name = path.strip("/").partition("/runs/")
                wanted = any(fnmatch(name, f"*/{pattern}") for pattern in _UNITS)
                if request.method == "PUT" and request.fault not in ("error_500", "error_503", "reset") and wanted:
                    self._put[run].add(name)
            return len(self._put[root.removeprefix("s3://")])


_UNITS = ("commits/*.json", "tables/*/*/*/part-*.parquet")


@dataclass(kw_only=True)
class Store:
    """Where the runs are."""

    name: str
    root: str
    proxies: list[FaultProxy] = field(default_factory=list)
    watches: list[Watch]
    """One for runs without Ray, one for those on Ray; `proxies` and `environments` likewise."""
    environments: list[dict[str, str]]

    @property
    def faults(self) -> Counter[str]:
        """Injected so far."""
        return sum((proxy.counts for proxy in self.proxies), Counter[str]())

    @property
    def requests(self) -> int:
        """Passed so far."""
        return sum(len(proxy.requests) for proxy in self.proxies)


def run_campaign(arguments: argparse.Namespace, folder: Path) -> int:
    """Carry out the campaign.

    Args:
        arguments: See `benchmarks.chaos.__main__`.
        folder: For configuration and logs.

    Returns:
        The exit code: 1 if any run differed or could not be completed.
    """
    begin = time.monotonic()
    config = write_config(folder)
    local, on_ray = mix(arguments.runs, arguments.ray_share, arguments.only)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(arguments.store, arguments.seed, folder))
        warm_up()
        expected, seconds = reference(store, config, folder, arguments.seed)
        print(
            f"store: {store.name}; {SHARDS} shards, {TRAJECTORIES} trajectories, {len(expected)} table files; "
            f"undisturbed: {seconds:.1f} s\nmix: {dict(Counter(local + on_ray))}",
            flush=True,
        )
        nodes = stack.enter_context(cluster(store.environments[1])) if on_ray else None
        lanes = [
            Lane(store.root, store.environments[where], config, folder, store.watches[where], arguments.seed, nodes)
            for where in (0, 1)
        ]
        campaign = _Campaign(arguments, store, lanes, expected)
        try:
            campaign.carry_out(local, on_ray)
        finally:  # a campaign that is stopped shows how far it came
            code = campaign.summary(time.monotonic() - begin)
        return code


def mix(runs: int, ray_share: float, only: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Kinds of the runs without Ray and on Ray, interleaved so that an early end has seen all of them.

    Raises:
        SystemExit: `only` names something that is no kind of fault.
    """
    if only:
        unknown = set(only) - {*LOCAL_KINDS, *RAY_KINDS}
        if unknown:
            raise SystemExit(f"No fault `{min(unknown)}`; there are: {', '.join((*LOCAL_KINDS, *RAY_KINDS))}.")
        kinds = _interleaved(dict.fromkeys(only, 1 / len(only)), runs)
        return [kind for kind in kinds if kind in LOCAL_KINDS], [kind for kind in kinds if kind in RAY_KINDS]
    on_ray = round(runs * ray_share)
    return (
        _interleaved({"driver": 1 - COMPACTION_SHARE, "compaction": COMPACTION_SHARE}, runs - on_ray),
        _interleaved(SHARES, on_ray),
    )


def _interleaved(shares: dict[str, float], count: int) -> list[str]:
    """A sequence whose every beginning follows the shares as closely as it can."""
    given = Counter(dict.fromkeys(shares, 0))
    sequence = []
    for length in range(1, count + 1):
        sequence.append(max(shares, key=lambda kind: shares[kind] * length - given[kind]))
        given[sequence[-1]] += 1
    return sequence


@contextmanager
def open_store(kind: str, seed: int, folder: Path) -> Iterator[Store]:
    """Start the store and a proxy for each lane, or name a local folder."""
    if kind == "folder":
        yield Store(
            name="local folder, no storage faults",
            root=str(folder / "store"),
            watches=[FolderWatch(), FolderWatch()],
            environments=[{}, {}],
        )
        return
    with s3_server() as server, ExitStack() as stack:
        os.environ.update(server.environment())  # this process looks at the store without the proxy
        proxies = [
            stack.enter_context(FaultProxy(server.host, server.port, seed=seed + lane, rates=RATES)) for lane in (0, 1)
        ]
        yield Store(
            name=server.name,
            root=f"s3://{server.new_bucket()}",
            proxies=proxies,
            watches=[ProxyWatch(proxy) for proxy in proxies],
            environments=[server.environment(proxy.url) for proxy in proxies],
        )


def reference(store: Store, config: Path, folder: Path, seed: int) -> tuple[dict[str, str], float]:
    """Tables of a run that nothing disturbs, no storage fault either, and its seconds."""
    quiet = Lane(store.root, {}, config, folder, store.watches[0], seed)
    seconds = quiet.undisturbed(0, "driver")
    return tables_of(quiet.root(0)), seconds


class _Campaign:
    def __init__(
        self, arguments: argparse.Namespace, store: Store, lanes: list[Lane], expected: dict[str, str]
    ) -> None:
        self._arguments, self._store, self._lanes, self._expected = arguments, store, lanes, expected
        self._results: list[Result] = []
        self._number = arguments.first
        self._lock = threading.Lock()
        self._crash: BaseException | None = None

    def carry_out(self, local: list[str], on_ray: list[str]) -> None:
        queues = [(self._lanes[0], list(local))] * self._arguments.jobs + [(self._lanes[1], list(on_ray))]
        threads = [threading.Thread(target=self._guarded, args=queue, daemon=True) for queue in queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._crash is not None:
            raise self._crash
        while local and self._store.proxies and self._store.faults.total() < self._arguments.storage_faults:
            self._run(self._lanes[0], "driver")

    def _guarded(self, lane: Lane, queue: list[str]) -> None:
        try:
            while self._crash is None:
                try:
                    kind = queue.pop(0)
                except IndexError:  # several threads work off a queue
                    break
                if not self._run(lane, kind).kills:
                    queue.append(kind)  # it was over before its kill; it does not count
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            self._crash = error
            print(f"{type(error).__name__}: {error}; the campaign ends when the runs under way do", flush=True)

    def _run(self, lane: Lane, kind: str) -> Result:
        with self._lock:
            number = self._number
            self._number += 1
        result = lane.disturb(number, kind, self._expected)
        with self._lock:
            self._results.append(result)
            print(f"{result.line()} ({result.seconds:.1f} s)", flush=True)
        if result.wrong:
            self._keep(lane, result)
        return result

    def _keep(self, lane: Lane, result: Result) -> None:
        """Copy a failed run's logs and objects, and say how to repeat it."""
        target = self._arguments.keep / f"seed-{self._arguments.seed}-run-{result.number:03}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copy(lane.log(result.number), target)
        for root, name in ((lane.root(result.number), "run"), (lane.root(0), "undisturbed")):
            objects = ObjectStore(root)
            for entry in objects.entries("runs"):
                path = target / name / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    path.write_bytes(objects.read(entry.name))
        print(
            f"  kept in {target}; repeat: python -m benchmarks.chaos --seed {self._arguments.seed} --runs 1 "
            f"--first {result.number} --only '{result.kind}' --store {self._arguments.store}",
            flush=True,
        )

    def summary(self, seconds: float) -> int:
        """Print the figures; see `run_campaign` for the exit code."""
        killed = [result for result in self._results if result.kills]
        wrong = [result for result in self._results if result.wrong]
        blows = Counter(blow.what.split(" 127")[0] for result in killed for blow in result.kills)
        print(f"\nkilled runs: {len(killed)} {dict(Counter(result.kind for result in killed))}")
        print(f"kills: {blows.total()} {dict(blows)}; moments: {dict(phases(killed))}")
        print(f"runs that ended before their kill, not counted: {len(self._results) - len(killed)}")
        faults = self._store.faults
        print(f"storage faults: {faults.total()} {dict(faults)} in {self._store.requests} requests")
        for kind in dict.fromkeys(result.kind for result in killed):
            self._print_repeated(kind, [result for result in killed if result.kind == kind])
        swept = sum((result.swept for result in self._results), Counter[str]())
        print(f"left by killed processes, swept at the end: {dict(swept)}")
        print(f"attempts that ended with exit 1 by storage faults alone: {_given_up(self._results)}")
        print(f"tables identical to the undisturbed run's: {'no: ' if wrong else 'yes'}"
              f"{', '.join(str(result.number) for result in wrong)}")  # fmt: skip
        print(f"{seconds / 60:.1f} minutes")
        enough = len(killed) >= self._arguments.runs
        return int(bool(wrong) or not enough)

    def _print_repeated(self, kind: str, results: Sequence[Result]) -> None:
        counted = [result.generated - TRAJECTORIES for result in results if result.generated is not None]
        if counted:
            needed = TRAJECTORIES * len(counted)
            kills = sum(len(result.kills) for result in results)
            print(
                f"work repeated, {kind}: {sum(counted)} of {needed} trajectories ({sum(counted) / needed:.1%}), "
                f"{sum(counted) / kills:.1f} a kill; a shard has {TRAJECTORIES // SHARDS}"
            )


def _given_up(results: Sequence[Result]) -> int:
    return sum(code == 1 for result in results if result.kind in LOCAL_KINDS for code in result.exits)
