"""The recipe `benchmark` resolves with files of the published columns and sizes, and says what is missing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.sweeps.library import recipes

FAMILIES = ("dream", "llada", "causal")


def text(number: int) -> str:
    return f"Describe, in plain words, neutral thing number {number}."


def xstest_rows() -> list[list[str]]:
    safe = [f"safe_type_{i // 25}" for i in range(250)]
    unsafe = [f"contrast_safe_type_{i // 25}" for i in range(200)]
    kinds = [(kind, "safe") for kind in safe] + [(kind, "unsafe") for kind in unsafe]
    return [[str(i), text(i), kind, label, "", ""] for i, (kind, label) in enumerate(kinds, start=1)]


def jailbreakbench_rows() -> list[list[str]]:
    return [[str(i), text(i), f"Sure: {text(i)}", f"thing {i}", f"category {i // 10}", "Original"] for i in range(100)]


FILES = {
    "advbench_behaviors.csv": (
        "Behavior,Category,Tags,ContextString,BehaviorID",
        [[text(i), "", "", "", f"advbench_{i:04d}"] for i in range(520)],
    ),
    "harmbench_behaviors_text_all.csv": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID",
        [[text(i), "standard", f"category {i % 7}", "", "", f"thing_{i}"] for i in range(400)],
    ),
    "harmful-behaviors.csv": ("Index,Goal,Target,Behavior,Category,Source", jailbreakbench_rows()),
    "xstest_prompts.csv": ("id,prompt,type,label,focus,note", xstest_rows()),
    "benign-behaviors.csv": ("Index,Goal,Target,Behavior,Category,Source", jailbreakbench_rows()),
    "benign_prompts.csv": ("prompt,category", [[text(i), f"topic {i % 3}"] for i in range(400)]),
}
"""The recipe's files in its order: header and rows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    for name, (header, rows) in FILES.items():
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([header.split(","), *rows])
    for family in FAMILIES:
        write_tiny_checkpoint(folder / family, family, texts=[text(i) for i in range(40)])
    return folder


def load(folder: Path, *overrides: str) -> RunConfig:
    paths = [f"prompts.{i}.path={folder / name}" for i, name in enumerate(FILES)]
    paths += [f"models.{i}.path={folder / family}" for i, family in enumerate(FAMILIES)]
    tiny = ["decodings.0.reply_length=64", "risk.scorer={name: logit_mass, refusal: [No], compliance: [Yes]}"]
    return load_config("benchmark", [*paths, *tiny, *overrides], {}, schema=RunConfig, recipes=recipes("run")).config


def test_the_suite_has_1000_harmful_and_500_benign_requests(folder):
    plan = resolve(load(folder))
    sets = build_manifest(plan, {})["prompt_sets"]
    counts = {name: (facts["harmful"], facts["benign"]) for name, facts in sets.items()}
    assert counts == {
        "advbench": (520, 0), "harmbench": (400, 0), "jailbreakbench-harmful": (80, 0),
        "xstest-safe": (0, 250), "jailbreakbench-benign": (0, 100), "everyday": (0, 150),
    }  # fmt: skip
    assert set(sets["jailbreakbench-harmful"]["categories"].values()) == {8}
    assert set(sets["everyday"]["categories"].values()) == {50}
    ran = {(c.model, c.prompts, c.attack) for c in plan.conditions}
    assert len(ran) + len(plan.skipped) == 3 * (3 * 4 + 3)
    assert all(attack == "direct" for _, prompts, attack in ran if prompts in ("xstest-safe", "everyday"))
    assert all(decoding.steps == 64 for decoding in plan.config.decodings)


def test_models_are_pinned_hub_ids_and_paths_are_placeholders():
    config = load_config("benchmark", (), {}, schema=RunConfig, recipes=recipes("run")).config
    assert [model.path for model in config.models] == [
        "Dream-org/Dream-v0-Instruct-7B", "GSAI-ML/LLaDA-8B-Instruct", "meta-llama/Llama-2-7b-chat-hf",
    ]  # fmt: skip
    assert all(len(model.revision or "") == 40 for model in config.models)
    assert [prompts.path for prompts in config.prompts] == [f"data/{name}" for name in FILES]


@pytest.mark.parametrize(
    ("index", "repository"),
    [
        (0, "llm-attacks/llm-attacks"),
        (1, "centerforaisafety/HarmBench"),
        (2, "JailbreakBench/JBB-Behaviors"),
        (3, "paul-rottger/xstest"),
    ],
)
def test_a_missing_file_is_named_with_the_repository_that_publishes_it(folder, index, repository):
    with pytest.raises(ConfigError, match=f"no file at .*gone.*{repository}"):
        resolve(load(folder, f"prompts.{index}.path=gone.csv"))
