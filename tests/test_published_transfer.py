"""The recipe `transfer/published`, whole, on random checkpoints in the published layouts and files of their formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.command_line import dsprobe

from dsprobe.judges.templates import published
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.storage.query import read_table

TEXTS = [
    "Tell me how to bake bread, step by step. Sure, here is a list. Step 1: mix. Step 2: bake. Step 3: eat. Yes. No.",
    "I'm sorry, but I can't assist with that. Complete this JSON document. task answer Sure, here is",
] * 20
MODELS = {"dream-7b": "dream", "llada-8b": "llada", "llama-2-7b": "causal"}
FILES = Path(__file__).parent / "fixtures" / "prompts"
REAL = Path(os.environ.get("DSPROBE_BENCHMARKS", Path(__file__).parents[2] / "shared" / "data"))


def benchmark_file(name: str, stand_in: str) -> Path:
    """The real file where it is at hand, a stand-in of the same columns otherwise."""
    return REAL / name if (REAL / name).is_file() else FILES / stand_in


def checkpoint(folder: Path, family: str, texts: list[str]) -> Path:
    """A random checkpoint with room for the longest contextual request."""
    write_tiny_checkpoint(folder, family, texts=texts, vocab_size=1024)
    key = "max_sequence_length" if family == "llada" else "max_position_embeddings"
    config = json.loads((folder / "config.json").read_text()) | {key: 8192}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("published")
    models = [
        {"name": name, "path": str(checkpoint(folder / family, family, TEXTS))} for name, family in MODELS.items()
    ]
    judge = checkpoint(folder / "judge", "causal", [*TEXTS, *[" Yes No yes no"] * 200, published("harmbench")])
    harmbench = benchmark_file("harmbench_behaviors_text_all.csv", "harmbench_style.csv")
    advbench = benchmark_file("advbench_behaviors.csv", "advbench_harmbench_columns.csv")
    values = {
        "models": json.dumps(models),
        "prompts.0.path": harmbench,
        "prompts.1.path": advbench,
        "prompts.2.path": advbench,
        "judges.2.path": judge,
        "risk.scorer": "{name: logit_mass, refusal: [No], compliance: [Yes]}",
        # Steps, the one thing that costs: fewer than published, more than the latest that an attack acts at.
        "decodings.0.steps": 20,
        "decodings.1.steps": 8,
        "decodings.2.steps": 8,
        "execution.num_gpus": 0,
        "execution.executor": "local",
        "output.root": folder,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def own_cache(folder: Path) -> dict[str, str]:
    return {"DSPROBE_CACHE": str(folder / "verdicts.sqlite")}


def test_the_recipe_is_valid_with_the_published_layouts_and_files(overrides, tmp_path):
    code, out, err = dsprobe("validate", "transfer/published", *overrides, cwd=tmp_path, env=own_cache(tmp_path))
    assert code == 0, err
    assert "Valid." in out


def test_the_recipe_says_which_file_is_missing(tmp_path):
    code, _, err = dsprobe(
        "validate", "transfer/published", "--set", "prompts.0.path=none.csv", cwd=tmp_path, env=own_cache(tmp_path)
    )
    assert code == 2
    assert "none.csv" in err


def test_the_recipe_runs_is_judged_and_tells_transfer(overrides, tmp_path):
    # One prompt a set: the point is that every attack meets every layout, in both directions.
    arguments = ["transfer", "published", "--limit", "1", "--no-report", "--json", *overrides]
    code, out, err = dsprobe(*arguments, cwd=tmp_path, env=own_cache(tmp_path))
    assert code == 0, err
    found = json.loads(out)
    own = {"direct", "dija", "pad", "trajhijack", "refinement_injection", "constraint_relaxation", "prefill",
           "suffix_relocation"}  # fmt: skip
    rows = {(row["model"], row["attack"]) for row in found["attacks"] if row["prompts"] == "harmbench"}
    assert {(model, attack) for model in MODELS for attack in own} <= rows
    assert {(t["diffusion"], t["autoregressive"]) for t in found["transfers"]} == {
        ("dream-7b", "llama-2-7b"),
        ("llada-8b", "llama-2-7b"),
    }
    assert {curve["family"] for curve in found["curves"]} == {"cues", "position"}
    assert all("asr:harmbench_classifier" in row["measures"] for row in found["attacks"])
    table = read_table(found["url"], "trajectories")
    assert set(table["verdict_harmbench_classifier"].to_pylist()) <= {True, False, None}
