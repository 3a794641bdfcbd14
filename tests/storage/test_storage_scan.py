"""Scanning stored step logs gives the state that the batches gave, whatever the files, threshold or conditions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsprobe.errors import ConfigError, DamagedError, StorageError
from dsprobe.experiment.evaluated import EvaluatedBatch
from dsprobe.metrics.temporal import first_harmful_step
from dsprobe.storage import log_reader
from dsprobe.storage.commit_record import RawOptions, WriterOptions
from dsprobe.storage.log_files import find_logs
from dsprobe.storage.raw_tables import position_log_table, step_log_table
from dsprobe.storage.reduced import check_scanned, place_for, write_reduced
from dsprobe.storage.reducer import ReducerState
from dsprobe.storage.run_store import RunStore
from dsprobe.storage.scan import Scanned, ScanSettings, scan_files
from dsprobe.storage.schemas import open_writer
from dsprobe.storage.testing import synthetic_batch, synthetic_condition, take_rows

THETA = 0.5
TABLES = {"step_log": step_log_table, "position_log": position_log_table}


def with_threshold(batch: EvaluatedBatch, theta: float) -> EvaluatedBatch:
    """The batch as a run with another harm threshold would have it."""
    rows = batch.trajectories
    for view in ("committed", "predicted"):
        found = first_harmful_step(getattr(rows, f"risk_{view}_SB"), theta, rows.num_steps_B)
        batch.fhs_B[view], batch.fhs_event_B[view] = found
    return batch


def online(batches: Sequence[EvaluatedBatch], theta: float = THETA) -> ReducerState:
    state = ReducerState(theta)
    for batch in batches:
        state.update(with_threshold(batch, theta))
    return state


def write_logs(folder: Path, batches: Sequence[EvaluatedBatch], number: int = 0, group: int = 1 << 18) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, make in TABLES.items():
        table = pa.concat_tables([make(batch) for batch in batches]).unify_dictionaries()
        with open_writer(folder / f"{kind}-{number:05d}.parquet", table.schema) as writer:
            writer.write_table(table, row_group_size=group)


def scan(url: Path | str, theta: float = THETA, **where: tuple[str, ...]) -> Scanned:
    logs = find_logs(str(url), where)
    asked = ScanSettings(threshold=theta, where=where)
    scanned = scan_files(logs.objects, logs.files, asked)
    check_scanned(logs, asked, scanned)
    return scanned


def same(left: ReducerState, right: ReducerState) -> bool:
    ours, theirs = left.to_tables("r"), right.to_tables("r")
    return all(ours[kind].equals(theirs[kind], check_metadata=True) for kind in ours)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(0, 10_000), st.floats(0, 1, width=32))
def test_a_scan_gives_the_online_state(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, seed: int, theta: float
) -> None:
    folder = tmp_path_factory.mktemp("log")
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 40))
    batches = []
    for number, (rows, steps, length) in enumerate(data.draw(st.lists(sizes, min_size=1, max_size=4))):
        condition = synthetic_condition(("direct", "dija")[number % 2])
        batch = synthetic_batch(seed + number, condition=condition, rows=rows, steps=steps, length=length)
        if data.draw(st.booleans()):
            batch.trajectories.num_steps_B[0] = 0
        if data.draw(st.booleans()):
            batch.trajectories.response_BL[-1, 3 : 3 + length // 2] = False
        batches.append(batch)
    cut = data.draw(st.integers(0, len(batches)))
    for number, part in enumerate((batches[:cut], batches[cut:])):
        if part:
            write_logs(folder, part, number, data.draw(st.sampled_from((1, 7, 100, 1 << 18))))
    assert same(scan(folder, theta).state, online(batches, theta))


@pytest.mark.parametrize("rows_at_a_time", [1, 5, 64])
def test_trajectories_may_span_pieces_and_conditions_may_alternate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int
) -> None:
    monkeypatch.setattr(log_reader, "BATCH_ROWS", rows_at_a_time)
    pair = [synthetic_batch(i, condition=synthetic_condition(attack)) for i, attack in enumerate(("direct", "dija"))]
    mixed = [take_rows(pair[i % 2], [i // 2]) for i in range(8)]
    write_logs(tmp_path, mixed)
    assert same(scan(tmp_path).state, online(mixed))


def test_long_responses_and_many_trajectories_are_exact(tmp_path: Path) -> None:
    """More values in a cell than one packed integer takes, at the largest float16."""
    batches = [synthetic_batch(i, rows=900, steps=2, length=2) for i in range(5)]
    for batch in batches:
        batch.trajectories.entropy_SBL[:] = np.float16(65504)
    write_logs(tmp_path, batches)
    state = scan(tmp_path).state
    assert same(state, online(batches))
    (condition,) = state.conditions.values()
    assert condition.sums["entropy"].n_SP[0, 0] == 4500
    assert condition.sums["entropy"].total_SP[0, 0] == 4500 * 65504 * 2**24


@pytest.mark.parametrize("format_", ["file", "stream"])
def test_arrow_files_are_read_like_parquet(tmp_path: Path, format_: str) -> None:
    batches = [synthetic_batch(1), synthetic_batch(2, condition=synthetic_condition("dija"))]
    new = pa.ipc.new_file if format_ == "file" else pa.ipc.new_stream
    for kind, make in TABLES.items():
        table = pa.concat_tables([make(batch) for batch in batches]).unify_dictionaries()
        with new(tmp_path / f"{kind}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    assert same(scan(tmp_path).state, online(batches))
    assert same(scan(tmp_path, attack=("dija",)).state, online(batches[1:]))


def test_logs_of_other_programs_are_read(tmp_path: Path) -> None:
    """Without dsprobe's metadata, without statistics, with nullable columns, plain strings and nulls for NaN."""
    batches = [synthetic_batch(1), synthetic_batch(2, condition=synthetic_condition("dija"))]
    for kind, make in TABLES.items():
        table = pa.concat_tables([make(batch) for batch in batches]).unify_dictionaries()
        columns = {}
        for name in table.column_names:
            column = table[name].cast(pa.string()) if pa.types.is_dictionary(table[name].type) else table[name]
            if name == "kl":
                column = pc.if_else(pc.is_nan(column.cast(pa.float32())), pa.scalar(None, column.type), column)
            columns[name] = column
        pq.write_table(pa.table(columns), tmp_path / f"{kind}.parquet", write_statistics=False, row_group_size=77)
    assert same(scan(tmp_path).state, online(batches))


