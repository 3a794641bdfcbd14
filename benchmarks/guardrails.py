"""What a guardrail costs that never acts, as a ratio to the unguarded run.

Run as ``python -m benchmarks.guardrails [--rows 32]``; prints one JSON line a guardrail: CPU seconds on one thread over
those of the unguarded run, the two taking turns, on the embedded model with 32 steps, and the forward passes likewise.
Thresholds are 1, which no risk exceeds, so every guardrail looks whenever it is due and never acts; DiffuGuard's
order is left alone (``alpha: 0``) and its audit's threshold never reached.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import best_of, models, prompts, rendered, show
from dsprobe.config import DecodingConfig, GuardrailConfig, Spec
from dsprobe.decoding.records import RowKey
from dsprobe.forking.engine import ForkEngine
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails.build import build_guardrails
from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork
from dsprobe.models.base import DiffusionModel

NGRAM = {"scorer": "ngram", "threshold": 1.0}
STACKS: dict[str, dict[str, Any]] = {
    "renoise, toy_lexicon, every step": {"name": "renoise", "threshold": 1.0, "final_check": True},
    "renoise, ngram, every step": {"name": "renoise", **NGRAM, "final_check": True},
    "renoise, ngram, every 4th step": {"name": "renoise", **NGRAM, "every": 4},
    "renoise, ngram, predicted view": {"name": "renoise", **NGRAM, "view": "predicted"},
    "refuse, ngram, end only": {"name": "refuse", **NGRAM, "window": "end", "text": "i can not help with that ."},
    "policy, ngram, every step": {"name": "policy", **NGRAM},
    "eos_stop": {"name": "eos_stop", "threshold": 1.0},
    "gate, ngram, every 8th step, 2 x 4": {"name": "gate", **NGRAM, "every": 8, "rollouts": 2, "horizon": 4},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model = models()["toy"]
    rows = [
        ForkRow(rendered=row, key=RowKey(str(index)))
        for index, row in enumerate(rendered(model, prompts(model, options.rows, 22), 42))
    ]
    engine = ForkEngine(model, DecodingConfig(steps=32, reply_length=42), batch_size=options.rows)
    with tempfile.TemporaryDirectory() as folder:
        policy = untrained_policy(model, Path(folder) / "policy.safetensors")
        for name, spec in STACKS.items():
            given = {**spec, "path": str(policy)} if spec["name"] == "policy" else spec
            measure(engine, rows, name, given, options.repeats)


def measure(engine: ForkEngine, rows: list[ForkRow], name: str, spec: dict[str, Any], repeats: int) -> None:
    """Time one guardrail against none."""
    config = GuardrailConfig.model_validate({"name": "measured", "stack": [spec]})
    guardrails = build_guardrails(config, engine.setting)
    plain, guarded = engine.run(rows, fork=False), engine.run(rows, guardrails, fork=False)
    assert sum(result.interventions for result in guarded) == 0, f"{name} acted"
    base_s, guarded_s = best_of(
        repeats, lambda: engine.run(rows, fork=False), lambda: engine.run(rows, guardrails, fork=False)
    )
    passes = sum(result.passes for result in guarded) / sum(result.passes for result in plain)
    show("guardrails", {"guardrail": name, "cpu_ratio": guarded_s / base_s, "passes_ratio": passes})


def untrained_policy(model: DiffusionModel, path: Path) -> Path:
    """A policy file with random weights: it costs what a trained one costs."""
    header = PolicyHeader(
        width=int(model.head_weight_VD.shape[1]),
        hidden=16,
        model=model.info.name,
        model_digest=model.info.digest,
        scorer=Spec(name="ngram"),
        view="committed",
        knots=(1.0, 1.0),
    )
    PolicyNetwork(header).save(path)
    return path


if __name__ == "__main__":
    main()
