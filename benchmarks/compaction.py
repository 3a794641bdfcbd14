"""How fast and how large compaction is, and that its memory does not grow with the run.

    python benchmarks/compaction.py [--shards 8 400] [--rows 64] [--steps 64] [--length 64]

For each number of shards a run of one condition is made (one shard is written by the product, the others are copies
with prompts of their own) and compacted by a fresh process, which reports CPU seconds and its peak resident memory.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.common import show
from dsprobe.storage.commit_record import CommitRecord, FileRecord, WriterOptions
from dsprobe.storage.run_store import RunStore, commit_name, shard_folder
from dsprobe.storage.schemas import write_parquet
from dsprobe.storage.testing import synthetic_batch

OPTIONS = WriterOptions(threshold=0.5, sample_positions=8, extreme_positions=4)

CHILD = """
import json, sys, time
from pathlib import Path
from dsprobe.storage.compaction import compact
from dsprobe.storage.run_store import RunStore

def peak():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10

store, before = RunStore.at(sys.argv[1]), peak()
wall, cpu = time.perf_counter(), time.process_time()
compact(store)
figures = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak(), "before": before}
print(json.dumps(figures))
"""


def make_run(root: str, shards: int, rows: int, steps: int, length: int) -> RunStore:
    """A run whose shards hold the same trajectories under other prompts."""
    store = RunStore(root, f"compaction-{shards}", OPTIONS)
    store.write_manifest({"run_id": store.run_id, "shards": [f"shard-{number:05d}" for number in range(shards)]})
    with store.open_attempt("shard-00000") as writer:
        batch = synthetic_batch(0, rows=rows, steps=steps, length=length)
        writer.add(batch)
        writer.commit()
    first = store.committed()["shard-00000"]
    tables = {name: store.read_shard(first, name) for name in first.files}
    for number in range(1, shards):
        _copy(store, first, tables, number)
    return store


def _copy(store: RunStore, first: CommitRecord, tables: dict[str, pa.Table], number: int) -> None:
    shard, attempt, files = f"shard-{number:05d}", uuid.uuid4().hex, {}
    for name, table in tables.items():
        if "prompt_id" in table.column_names:
            renamed = pc.binary_join_element_wise(f"n{number:05d}", table["prompt_id"], "-")
            place = table.schema.get_field_index("prompt_id")
            table = table.set_column(place, table.schema.field(place), renamed)
        sink = io.BytesIO()
        extra = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        write_parquet(table, name.removesuffix(".parquet"), sink, run_id=store.run_id, extra=extra)
        data = sink.getvalue()
        _write(store, f"{shard_folder(shard, attempt)}/{name}", data)
        files[name] = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=table.num_rows)
    record = replace(first, shard_id=shard, attempt=attempt, files=files)
    _write(store, commit_name(shard), record.to_json())


def _write(store: RunStore, name: str, data: bytes) -> None:
    """Plainly: hundreds of copies need not be durable."""
    path = Path(store.objects.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def measure(store: RunStore) -> dict[str, float]:
    """Compact in a fresh process."""
    done = subprocess.run([sys.executable, "-c", CHILD, store.url], stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[8, 400])
    for name, value in {"rows": 64, "steps": 64, "length": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            store = make_run(folder, shards, options.rows, options.steps, options.length)
            records = store.committed().values()
            read = sum(file.bytes for record in records for file in record.files.values())
            rows = sum(record.files["steps.parquet"].rows for record in records)
            figures = measure(store)
            written = sum(path.stat().st_size for path in Path(store.url, "tables").rglob("*.parquet"))
        show(
            "compaction",
            {
                "shards": shards,
                "trajectories": shards * options.rows,
                "step_rows": rows,
                "shard_mb": read / 1e6,
                "table_mb": written / 1e6,
                "cpu_s": figures["cpu"],
                "step_rows_per_cpu_s": rows / figures["cpu"],
                "shard_mb_per_cpu_s": read / 1e6 / figures["cpu"],
                "peak_mb": figures["peak"] / 1e6,
                "above_imports_mb": (figures["peak"] - figures["before"]) / 1e6,
            },
        )


if __name__ == "__main__":
    main()
