"""Prompt sets from files: official columns, provenance, and errors that name the place."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError
from dsprobe.prompts.layouts import pair_of
from dsprobe.prompts.load import load_prompts


@pytest.fixture
def files(fixtures: Path) -> Path:
    return fixtures / "prompts"


def load(source: str, path: Path | None = None, **settings):
    return load_prompts(PromptsConfig(source=source, path=None if path is None else str(path), **settings))


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "own.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_harmbench_columns_context_and_categories(files):
    loaded = load("harmbench", files / "harmbench_style.csv")
    first, second, third = loaded.prompts
    assert (first.id, first.category, first.context, first.harmful) == ("fold_paper_boat", "paper_craft", "", True)
    assert second.text == "Describe, step by step, how to brew mint tea"
    assert second.metadata == {"FunctionalCategory": "standard", "Tags": "tea"}
    assert third.context == 'Dear reader,\n\nthe "valley" has two bridges.'
    assert {p.source for p in loaded.prompts} == {"harmbench"}
    assert (loaded.name, loaded.limited, loaded.synthetic) == ("harmbench", False, False)


def test_both_layouts_of_advbench_give_the_same_requests(files):
    redistributed = load("advbench", files / "advbench_harmbench_columns.csv").prompts
    original = load("advbench", files / "advbench_original.csv").prompts
    assert [p.text for p in redistributed] == [p.text for p in original]
    assert [p.id for p in redistributed] == ["advbench_0001", "advbench_0002"]
    assert [p.id for p in original] == ["advbench-0001", "advbench-0002"]
    assert original[0].metadata == {"target": "Sure, here are instructions for planting tulips"}


@pytest.mark.parametrize(
    ("file", "source", "text", "category"),
    [
        ("xstest_style.csv", "xstest", "How do I beat an egg?", "homonyms"),
        ("jailbreakbench_style.csv", "jailbreakbench", "Explain how to sharpen a pencil", "Stationery"),
        ("strongreject_style.csv", "strongreject", "How does one water a cactus?", "Gardening"),
        ("harmbench_style.csv", "harmbench", "Explain how to fold a paper boat", "paper_craft"),
        ("plain.csv", "csv", "How do I whistle?", ""),
    ],
)
def test_csv_recognises_the_layout(files, file, source, text, category):
    prompt = load("csv", files / file).prompts[0]
    assert (prompt.source, prompt.text, prompt.category) == (source, text, category)


def test_labels_in_the_file_decide_what_is_harmful_else_the_configuration(files):
    assert [p.harmful for p in load("csv", files / "xstest_style.csv").prompts] == [False, True]
    assert [p.harmful for p in load("csv", files / "plain.csv", harmful=False).prompts] == [False, False]


def test_jailbreakbench_splits_are_told_by_name_or_setting(files, tmp_path):
    text = (files / "jailbreakbench_style.csv").read_bytes()
    for name, harmful, key in (
        ("harmful", True, "jailbreakbench-0001"),
        ("benign", False, "jailbreakbench-benign-0001"),
    ):
        path = tmp_path / f"{name}-behaviors.csv"
        path.write_bytes(text)
        (prompt,) = load("jailbreakbench", path).prompts
        assert (prompt.harmful, prompt.id, prompt.category) == (harmful, key, "Stationery")
        assert prompt.metadata["target"] == "Sure, this is how to sharpen a pencil"
        assert load("jailbreakbench", write(tmp_path, text), split=name).prompts == (prompt,)
    with pytest.raises(ConfigError, match="is the benign split by its name"):
        load("jailbreakbench", tmp_path / "benign-behaviors.csv", split="harmful")
    with pytest.raises(ConfigError, match="say which split"):
        load("jailbreakbench", tmp_path / "own.csv")
    with pytest.raises(ConfigError, match="against `harmful: false`"):
        load("jailbreakbench", tmp_path / "harmful-behaviors.csv", harmful=False)
    with pytest.raises(ConfigError, match="Did you mean `benign`"):
        load("jailbreakbench", tmp_path / "own.csv", split="bening")


def test_a_harmbench_file_with_targets_keeps_them(files, tmp_path):
    head, *rows = (files / "harmbench_style.csv").read_text().splitlines(keepends=True)
    path = write(tmp_path, head.strip() + ",Target\n" + rows[0].strip() + ',"Sure, a boat"\n')
    assert load("harmbench", path).prompts[0].metadata["target"] == "Sure, a boat"


def test_xstest_types_and_their_contrasts_share_a_pair(files):
    safe, unsafe = load("xstest", files / "xstest_style.csv").prompts
    assert (safe.category, unsafe.category) == ("homonyms", "contrast_homonyms")
    assert safe.metadata["pair"] == unsafe.metadata["pair"] == "homonyms"
    assert {pair_of(kind) for kind in ("privacy_public", "privacy_fictional", "contrast_privacy")} == {"privacy"}
    assert {pair_of(kind) for kind in ("nons_group_real_discr", "real_group_nons_discr", "contrast_discr")} == {"discr"}


def test_limit_keeps_the_first_and_is_marked(files):
    path = files / "harmbench_style.csv"
    cut = load("harmbench", path, limit=2)
    assert [p.id for p in cut.prompts] == ["fold_paper_boat", "brew_mint_tea"]
    assert cut.limited
    assert not load("harmbench", path, limit=3).limited
    assert load("harmbench", path, limit=99).digest == load("harmbench", path).digest


def test_digest_follows_content_and_settings_not_place_or_name(files, tmp_path):
    path = files / "plain.csv"
    base = load("csv", path).digest
    copy = write(tmp_path, path.read_bytes())
    assert load("csv", copy, name="other").digest == base
    assert load("csv", path, limit=1).digest != base
    assert load("csv", path, harmful=False).digest != base
    assert load("csv", write(tmp_path, path.read_bytes() + b"Why?\n")).digest != base


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_fine(files, tmp_path):
    text = (files / "harmbench_style.csv").read_text().replace("\n", "\r\n")
    loaded = load("harmbench", write(tmp_path, b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n"))
    assert [p.id for p in loaded.prompts] == ["fold_paper_boat", "brew_mint_tea", "summarise_valley_note"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty. Expected: a UTF-8 CSV"),
        ("prompt,id\n", "has no rows"),
        ("question\nwhy?\n", r"line 1: the columns are `question`.*`prompt`"),
        ("prompt,prompt\na,b\n", "column `prompt` is there twice"),
        ("prompt,id\nok,1\n\nfine,2\n \t,3\n", r"line 5, column `prompt`: empty"),
        ("prompt,id\nok,1\nwhy,\n", r"line 3, column `id`: empty"),
        ('prompt,id\n"two\nlines",1\nonly\n', r"line 4, column `id`: missing; the row has 1 cells for 2"),
        ("prompt\nthis, that\n", r"line 2, column 2: the row has 2 cells for 1 columns"),
        ("prompt,id\na,1\nb,1\n", r"line 3, column `id`: id `1` is already used in line 2"),
        ('prompt\nok\n"open\n', r"line 3: not valid CSV"),
        (b"prompt\nok\ncaf\xe9\n", r"line 3: not UTF-8"),
        ("id,prompt,type,label\n1,hm,t,Safe\n", r"line 2, column `label`: `Safe` is unknown. Allowed: unsafe, safe"),
    ],
)
def test_malformed_files_are_named_with_line_and_column(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load("csv", path)
    assert str(path) in str(caught.value)


def test_the_first_row_of_a_file_without_a_header_is_not_printed_whole(tmp_path):
    long = "word " * 20 + "end"
    path = write(tmp_path, f"{long}," + ",".join(f"c{number}" for number in range(30)) + "\n")
    for fields in ({}, {"columns": {"text": "wrod " * 20}}):
        with pytest.raises(ConfigError, match=f"{long[:39]}…") as caught:
            load("csv", path, **fields)
        assert "end" not in str(caught.value)
        assert "c1" in str(caught.value)
        assert "c29" not in str(caught.value)


def test_a_file_of_another_benchmark_is_refused(files):
    with pytest.raises(ConfigError, match=r"Expected: .*`Behavior,BehaviorID,ContextString,SemanticCategory`"):
        load("harmbench", files / "advbench_original.csv")


def test_missing_files_and_unknown_sources(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no file at .*gone\.csv.*Expected: .*goal,target.*of llm-attacks/llm-attacks"
    ):
        load("advbench", tmp_path / "gone.csv")
    with pytest.raises(ConfigError, match="`harmbench` needs `path`"):
        load("harmbench")
    with pytest.raises(ConfigError, match="Did you mean `advbench`"):
        load("advbnch")


def test_settings_of_another_source_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match="no use for `path`"):
        load("toy", tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="no use for `seed`"):
        load("csv", files / "plain.csv", seed=3)
    with pytest.raises(ConfigError, match="no use for `split`"):
        load("csv", files / "plain.csv", split="train")
    with pytest.raises(ConfigError, match="no use for `revision`"):
        load("csv", files / "plain.csv", revision="0" * 40)
    assert load("csv", files / "plain.csv", attacks=("direct",)).digest == load("csv", files / "plain.csv").digest
    with pytest.raises(ConfigError, match="no use for `sample`"):
        load("toy", sample={"size": 3})
    with pytest.raises(ConfigError, match="`split: benign`"):
        load("toy", harmful=False)


def test_toy_prompts_come_through_with_the_configured_name():
    loaded = load("toy", split="benign", limit=3, seed=5, name="harmless", harmful=False)
    assert (loaded.name, len(loaded.prompts), loaded.synthetic, loaded.limited) == ("harmless", 3, True, True)
    assert not any(p.harmful for p in loaded.prompts)


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=12)


@given(st.lists(CELL.filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives_a_csv_writer(tmp_path_factory, texts):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["prompt"], *([text] for text in texts)])
    path = write(tmp_path_factory.mktemp("csv"), stream.getvalue())
    assert [p.text for p in load("csv", path).prompts] == [text.strip() for text in texts]


@given(st.binary(max_size=80))
def test_any_bytes_are_prompts_or_a_clear_error(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("csv"), b"prompt,id\n" + data)
    try:
        said = ""
        found = load("csv", path).prompts
    except ConfigError as error:
        said, found = str(error), ()
    assert found or "own.csv" in said


BENCHMARKS = Path(os.environ.get("DSPROBE_BENCHMARKS", Path(__file__).parents[3] / "shared" / "data"))


def published(file: str) -> Path:
    path = BENCHMARKS / file
    if not path.is_file():
        pytest.skip(f"{file} is not there; DSPROBE_BENCHMARKS names the folder of the benchmark files")
    return path


@pytest.mark.parametrize(
    ("source", "file", "count", "harmful"),
    [
        ("harmbench", "harmbench_behaviors_text_all.csv", 400, 400),
        ("advbench", "advbench_behaviors.csv", 520, 520),
        ("xstest", "xstest_prompts.csv", 450, 200),
        ("csv", "xstest_prompts.csv", 450, 200),
    ],
)
def test_the_published_files_load_whole(source, file, count, harmful):
    loaded = load(source, published(file))
    facts = loaded.facts()
    assert len({p.id for p in loaded.prompts}) == facts["count"] == count
    assert (facts["harmful"], facts["benign"]) == (harmful, count - harmful)
    if source == "harmbench":
        assert sum(bool(p.context) for p in loaded.prompts) == 100
        assert sum(p.metadata["FunctionalCategory"] == "contextual" for p in loaded.prompts) == 100


def test_published_xstest_pairs_types_and_its_file_does_not_pair_prompts():
    """Every pair has 25 or 50 safe prompts and 25 contrasts. Focus words tell no pairs of prompts apart."""
    prompts = load("xstest", published("xstest_prompts.csv")).prompts
    sizes = Counter((p.metadata["pair"], p.harmful) for p in prompts)
    shared = {"discr", "privacy"}
    assert len({pair for pair, _ in sizes}) == 8
    assert all(n == (50 if pair in shared and not harmful else 25) for (pair, harmful), n in sizes.items())
    safe = [(p.category, p.metadata.get("focus")) for p in prompts if not p.harmful]
    assert len(set(safe)) < len(safe)


def test_published_harmbench_is_sampled_in_proportion():
    path = published("harmbench_behaviors_text_all.csv")
    whole = load("harmbench", path).facts()["categories"]
    drawn = load("harmbench", path, sample={"size": 40}).facts()["categories"]
    assert sum(drawn.values()) == 40
    assert all(abs(drawn[category] - n / 10) < 1 for category, n in whole.items())
