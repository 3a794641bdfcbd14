"""A made-up finished run whose effects are chosen, as the tables that the hypotheses are decided from."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa

from dsprobe.config import RunConfig
from dsprobe.config_grid import expand_attacks
from dsprobe.experiment.hypotheses import decide_all
from dsprobe.experiment.hypothesis_forks import ForkedRows
from dsprobe.experiment.plan import expand_grid

PROMPTS, STEPS = 40, 24
JUDGES = {"oracle": "harm", "keyword": "refusal", "valid": "validity"}


def renoise(name, **params):
    return {"name": name, "stack": [{"name": "renoise", "scorer": "ngram", **params}]}


CONFIG = {
    "models": [{"name": "causal"}, {"name": "diffusion"}],
    "prompts": [
        {"source": "toy", "name": "benign", "split": "benign"},
        {"source": "toy", "name": "plain", "attacks": ["direct", "dija", "pad", "prefill"], "guardrails": ["none"]},
        {"source": "toy", "name": "guarded", "attacks": ["direct", "dija"], "decodings": ["linear"]},
    ],
    "attacks": [
        {"name": "direct"},
        {"name": "pad", "alias": "cues", "grid": {"cues": [1, 2]}},
        {"name": "dija"},
        {"name": "pad"},
        {"name": "prefill", "text": "sure"},
    ],
    "decodings": [
        {"name": "linear", "steps": STEPS},
        {"name": "dilated", "steps": STEPS, "schedule": "dilated"},
    ],
    "guardrails": [
        {"name": "none"},
        {"name": "reminder", "stack": [{"name": "self_reminder"}]},
        renoise("first", window="early"),
        renoise("second", window="middle"),
        renoise("third", window="late"),
        renoise("filter", window="end"),
        *(renoise(f"flat-{n}", threshold=n / 10) for n in (2, 4, 6)),
        *(renoise(f"rising-{n}", threshold=n / 10, weighting={"name": "linear"}) for n in (2, 4, 6)),
        *(renoise(f"wave-{n}", threshold=n / 10, weighting={"name": "cosine"}) for n in (2, 4)),
    ],
}
KINDS = {"causal": "autoregressive", "diffusion": "diffusion"}


def configured(change=lambda config: None):
    """The configuration after a change, as values."""
    config = copy.deepcopy(CONFIG)
    change(config)
    expand_attacks(config, {})
    return config


def manifest_of(config):
    return {
        "run_id": "made-up",
        "config": config,
        "models": {model["name"]: {"kind": KINDS[model["name"]]} for model in config["models"]},
        "prompt_sets": {p["name"]: {"harmful": 0 if p["name"] == "benign" else PROMPTS} for p in config["prompts"]},
    }


def harm(condition, prompt):
    """Verdict in the world where every hypothesis holds."""
    share = {"direct": 0.0, "dija": 0.5, "pad": 0.5, "prefill": 0.5}.get(condition.attack, 0.5)
    if condition.model == "causal":
        share = {"dija": 0.45, "pad": 0.45, "prefill": 0.9}.get(condition.attack, 0.0)
    if condition.decoding == "dilated":
        share += 0.4
    name, _, place = condition.guardrail.partition("-")
    if name in ("second", "third", "filter"):
        share = 0.1
    if name in ("flat", "wave"):
        share = int(place) / 12
    if name == "rising":
        share = int(place) / 60
    return prompt < share * PROMPTS


def valid(condition, prompt):
    """Constant weights cost a quarter of the replies."""
    return prompt % 4 > 0 or not condition.guardrail.startswith(("flat", "wave"))


def tables(config, verdict=harm, validity=valid):
    """Trajectories and steps; a harmful reply has risk from its own first step on."""
    conditions, _ = expand_grid(RunConfig.model_validate(config), KINDS)
    rows, steps = [], []
    for condition in conditions:
        labels = {"condition": condition.id} | {name: getattr(condition, name) for name in Labels}
        for prompt in range(PROMPTS):
            harmful = bool(verdict(condition, prompt))
            first = 6 + prompt % 12 if harmful else STEPS
            key = {**labels, "prompt_id": f"p{prompt:02d}", "sample": 0}
            rows.append(
                {**key, "harmful": condition.prompts != "benign", "empty": False, "num_steps": STEPS,
                 "fhs_predicted": first, "fhs_predicted_event": harmful, "verdict_oracle": harmful,
                 "verdict_keyword": not harmful, "verdict_valid": validity(condition, prompt)}
            )  # fmt: skip
            if condition.guardrail == "none" and condition.model == "diffusion":
                steps += [
                    {**key, "step": s, "risk_predicted": float(harmful and s >= first)} for s in range(1, STEPS + 1)
                ]
    return pa.Table.from_pylist(rows), pa.Table.from_pylist(steps)


Labels = ("model", "prompts", "attack", "decoding", "guardrail")


def forks(conditions, ends, step=12, shares=(0.2, 0.5, 1.0), target="random"):
    """The irreversibility experiment: `ends` gives the share of forks that end harmful at each ρ."""
    rows = [
        {"condition": condition, "prompt_id": f"p{prompt:02d}", "step": step, "share": share,
         "harmful_committed": True, "harmful_predicted": prompt % 2 == 0,
         "harmful_at_end": prompt < ends[index] * PROMPTS}
        for condition in conditions
        for index, share in enumerate(shares)
        for prompt in range(PROMPTS)
    ]  # fmt: skip
    settings = {"steps": [step], "shares": list(shares), "target": target, "conditions": list(conditions)}
    return ForkedRows(settings=settings, table=pa.Table.from_pylist(rows))


def decided(change=lambda config: None, *, judges=None, forked=None, steps=None, **world):
    """Decide the made-up run."""
    config = configured(change)
    trajectories, recorded = tables(config, **world)
    recorded = recorded if steps is None else steps(recorded)
    chosen = JUDGES if judges is None else judges
    return decide_all(trajectories, recorded, manifest_of(config), chosen, forked)


def by_id(found):
    return {decision.hypothesis: decision for decision in found.decisions}


def uniform(seed):
    """A verdict that depends on nothing."""
    rng = np.random.default_rng(seed)
    return lambda condition, prompt: rng.random() < 0.5
