"""Raw logs: exact values, exact budgets, the same bytes again, closed files whatever happens, flat memory."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import dsprobe
from tests.storage import raw_writing
from tests.storage.raw_writing import open_store, write

from dsprobe.actors.executor import execute
from dsprobe.actors.pinned import PinnedModels
from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.decoding.records import RAW_SAMPLE, TrajectoryBatch
from dsprobe.errors import ConfigError, DamagedError
from dsprobe.experiment.evaluated import EvaluatedBatch, sample_rank
from dsprobe.experiment.plan import Plan, resolve
from dsprobe.storage.commit_record import CommitRecord, RawOptions, WriterOptions
from dsprobe.storage.compaction import compact
from dsprobe.storage.objects import ObjectStore
from dsprobe.storage.query import query
from dsprobe.storage.query import read_raw as read_raw_of
from dsprobe.storage.raw_log import RawLog
from dsprobe.storage.raw_tables import position_log_table, step_log_table
from dsprobe.storage.raw_views import read_raw
from dsprobe.storage.run_store import RunStore, plan_facts, shard_folder
from dsprobe.storage.schemas import RAW_KINDS, check_schema
from dsprobe.storage.shard_writer import ShardWriter
from dsprobe.storage.testing import synthetic_batch, with_vectors

EVERYTHING = ("steps", "topk", "hidden", "logits")
KEYS = ["prompt_id", "sample"]


def config(
    model: str = "toy-diffusion", *, prompts: int = 6, shard_size: int = 3, batch_size: int = 32, **raw: Any
) -> RunConfig:
    hidden = {} if model == "toy-autoregressive" else {"hidden_layers": [1]}
    return RunConfig.model_validate(
        {
            "models": [model],
            "prompts": [{"source": "toy", "limit": prompts}],
            "decodings": [{"steps": 8}],
            "execution": {"executor": "local", "shard_size": shard_size, "batch_size": batch_size},
            "recording": {"top_k": 3, **hidden, "wall_seconds": False, "raw": {"keep": EVERYTHING, **raw}},
        }
    )


def run(root: str, plan: Plan) -> RunStore:
    store = RunStore(root, plan.run_id)
    store.write_manifest(plan_facts(plan))
    execute(plan, store, progress=lambda progress: None).raise_if_incomplete()
    return store


def whole(store: RunStore, kind: str) -> pa.Table:
    parts = list(read_raw(store, kind))
    return pa.concat_tables(parts).sort_by([(name, "ascending") for name in (*KEYS, "step")])


def kept(store: RunStore, kind: str) -> set[tuple[str, int]]:
    return {(p, s) for t in read_raw(store, kind) for p, s in zip(*(t[k].to_pylist() for k in KEYS), strict=True)}


def raw_names(record: CommitRecord) -> list[str]:
    return [name for name in record.files if name.startswith("raw/")]


# ---- what is stored --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(config(sample=0.4, extreme=1))


@pytest.fixture(scope="module")
def store(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = run(str(tmp_path_factory.mktemp("raw")), plan)
    compact(store)
    return store


@pytest.fixture(scope="module")
def shards(plan: Plan) -> list[list[EvaluatedBatch]]:
    models = PinnedModels(0)
    return [list(models.run(plan, shard)) for shard in plan.shards]


@pytest.fixture(scope="module")
def batches(shards: list[list[EvaluatedBatch]]) -> list[EvaluatedBatch]:
    return [batch for shard in shards for batch in shard]


def test_step_logs_hold_every_value_that_the_reducer_reads(store: RunStore, batches: list[EvaluatedBatch]) -> None:
    steps, positions = whole(store, "step_log"), whole(store, "position_log")
    rows = [(batch.trajectories, row) for batch in batches for row in range(batch.trajectories.num_rows)]
    rows.sort(key=lambda pair: (pair[0].keys[pair[1]].prompt_id, pair[0].keys[pair[1]].sample))
    for view in ("committed", "predicted"):
        risk = [getattr(batch, f"risk_{view}_SB")[: batch.num_steps_B[row], row] for batch, row in rows]
        found = steps[f"risk_{view}"].to_numpy()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.concatenate(risk))
    for name, plane in {"probability": "probability_SBL", "entropy": "entropy_SBL", "kl": "kl_SBL",
                        "attribution": "attribution_SBL", "token": "predicted_SBL",
                        "in_canvas": "committed_SBL"}.items():  # fmt: skip
        values = [
            getattr(batch, plane)[: batch.num_steps_B[row], row][:, batch.response_BL[row]].ravel()
            for batch, row in rows
        ]
        np.testing.assert_array_equal(positions[name].to_numpy(zero_copy_only=False), np.concatenate(values))
    assert positions["position"].to_pylist()[:42] == list(range(42))


def test_vectors_are_those_of_the_sample_and_the_extremes(store: RunStore, shards: list[list[EvaluatedBatch]]) -> None:
    def rank(other: tuple[TrajectoryBatch, int, float]) -> tuple[float, int]:
        key = other[0].keys[other[1]]
        return -other[2], sample_rank(shards[0][0].condition.id, key.prompt_id, key.sample)

    expected = {}
    for batches in shards:
        everyone = [
            (batch.trajectories, row, float(batch.tri_B["predicted"][row]))
            for batch in batches
            for row in range(batch.trajectories.num_rows)
        ]
        sampled = [(rows, row) for rows, row, _ in everyone if rows.raw_B is not None and rows.raw_B[row] == RAW_SAMPLE]
        others = [(rows, row, tri) for rows, row, tri in everyone if not _is_in(sampled, rows, row)]
        extreme = [(rows, row) for rows, row, _ in sorted(others, key=rank)[:1]]
        for rows, row in [*sampled, *extreme]:
            expected |= {(rows.keys[row].prompt_id, *place): logits for place, logits in logits_of(rows, row)}
    found = {
        (entry["prompt_id"], entry["step"], entry["position"]): np.array(entry["logits"], np.float16)
        for entry in whole(store, "logits").to_pylist()
    }
    assert len(expected) > 100
    assert found.keys() == expected.keys()
    for key, logits_V in expected.items():
        np.testing.assert_array_equal(found[key], logits_V)


def _is_in(sampled: list[tuple[TrajectoryBatch, int]], rows: TrajectoryBatch, row: int) -> bool:
    return any(theirs is rows and other == row for theirs, other in sampled)


def logits_of(rows: TrajectoryBatch, row: int) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Step, position in the response, and logits of each entry of a row."""
    assert rows.logits_NV is not None
    assert rows.logits_row_N is not None
    assert rows.logits_position_N is not None
    for step, logits_NV in rows.logits_NV.items():
        for mine, at, logits_V in zip(rows.logits_row_N[step], rows.logits_position_N[step], logits_NV, strict=True):
            if mine == row:
                yield (step + 1, int(rows.response_BL[row, :at].sum())), logits_V


