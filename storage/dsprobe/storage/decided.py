"""What was decided about the hypotheses from a run: ``<run>/hypotheses.json``, replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from dsprobe.errors import StorageError
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.schemas import check_version
from dsprobe.untrusted import parse_facts

DECIDED_VERSION: Final = 1
"""Version of the document."""

_DOCUMENT: Final = "hypotheses.json"


def write_decided(store: RunStore, document: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the decisions; earlier ones are replaced.

    Args:
        store: The run.
        document: `dsprobe.experiment.hypotheses.Decided.to_dict`: JSON values without NaN.

    Returns:
        The document as it was written, with its ``version`` and ``run_id``.
    """
    written = {"version": DECIDED_VERSION, "run_id": store.run_id, **document}
    store.objects.put(_DOCUMENT, json.dumps(written, indent=1, allow_nan=False).encode())
    return written


def read_decided(store: RunStore) -> dict[str, Any] | None:
    """The decisions of a run, `None` where none were made.

    Raises:
        StorageError: Damaged, or of a newer version.
    """
    if not store.objects.exists(_DOCUMENT):
        return None
    where = store.objects.address(_DOCUMENT)
    try:
        document = parse_facts(store.objects.read(_DOCUMENT))
        check_version(document["version"], "hypotheses", where, DECIDED_VERSION)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    return document
