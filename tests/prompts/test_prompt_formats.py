"""One meaning of the columns for CSV, JSON Lines and Parquet; mapping; errors that name row and field."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError
from dsprobe.prompts.load import load_prompts

ROWS = [
    {
        "Index": "0",
        "Goal": "Fold a boat",
        "Target": "Sure, fold",
        "Behavior": "Boats",
        "Category": "Paper",
        "Source": "O",
    },
    {"Index": "1", "Goal": "Brew tea", "Target": "", "Behavior": "Tea", "Category": "Kitchen", "Source": ""},
]


def write(folder: Path, rows: list[dict], kind: str, name: str = "own") -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(stream.getvalue().encode())
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def load(path: Path, source: str | None = None, **settings):
    return load_prompts(PromptsConfig(source=source or path.suffix[1:], path=str(path), **settings))


FORMATS = ["csv", "jsonl", "parquet"]


@pytest.mark.parametrize("kind", FORMATS)
def test_layouts_are_found_by_their_columns_in_every_format(tmp_path, kind):
    path = write(tmp_path, ROWS, kind)
    boat, tea = load(path).prompts
    assert (boat.source, boat.category, boat.id) == ("jailbreakbench", "Paper", "jailbreakbench-0001")
    assert boat.metadata == {"Behavior": "Boats", "Source": "O", "target": "Sure, fold"}
    assert tea.metadata == {"Behavior": "Tea"}
    assert load(path, "jailbreakbench", split="harmful").prompts == (boat, tea)


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=10)


@given(st.lists(st.tuples(TEXT.filter(str.strip), TEXT), min_size=1, max_size=4))
def test_the_digest_is_of_the_prompts_not_of_the_format(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("formats")
    rows = [{"prompt": text, "category": category} for text, category in cells]
    sets = [load(write(folder, rows, kind), columns={"text": "prompt", "category": "category"}) for kind in FORMATS]
    texts = [[(p.text, p.category) for p in found.prompts] for found in sets]
    assert texts[0] == texts[1] == texts[2] == [(text.strip(), category.strip()) for text, category in cells]
    as_parquet_of_benchmark = [
        load(write(folder, [{"Goal": r["prompt"], "Behavior": "b"} for r in rows], kind)).digest for kind in FORMATS
    ]
    assert len(set(as_parquet_of_benchmark)) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_of_any_name_are_mapped(tmp_path, kind):
    rows = [
        {"question": "Why?", "key": "a", "topic": "x", "verdict": "1", "before": "Read this.", "start": "Because"},
        {"question": "How?", "key": "b", "topic": "y", "verdict": "0", "before": "", "start": ""},
    ]
    path = write(tmp_path, rows, kind)
    columns = {"text": "question", "id": "key", "category": "topic", "label": "verdict"}
    columns |= {"context": "before", "target": "start"}
    why, how = load(path, columns=columns, labels={"1": True, "0": False}).prompts
    assert (why.id, why.text, why.category, why.context) == ("a", "Why?", "x", "Read this.")
    assert (why.metadata, how.metadata) == ({"target": "Because"}, {})
    assert (why.harmful, how.harmful, why.source) == (True, False, kind)


def test_a_mapping_overrides_a_known_layout_and_changes_the_digest(tmp_path):
    path = write(tmp_path, ROWS, "csv")
    mapped = load(path, columns={"category": "Source", "id": "Index"})
    assert [(p.id, p.category) for p in mapped.prompts] == [("0", "O"), ("1", "")]
    assert mapped.digest != load(path).digest
    assert mapped.file_digest == load(path).file_digest


def test_numbers_and_truth_values_are_ids_and_labels_but_no_texts(tmp_path):
    rows = [{"prompt": "Why?", "id": 7, "bad": True}, {"prompt": "How?", "id": 8, "bad": False}]
    for kind in ("jsonl", "parquet"):
        found = load(
            write(tmp_path, rows, kind), columns={"label": "bad"}, labels={"true": True, "false": False}
        ).prompts
        assert [(p.id, p.harmful) for p in found] == [("7", True), ("8", False)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"text": "Gaol"}}, r"column of .*own\.csv.* `Gaol`\. Did you mean `Goal`"),
        ({"labels": {"a": True}}, "`labels` needs the column"),
        ({"columns": {"label": "Source"}}, "`columns.label` needs `labels`"),
        (
            {"columns": {"label": "Source"}, "labels": {"A": True}},
            r"line 2, column `Source`: `O` is unknown. Allowed: A",
        ),
    ],
)
def test_mappings_that_do_not_fit_are_named(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, ROWS, "csv"), **settings)


def test_unknown_columns_without_a_mapping_say_how_to_map(tmp_path):
    with pytest.raises(ConfigError, match=r"columns are `question`.*`columns: \{text: …\}`"):
        load(write(tmp_path, [{"question": "Why?"}], "parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty. Expected: a UTF-8 file of one JSON object"),
        ("\n \n", "is empty"),
        ('{"prompt": "ok"}\n{"prompt": "open\n', r"line 2, position 12: not valid JSON"),
        ('{"prompt": "ok"}\n\n["why"]\n', r"line 3: a JSON object is needed, not `list`"),
        ('{"prompt": "a", "prompt": "b"}\n', r"line 1, key `prompt`: there twice"),
        ('{"prompt": "ok"}\n{"prompt": 5}\n', r"line 2, key `prompt`: a text is needed, not `int`"),
        ('{"prompt": "ok"}\n{"prompt": ["a"]}\n', r"line 2, key `prompt`: a text is needed, not `list`"),
        ('{"prompt": "ok"}\n{"prompt": null}\n', r"line 2, key `prompt`: empty"),
        ('{"prompt": "ok"}\n{"id": "b"}\n', r"line 1, key `id`: missing"),
        ('{"prompt": "ok"}\n{"category": "b"}\n', r"line 2, key `prompt`: missing"),
        (
            '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n',
            r"line 2, key `id`: id `1` is already used in line 1",
        ),
        ('{"prompt": "half \\ud800"}\n', r"line 1, key `prompt`: holds half a surrogate"),
        (b'{"prompt": "ok"}\n{"prompt": "caf\xe9"}\n', r"line 2: not UTF-8"),
        ("[" * 200_000, r"line 1: not readable JSON \(nested too deeply\)"),
        ('{"prompt": "a", "id": ' + "9" * 5000 + "}", r"line 1: not readable JSON"),
    ],
)
def test_malformed_json_lines_are_named_with_line_and_key(tmp_path, text, message):
    path = tmp_path / "own.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=60))
def test_any_bytes_are_prompts_or_a_clear_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("jsonl") / "own.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' + data)
    try:
        said, found = "", load(path).prompts
    except ConfigError as error:
        said, found = str(error), ()
    assert found or "own.jsonl" in said


def not_utf8() -> pa.Array:
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    return pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xe9"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a", " "]}, r"row 2, column `prompt`: empty"),
        ({"prompt": ["a", None]}, r"row 2, column `prompt`: empty"),
        ({"prompt": [1, 2]}, r"row 1, column `prompt`: a text is needed, not `int`"),
        ({"prompt": [["a"], ["b"]]}, r"row 1, column `prompt`: a text is needed, not `list<"),
        ({"prompt": ["a", "b"], "id": [0.5, 1.5]}, r"row 1, column `id`: a text is needed, not `double`"),
        ({"prompt": ["a", "b"], "id": ["x", "x"]}, r"row 2, column `id`: id `x` is already used in row 1"),
        ({"prompt": pa.array([], pa.string())}, "has no rows"),
        ({"prompt": not_utf8()}, r"row 2, column `prompt`: not UTF-8"),
    ],
)
def test_malformed_parquet_rows_are_named(tmp_path, columns, message):
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_parquet_are_refused(tmp_path):
    path = tmp_path / "own.parquet"
    whole = write(tmp_path, ROWS, "parquet", "whole").read_bytes()
    for data in (b"", b"prompt\nwhy?\n", whole[:-9], whole[:4] + bytes(len(whole) - 200) + whole[-196:]):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"own\.parquet"):
            load(path)


def test_dictionary_encoded_texts_are_texts(tmp_path):
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"prompt": pa.array(["a", "b", "a"]).dictionary_encode()}), path)
    assert [p.text for p in load(path).prompts] == ["a", "b", "a"]