def test_hidden_states_and_top_k_are_those_of_the_batch(store: RunStore, batches: list[EvaluatedBatch]) -> None:
    hidden, top = whole(store, "hidden").to_pylist(), whole(store, "topk").to_pylist()
    rows = {k.prompt_id: (b.trajectories, i) for b in batches for i, k in enumerate(b.trajectories.keys)}
    for entry in hidden[::97]:
        batch, row = rows[entry["prompt_id"]]
        assert batch.hidden_SBLD is not None
        at = np.flatnonzero(batch.response_BL[row])[entry["position"]]
        assert entry["layer"] == 1
        np.testing.assert_array_equal(
            np.array(entry["state"], np.float16), batch.hidden_SBLD[1][entry["step"] - 1, row, at]
        )
    for entry in top[::29]:
        batch, row = rows[entry["prompt_id"]]
        assert batch.topk_tokens_SBLK is not None
        assert batch.topk_logprobs_SBLK is not None
        where = (entry["step"] - 1, row, np.flatnonzero(batch.response_BL[row])[entry["position"]])
        assert entry["tokens"] == batch.topk_tokens_SBLK[where].tolist()
        np.testing.assert_array_equal(np.array(entry["logprobs"], np.float16), batch.topk_logprobs_SBLK[where])
    logits = whole(store, "logits")
    assert [(e["prompt_id"], e["step"], e["position"]) for e in top] == list(
        zip(*(logits[name].to_pylist() for name in ("prompt_id", "step", "position")), strict=True)
    )


