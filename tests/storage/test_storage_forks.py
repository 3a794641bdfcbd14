"""Forks belong to what was generated, not to how it was run, stored or judged."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from dsprobe.config import RunConfig
from dsprobe.errors import StorageError
from dsprobe.storage.irreversibility import read_forks, write_forks
from dsprobe.storage.run_store import RunStore


def stored(root: str, **changes: Any) -> RunStore:
    """A run whose manifest holds a configuration with some parts changed; forks stay where they are."""
    config = RunConfig.model_validate(
        {"models": [{"name": "toy-diffusion"}], "prompts": [{"source": "toy", "name": "plain"}], **changes}
    )
    store = RunStore(root, "forked")
    manifest = {"run_id": "forked", "shards": [], "config": config.model_dump(mode="json")}
    store.objects.put("manifest.json", json.dumps(manifest).encode())
    return store


FORKS = pa.Table.from_pylist([
    {"condition": "c", "prompt_id": "p", "step": 3, "share": 0.5, "harmful_committed": True,
     "harmful_predicted": True, "harmful_at_end": False},
])  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"judges": ["keyword_refusal"]},
        {"execution": {"batch_size": 3}},
        {"output": {"root": "elsewhere"}},
    ],
)
def test_judging_running_and_storing_otherwise_keeps_the_forks(local_root: str, changes: dict[str, Any]) -> None:
    write_forks(stored(local_root), {"steps": [3]}, FORKS)
    found = read_forks(stored(local_root, **changes))
    assert found is not None
    assert found[1].num_rows == 1


@pytest.mark.parametrize("changes", [{"seed": 7}, {"risk": {"threshold": 0.9}}, {"decodings": [{"steps": 5}]}])
def test_other_trajectories_or_risk_refuse_the_forks(local_root: str, changes: dict[str, Any]) -> None:
    write_forks(stored(local_root), {"steps": [3]}, FORKS)
    with pytest.raises(StorageError, match="belongs to another configuration"):
        read_forks(stored(local_root, **changes))
