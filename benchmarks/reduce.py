"""Reducing step logs, against DuckDB and Polars computing the same statistics from the same Parquet files.

    python -m benchmarks.reduce [--trajectories 2048] [--repeats 3]

All give n, mean, variance, min, max and five quantiles of five quantities per step, and n and mean of five quantities
per step and position; the answers are compared in the same run. dsprobe's are exact, and it counts harm, first harmful
steps and histograms beside. Every measurement is a process of its own, so peaks of memory do not add up; the
competitors take turns. CPU seconds are compared, because wall seconds on a shared machine measure the neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEPS, LENGTH, ROWS, FILES = 64, 128, 64, 8
"""Steps and response positions of a trajectory, trajectories of a batch, files of each kind."""

STEP_QUANTITIES: Final = ("entropy_mean", "kl_mean", "fraction_committed", "risk_committed", "risk_predicted")
POSITION_QUANTITIES: Final = ("attribution", "entropy", "kl", "probability")
QUANTILES: Final = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}

Answer = dict[str, Any]
"""``<quantity> <statistic>`` → values by step, or by step and position."""


def write_logs(folder: Path, trajectories: int) -> None:
    """Trajectories of equal length, so that none is finished before another and every tool counts the same rows."""
    from dsprobe.storage.raw_tables import position_log_table, step_log_table
    from dsprobe.storage.schemas import open_writer
    from dsprobe.storage.testing import synthetic_batch

    batches = max(FILES, trajectories // ROWS)
    for file in range(FILES):
        writers: dict[str, pq.ParquetWriter] = {}
        for seed in range(file * batches // FILES, (file + 1) * batches // FILES):
            batch = synthetic_batch(seed, rows=ROWS, steps=STEPS, shortest=STEPS, length=LENGTH)
            for kind, table in {"step_log": step_log_table(batch), "position_log": position_log_table(batch)}.items():
                if kind not in writers:
                    writers[kind] = open_writer(folder / f"{kind}-{file:05d}.parquet", table.schema)
                writers[kind].write_table(table, row_group_size=1 << 18)
        for writer in writers.values():
            writer.close()


def dsprobe_local(folder: Path, threads: int) -> Callable[[], tuple[Answer, float]]:
    """The scan as `dsprobe reduce --executor local --num-cpus …` does it."""
    from dsprobe.actors.offline import Workers, scan_logs
    from dsprobe.storage.log_files import find_logs
    from dsprobe.storage.scan import ScanSettings
    from dsprobe.storage.statistics import finalise

    def work() -> tuple[Answer, float]:
        logs = find_logs(str(folder), {})
        scanned = scan_logs(logs, ScanSettings(threshold=0.5), Workers(executor="local", num_cpus=threads))
        before = time.process_time()
        tables = finalise(scanned.state)
        return _from_statistics(tables), time.process_time() - before

    return work


def _from_statistics(tables: dict[str, pa.Table]) -> Answer:
    answer: Answer = {}
    statistics = ("n", "mean", "variance", "min", "max", *QUANTILES)
    steps, positions = (tables[kind].to_pandas() for kind in ("step_stats", "position_stats"))
    for quantity in STEP_QUANTITIES:
        rows = steps[steps["quantity"] == quantity].sort_values("step")
        answer |= {f"{quantity} {name}": rows[name].tolist() for name in statistics}
    for quantity in (*POSITION_QUANTITIES, "committed"):
        rows = positions[positions["quantity"] == quantity].sort_values(["step", "position"])
        answer |= {f"{quantity} {name}": rows[name].tolist() for name in ("n", "mean")}
    return answer


def duckdb_query(folder: Path, threads: int) -> Callable[[], tuple[Answer, float]]:
    """Two GROUP BYs."""
    import duckdb

    connection = duckdb.connect(config={"threads": threads})
    defined = {name: f"nullif({name}, 'nan'::FLOAT)" for name in (*STEP_QUANTITIES, *POSITION_QUANTITIES)}
    shares = list(QUANTILES.values())
    step = ", ".join(
        f"count({q}), avg({q}), var_samp({q}), min({q}), max({q}), quantile_cont({q}, {shares})"
        for q in (defined[name] for name in STEP_QUANTITIES)
    )
    position = ", ".join(f"count({defined[name]}), avg({defined[name]})" for name in POSITION_QUANTITIES)

    def work() -> tuple[Answer, float]:
        steps = connection.execute(
            f"SELECT {step} FROM read_parquet('{folder}/step_log-*.parquet') GROUP BY step ORDER BY step"
        ).fetchall()
        positions = connection.execute(
            f"SELECT {position}, count(*), avg(in_canvas::INT) FROM read_parquet('{folder}/position_log-*.parquet') "
            "GROUP BY step, position ORDER BY step, position"
        ).fetchall()
        return _from_rows(steps, positions), 0.0

    return work


def _from_rows(steps: list[tuple[Any, ...]], positions: list[tuple[Any, ...]]) -> Answer:
    answer: Answer = {}
    for index, quantity in enumerate(STEP_QUANTITIES):
        rows = [row[6 * index : 6 * index + 6] for row in steps if row[6 * index]]
        for place, name in enumerate(("n", "mean", "variance", "min", "max")):
            answer[f"{quantity} {name}"] = [row[place] for row in rows]
        for place, name in enumerate(QUANTILES):
            answer[f"{quantity} {name}"] = [row[5][place] for row in rows]
    for index, quantity in enumerate((*POSITION_QUANTITIES, "committed")):
        counted = [row[2 * index : 2 * index + 2] for row in positions if row[2 * index]]
        for place, name in enumerate(("n", "mean")):
            answer[f"{quantity} {name}"] = [row[place] for row in counted]
    return answer


def polars_query(folder: Path, threads: int) -> Callable[[], tuple[Answer, float]]:
    """Two lazy group-bys, streaming; `POLARS_MAX_THREADS` was set for this process."""
    del threads
    import polars as pl

    def defined(name: str) -> pl.Expr:
        return pl.col(name).cast(pl.Float32).fill_nan(None)

    def step_expressions(name: str) -> list[pl.Expr]:
        q = defined(name)
        moments = [q.count(), q.cast(pl.Float64).mean(), q.cast(pl.Float64).var(), q.min(), q.max()]
        shares = pl.concat_list([q.quantile(share, "linear") for share in QUANTILES.values()])
        return [e.alias(f"{name} {i}") for i, e in enumerate([*moments, shares])]

    def work() -> tuple[Answer, float]:
        steps = (
            pl.scan_parquet(f"{folder}/step_log-*.parquet")
            .group_by("step")
            .agg([e for name in STEP_QUANTITIES for e in step_expressions(name)])
            .sort("step")
            .collect(engine="streaming")
        )
        each = [
            e.alias(f"{name} {i}")
            for name in POSITION_QUANTITIES
            for i, e in enumerate((defined(name).count(), defined(name).cast(pl.Float64).mean()))
        ]
        positions = (
            pl.scan_parquet(f"{folder}/position_log-*.parquet")
            .group_by("step", "position")
            .agg(*each, pl.len().alias("n"), pl.col("in_canvas").mean().alias("committed"))
            .sort("step", "position")
            .collect(engine="streaming")
        )
        return _from_rows(steps.drop("step").rows(), positions.drop("step", "position").rows()), 0.0

    return work


def online(folder: Path, threads: int) -> Callable[[], tuple[Answer, float]]:
    """`ReducerState.update` of batches in memory, as a reducer gets them; with the means over positions."""
    del folder, threads
    from dsprobe.storage.reducer import ReducerState
    from dsprobe.storage.testing import synthetic_batch

    batches = [synthetic_batch(seed, rows=ROWS, steps=STEPS, shortest=STEPS, length=LENGTH) for seed in range(4)]

    def work() -> tuple[Answer, float]:
        state = ReducerState(0.5)
        for batch in batches:
            state.update(batch)
        return {}, 0.0

    return work


COMPETITORS: Final = {"dsprobe": dsprobe_local, "DuckDB": duckdb_query, "Polars": polars_query, "online": online}


def measure(name: str, folder: Path, threads: int, answer_file: Path | None) -> dict[str, float]:
    """In a process of its own: one warm run, then a timed one."""
    work = COMPETITORS[name](folder, threads)
    idle = peak_mib()
    answer, _ = work()
    cpu, wall = time.process_time(), time.perf_counter()
    _, finalising = work()
    result = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "finalise_s": finalising}
    if answer_file is not None:
        answer_file.write_text(json.dumps(answer))
    return {**result, "peak_mib": peak_mib(), "above_idle_mib": peak_mib() - idle}


def peak_mib() -> float:
    """Largest resident memory of this process so far; `ru_maxrss` would count the parent's at the fork."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run(name: str, threads: int, folder: Path, answers: Path) -> dict[str, float]:
    """Measure in a fresh process."""
    answer = answers / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.reduce", "--measure", name, str(folder), str(threads), str(answer)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def check_answers(answers: Path) -> None:
    """Numbers, least and largest values must be equal; means, variances and quantiles up to the others' rounding.

    dsprobe's risks are rounded to float16 before they are described, which the other two are not told.
    """
    ours = json.loads((answers / "dsprobe.json").read_text())
    for other in ("DuckDB", "Polars"):
        theirs = json.loads((answers / f"{other}.json").read_text())
        for key, values in ours.items():
            quantity, statistic = key.split()
            a, b = np.array(values, float), np.array(theirs[key], float)
            exact = statistic in ("n", "min", "max") and (statistic == "n" or not quantity.startswith("risk"))
            tolerance = 2.0**-10 if quantity.startswith("risk") else 1e-6
            good = (a == b).all() if exact else np.allclose(a, b, rtol=tolerance, atol=tolerance)
            if a.shape != b.shape or not good:
                sys.exit(f"{other} and dsprobe disagree on `{key}`: {a[:4]} and {b[:4]}")
    print(f"{len(ours)} columns of statistics agree with DuckDB and Polars")


