"""Hugging Face datasets: local folders, pinned hub ids in the cache, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError, PrerequisiteError
from dsprobe.prompts.load import load_prompts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"prompt": "Why?", "category": "short"}, {"prompt": "How so?", "category": "long"}]


def load(path: Path | str, **settings):
    return load_prompts(PromptsConfig(source="hf", path=str(path), **settings))


def write(folder: Path, split: str = "train", rows: list[dict] = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """An empty hub cache without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_of_parquet_files(tmp_path):
    loaded = load(write(tmp_path / "own"))
    assert [(p.id, p.text, p.category, p.source) for p in loaded.prompts] == [
        ("hf-0001", "Why?", "short", "hf"), ("hf-0002", "How so?", "long", "hf"),
    ]  # fmt: skip
    assert (loaded.revision, loaded.file_digest) == ("", "")


def test_a_changed_folder_is_read_anew(tmp_path):
    folder = write(tmp_path / "own")
    before = load(folder).digest
    write(folder, rows=[{"prompt": "When?", "category": "short"}])
    assert [p.text for p in load(folder).prompts] == ["When?"]
    assert load(folder).digest != before


def test_saved_datasets_load_with_their_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    own = datasets.Dataset.from_list(ROWS)
    own.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": own, "test": own.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert [p.text for p in load(tmp_path / "one").prompts] == ["Why?", "How so?"]
    assert [p.text for p in load(tmp_path / "two", split="test").prompts] == ["How so?"]
    with pytest.raises(ConfigError, match="has several splits; give `split`: train, test"):
        load(tmp_path / "two")
    with pytest.raises(ConfigError, match="no subsets"):
        load(tmp_path / "two", subset="a")


def test_subsets_and_splits_of_a_folder_and_their_nearest_names(tmp_path):
    """The layout of JBB-Behaviors: the card names a subset's splits, which decide what is harmful."""
    folder = tmp_path / "jbb"
    for split, goal in (("harmful", "Fold a boat"), ("benign", "Brew tea")):
        write(folder / "data", split, [{"Goal": goal, "Behavior": "b", "Category": "c"}])
    write(folder / "data", "other")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: behaviors\n  data_files:\n"
        "  - {split: harmful, path: data/harmful.parquet}\n  - {split: benign, path: data/benign.parquet}\n"
        "- config_name: judged\n  data_files:\n  - {split: test, path: data/other.parquet}\n---\n"
    )
    (harmful,) = load(folder, subset="behaviors", split="harmful").prompts
    (benign,) = load(folder, subset="behaviors", split="benign").prompts
    assert (harmful.harmful, benign.harmful, benign.source) == (True, False, "jailbreakbench")
    assert len(load(folder, subset="judged").prompts) == 2
    for settings, message in (
        ({}, "has several subsets; give `subset`: behaviors, judged"),
        ({"subset": "behavior"}, "Did you mean `behaviors`"),
        ({"subset": "behaviors"}, "has several splits"),
        ({"subset": "behaviors", "split": "benin"}, "Did you mean `benign`"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(folder, **settings)


def test_bad_rows_name_dataset_split_and_row(tmp_path):
    folder = write(tmp_path / "own", "test", [{"prompt": "a"}, {"prompt": " "}])
    with pytest.raises(ConfigError, match=r"own \(split test\), row 2, column `prompt`: empty"):
        load(folder)


def test_folders_that_are_no_dataset_or_bring_code_are_refused(tmp_path):
    (tmp_path / "none").mkdir()
    write(tmp_path / "bad")
    (tmp_path / "bad" / "train.parquet").write_bytes(b"no parquet")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text("raise SystemExit('it ran')")
    for name in ("none", "bad", "code"):
        with pytest.raises(ConfigError, match=f"{name} is not a readable dataset"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs `revision: <commit hash>`, so that every run reads the same prompts"),
        ({"revision": "main"}, "`main` can move"),
        ({"path": "no/such/folder", "revision": COMMIT}, "neither a folder nor a hub id"),
    ],
)
def test_hub_ids_must_be_pinned(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(**{"path": "someone/prompts", **settings})


def test_a_revision_belongs_to_hub_ids(tmp_path):
    with pytest.raises(ConfigError, match="`revision` is for hub ids"):
        load(write(tmp_path / "own"), revision=COMMIT)


def test_offline_and_not_cached_says_how_to_get_it(offline):
    advice = f"hf download someone/prompts --repo-type dataset --revision {COMMIT}"
    with pytest.raises(PrerequisiteError, match=advice):
        load("someone/prompts", revision=COMMIT)


def test_a_cached_hub_dataset_loads_offline_and_its_commit_is_kept(offline, tmp_path):
    """As the hub client lays it out: the snapshot's files are links to blobs."""
    blob = write(tmp_path / "blobs") / "train.parquet"
    snapshot = offline / "datasets--someone--prompts" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "train.parquet").symlink_to(blob)
    loaded = load("someone/prompts", revision=COMMIT)
    assert loaded.facts()["revision"] == COMMIT
    assert loaded.digest == load(blob.parent).digest


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PrerequisiteError, match=r"dsprobe\[data\]"):
        load(tmp_path)