def _committed(root: Path, flush: int = 1) -> tuple[RunStore, list[EvaluatedBatch]]:
    raw = RawOptions(keep=("steps",), shard_bytes=1 << 30, step_bytes=1 << 30, flush_bytes=flush)
    options = WriterOptions(threshold=THETA, sample_positions=1, extreme_positions=1, raw=raw)
    store = RunStore(str(root), "logged-00000000", options)
    store.write_manifest({"run_id": "logged-00000000", "shards": ["a", "b"]})
    batches = []
    for number, attack in enumerate(("direct", "dija")):
        with store.open_attempt("ab"[number]) as writer:
            for part in range(3):
                batch = synthetic_batch(
                    10 * number + part, condition=synthetic_condition(attack), first_prompt=9 * part
                )
                writer.add(batch)
                batches.append(batch)
            assert writer.commit()
    return store, batches


def test_online_committed_and_scanned_states_are_one(tmp_path: Path) -> None:
    store, batches = _committed(tmp_path)
    committed = ReducerState(THETA)
    for record in store.committed().values():
        kinds = ("reducer_counts", "reducer_sums")
        committed.merge(ReducerState.from_tables({k: store.read_shard(record, f"{k}.parquet") for k in kinds}))
    logs = find_logs(store.url, {})
    assert logs.threshold == THETA
    assert len(logs.files) == 2 * 2 * 3  # every batch was a flush
    assert same(scan(store.url).state, committed)
    assert same(committed, online(batches))
    for theta in (0.2, 0.9):
        assert same(scan(store.url, theta).state, online(batches, theta))


