import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dsprobe.attacks import ATTACKS
from dsprobe.config import DecodingConfig, GuardrailConfig, ModelConfig, PromptsConfig
from dsprobe.decoding.records import RowKey
from dsprobe.forking.engine import ForkEngine
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails.build import build_guardrails
from dsprobe.models.load import load_model
from dsprobe.prompts.load import load_prompts

DECODINGS = (
    DecodingConfig(steps=12, reply_length=42),
    DecodingConfig(steps=16, reply_length=42, temperature=0.9, top_p=0.95),
    DecodingConfig(steps=12, reply_length=42, block_length=14, temperature=0.5),
    DecodingConfig(steps=12, reply_length=42, schedule={"name": "dilated"}),
    DecodingConfig(steps=12, reply_length=42, schedule={"name": "cosine"}, ordering={"name": "random"}),
    DecodingConfig(steps=12, reply_length=42, schedule={"name": "dream"}, ordering={"name": "entropy"}),
    DecodingConfig(steps=None, reply_length=42, schedule={"name": "dilated"}, max_extra_steps=3),
    DecodingConfig(steps=12, reply_length=42, threshold=0.8, eos_early_stop=True),
    DecodingConfig(steps=10, reply_length=42, cfg_scale=0.5),
)
WEIGHTINGS = st.sampled_from(
    [
        {"name": "constant"},
        {"name": "linear"},
        {"name": "cosine", "start": 1.0, "end": 0.2},
        {"name": "exponential", "rate": -2.0},
        {"name": "window", "start": 0.2, "end": 0.7},
        {"name": "piecewise_linear", "knots": [0.2, 1.0, 0.6]},
    ]
)
WHEN = {
    "threshold": st.floats(0.02, 0.8),
    "every": st.integers(1, 5),
    "window": st.one_of(
        st.sampled_from(["all", "early", "middle", "late", "end"]),
        st.tuples(st.integers(1, 3), st.integers(3, 6)),
    ),
    "final_check": st.booleans(),
    "weighting": WEIGHTINGS,
    "scorer": st.sampled_from([{"name": "ngram"}, {"name": "ngram", "weights": "half"}, {"name": "toy_lexicon"}]),
    "view": st.sampled_from(["committed", "predicted"]),
    "max_interventions": st.integers(1, 4),
}
RENOISE = st.fixed_dictionaries(
    {
        "name": st.just("renoise"),
        **WHEN,
        "removal": st.sampled_from(["none", "penalty", "ban"]),
        "margin": st.integers(0, 2),
        "span_share": st.sampled_from([0.3, 1.0]),
        "include_given": st.booleans(),
    }
)
REFUSE = st.fixed_dictionaries({"name": st.just("refuse"), **WHEN, "text": st.just("i can not help with that .")})
STACKS = st.lists(st.one_of(RENOISE, RENOISE, REFUSE), min_size=1, max_size=2)


@pytest.fixture(scope="module")
def toy():
    return load_model(ModelConfig(name="toy-diffusion"))


def rows_of(model, limit=4):
    dija = ATTACKS.build("dija", {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6})
    direct = ATTACKS.build("direct", {})
    restricted = load_prompts(PromptsConfig(source="toy", split="restricted", limit=limit)).prompts
    benign = load_prompts(PromptsConfig(source="toy", split="benign", limit=2)).prompts
    rendered = [(dija, prompt) for prompt in restricted] + [(direct, prompt) for prompt in benign]
    return [ForkRow(rendered=a.render(p, model, 42), key=RowKey(p.id, s)) for s, (a, p) in enumerate(rendered)]


@pytest.fixture(scope="module")
def engines(toy):
    """One engine per decoding for all examples, so that they meet each other's logged trajectories."""
    return [ForkEngine(toy, decoding, seed=5, batch_size=4) for decoding in DECODINGS]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(stack=STACKS, which=st.integers(0, len(DECODINGS) - 1))
def test_a_forked_run_equals_one_from_scratch_token_for_token(engines, toy, stack, which):
    engine, rows = engines[which], rows_of(toy)
    guardrail = GuardrailConfig.model_validate({"name": "drawn", "stack": stack})
    forked = engine.run(rows, build_guardrails(guardrail, engine.setting))
    scratch = engine.run(rows, build_guardrails(guardrail, engine.setting), fork=False)
    for one, other in zip(forked, scratch, strict=True):
        np.testing.assert_array_equal(one.tokens_L, other.tokens_L)
        assert (one.num_steps, one.passes, one.interventions) == (other.num_steps, other.passes, other.interventions)
        assert other.passes_used == other.passes
        assert one.passes_used <= one.passes + len(toy_steps(engine))


def toy_steps(engine):
    """A row's trunk may have been decoded beside its guarded run, once."""
    return range(engine.setting.planned_steps * (2 if engine.decoding.cfg_scale > 0 else 1))
