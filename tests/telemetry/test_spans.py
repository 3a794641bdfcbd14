"""Spans as they are kept and passed on, and the traces that are made of them."""

from __future__ import annotations

import gc
import json
import threading
import weakref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.errors import DamagedError
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.spans import FOLDER, keep_spans, read_spans
from dsprobe.telemetry import spans as module
from dsprobe.telemetry.logs import log_context
from dsprobe.telemetry.spans import SPANS, Span, SpanLog, each, span
from dsprobe.telemetry.trace_events import chrome_trace


@pytest.fixture(autouse=True)
def no_spans_of_others():
    SPANS.take()
    yield
    SPANS.take()


def a_span(**fields):
    values = {"name": "write", "category": "write", "start_ns": 10**18, "duration_ns": 5000, "host": "h", "pid": 1,
              "process": "driver", "thread": 7, "thread_name": "MainThread", "run": "r", "shard": "", "stream": "",
              "batch": -1, "detail": ""}  # fmt: skip
    return Span(**(values | fields))


def test_a_span_says_what_where_and_of_which_batch():
    with log_context(run="r", shard="s", stream="t", batch=3), span("write"), span("load", "inner", detail="model"):
        pass
    inner, outer = SPANS.take()
    assert (inner.name, inner.category, inner.detail) == ("inner", "load", "model")
    assert (outer.name, outer.run, outer.shard, outer.stream, outer.batch) == ("write", "r", "s", "t", 3)
    assert (outer.process, outer.thread) == ("driver", threading.get_native_id())
    assert outer.start_ns <= inner.start_ns
    assert inner.start_ns + inner.duration_ns <= outer.start_ns + outer.duration_ns


def test_a_block_that_raises_has_a_span():
    with pytest.raises(ZeroDivisionError), span("commit"):
        _ = 1 / 0
    assert [one.name for one in SPANS.take()] == ["commit"]


def test_each_numbers_what_it_passes_on_and_keeps_nothing_of_it():
    class Item:
        pass

    def items():
        yield Item()
        yield Item()

    seen = []
    for item in each(items, "generate", run="r", shard="s"):
        alive = weakref.ref(item)
        del item
        gc.collect()
        seen.append(alive() is None)
    assert seen == [True, True]
    assert [(one.batch, one.run, one.shard) for one in SPANS.take()] == [(0, "r", "s"), (1, "r", "s")]


def test_an_error_of_the_items_passes_through_and_facts_end_with_it():
    def items():
        yield 1
        raise KeyError("gone")

    stream = each(items, "generate", run="r")
    assert next(stream) == 1
    with span("report"):
        pass
    with pytest.raises(KeyError):
        next(stream)
    assert [one.run for one in SPANS.take() if one.name == "report"] == [""]


def test_spans_are_given_away_by_run_and_once():
    log = SpanLog()
    log.add([a_span(run="a"), a_span(run="b"), a_span(run="")])
    assert [one.run for one in log.take("a", "")] == ["a", ""]
    assert [one.run for one in log.take()] == ["b"]
    assert log.take() == []


def test_memory_and_files_of_spans_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "PER_RUN", 10)
    log = SpanLog()
    for _ in range(3):
        log.add([a_span()] * 4)
    assert len(log.take()) == 10
    log.add([a_span(), a_span(run="other")])
    assert [one.run for one in log.take()] == ["other"]
    monkeypatch.setattr(module, "PER_RUN", 10**9)
    log = SpanLog()
    log.add(a_span(batch=number) for number in range(module.WAITING + 5))
    kept = log.take()
    assert (len(kept), kept[0].batch) == (module.WAITING, 5)  # the oldest are dropped


def test_a_runs_spans_go_into_its_folder_and_come_back(tmp_path):
    objects = ObjectStore(str(tmp_path / "runs" / "r"))
    SPANS.add([a_span(run="r", start_ns=2, detail="ä"), a_span(run="", start_ns=1), a_span(run="other")])
    keep_spans(objects)
    keep_spans(objects)  # nothing is left to be written
    assert len(objects.list(FOLDER)) == 1
    assert read_spans(objects) == [a_span(run="r", start_ns=1), a_span(run="r", start_ns=2, detail="ä")]
    assert [one.run for one in SPANS.take()] == ["other"]


