"""What reads documents that others wrote. A target takes bytes: the document itself, or how to change a valid one.

Each may succeed or raise a `DSProbeError`; anything else is a finding.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
import tempfile
from pathlib import Path

from tests.hostile.hostile_bytes import Chooser, as_json, damaged, mutated

from dsprobe.errors import DSProbeError

FIXTURES = Path(__file__).parent.parent / "fixtures"
TARGETS = {}


def target(function):
    TARGETS[function.__name__] = function
    return function


def survives(name, data, folder):
    """Run a target on an input; an error that a user can act on is fine, with a message that can be printed.

    Args:
        name: One of `TARGETS`.
        data: Any bytes.
        folder: Scratch folder.
    """
    try:
        TARGETS[name](data, Path(folder))
    except DSProbeError as error:
        told(error)


def told(error):
    """Check that an error says something that can be printed."""
    assert str(error).encode(errors="backslashreplace")


def document(data, folder, name, valid, encode=as_json):
    """A file that holds the bytes as they are, a changed valid document, or damaged bytes of one."""
    choose = Chooser(data)
    kind = choose.number(3)
    if kind == 0:
        content = choose.rest()
    elif kind == 1:
        content = encode(mutated(valid, choose))
    else:
        content = damaged(encode(valid), choose)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- configurations ------------------------------------------------------------------------------------------------


def as_yaml(value):
    import yaml

    # JSON is YAML but for lone surrogates, which stay as escapes.
    try:
        return yaml.safe_dump(value).encode("utf-8", "replace") if isinstance(value, dict) else as_json(value)
    except RecursionError:
        return b"[" * 5000


@functools.cache
def recipe(kind, name):
    import yaml

    from dsprobe.sweeps.library import recipes

    return yaml.safe_load(recipes(kind)[name])


@target
def config(data, folder):
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config
    from dsprobe.experiment.plan import resolve

    path = document(data, folder, "config.yaml", recipe("run", "demo"), as_yaml)
    loaded = load_config(str(path), (), {}, schema=RunConfig)
    resolve(loaded.config)


@target
def sweep_config(data, folder):
    from dsprobe.config_loader import load_config
    from dsprobe.sweeps.config import SweepConfig
    from dsprobe.sweeps.pipeline import resolve_sweep

    path = document(data, folder, "config.yaml", recipe("sweep", "demo"), as_yaml)
    resolve_sweep(load_config(str(path), (), {}, schema=SweepConfig).config)


@target
def options(data, folder):
    from dsprobe.cli.options import component, key_values
    from dsprobe.config import RunConfig
    from dsprobe.config_loader import load_config

    text = data[1:].decode("utf-8", "replace")
    kind = Chooser(data).number(4)
    if kind == 0:
        component(text, "judge")
    elif kind == 1:
        key_values([text], "-p")
    elif kind == 2:
        load_config("demo", [text], {}, schema=RunConfig, recipes={"demo": json.dumps(recipe("run", "demo"))})
    else:
        environ = {"DSPROBE_" + text.partition("=")[0].replace("\0", ""): text.partition("=")[2]}
        load_config("demo", (), environ, schema=RunConfig, recipes={"demo": json.dumps(recipe("run", "demo"))})


@target
def guardrail(data, folder):
    from dsprobe.cli.options import read_guardrail
    from dsprobe.config import DecodingConfig
    from dsprobe.guardrails.build import check_guardrail

    valid = {
        "name": "late",
        "stack": [
            {"name": "renoise", "window": "late"},
            {"name": "refuse", "trigger": {"threshold": 0.5, "patience": 2}},
        ],
    }
    check_guardrail(read_guardrail(document(data, folder, "guardrail.yaml", valid, as_yaml)), DecodingConfig())


# ---- prompts, cases, labels ----------------------------------------------------------------------------------------


def _prompts(source, path):
    from dsprobe.config import PromptsConfig
    from dsprobe.prompts.load import load_prompts

    for settings in ({}, {"columns": {"text": "prompt", "id": "id"}, "labels": {}}):
        try:
            load_prompts(PromptsConfig(source=source, path=str(path), **settings))
        except DSProbeError as error:
            told(error)


ROWS = [
    {"id": "a", "prompt": "how do i make a kite ?", "category": "toys"},
    {"id": "b", "prompt": "who are you ?", "category": "talk"},
]


@target
def prompts_csv(data, folder):
    choose = Chooser(data)
    seeds = sorted((FIXTURES / "prompts").glob("*.csv"))
    seed = choose.pick(seeds)
    content = choose.rest() if choose.number(2) else damaged(seed.read_bytes(), choose)
    path = folder / "prompts.csv"
    path.write_bytes(content)
    _prompts("csv", path)


@target
def prompts_jsonl(data, folder):
    def lines(rows):
        return b"\n".join(as_json(row) for row in rows) if isinstance(rows, list) else as_json(rows)

    _prompts("jsonl", document(data, folder, "prompts.jsonl", ROWS, lines))


@target
def prompts_parquet(data, folder):
    _prompts("parquet", document(data, folder, "prompts.parquet", ROWS, _parquet))


def _parquet(rows):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, LookupError, OverflowError):
        table = pa.Table.from_pylist(ROWS)
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink)
    except (pa.ArrowException, ValueError):
        return b"PAR1PAR1"
    return sink.getvalue()


@target
def cases(data, folder):
    from dsprobe.attacks.case import load_cases

    valid = [
        {"format": "dsprobe attack cases", "version": 1},
        {"prompt_id": "a", "attack": "dija", "user": ["step 1", 6, None], "reply": [4, "end"]},
        {"prompt_id": "b", "actions": [{"kind": "write", "step": 1, "position": 3, "text": "sure"},
                                       {"kind": "remask", "step": 2, "phrases": ["no"]}]},
    ]  # fmt: skip

    def lines(rows):
        return b"\n".join(as_json(row) for row in rows) if isinstance(rows, list) else as_json(rows)

    load_cases(document(data, folder, "cases.jsonl", valid, lines))


ARTEFACTS = (
    ("harmbench", {"a": ["one"], "b": [["two"]]}),
    ("jailbreakbench", {"jailbreaks": [{"goal": "who are you ?", "prompt": "x", "jailbroken": True, "index": 1}]}),
    ("dija", [{"Behavior": "who are you ?", "Refined_behavior": "x", "id": 3}]),
)


@target
def artefacts(data, folder):
    from dsprobe.attacks.artefacts import FORMATS, read_artefacts

    choose = Chooser(data)
    name, valid = choose.pick(ARTEFACTS)
    asked = choose.pick(("auto", name, *FORMATS))
    path = document(choose.rest(), folder, choose.pick(("artefacts.json", "artefacts.csv")), valid)
    read_artefacts(path.read_bytes(), path, asked)


@target
def labels(data, folder):
    from dsprobe.judges.labels import load_labels

    choose = Chooser(data)
    rows = [{"prompt_id": "p00000", "sample": "0", "harm": "1"}, {"prompt_id": "p00001", "harm_a": "no"}]
    if choose.number(2):
        path = document(choose.rest(), folder, "labels.jsonl", rows, lambda r: b"\n".join(map(as_json, _list(r))))
    else:
        path = folder / "labels.csv"
        path.write_bytes(damaged(b"prompt_id,sample,harm\np00000,0,1\np00001,1,no\n", choose))
    found = load_labels(path)
    found.match([{"prompt_id": "p00000", "sample": 0}, {"prompt_id": "p00001", "sample": 1}])


def _list(value):
    return value if isinstance(value, list) else [value]


@target
def goldens(data, folder):
    from dsprobe.decoding.parity import load_goldens

    valid = {"cases": [{"id": "x", "prompt": [[1, 2]], "params": {"steps": 2}, "canvases": [[[1, 2, 3]]], "seed": 0}]}
    load_goldens(document(data, folder, "goldens.json", valid))


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def _small(source):
    """Files of a checkpoint that are read without its weights."""
    return [
        f.name
        for f in sorted(source.iterdir())
        if f.suffix == ".json" and f.name not in ("goldens.json", "secondary.json")
    ]


@functools.cache
def toy_folder():
    from dsprobe.toy.assets import checkpoint_dir

    return checkpoint_dir("toy-diffusion")


def _checkpoint(choose, folder):
    """A copy of a checkpoint with one file changed; its weights are linked."""
    source = choose.pick((FIXTURES / "dream-tiny", FIXTURES / "llada-tiny", toy_folder()))
    shutil.rmtree(folder / "model", ignore_errors=True)
    copy = folder / "model"
    copy.mkdir()
    names = _small(source)
    for name in names:
        shutil.copyfile(source / name, copy / name)
    weights = (source / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights)
    kind = choose.number(4)
    if kind == 0:
        (copy / "model.safetensors").write_bytes(_safetensors(weights, choose))
    elif kind == 1:
        index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
        document(choose.rest(), copy, "model.safetensors.index.json", index)
    else:
        name = choose.pick(names)
        document(choose.rest(), copy, name, json.loads((copy / name).read_text(encoding="utf-8")))
    return copy


def _safetensors(data, choose):
    """Weights with a changed header: absurd shapes, offsets and lengths."""
    size = int.from_bytes(data[:8], "little")
    kind = choose.number(3)
    if kind == 0:
        return damaged(data[: 8 + size], choose) + data[8 + size :]
    if kind == 1:
        return choose.pick((2**63, 2**40, size + 1, 0, len(data))).to_bytes(8, "little") + data[8:]
    header = json.loads(data[8 : 8 + size])
    name = choose.pick(sorted(k for k in header if k != "__metadata__"))
    header[name] = mutated(header[name], choose)
    if choose.number(3) == 0:
        header[name] = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    text = as_json(header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@target
def checkpoint(data, folder):
    from dsprobe.config import ModelConfig
    from dsprobe.experiment.preflight import stand_in
    from dsprobe.models.checkpoint import inspect_checkpoint

    model = _checkpoint(Chooser(data), folder)
    found = stand_in(inspect_checkpoint(ModelConfig(name="m", path=str(model))))
    if found is not None and found.tokenizer is not None and found.tokenizer.chat_template is not None:
        found.chat_tokens([{"role": "user", "content": "who are you ?"}])


@target
def weights(data, folder):
    from dsprobe.config import ModelConfig
    from dsprobe.models.load import load_model

    load_model(ModelConfig(name="m", path=str(_checkpoint(Chooser(data), folder)), device="cpu"))


@target
def hub_ids(data, folder):
    from dsprobe.config import ModelConfig, PromptsConfig
    from dsprobe.models.checkpoint import inspect_checkpoint
    from dsprobe.prompts.load import load_prompts

    text = data[1:].decode("utf-8", "replace").replace("\n", "").strip("/.") or "x"
    text = "nobody-here" if text == "~" else text  # depends on the machine's home folder
    if Chooser(data).number(2):
        text = f"{text}/model"
    revision = ("0" * 40, None, "main")[Chooser(data).number(3)]
    for read in (
        lambda: inspect_checkpoint(ModelConfig(name="m", path=text, revision=revision)),
        lambda: load_prompts(PromptsConfig(source="hf", path=text, revision=revision)),
    ):
        try:
            read()
        except DSProbeError as error:
            told(error)


@functools.cache
def _policy():
    """A small valid policy file."""
    import torch

    from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork

    torch.manual_seed(0)
    fields = PolicyHeader.model_fields
    values = {"model": "m", "model_digest": "0" * 64, "width": 4, "hidden": 3, "knots": (0.0, 0.5, 1.0)}
    known = {"version": 1, "scorer": {"name": "toy_lexicon"}, "view": "predicted", "run_id": "r", "seed": 0}
    header = PolicyHeader.model_validate({k: v for k, v in {**known, **values}.items() if k in fields})
    network = PolicyNetwork(header)
    with tempfile.TemporaryDirectory() as folder:
        network.save(Path(folder) / "policy.safetensors")
        return (Path(folder) / "policy.safetensors").read_bytes()


@target
def policy(data, folder):
    from dsprobe.guardrails.policy_network import PolicyNetwork

    choose = Chooser(data)
    path = folder / "policy.safetensors"
    valid = _policy()
    size = int.from_bytes(valid[:8], "little")
    if choose.number(2):
        path.write_bytes(_safetensors(valid, choose))
    else:
        header = json.loads(valid[8 : 8 + size])
        (key,) = header["__metadata__"]
        header["__metadata__"] = {key: as_json(mutated(json.loads(header["__metadata__"][key]), choose)).decode()}
        text = as_json(header)
        path.write_bytes(len(text).to_bytes(8, "little") + text + valid[8 + size :])
    PolicyNetwork.load(path)


# ---- stored runs ---------------------------------------------------------------------------------------------------


@functools.cache
def run_files():
    """Files of a small valid run: relative name → content."""
    import pyarrow as pa

    from dsprobe.storage.commit_record import WriterOptions
    from dsprobe.storage.compaction import compact
    from dsprobe.storage.human_labels import write_labels
    from dsprobe.storage.query import read_table
    from dsprobe.storage.run_store import RunStore
    from dsprobe.storage.scores import committed_replies, write_scores
    from dsprobe.storage.testing import synthetic_batch

    folder = Path(tempfile.mkdtemp(prefix="dsprobe-hostile-"))
    options = WriterOptions(threshold=0.5, sample_positions=2, extreme_positions=1)
    store = RunStore(str(folder), "run", options)
    config = {**recipe("run", "demo"), "name": "run"}
    from dsprobe.config import RunConfig

    manifest = {
        "version": 1,
        "run_id": "run",
        "shards": ["s1"],
        "config": RunConfig.model_validate(config).model_dump(mode="json"),
        "sources": {},
        "models": {"toy": {"family": "toy-diffusion", "kind": "diffusion", "digest": "0" * 64}},
        "prompt_sets": {"toy": {"count": 4, "harmful": 4, "benign": 0, "categories": {}, "digest": "0" * 64,
                                "synthetic": True, "limited": False}},
        "judges": {"keyword": "refusal"},
        "conditions": ["toy/toy/direct/default"],
        "not_run": {},
        "packages": {},
        "hardware": {"machine": "x", "system": "y", "cores": 1, "gpus": []},
    }  # fmt: skip
    store.write_manifest(manifest)
    with store.open_attempt("s1") as writer:
        writer.add(synthetic_batch(1, rows=3, steps=3, length=4))
        writer.commit()
    replies = committed_replies(store)
    rows = replies.num_rows
    scores = replies.select(["condition", "prompt_id", "sample", "reply"])
    for name, column in {
        "value": pa.array([True] * rows),
        "score": pa.array([0.5] * rows, pa.float32()),
        "note": pa.array([""] * rows),
        "cached": pa.array([False] * rows),
    }.items():
        scores = scores.append_column(name, column)
    write_scores(store, judge="late", spec={"name": "late"}, question="harm", identity={}, scores=scores)
    compact(store)
    table = read_table(store, "trajectories")
    write_labels(store, table, {"harm": [True] * table.num_rows})
    root = folder / "runs" / "run"
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def fresh_run(folder):
    """Write the valid run."""
    root = folder / "run"
    shutil.rmtree(root, ignore_errors=True)
    for name, content in run_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _use(root):
    """Everything that reads a run; each step may refuse it."""
    from dsprobe.experiment.reopening import reopen
    from dsprobe.storage.compaction import compact
    from dsprobe.storage.human_labels import read_labels
    from dsprobe.storage.query import open_run, query, read_table, run_judges

    store = open_run(str(root))
    steps = (
        lambda: run_judges(store),
        lambda: query(store, "SELECT count(*), max(text) FROM trajectories"),
        lambda: query(store, "SELECT * FROM scores"),
        lambda: read_labels(store, read_table(store, "trajectories")),
        lambda: [read_table(store, kind) for kind in ("steps", "positions", "step_stats", "position_stats")],
        lambda: _report(store),
        lambda: reopen(store.manifest()),
        lambda: compact(store),
    )
    for step in steps:
        try:
            step()
        except DSProbeError as error:
            told(error)


def _report(store):
    from dsprobe.cli.results import report_data

    report_data(store, show_text=False)


RECORDS = ("manifest.json", "commits/s1.json", "scores/late.json", "labels.json")


@target
def records(data, folder):
    """Manifest, commit record, score record, labels, table index."""
    root = fresh_run(folder)
    choose = Chooser(data)
    index = sorted(name for name in run_files() if name.startswith("tables/_"))
    name = choose.pick((*RECORDS, *index))
    document(choose.rest(), root, name, json.loads(run_files()[name]))
    _use(root)


@target
def tables(data, folder):
    """Parquet files of shards, tables and scores, with records that vouch for the damage."""
    root = fresh_run(folder)
    choose = Chooser(data)
    name = choose.pick(sorted(name for name in run_files() if name.endswith(".parquet")))
    content = _hostile_parquet(run_files()[name], choose)
    (root / name).write_bytes(content)
    old = hashlib.sha256(run_files()[name]).hexdigest()
    for record in itertools.chain(root.rglob("*.json")):
        text = record.read_text()
        facts = f'"bytes": {len(run_files()[name])},'
        if old in text:
            record.write_text(
                text.replace(old, hashlib.sha256(content).hexdigest()).replace(facts, f'"bytes": {len(content)},')
            )
    _use(root)


def _hostile_parquet(data, choose):
    """Damaged bytes, or a sound file with a column gone, renamed, retyped, nulled or of another length."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    if choose.number(2):
        return damaged(data, choose)
    table = pq.read_table(io.BytesIO(data))
    index = choose.number(table.num_columns)
    name = table.column_names[index]
    change = choose.number(6)
    if change == 0:
        table = table.drop_columns([name])
    elif change == 1:
        table = table.rename_columns(
            [choose.pick(("", "x", "a'b", "text")) if n == name else n for n in table.column_names]
        )
    elif change == 2:
        kind = choose.pick((pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.int32()), pa.binary()))
        table = table.set_column(index, name, pa.nulls(table.num_rows, kind))
    elif change == 3:
        value = choose.pick((2**62, "\x1b[2J<b>", 1.5, b"\xff\xfe", [1], True, "../x"))
        table = table.set_column(index, name, pa.array([value] * table.num_rows))
    elif change == 4:
        table = table.slice(0, choose.number(2))
    else:
        metadata = {b"dsprobe.schema_version": choose.pick((b"x", b"-1", b"99", b"1e9", b"\xff", b""))}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@target
