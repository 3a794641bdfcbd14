"""The executor without Ray: one shard after the other, in this process.

Any number of such processes may work on one run. Who was too late for a shard goes on from the other end, so that two
drivers meet once instead of racing for every shard.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dsprobe.actors.executor import Ledger
from dsprobe.actors.pinned import PinnedModels
from dsprobe.actors.writing import Store, describe, write_shard
from dsprobe.errors import StorageError
from dsprobe.experiment.plan import Plan


def run_locally(plan: Plan, store: Store, ledger: Ledger) -> None:
    """Run the ledger's pending shards here; outcomes go into the ledger."""
    models = PinnedModels(plan.config.execution.num_gpus)
    with torch_threads(plan.config.execution.threads):
        while ledger.pending:
            shard = ledger.pending.popleft()
            try:
                if store.is_committed(shard.id):
                    ledger.elsewhere(shard)
                    continue
                written = write_shard(store, shard.id, models.run(plan, shard))
            except StorageError as error:
                ledger.failed(shard, describe(error), retry=True, traceback=traceback.format_exc())
            except Exception as error:  # noqa: BLE001 - one shard's bug must not end the others
                ledger.failed(shard, describe(error), retry=False, traceback=traceback.format_exc())
            else:
                if written.won:
                    ledger.merged.add(shard.id, written.state)
                    ledger.done(shard, bytes_written=sum(written.bytes.values()))
                else:
                    ledger.elsewhere(shard)
                    ledger.pending.reverse()


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Use the replicas' thread count: the order of a sum, and so its last bits, depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