def test_a_store_that_refuses_spans_is_logged_and_no_more(tmp_path, caplog):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "telemetry").write_text("in the way")
    SPANS.add([a_span()])
    keep_spans(ObjectStore(str(tmp_path / "r")))
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("kind", ["bytes", "columns", "nulls"])
def test_a_file_without_spans_is_named(tmp_path, kind):
    objects = ObjectStore(str(tmp_path / "r"))
    SPANS.add([a_span()])
    keep_spans(objects)
    (name,) = objects.list(FOLDER)
    table = pq.read_table(objects.path(name))
    if kind == "columns":
        table = table.drop_columns(["pid"])
    if kind == "nulls":
        table = pa.table({**{n: table[n] for n in table.column_names}, "pid": pa.nulls(1, pa.int64())}, table.schema)
    if kind == "bytes":
        (tmp_path / "r" / name).write_bytes(b"no parquet")
    else:
        pq.write_table(table, objects.path(name))
    with pytest.raises(DamagedError, match=r"parquet holds no spans.*Delete it"):
        read_spans(objects)


def nested(draw, begin, end, depth):
    """Spans of one thread: each lies in its parent, siblings do not overlap."""
    found, at = [], begin
    while depth and at < end and draw(st.booleans()):
        first = draw(st.integers(at, end))
        last = draw(st.integers(first, end))
        found.append((first, last))
        found += nested(draw, first, last, depth - 1)
        at = last + 1
    return found


@st.composite
def recordings(draw):
    spans = []
    for host, pid, process in draw(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.sampled_from(["driver", "replica p:0", "odd"])),
            max_size=4, unique_by=lambda one: one[:2],
        )
    ):  # fmt: skip
        for thread in draw(st.sets(st.integers(1, 4), max_size=3)):
            for first, last in nested(draw, 10**18, 10**18 + draw(st.integers(0, 10**7)), 3):
                kind = draw(st.sampled_from(["generate", "write"]))
                spans.append(
                    a_span(name=kind, category=kind, start_ns=first, duration_ns=last - first, host=host, pid=pid,
                           process=process, thread=thread, batch=draw(st.integers(-1, 2)),
                           stream=draw(st.sampled_from(["", "x", "y"])))
                )  # fmt: skip
    return draw(st.permutations(spans))


@settings(max_examples=150, deadline=None)
@given(recordings())
def test_traces_are_what_the_format_asks_for(spans):
    content = chrome_trace(spans)
    assert json.loads(json.dumps(content)) == content
    events = content["traceEvents"]
    check_trace(events)
    assert sum(event["ph"] == "X" for event in events) == len(spans)


def check_trace(events):
    """Required keys, sorted times, proper nesting, arrows that begin and end in a slice, in this order."""
    for event in events:
        assert {"ph", "name", "pid", "tid", "ts"} <= event.keys()
        assert event["ts"] >= 0
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    timed = [event for event in events if event["ph"] != "M"]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    named = {(event["pid"], event["name"]) for event in events if event["ph"] == "M"}
    slices, flows = {}, {}
    for event in timed:
        assert (event["pid"], "process_name") in named
        if event["ph"] == "X":
            assert event["dur"] >= 0
            slices.setdefault((event["pid"], event["tid"]), []).append(event)
        else:
            flows.setdefault(event["id"], []).append(event)
    for lane in slices.values():
        check_nesting(lane)
    for begin, end in flows.values():
        assert (begin["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        for one in (begin, end):
            lane = slices[one["pid"], one["tid"]]
            assert any(each["ts"] <= one["ts"] <= each["ts"] + each["dur"] + 1e-3 for each in lane)


def check_nesting(lane):
    tolerance = 2e-3  # microseconds: a nanosecond or two of rounding
    stack = []
    for event in lane:
        while stack and stack[-1] <= event["ts"] + tolerance:
            stack.pop()
        end = event["ts"] + event["dur"]
        assert all(end <= outer + tolerance for outer in stack)
        stack.append(end)
