"""Row outcomes and trials made by hand: harmful prompts under `dija`, benign ones under `direct`."""

from __future__ import annotations

import numpy as np

from dsprobe.config import GuardrailConfig, ModelConfig, PromptsConfig, RunConfig, Spec
from dsprobe.experiment.outcomes import RowOutcomes
from dsprobe.sweeps.config import ConstraintConfig, ObjectiveConfig
from dsprobe.sweeps.objectives import ObjectiveSet
from dsprobe.sweeps.records import TrialRecord

NAN = float("nan")

EXPERIMENT = RunConfig(
    models=(ModelConfig(name="toy-diffusion"),),
    prompts=(
        PromptsConfig(source="toy", name="restricted", attacks=("dija", "pad")),
        PromptsConfig(source="toy", name="benign", split="benign", harmful=False, attacks=("direct",)),
    ),
    attacks=(Spec(name="dija"), Spec(name="pad"), Spec(name="direct")),
    judges=(
        Spec(name="toy_oracle"),
        Spec(name="keyword_refusal", alias="refused", phrases="toy"),
        Spec(name="toy_utility"),
        Spec(name="toy_validity"),
    ),
)


def objective_set(*names, constraints=(), **kwargs):
    """Objectives by name with the experiment's judges."""
    judges = {"asr": "toy_oracle", "over_refusal": "refused", "invalidity": "toy_validity"}
    configs = [ObjectiveConfig(name=name, judge=judges.get(name), **kwargs.get(name, {})) for name in names]
    return ObjectiveSet(configs, constraints, EXPERIMENT, fluency=(ModelConfig(name="toy-autoregressive"),))


UTILITY = ConstraintConfig(judge="toy_utility", at_least=0.9)


def outcomes(
    harm=(), log_perplexity=(), *, valid=None, refused=None, useful=None, empty=None, passes=10, used=None, positions=4,
    ids=None, attack="dija",
):  # fmt: skip
    """Rows of `len(harm)` harmful prompts, then `len(log_perplexity)` benign ones; None is an undefined verdict."""
    h, b = len(harm), len(log_perplexity)
    n = h + b
    empty_N = np.zeros(n, bool) if empty is None else np.array(empty, bool)

    def of_benign(values, default):
        return np.array(
            [NAN] * h + [NAN if v is None else v for v in ([default] * b if values is None else values)], float
        )

    prompt_id = np.array(ids or [f"h{i}" for i in range(h)] + [f"b{i}" for i in range(b)], dtype=np.str_)
    passes_N = np.broadcast_to(np.asarray(passes, np.int64), (n,)).copy()
    return RowOutcomes(
        condition=np.array([f"m/restricted/{attack}/d"] * h + ["m/benign/direct/d"] * b, dtype=np.str_),
        prompts=np.array(["restricted"] * h + ["benign"] * b, dtype=np.str_),
        attack=np.array([attack] * h + ["direct"] * b, dtype=np.str_),
        prompt_index=np.concatenate([np.arange(h), np.arange(b)]).astype(np.int64),
        prompt_id=prompt_id,
        sample=np.zeros(n, np.int64),
        harmful=np.array([True] * h + [False] * b, bool),
        verdicts={
            "toy_oracle": np.array([NAN if v is None else v for v in harm] + [0.0] * b, float),
            "refused": of_benign(refused, 0.0),
            "toy_utility": of_benign(useful, 1.0),
            "toy_validity": of_benign(valid, 1.0),
        },
        empty=empty_N,
        log_perplexity=np.array([NAN] * h + [NAN if v is None else v for v in log_perplexity], float),
        num_steps=passes_N,
        passes=passes_N,
        passes_used=passes_N if used is None else np.broadcast_to(np.asarray(used, np.int64), (n,)).copy(),
        positions=np.broadcast_to(np.asarray(positions, np.int64), (n,)).copy(),
        interventions=np.zeros(n, np.int64),
        margin=np.ones(n, float),
    )  # fmt: skip


def trial(number, rows, *, state="complete", digest=None, rung=1.0, cached=False, reason="", parameters=None):
    """A finished trial that ran a refusing guardrail with its own threshold."""
    given = {"refuse.threshold": number / 100} if parameters is None else parameters
    stack = (Spec(name="refuse", threshold=number / 100, every=2),)
    return TrialRecord(
        number=number, state=state, parameters=given, digest=digest or f"d{number}", outcomes=rows, rung=rung,
        guardrail=None if state == "failed" else GuardrailConfig(name="trial", stack=stack),
        cached=cached, reason=reason, wall_seconds=0.5,
    )  # fmt: skip