def test_every_file_says_what_it_is_and_is_in_the_commit_record(store: RunStore) -> None:
    for record in store.committed().values():
        assert {name.removeprefix("raw/").rpartition("-")[0] for name in raw_names(record)} == set(RAW_KINDS)
        for name in raw_names(record):
            table = store.read_shard(record, name)  # checks size and digest
            assert table.schema.metadata[b"dsprobe.run_id"].decode() == store.run_id
            assert table.schema.metadata[b"dsprobe.condition"].decode() == record.condition.id
            assert table.num_rows == record.files[name].rows


def test_a_trajectory_without_steps_has_one_row_in_the_step_log() -> None:
    batch = synthetic_batch(3)
    batch.trajectories.num_steps_B[1] = 0
    table = step_log_table(batch)
    assert table.num_rows == int(np.maximum(batch.trajectories.num_steps_B, 1).sum())
    (idle,) = [entry for entry in table.to_pylist() if entry["step"] == 0]
    assert (idle["prompt_id"], idle["sample"], idle["num_steps"]) == ("p00000", 1, 0)
    assert np.isnan([idle["risk_committed"], idle["entropy_mean"], idle["fraction_committed"]]).all()
    assert position_log_table(batch, np.array([1])).num_rows == 0


@pytest.mark.parametrize("kind", RAW_KINDS)
def test_duckdb_reads_what_pyarrow_reads(store: RunStore, kind: str) -> None:
    column = {"step_log": "risk_predicted", "position_log": "attribution", "topk": "list_sum(logprobs)",
              "hidden": "list_sum(state)", "logits": "list_max(logits)"}[kind]  # fmt: skip
    found = query(store, f"SELECT count(*) AS n, sum({column}) AS total FROM {kind}").to_pylist()[0]
    table = whole(store, kind)
    name = column.removesuffix(")").rpartition("(")[2]
    values = table[name].to_pylist()
    total = sum(values) if name == column else sum((max if "max" in column else sum)(v) for v in values)
    assert found["n"] == table.num_rows
    assert found["total"] == pytest.approx(total, rel=1e-5)


def test_reading_streams_row_groups_and_skips_those_without_a_wanted_row(store: RunStore) -> None:
    prompt = whole(store, "logits")["prompt_id"][0].as_py()
    tables = list(read_raw_of(store.url, "logits", [("prompt_id", "==", prompt), ("step", "<=", 2)]))
    assert {t["prompt_id"][0].as_py() for t in tables} == {prompt}
    assert {step for t in tables for step in t["step"].to_pylist()} == {1, 2}
    assert not list(read_raw_of(store.url, "logits", [("prompt_id", "==", "none")]))
    with pytest.raises(ConfigError, match="Unknown raw log `logit`"):
        list(read_raw(store, "logit"))