def sweep_records(data, folder):
    """`front.json` and `trials.parquet` of a sweep, a stored trial."""
    import numpy as np

    from dsprobe.storage.objects import ObjectStore
    from dsprobe.sweeps.archive import Archive
    from dsprobe.sweeps.exports import read_front, read_trials

    choose = Chooser(data)
    front = {"version": 1, "validation_run": "run", "points": [], "objectives": [], "attainment": []}
    objects = ObjectStore(str(folder))
    kind = choose.number(3)
    if kind == 0:
        document(choose.rest(), folder, "sweep/front.json", front)
        read_front(objects)
        return
    content = damaged(_trials(), choose)
    if kind == 1:
        (folder / "sweep").mkdir(exist_ok=True)
        (folder / "sweep" / "trials.parquet").write_bytes(content)
        read_trials(objects)
        return
    archive = Archive(objects)
    path = folder / archive.name("0" * 8, 0.0, 1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    found = archive.get("0" * 8, 0.0, 1.0)
    assert found is None or isinstance(found.passes, np.ndarray)


@functools.cache
def _trials():
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"number": [0], "parameters": ["{}"], "passes_from_scratch": [None]})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"dsprobe.objectives": b"[]"}), sink)
    return sink.getvalue()


@target
def journal(data, folder):
    """An Optuna journal."""
    from dsprobe.sweeps.study_storage import open_storage

    valid = [{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [1]}]
    path = document(
        data, folder, "study.journal", valid, lambda rows: b"".join(as_json(row) + b"\n" for row in _list(rows))
    )
    with open_storage(str(path)) as storage:
        storage.get_all_studies()


@target
def object_names(data, folder):
    """Names from documents: nothing outside the store's folder is read, written, listed or removed."""
    from dsprobe.storage.objects import ObjectStore

    root = folder / "store"
    root.mkdir(exist_ok=True)
    outside = folder / "outside"
    outside.write_bytes(b"secret")
    link = root / "link"
    if not link.is_symlink():
        link.symlink_to(folder)
    store = ObjectStore(str(root))
    name = data.decode("utf-8", "surrogateescape")
    for act in (
        lambda: store.put(name, b"x"),
        lambda: store.put_if_absent(name, b"x"),
        lambda: store.exists(name),
        lambda: store.read(name),
        lambda: store.list(name),
        lambda: store.remove(name),
    ):
        try:
            found = act()
        except DSProbeError as error:
            told(error)
        else:
            assert found != b"secret"
    assert outside.read_bytes() == b"secret"
    assert {path.name for path in folder.iterdir()} <= {"store", "outside"}
    shutil.rmtree(root)
