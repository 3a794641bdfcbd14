import numpy as np
import pytest

from dsprobe.attacks import ATTACKS
from dsprobe.config import DecodingConfig, ModelConfig, PromptsConfig, Spec
from dsprobe.decoding.records import RowKey
from dsprobe.forking.engine import ForkEngine
from dsprobe.forking.irreversibility import RenoiseAt, renoise_forks
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails.base import Signal
from dsprobe.models.load import load_model
from dsprobe.prompts.load import load_prompts

SIGNAL = Signal(scorer=Spec(name="toy_lexicon"), view="predicted")


@pytest.fixture(scope="module")
def engine():
    model = load_model(ModelConfig(name="toy-diffusion"))
    return ForkEngine(model, DecodingConfig(steps=12, reply_length=42, max_extra_steps=12), batch_size=4)


@pytest.fixture(scope="module")
def rows(engine):
    attack = ATTACKS.build("dija", {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6})
    prompts = load_prompts(PromptsConfig(source="toy", limit=6)).prompts
    return [ForkRow(rendered=attack.render(p, engine.model, 42), key=RowKey(p.id)) for p in prompts]


@pytest.mark.parametrize("target", ["random", "attributed"])
def test_forks_count_only_the_steps_after_the_fork(engine, rows, target):
    engine.run(rows)
    forks = renoise_forks(engine, rows, [4, 9], [0.25, 1.0], signal=SIGNAL, threshold=0.5, target=target)
    assert len(forks.row) == len(rows) * 4
    assert forks.passes_used <= forks.passes - sum(step for step in forks.step)
    again = renoise_forks(engine, rows, [4, 9], [0.25, 1.0], signal=SIGNAL, threshold=0.5, target=target)
    assert again.passes_used == 0
    np.testing.assert_array_equal(again.harmful_at_end, forks.harmful_at_end)


def test_harm_at_the_step_is_the_logged_risk_and_the_curve_counts_harmful_starts_only(engine, rows):
    forks = renoise_forks(engine, rows, [2, 12], [0.5], signal=SIGNAL, threshold=0.5)
    risks = engine.trunk_risks(rows, SIGNAL)
    for index, step, before in zip(forks.row, forks.step, forks.harmful_at_step, strict=True):
        assert before == (risks[index][step - 1] >= 0.5)
    for point in forks.curve():
        assert point.rate.n == int((forks.harmful_at_step & (forks.step == point.at[0])).sum())


def test_a_share_of_the_response_is_masked_again_at_the_step(engine, rows):
    probe = RenoiseAt(12, 0.5, "random", SIGNAL, engine.setting)
    base, forked = engine.run(rows), engine.run(rows, [probe])
    scratch = engine.run(rows, [RenoiseAt(12, 0.5, "random", SIGNAL, engine.setting)], fork=False)
    for one, other, plain in zip(forked, scratch, base, strict=True):
        np.testing.assert_array_equal(one.tokens_L, other.tokens_L)
        ended_before = plain.num_steps < 12
        assert (one.num_steps == plain.num_steps) == ended_before
        assert one.interventions == int(not ended_before)


def test_a_row_that_ended_before_the_step_has_no_fork(engine, rows):
    ends = [len(risk) for risk in engine.trunk_risks(rows, SIGNAL)]
    forks = renoise_forks(engine, rows, [max(ends)], [1.0], signal=SIGNAL, threshold=0.5)
    assert sorted(forks.row) == [index for index, end in enumerate(ends) if end >= max(ends)]