def report(results: dict[tuple[str, int], dict[str, float]], folder: Path) -> None:
    """Print the table and the ratios."""
    files = [pq.read_metadata(path) for path in folder.glob("*.parquet")]
    rows = sum(f.num_rows for f in files if "position" in f.schema.names)
    disk = sum(path.stat().st_size for path in folder.glob("*.parquet")) / 1e6
    memory = sum(f.row_group(g).total_byte_size for f in files for g in range(f.num_row_groups)) / 1e6
    print(f"{rows:,} position rows, {disk:,.0f} MB as Parquet, {memory:,.0f} MB uncompressed, {len(files)} files")
    print(
        "| tool | threads | CPU s | wall s | M rows/s (CPU) | MB/s file | MB/s uncompressed | peak MiB | above idle |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, threads), r in results.items():
        share = 4 * ROWS * STEPS * LENGTH / rows if name == "online" else 1.0
        rates = [size * share / r["cpu_s"] for size in (rows / 1e6, disk, memory)]
        shown = [f"{r['cpu_s']:.2f}", f"{r['wall_s']:.2f}", f"{rates[0]:.1f}"]
        shown += ["", ""] if name == "online" else [f"{rate:,.0f}" for rate in rates[1:]]
        print("|", " | ".join([name, str(threads), *shown, f"{r['peak_mib']:.0f}", f"{r['above_idle_mib']:.0f}"]), "|")
    ours = results["dsprobe", 1]
    for other in ("DuckDB", "Polars"):
        theirs = results[other, 1]["cpu_s"]
        print(
            f"speed per core, dsprobe / {other}: {theirs / ours['cpu_s']:.2f} with finalising, "
            f"{theirs / (ours['cpu_s'] - ours['finalise_s']):.2f} without"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, folder_, threads_, answer = arguments.measure
        print(json.dumps(measure(name, Path(folder_), int(threads_), Path(answer))))
        return
    with tempfile.TemporaryDirectory() as place:
        folder, answers = Path(place, "logs"), Path(place, "answers")
        folder.mkdir()
        answers.mkdir()
        write_logs(folder, arguments.trajectories)
        results: dict[tuple[str, int], dict[str, float]] = {}
        for _ in range(arguments.repeats):
            for name, threads in [(n, t) for t in (1, 2) for n in ("dsprobe", "DuckDB", "Polars")] + [("online", 1)]:
                found = run(name, threads, folder, answers)
                best = results.setdefault((name, threads), found)
                results[name, threads] = min(best, found, key=lambda r: r["cpu_s"])
        check_answers(answers)
        report(results, folder)


if __name__ == "__main__":
    main()
