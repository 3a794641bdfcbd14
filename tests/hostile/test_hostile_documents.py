"""Documents that others wrote end in success or in an error that says what is wrong, whatever is in them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.hostile.hostile_targets import TARGETS, survives

from dsprobe.errors import ConfigError, DSProbeError
from dsprobe.prompts.arrow_files import parquet_table
from dsprobe.strict_yaml import parse_yaml
from dsprobe.untrusted import MAX_JSON_DEPTH, parse_json

FINDINGS = Path(__file__).parent / "findings"

EXAMPLES = {
    "records": 12,
    "tables": 12,
    "weights": 8,
    "config": 25,
    "sweep_config": 15,
    "journal": 20,
    "checkpoint": 40,
}
"""Executions of the slower targets; 60 of the others."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_document_is_read_or_refused(name):
    with tempfile.TemporaryDirectory() as folder:

        @settings(
            max_examples=EXAMPLES.get(name, 60),
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # a failure is kept as it was found; shrinking it may take minutes
            suppress_health_check=list(HealthCheck),
        )
        @given(st.binary(max_size=64))
        def run(data):
            survives(name, data, folder)

        run()


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_fuzzing_found_stays_fixed(path, tmp_path):
    survives(path.parent.name, path.read_bytes(), tmp_path)


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a {b: *a}",
        "[" * 100_000,
        "a: 1\na: 2",
        "!!python/object/apply:os.system [ls]",
        "x: !!binary aGk=",
        "? [1, 2]\n: 3",
        "a: " + "9" * 100_000,
        "a: \ud800",
        "\x00",
        "<<: *nothing",
    ],
)
def test_yaml_bombs_and_tags_are_refused_at_once(text):
    with pytest.raises(ConfigError, match=r"^here"):
        parse_yaml(text, "here")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 200 + b"1" + b"}" * 200, b"\xff", b"", b"1" * 5000, b"{"])
def test_json_that_no_reader_can_take_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_json_up_to_the_limit_is_read():
    depth = MAX_JSON_DEPTH - 1
    assert parse_json("[" * depth + "]" * depth)


def test_a_parquet_file_that_unpacks_to_terabytes_is_refused_by_its_footer(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.repeat(pa.scalar("x"), 11_000_000)
    pq.write_table(pa.table({"prompt": column}), tmp_path / "bomb.parquet", compression="zstd")
    data = (tmp_path / "bomb.parquet").read_bytes()
    assert len(data) < 100_000
    with pytest.raises(ConfigError, match="11000000 rows"):
        parquet_table(data, "bomb.parquet")


def test_a_checkpoint_cannot_name_files_elsewhere_or_sizes_beyond_its_weights(tmp_path, fixtures):
    import json
    import shutil

    from dsprobe.config import ModelConfig
    from dsprobe.models.checkpoint import inspect_checkpoint

    def inspected(change, **config):
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        raw = json.loads((fixtures / "dream-tiny" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **config}))
        shutil.copy(fixtures / "dream-tiny" / "model.safetensors", folder)
        change(folder)
        return inspect_checkpoint(ModelConfig(name="m", path=str(folder)))

    def index(name):
        text = json.dumps({"weight_map": {"a": name}})
        return lambda folder: (folder / "model.safetensors.index.json").write_text(text)

    assert inspected(lambda folder: None).num_layers
    (tmp_path / "other.safetensors").write_bytes((fixtures / "dream-tiny" / "model.safetensors").read_bytes())
    for name in ("../other.safetensors", str(tmp_path / "other.safetensors"), "a/../../other.safetensors", "x\0", ""):
        with pytest.raises(DSProbeError, match="no name of a safetensors file"):
            inspected(index(name))
    for sizes in (
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 5000},
        {"vocab_size": 2**30, "hidden_size": 2**20},
    ):
        with pytest.raises(DSProbeError, match=r"the weights are|Allowed: up to"):
            inspected(lambda folder: None, **sizes)
