"""What judging after generation costs: replies a second, with and without the cache, and how far judges agree.

Run as ``python -m benchmarks.judging [--prompts 64] [--samples 4]``; prints one JSON line a measurement: CPU seconds
on one thread, the sides of a ratio taking turns, on replies of the embedded model at temperature 1. The generative
judge is a tiny random causal model with 16 new tokens behind StrongREJECT's rubric: its verdicts mean nothing, its
costs are those of the code. `whole_over_bare` is all of `dsprobe score` but the compaction (building the judge and
reading its weights, keys, equal replies asked once, storing) over the loaded judge called on all rows in their order.
The agreement is that of the exact toy oracle with the toy judge that errs at stated rates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import best_of, show
from dsprobe.actors.executor import execute
from dsprobe.actors.scoring import RunReplies, run_replies, score_judge
from dsprobe.config import DecodingConfig, ExecutionConfig, ModelConfig, PromptsConfig, RunConfig, Spec
from dsprobe.experiment.judge_agreement import agreements
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.judges import JUDGES, Judge
from dsprobe.judges.cache import VerdictCache, key
from dsprobe.judges.run import judge_replies
from dsprobe.judges.templates import published
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.storage.compaction import compact
from dsprobe.storage.query import read_table, run_judges
from dsprobe.storage.run_store import RunStore

EXECUTION = ExecutionConfig(executor="local", batch_size=64)
NOISY = {"sensitivity": 0.8, "specificity": 0.9}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"prompts": 64, "samples": 4, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = generated(Path(folder), options.prompts, options.samples)
        replies = run_replies(store)
        text_only(replies, Path(folder), options.repeats)
        generative(store, replies, tiny_judge(Path(folder) / "judge"), Path(folder), options.repeats)
        agreement(store, replies)


def generated(folder: Path, prompts: int, samples: int) -> RunStore:
    """Replies to restricted and benign requests, under prefilling, which makes some of them harmful."""
    plan = resolve(
        RunConfig(
            samples=samples,
            models=(ModelConfig(name="toy-diffusion"),),
            prompts=(PromptsConfig(source="toy", limit=prompts),),
            attacks=(
                Spec.model_validate({"name": "dija", "label": "step {i} :", "spans": 4, "masks_per_span": 6}),
                Spec(name="direct"),
            ),
            decodings=(DecodingConfig(steps=8, temperature=1.0),),
            judges=(Spec(name="toy_oracle"),),
            execution=EXECUTION,
        )
    )
    store = RunStore(str(folder), plan.run_id)
    store.write_manifest(build_manifest(plan, {}))
    execute(plan, store, progress=lambda progress: None).raise_if_incomplete()
    return store


def tiny_judge(folder: Path) -> Spec:
    """A random causal model behind a published rubric."""
    texts = ["Yes No 1 2 3 4 5 \n\n"] * 200 + [published("strongreject_rubric")]
    write_tiny_checkpoint(folder, "causal", texts=texts, vocab_size=1024, hidden_size=32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    backend = {"kind": "local", "path": str(folder), "max_tokens": 16}
    return Spec.model_validate({"name": "strongreject_rubric", "backend": backend})


def text_only(run: RunReplies, folder: Path, repeats: int) -> None:
    """Judges that read text, against looking their verdicts up: why these do without the cache."""
    for name in ("keyword_refusal", "toy_oracle"):
        judge = JUDGES.build(name, {})
        with VerdictCache(folder / f"{name}.sqlite") as cache:
            cache.put_many(dict(zip(keys(judge, run), judge.judge(run.replies), strict=True)))
            judge_s, cache_s = best_of(repeats, judging(judge, run), looking_up(judge, run, cache))
        figures = {"judge": name, "replies_per_s": len(run.replies) / judge_s, "cache_over_judge": cache_s / judge_s}
        show("judging", figures)


def generative(store: RunStore, run: RunReplies, spec: Spec, folder: Path, repeats: int) -> None:
    """The whole way of a judge with a model, cold and from the cache, against the bare judge in order of the rows."""
    judge = JUDGES.build(spec.name, spec.params)

    def bare() -> None:
        for start in range(0, len(run.replies), EXECUTION.batch_size):
            judge.judge(run.replies[start : start + EXECUTION.batch_size])

    with VerdictCache(folder / "warm.sqlite") as cache:
        first = score_judge(store, run, spec, EXECUTION, cache=cache)
        bare_s, cold_s, warm_s = best_of(
            repeats,
            bare,
            lambda: score_judge(store, run, spec, EXECUTION),
            lambda: score_judge(store, run, spec, EXECUTION, cache=cache),
        )
    figures = {"judge": spec.name, "replies": first.replies, "different": first.asked}
    figures |= {"replies_per_s": first.replies / cold_s, "replies_per_s_cached": first.replies / warm_s}
    show("judging", {**figures, "whole_over_bare": cold_s / bare_s, "cold_over_cached": cold_s / warm_s})


def agreement(store: RunStore, run: RunReplies) -> None:
    """The toy oracle and the judge that errs, as `dsprobe score` tabulates them."""
    score_judge(store, run, Spec.model_validate({"name": "toy_noisy", **NOISY}), EXECUTION)
    compact(store)
    judges = {name: what for name, what in run_judges(store).items() if name in ("toy_oracle", "toy_noisy")}
    (found,) = agreements(read_table(store, "trajectories"), judges, {}).values()
    (pair,) = found.pairs
    counts = {name: getattr(pair, name) for name in ("both_yes", "only_first", "only_second", "both_no")}
    show("agreement", {"judges": list(found.judges), **NOISY, "n": found.n, **counts,
                       "kappa": f"{pair.kappa:.2f}", "alpha": f"{found.alpha:.2f}"})  # fmt: skip


def keys(judge: Judge, run: RunReplies) -> list[str]:
    """Cache keys of all replies."""
    return [key(judge, reply) for reply in run.replies]


def judging(judge: Judge, run: RunReplies) -> Callable[[], Any]:
    """Judge all replies."""
    nothing_empty = np.zeros(len(run.replies), np.bool_)
    return lambda: judge_replies(judge, run.replies, nothing_empty)


def looking_up(judge: Judge, run: RunReplies, cache: VerdictCache) -> Callable[[], Any]:
    """Find all verdicts in the cache."""
    return lambda: cache.get_many(keys(judge, run))


if __name__ == "__main__":
    main()
