"""Real input end to end: published layouts with tokenizer and chat template, benchmark files, through to the report."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dsprobe.actors.executor import execute
from dsprobe.cli.results import write_report
from dsprobe.config import RunConfig
from dsprobe.config_loader import load_config
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.storage.compaction import compact
from dsprobe.storage.query import read_table
from dsprobe.storage.run_store import RunStore

STAND_INS = Path(__file__).parent / "fixtures" / "prompts"
CONFIG = """
name: real
models:
  - {{name: dream-tiny, path: {dream}}}
  - {{name: llada-tiny, path: {llada}}}
  - {{name: causal-tiny, path: {causal}}}
prompts:
  - {{source: harmbench, path: {harmbench}, limit: 16}}
  - {{source: advbench, path: {advbench}, limit: 16}}
attacks: [direct, {{name: dija, spans: 2, masks_per_span: 4}}, {{name: pad, anchors: ["Step 1:", "Step 2:"]}}, prefill]
decodings: [{{name: fast, steps: 4, reply_length: 40, temperature: 0.7}}]
risk: {{scorer: {{name: logit_mass, refusal: [No], compliance: [Yes]}}}}
judges: [keyword_refusal]
execution: {{executor: local, batch_size: 16}}
output: {{root: {root}}}
"""


def benchmark_file(name):
    """The real file where `DSPROBE_BENCHMARKS` names a folder that has it, a stand-in of the same columns otherwise."""
    real = Path(os.environ.get("DSPROBE_BENCHMARKS", "/nonexistent")) / name
    return real if real.is_file() else sorted(STAND_INS.glob(f"{name.split('_')[0]}*.csv"))[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    texts = ["Tell me how to bake bread, step by step.", "Sure, here is a list. Step 1: mix. Step 2: bake."] * 20
    values = {name: write_tiny_checkpoint(folder / name, name, texts=texts) for name in ("dream", "llada", "causal")}
    values |= {
        "harmbench": benchmark_file("harmbench_behaviors_text_all.csv"),
        "advbench": benchmark_file("advbench_behaviors.csv"),
        "root": folder,
    }
    config = folder / "real.yaml"
    config.write_text(CONFIG.format(**values))
    loaded = load_config(str(config), schema=RunConfig)
    plan = resolve(loaded.config)
    run = RunStore(str(folder), plan.run_id)
    run.write_manifest(build_manifest(plan, loaded.sources))
    report = execute(plan, run, progress=lambda progress: None)
    return plan, run, report


def test_every_condition_of_the_published_layouts_runs(store):
    plan, run, report = store
    assert report.failed == ()
    compact(run)
    trajectories = read_table(run, "trajectories")
    prompts = sum(len(plan.prompt_sets[key].prompts) for key in plan.prompt_sets)
    rows = trajectories.to_pylist()
    assert len(rows) == prompts * 3 * 4
    for row in rows:
        reply = row["tokens"][row["response_start"] : row["response_end"]]
        assert reply
        assert 0.0 <= row["risk_predicted_final"] <= 1.0
        assert np.isfinite(row["tri_predicted"])


def test_the_report_of_real_prompts_withholds_their_text(store):
    plan, run, _ = store
    compact(run)
    page = Path(write_report(run, show_text=False))
    written = page.read_text() + (page.parent / "report.md").read_text() + (page.parent / "summary.json").read_text()
    for key in plan.prompt_sets:
        for prompt in plan.prompt_sets[key].prompts:
            assert prompt.text not in written
    assert "withheld" in page.read_text()