def test_a_damaged_file_is_named(plan: Plan, tmp_path: Path) -> None:
    store = run(str(tmp_path), plan)
    path = sorted(Path(store.url).glob("shards/*/*/raw/step_log-00000.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"step_log-00000\.parquet is damaged"):
        list(read_raw(store, "step_log"))
    path.unlink()
    with pytest.raises(DamagedError, match=r"step_log-00000\.parquet is missing"):
        list(read_raw(store, "step_log"))


def test_an_autoregressive_run_has_all_but_hidden_states(tmp_path: Path) -> None:
    store = run(str(tmp_path), resolve(config("toy-autoregressive", keep=("steps", "topk", "logits"), sample=1.0)))
    top, logits, steps = (whole(store, kind) for kind in ("topk", "logits", "step_log"))
    assert top.num_rows == logits.num_rows == steps.num_rows
    best = [int(np.argmax(entry)) for entry in logits["logits"].to_pylist()]
    assert best == [entry[0] for entry in top["tokens"].to_pylist()]
    log = whole(store, "position_log").to_pylist()
    decided = {(e["prompt_id"], e["step"]): e for e in log if e["position"] == e["step"] - 1}
    assert [decided[e["prompt_id"], e["step"]]["token"] for e in logits.to_pylist()] == best


# ---- which trajectories ----------------------------------------------------------------------------------------------


def test_the_sample_does_not_depend_on_shards_or_batches(tmp_path: Path) -> None:
    settings_ = [{"shard_size": 8}, {"shard_size": 3}, {"shard_size": 8, "batch_size": 2}]
    stores = [
        run(str(tmp_path / str(i)), resolve(config(prompts=8, sample=0.5, keep=("topk", "logits"), **more)))
        for i, more in enumerate(settings_)
    ]
    first = kept(stores[0], "logits")
    table = next(iter(stores[0].committed().values())).condition.id
    prompts = resolve(config(prompts=8, sample=0.5)).prompt_sets["toy"].prompts
    assert first == {(p.id, 0) for p in prompts if sample_rank(table, p.id, 0) < 2**63}
    assert 0 < len(first) < 8
    for other in stores[1:]:
        assert kept(other, "logits") == first
        assert whole(other, "topk").equals(whole(stores[0], "topk"))


@pytest.mark.parametrize("rows", [0, 2])
def test_rows_per_shard_and_extremes_are_told_apart(rows: int, tmp_path: Path) -> None:
    store = run(str(tmp_path), resolve(config(prompts=8, shard_size=8, keep=("topk",), sample_rows=rows, extreme=3)))
    (record,) = store.committed().values()
    by_selection: dict[str, set[str]] = {"sample": set(), "extreme": set()}
    for name in raw_names(record):
        table = store.read_shard(record, name)
        selection = table.schema.metadata[b"dsprobe.selection"].decode()
        by_selection[selection] |= set(table["prompt_id"].to_pylist())
    rows_ = store.read_shard(record, "trajectories.parquet").to_pylist()
    ranked = sorted(rows_, key=lambda r: sample_rank(record.condition.id, r["prompt_id"], r["sample"]))
    assert by_selection["sample"] == {r["prompt_id"] for r in ranked[:rows]}
    worst = sorted(ranked[rows:], key=lambda r: -r["tri_predicted"])[:3]
    assert by_selection["extreme"] == {r["prompt_id"] for r in worst}


# ---- budgets ---------------------------------------------------------------------------------------------------------


def log_bytes(log: RawLog) -> int:
    return sum(record.bytes for record in log.files.values())


@settings(max_examples=15, deadline=None)
@given(
    budget=st.integers(0, 600_000),
    flush=st.integers(1, 200_000),
    extreme=st.integers(0, 3),
    vocabulary=st.sampled_from([1, 7, 300]),
    seed=st.integers(0, 100),
    aside=st.sampled_from([0, 60_000]),
)
def test_the_budget_of_a_shard_holds_to_the_byte_and_what_is_left_out_is_counted(
    budget: int, flush: int, extreme: int, vocabulary: int, seed: int, aside: int
) -> None:
    objects = ObjectStore(f"memory://budget-{seed}")
    options = RawOptions(keep=EVERYTHING, extreme=extreme, shard_bytes=budget, step_bytes=aside, flush_bytes=flush)
    log = RawLog(objects, "attempt", "run-0", options)
    for part in range(3):
        batch = synthetic_batch(seed + part, first_prompt=2 * part, steps=6)
        batch = with_vectors(batch, seed + part, vocabulary=vocabulary, sampled=(0, 2))
        log.add(batch, step_values_of(batch))
    log.finish()
    assert log_bytes(log) <= budget
    found: dict[str, set[tuple[str, int]]] = {"steps": set(), "vectors": set()}
    for name, record in log.files.items():
        data = objects.read(f"attempt/{name}")
        table = pq.read_table(io.BytesIO(data))
        assert (len(data), table.num_rows) == (record.bytes, record.rows)
        what = "steps" if "_log" in name else "vectors"
        found[what] |= set(zip(*(table[key].to_pylist() for key in KEYS), strict=True))
    assert len(found["steps"]) + log.dropped["steps"] == 12
    assert len(found["vectors"]) + log.dropped["vectors"] == 6 + extreme
    if budget == 600_000:
        assert log.dropped == {"steps": 0, "vectors": 0}
    for name in log.files:
        objects.remove(f"attempt/{name}")


def step_values_of(batch: EvaluatedBatch) -> Any:
    from dsprobe.storage.derived import step_values

    return step_values(batch.trajectories)


def test_a_budget_too_small_for_the_sample_cuts_it_in_the_order_of_the_hash(tmp_path: Path) -> None:
    small = resolve(config(prompts=8, shard_size=8, keep=("logits",), sample=1.0, max_shard_bytes=500_000))
    store = run(str(tmp_path), small)
    (record,) = store.committed().values()
    found = kept(store, "logits")
    assert 0 < len(found) < 8
    assert record.raw_dropped == {"steps": 0, "vectors": 8 - len(found)}
    assert sum(record.files[name].bytes for name in raw_names(record)) <= 500_000
    everyone = [(p.id, 0) for p in small.prompt_sets["toy"].prompts]
    ranked = sorted(everyone, key=lambda key: sample_rank(record.condition.id, *key))
    assert found == set(ranked[: len(found)])


def test_a_run_says_what_it_had_no_room_for_and_queries_see_the_rest(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "models: [toy-diffusion]\nprompts: [{source: toy, limit: 4}]\ndecodings: [{steps: 8}]\n"
        "recording: {top_k: 3, raw: {keep: [topk], sample: 1.0, max_shard_bytes: 60kB}}\n"
        "execution: {executor: local}\n"
    )
    code, out, said = dsprobe("run", "small.yaml", "--no-report", cwd=tmp_path)
    assert code == 0
    found = re.search(r"Warning: the raw logs have no vectors of (\d) trajectories", said)
    assert found is not None, said
    run_id = re.search(r"runs/(\S+)/tables", out)
    assert run_id is not None
    sql = "SELECT count(DISTINCT prompt_id) AS n FROM topk"
    code, out, said = dsprobe("query", run_id[1], sql, "--json", cwd=tmp_path)
    assert code == 0, said
    assert json.loads(out)[0]["n"] == 4 - int(found[1])
    code, _, said = dsprobe("query", run_id[1], "SELECT * FROM logits", cwd=tmp_path)
    assert code != 0
    assert "Unknown table `logits`" in said


def test_the_budget_of_the_run_is_shared_by_its_shards() -> None:
    whole_run = WriterOptions.of(config(sample=1.0, max_bytes="8MB", max_shard_bytes="6MB"), 4)
    assert whole_run.raw.shard_bytes == 2_000_000
    assert WriterOptions.of(config(sample=1.0, max_bytes="8MB", max_shard_bytes="1MB"), 4).raw.shard_bytes == 1_000_000


# ---- what is refused before anything runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("raw: {keep: [topk], sample: 1}", "`topk` needs `recording.top_k`, which is off"),
        ("raw: {keep: [hidden], sample: 1}", "`hidden` needs `recording.hidden_layers`, which is off"),
        ("enabled: false\n  raw: {keep: [steps]}", "`steps` needs `recording.enabled`, which is off"),
        ("raw: {keep: [logits]}", "logits would be kept of no trajectory"),
        ("raw: {sample: 0.1}", "`keep` lists nothing to store"),
        ("raw: {max_bytes: 2 parrots}", "recording.raw.max_bytes: could not interpret byte unit: parrots"),
        ("raw: {max_bytes: 0}", "recording.raw.max_bytes: Input should be greater than 0"),
        ("raw: {keep: [logit], sample: 1}", "'steps', 'topk', 'hidden' or 'logits'"),
    ],
)
def test_settings_that_contradict_are_refused(lines: str, message: str) -> None:
    recipe = f"models: [toy-diffusion]\nprompts: [{{source: toy}}]\nrecording:\n  {lines}\n"
    with pytest.raises(ConfigError) as error:
        load_config("x", schema=RunConfig, recipes={"x": recipe})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"sample": 1.0, "max_batch_bytes": "300kB"},
            r"logits of one batch of `toy.*3 trajectories x 8 steps x 42 masks",
        ),
        ({"extreme": 1, "max_batch_bytes": "300kB"}, "Lower execution.batch_size"),
        ({"sample": 1.0, "max_bytes": "300kB"}, r"One trajectory of .* takes about .*logits"),
        ({"keep": ("steps",), "max_bytes": "30kB"}, "set aside for the step logs of 3 trajectories"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_numbers(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(config(**raw))


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    store = run(str(tmp_path), resolve(config(keep=())))
    for record in store.committed().values():
        assert raw_names(record) == []
        assert (record.options.raw, record.raw_dropped) == (RawOptions(), {})


def test_records_of_version_1_have_no_raw_logs() -> None:
    old = {"version": 1, "shard_id": "s", "attempt": "a", "files": {},
           "condition": {"model": "m", "prompts": "p", "attack": "a", "decoding": "d"},
           "options": {"threshold": 0.5, "sample_positions": 1, "extreme_positions": 0}}  # fmt: skip
    record = CommitRecord.from_json(json.dumps(old).encode(), "a record")
    assert record.options.raw == RawOptions()
    again = CommitRecord.from_json(record.to_json(), "a record")
    assert again == record


# ---- kills and repeats -----------------------------------------------------------------------------------------------


def child(root: Path, batches: int, rows: int, vocabulary: int, pause: float) -> subprocess.Popen[str]:
    """`raw_writing` in a process of its own."""
    arguments = [root, batches, rows, vocabulary, pause]
    return subprocess.Popen(
        [sys.executable, raw_writing.__file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def digests(store: RunStore) -> dict[str, tuple[str, int, int]]:
    return {
        name: (record.sha256, record.bytes, record.rows)
        for commit in store.committed().values()
        for name, record in commit.files.items()
        if name != "trajectories.parquet"  # it holds wall times
    }


def test_a_kill_costs_what_is_not_closed_and_the_next_attempt_gives_the_same_bytes(tmp_path: Path) -> None:
    process = child(tmp_path / "killed", 24, 4, 600, 0.05)
    shard = tmp_path / "killed" / "runs" / "raw-0" / "shards" / "one"
    deadline = time.monotonic() + 60
    while len(list(shard.glob("*/raw/logits-*.parquet"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    (attempt,) = shard.iterdir()
    assert not (tmp_path / "killed" / "runs" / "raw-0" / "commits").exists()
    calm = write(str(tmp_path / "calm"), 24, vocabulary=600)
    expected = digests(calm)
    closed = sorted((attempt / "raw").glob("*.parquet"))
    assert len(closed) >= 2
    assert list((attempt / "raw").glob("*.tmp"))  # it was in the middle of others
    for path in closed:
        table = pq.read_table(path)
        check_schema(table.schema.metadata, str(path))
        assert expected[f"raw/{path.name}"][2] == table.num_rows
        assert table.schema.metadata[b"dsprobe.condition"] == b"toy/toy/direct/default"
    again = write(str(tmp_path / "killed"), 24, vocabulary=600)
    assert digests(again) == expected
    assert kept(again, "topk") == kept(calm, "topk")


def test_an_abort_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    writer: ShardWriter
    with store.open_attempt("one") as writer:
        for number in range(12):
            writer.add(with_vectors(synthetic_batch(number), number, vocabulary=300, sampled=(0,)))
        assert list(Path(store.url).glob("shards/one/*/raw/*.parquet"))
    assert [path for path in Path(store.url).glob("shards/**/*") if path.is_file()] == []


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    peaks = {}
    for batches in (2, 40):
        output, _ = child(tmp_path / str(batches), batches, 16, 2000, 0.0).communicate(timeout=120)
        peaks[batches] = int(output)
    written = sum(path.stat().st_size for path in (tmp_path / "40").rglob("raw/*.parquet")) >> 20
    assert written > 20
    assert peaks[40] < peaks[2] + written / 2, (peaks, written)


# ---- S3 --------------------------------------------------------------------------------------------------------------


def test_on_s3_files_close_while_the_shard_is_written_and_hold_the_same_bytes(s3_root: str, tmp_path: Path) -> None:
    remote, local = write(s3_root, 12), write(str(tmp_path), 12)
    assert digests(remote) == digests(local)
    (record,) = remote.committed().values()
    count = Counter(name.rpartition("-")[0] for name in raw_names(record))
    assert count["raw/logits"] > 2
    names = remote.objects.list(shard_folder(record.shard_id, record.attempt))
    assert len(names) == len(record.files)
    for kind in RAW_KINDS:
        there, here = (pa.concat_tables(read_raw(store, kind)).select([*KEYS, "step"]) for store in (remote, local))
        assert there.equals(here)
