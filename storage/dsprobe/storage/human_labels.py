"""Human labels of a run's replies: ``<run>/labels.json``, replaced as a whole.

They are kept by reply and not by judge, so that a judge that scores the run later is measured by them too. A label goes
with the text that was labelled: where the reply has changed since, the label is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from dsprobe.errors import StorageError
from dsprobe.judges.base import Decides
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import check_version
from dsprobe.storage.scores import reply_digest
from dsprobe.untrusted import parse_json

LABELS_VERSION: Final = 1
"""Version of the document."""

_DOCUMENT: Final = "labels.json"
_ROW: Final = ("condition", "prompt_id", "sample", "text")

Labels = dict[Decides, list[bool | None]]
"""Question → label of every row of `trajectories`, `None` where a row has none."""


def write_labels(store: RunStore, trajectories: pa.Table, labels: Mapping[Decides, Sequence[bool | None]]) -> None:
    """Keep the labels of a run's replies; earlier ones are replaced.

    Args:
        store: The run.
        trajectories: Its table.
        labels: Question → label of every row, `None` where a row has none.
    """
    replies = []
    for index, key in enumerate(_keys(trajectories)):
        own = {question: column[index] for question, column in labels.items() if column[index] is not None}
        if own:
            replies.append([*key, own])
    document = {"version": LABELS_VERSION, "run_id": store.run_id, "questions": list(labels), "replies": replies}
    store.objects.put(_DOCUMENT, json.dumps(document, indent=1).encode())


def read_labels(store: RunStore, trajectories: pa.Table) -> Labels:
    """The labels of a run's replies as they are now; empty where none were given.

    Raises:
        StorageError: Damaged, or of a newer version.
    """
    if not store.objects.exists(_DOCUMENT):
        return {}
    where = store.objects.address(_DOCUMENT)
    try:
        document: dict[str, Any] = parse_json(store.objects.read(_DOCUMENT))
        check_version(document["version"], "human labels", where, LABELS_VERSION)
        found = {tuple(key): own for *key, own in document["replies"]}
        return {q: [found.get(key, {}).get(q) for key in _keys(trajectories)] for q in document["questions"]}
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _keys(trajectories: pa.Table) -> list[tuple[str, str, int, str]]:
    """Condition, prompt, sample and digest of the text of every row."""
    return [
        (row["condition"], row["prompt_id"], row["sample"], reply_digest(row["text"]))
        for row in trajectories.select(_ROW).to_pylist()
    ]
