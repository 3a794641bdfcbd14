"""One attempt at a shard of synthetic batches with all kinds of raw logs; as a script, to be killed or measured.

python raw_writing.py ROOT BATCHES ROWS VOCABULARY PAUSE
"""

from __future__ import annotations

import resource
import sys
import time

from dsprobe.storage.commit_record import RawOptions, WriterOptions
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.testing import synthetic_batch, with_vectors

OPTIONS = WriterOptions(
    threshold=0.5,
    sample_positions=3,
    extreme_positions=2,
    raw=RawOptions(
        keep=("steps", "topk", "hidden", "logits"),
        extreme=2,
        shard_bytes=10**9,
        step_bytes=10**6,
        flush_bytes=100_000,
    ),
)


def open_store(root: str) -> RunStore:
    """A run of one shard."""
    store = RunStore(root, "raw-0", OPTIONS)
    store.write_manifest({"run_id": "raw-0", "shards": ["one"]})
    return store


def write(root: str, batches: int, *, rows: int = 4, vocabulary: int = 200, pause: float = 0.0) -> RunStore:
    """Write and commit the shard; a quarter of the trajectories are of the random sample."""
    store = open_store(root)
    with store.open_attempt("one") as writer:
        for number in range(batches):
            batch = synthetic_batch(number, first_prompt=rows // 2 * number, rows=rows)
            writer.add(with_vectors(batch, number, vocabulary=vocabulary, sampled=range(rows // 4)))
            time.sleep(pause)
        assert writer.commit()
    return store


if __name__ == "__main__":
    root, batches, rows, vocabulary, pause = sys.argv[1:]
    write(root, int(batches), rows=int(rows), vocabulary=int(vocabulary), pause=float(pause))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