def test_results_lie_in_the_run_under_a_name_made_of_the_settings(tmp_path: Path) -> None:
    store, batches = _committed(tmp_path)
    where = {"attack": ("dija",)}
    logs, asked = find_logs(store.url, where), ScanSettings(threshold=0.7, where=where)
    place = place_for(logs, asked, None)
    scanned = scan_files(logs.objects, logs.files, asked)
    facts = write_reduced(logs, asked, scanned, place)
    assert place.address.startswith(f"{store.url}/reduced/")
    assert facts["conditions"] == ["toy/toy/dija/default"]
    assert same(scanned.state, online(batches[3:], 0.7))
    kinds = ("reducer_counts", "reducer_sums", "step_stats", "position_stats")
    tables = {kind: pq.read_table(f"{place.address}/{kind}.parquet") for kind in kinds}
    assert same(ReducerState.from_tables(tables), scanned.state)
    assert tables["step_stats"].num_rows > 0
    other = ScanSettings(threshold=0.6, where=where)
    assert place_for(logs, other, None).folder != place.folder
    assert json.loads(Path(place.address, "reduced.json").read_text())["threshold"] == 0.7


def test_only_the_wanted_conditions_are_read(tmp_path: Path) -> None:
    store, batches = _committed(tmp_path)
    wanted = scan(store.url, attack=("dija",), condition=("toy/toy/dija/default", "toy/toy/direct/default"))
    assert same(wanted.state, online(batches[3:]))
    with pytest.raises(ConfigError, match=r"Unknown attack `dia`\. Did you mean `dija`"):
        find_logs(store.url, {"attack": ("dia",)})
    with pytest.raises(ConfigError, match=r"Unknown part of a condition `atack`\. Did you mean `attack`"):
        find_logs(store.url, {"atack": ("dija",)})
    write_logs(tmp_path / "loose", batches[:1])
    with pytest.raises(ConfigError, match="Unknown attack `dija`"):
        scan(tmp_path / "loose", attack=("dija",))


