"""Human labels kept in a run: they follow the text that was labelled, and a damaged or newer file is named."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from dsprobe.errors import StorageError
from dsprobe.storage.human_labels import read_labels, write_labels
from dsprobe.storage.run_store import RunStore


def table(*texts):
    return pa.table(
        {
            "condition": ["m/p/a/d"] * len(texts),
            "prompt_id": [f"p{index}" for index in range(len(texts))],
            "sample": pa.array([0] * len(texts), pa.int32()),
            "text": list(texts),
        }
    )


@pytest.fixture
def store(tmp_path):
    return RunStore(str(tmp_path), "run-1")


def test_labels_come_back_in_the_order_of_the_rows(store):
    write_labels(store, table("a", "b", "c"), {"harm": [True, None, False], "refusal": [None, None, True]})
    shuffled = table("a", "b", "c").take([2, 0, 1])
    assert read_labels(store, shuffled) == {"harm": [False, True, None], "refusal": [True, None, None]}


def test_a_label_is_not_used_for_another_text(store):
    write_labels(store, table("a", "b"), {"harm": [True, True]})
    assert read_labels(store, table("a", "changed")) == {"harm": [True, None]}


def test_a_run_without_labels_has_none_and_no_text_is_stored(store):
    assert read_labels(store, table("a")) == {}
    write_labels(store, table("a quiet reply"), {"harm": [True]})
    assert b"quiet" not in store.objects.read("labels.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "labels.json is damaged"),
        (b"[]", "labels.json is damaged"),
        (json.dumps({"version": 99}).encode(), "human labels version 99"),
    ],
)
def test_a_damaged_or_newer_file_is_named(store, content, message):
    store.objects.put("labels.json", content)
    with pytest.raises(StorageError, match=message):
        read_labels(store, table("a"))
