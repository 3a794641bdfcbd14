"""Files of human labels: which reply each row means, and errors that name the place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.errors import ConfigError
from dsprobe.judges.labels import LabelledReply, load_labels

ROWS = [
    {"prompt_id": prompt, "sample": sample, "condition": f"{attack}/x", "attack": attack, "model": "m"}
    for attack in ("direct", "dija")
    for prompt in ("p1", "p2")
    for sample in (0, 1)
]


def write(tmp_path, text, name="labels.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_jsonl_say_the_same(tmp_path):
    rows = [
        {"prompt_id": "p1", "sample": "0", "attack": "dija", "harm": "yes", "refusal": ""},
        {"prompt_id": "p2", "sample": "1", "attack": "direct", "harm": "0", "refusal": "TRUE"},
    ]
    csv = ",".join(rows[0]) + ",note\n" + "".join(",".join(row.values()) + ",x\n" for row in rows)
    values = {"yes": True, "0": 0, "TRUE": "true", "": None}
    typed = [row | {"sample": int(row["sample"])} | {q: values[row[q]] for q in ("harm", "refusal")} for row in rows]
    jsonl = "\n".join(json.dumps(row) for row in typed)
    found = [load_labels(write(tmp_path, csv)), load_labels(write(tmp_path, jsonl, "labels.jsonl"))]
    for labels in found:
        assert labels.questions == ("harm", "refusal")
        matched = labels.match(ROWS)
        assert matched["harm"] == [None, None, None, False, True, None, None, None]
        assert matched["refusal"] == [None, None, None, True, None, None, None, None]


def test_several_people_vote_and_a_tie_is_no_label(tmp_path):
    text = "prompt_id,sample,attack,harm_a,harm_b,harm_c\np1,0,direct,1,1,0\np1,1,direct,1,0,\np2,0,direct,,,0\n"
    labels = load_labels(write(tmp_path, text))
    assert [reply.votes["harm"] for reply in labels.replies] == [(True, True, False), (True, False), (False,)]
    assert labels.match(ROWS)["harm"][:4] == [True, None, False, None]


@given(st.lists(st.booleans()))
def test_the_label_is_the_majority(votes):
    reply = LabelledReply(key={"prompt_id": "p"}, votes={"harm": tuple(votes)}, place="here")
    yes, no = votes.count(True), votes.count(False)
    assert reply.label("harm") == (None if yes == no else yes > no)
    assert reply.label("refusal") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no `prompt_id` among no columns"),
        ("id,harm\np1,1\n", "line 1: no `prompt_id` among id, harm"),
        ("prompt_id,label\np1,1\n", "no column of labels among prompt_id, label. Allowed: harm, refusal"),
        ("prompt_id,harm\np1,1\np2,maybe\n", "line 3, column `harm`: `maybe` is no label. Allowed: 1, true, yes"),
        ("prompt_id,harm\n,1\n", "line 2, column `prompt_id`: empty"),
        ("prompt_id,sample,harm\np1,first,1\n", "column `sample`: `first` is no sample number"),
        ("prompt_id,harm\np1\n", "line 2, column `harm`: missing"),
        ("prompt_id,harm\np1,\n", "no row has a label"),
    ],
)
def test_a_malformed_file_is_named_with_line_and_column(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_labels(write(tmp_path, text))
    assert message in str(caught.value)
    assert "labels.csv" in str(caught.value)


@pytest.mark.parametrize("first", ["", "prompt_id,"])
def test_the_first_row_of_a_file_without_a_header_is_not_printed_whole(tmp_path, first):
    text = "word " * 20 + "end"
    with pytest.raises(ConfigError, match=f"among .*{text[:39]}…") as caught:
        load_labels(write(tmp_path, f"{first}{text}\n"))
    assert "end" not in str(caught.value)


def test_jsonl_faults_name_line_and_key(tmp_path):
    path = write(tmp_path, '{"prompt_id": "p1", "harm": true}\n{"prompt_id": "p2", "harm": [1]}\n', "l.jsonl")
    with pytest.raises(ConfigError, match=r"l\.jsonl, line 2, key `harm`: a text is needed, not `list`"):
        load_labels(path)
    with pytest.raises(ConfigError, match=r"`\.txt` is unknown\. Allowed: \.csv, \.jsonl"):
        load_labels(tmp_path / "l.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_labels(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_id,harm\np1,1\n", "4 replies have prompt_id `p1`. Add `sample` or `condition` or `attack`."),
        ("prompt_id,sample,attack,harm\np9,0,dija,1\n", "no reply of the run has prompt_id `p9`, sample `0`"),
        ("prompt_id,sample,attack,harm\np1,0,dija,1\np1,0,dija,0\n", "labels the same reply as"),
    ],
)
def test_a_label_belongs_to_exactly_one_reply(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_labels(write(tmp_path, text)).match(ROWS)
    assert message in str(caught.value)
