"""What a run left in its store, and what making its tables takes."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from dsprobe.storage.compaction import compact
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import TABLES
from dsprobe.storage.table_index import current_files


def stored(store: RunStore) -> dict[str, Any]:
    """Bytes and files of the committed shards.

    Returns:
        ``shards``, ``trajectories``, ``files`` and ``record_bytes`` (of commit records), and ``bytes`` by file name.
    """
    records = store.committed().values()
    sizes: Counter[str] = Counter()
    for record in records:
        sizes.update({name: file.bytes for name, file in record.files.items()})
    return {
        "shards": len(records),
        "trajectories": sum(record.files["trajectories.parquet"].rows for record in records),
        "files": sum(len(record.files) for record in records),
        "record_bytes": sum(len(record.to_json()) for record in records),
        "bytes": dict(sorted(sizes.items())),
    }


def compaction(store: RunStore) -> dict[str, Any]:
    """Make the run's tables from its shards.

    Returns:
        Wall and processor seconds, and ``bytes`` by table.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    compact(store)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sizes = {kind: sum(int(entry["bytes"]) for entry in current_files(store.objects, kind)) for kind in TABLES}
    return {"wall_s": wall, "cpu_s": cpu, "bytes": sizes}