def test_what_cannot_be_scanned_is_said(tmp_path: Path, empty_run, make_run) -> None:
    with pytest.raises(StorageError, match=r"recording.raw.keep: \[steps\].*dsprobe compact"):
        find_logs(make_run(str(tmp_path / "plain")).url, {})
    with pytest.raises(StorageError, match="no committed shards"):
        find_logs(empty_run(str(tmp_path / "empty")).url, {})
    with pytest.raises(StorageError, match="Give the folder of one run"):
        find_logs(str(tmp_path / "plain"), {})
    with pytest.raises(StorageError, match="no file ends with"):
        find_logs(str(tmp_path / "nowhere"), {})
    with pytest.raises(StorageError, match="does not exist"):
        find_logs(str(tmp_path / "nothing.parquet"), {})
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(StorageError, match="holds no step logs"):
        scan(tmp_path / "other.parquet")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store, _ = _committed(tmp_path / "run")
    victim = store.objects.path(find_logs(store.url, {}).files[0].name)
    data = bytearray(Path(victim).read_bytes())
    data[len(data) // 2] ^= 1
    Path(victim).write_bytes(data)
    with pytest.raises(DamagedError, match=r"step_log-00000\.parquet is damaged"):
        scan(store.url)
    for name, content in {"cut": data[: len(data) // 2], "empty": b"", "text": b"PAR1 and no more"}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "step_log-00000.parquet").write_bytes(content)
        with pytest.raises(DamagedError, match=f"{name}/step_log-00000.parquet is damaged"):
            scan(folder)


def _rewritten(folder: Path, kind: str, change) -> None:
    path = folder / f"{kind}-00000.parquet"
    table = change(pq.read_table(path))
    with open_writer(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("step_log", lambda t: t.slice(0, t.num_rows - 1), "in the middle of a trajectory"),
        ("step_log", lambda t: t.slice(1), "not trajectory by trajectory"),
        ("step_log", lambda t: t.sort_by([("step", "descending")]), "not trajectory by trajectory"),
        ("position_log", lambda t: t.filter(pc.not_equal(t["position"], 0)), "a file is missing"),
        ("position_log", lambda t: t.slice(t.num_rows), "a file is missing"),
        ("step_log", lambda t: t.slice(t.num_rows), "no rows of a `step_log`"),
        ("step_log", lambda t: _with(t, "risk_predicted", np.nan), "predicted risk of a taken step is NaN"),
        ("step_log", lambda t: _with(t, "kl_mean", np.inf), "infinite"),
        ("position_log", lambda t: _with(t, "entropy", -np.inf), "infinite"),
        ("position_log", lambda t: _with(t, "step", 0), "not between 1 and"),
        ("position_log", lambda t: _with(t, "position", -1), "position is negative"),
        (
            "position_log",
            lambda t: t.set_column(0, "condition", t["condition"]).drop_columns(["kl"]),
            "lacks column `kl`",
        ),
        ("step_log", lambda t: _cast(t, "risk_committed", pa.float64()), "`risk_committed` of a `step_log` is double"),
    ],
)
def test_rows_that_no_run_logs_are_refused_by_file(tmp_path: Path, kind: str, change, message: str) -> None:
    write_logs(tmp_path, [synthetic_batch(1, shortest=2)])
    _rewritten(tmp_path, kind, change)
    with pytest.raises(StorageError, match=message):
        scan(tmp_path)


def _with(table: pa.Table, name: str, value: float) -> pa.Table:
    field = table.schema.field(name)
    values = table[name].to_numpy().copy()
    values[0] = value
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def _cast(table: pa.Table, name: str, dtype: pa.DataType) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, table[name].cast(dtype))


def test_logs_of_two_places_do_not_mix(tmp_path: Path) -> None:
    batches = [synthetic_batch(1), synthetic_batch(2)]
    write_logs(tmp_path, batches)
    write_logs(tmp_path, batches[:1], 1)
    (tmp_path / "position_log-00001.parquet").unlink()
    with pytest.raises(StorageError, match="a file is missing"):
        scan(tmp_path)
    for path in tmp_path.glob("position_log*"):
        path.unlink()
    assert scan(tmp_path).position_rows == 0  # step logs alone give step statistics


PEAK = """
import sys
from pathlib import Path
from dsprobe.storage.log_files import find_logs
from dsprobe.storage.scan import ScanSettings, scan_files
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
logs = find_logs(sys.argv[1], {})
before = peak()
scanned = scan_files(logs.objects, logs.files, ScanSettings(threshold=0.5))
print(scanned.position_rows, before, peak())
"""


def test_peak_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """One file of 50 times the rows, in one row group, takes the same memory but for the distributions' codes."""
    grown = {}
    batch = synthetic_batch(1, rows=64, steps=32, length=64, shortest=32)
    for times in (1, 50):
        folder = tmp_path / str(times)
        folder.mkdir()
        for kind, make in TABLES.items():
            table = make(batch)
            with open_writer(folder / f"{kind}-00000.parquet", table.schema) as writer:
                writer.write_table(pa.concat_tables([table] * times), row_group_size=1 << 30)
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=True, env=environment
        )
        rows, before, after = map(int, done.stdout.split())
        assert rows == times * 64 * 32 * 64
        grown[times] = (after - before) / 1024
    assert grown[50] < grown[1] + 60, grown  # MiB; a decoded column of the large file alone has 13 MiB, all eight 100
