import math
import os
import signal

import numpy as np
import pytest

from dsprobe.actors.pool import ReplicaPool
from dsprobe.actors.session import ray_session
from dsprobe.config import ExecutionConfig, GuardrailConfig, ModelConfig, RunConfig
from dsprobe.errors import ConfigError
from dsprobe.experiment.outcome_runner import OutcomeRunner, Share
from dsprobe.experiment.plan import resolve
from dsprobe.models.load import load_model
from dsprobe.sweeps.pool_evaluator import Job, PoolEvaluator

EXECUTION = ExecutionConfig(pool="evaluated", replicas=2, num_cpus=0.5, batch_size=8)
RENOISE = GuardrailConfig.model_validate(
    {"name": "renoise", "stack": [{"name": "renoise", "scorer": "ngram", "threshold": 0.2, "final_check": True}]}
)
GATE = GuardrailConfig.model_validate(
    {"name": "gate", "stack": [{"name": "gate", "scorer": "ngram", "threshold": 0.2, "every": 8}]}
)
FLUENCY = (ModelConfig(name="toy-autoregressive"),)


@pytest.fixture(scope="module")
def plan():
    config = {
        "models": [{"name": "toy-diffusion"}],
        "prompts": [
            {"source": "toy", "name": "restricted", "limit": 5, "attacks": ["dija"]},
            {"source": "toy", "name": "benign", "split": "benign", "harmful": False, "limit": 4},
        ],
        "attacks": [
            {"name": "direct"},
            {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6},
        ],
        "decodings": [{"steps": 12, "reply_length": 42}],
        "judges": [{"name": "toy_oracle"}, {"name": "toy_utility"}],
        "execution": EXECUTION.model_dump(),
    }
    return resolve(RunConfig.model_validate(config))


@pytest.fixture(scope="module")
def runner(plan):
    return OutcomeRunner(plan, load_model(plan.config.models[0]), [load_model(model) for model in FLUENCY])


@pytest.fixture(scope="module")
def evaluator(plan):
    with ray_session(EXECUTION, include_dashboard=False):
        ReplicaPool.get_or_create("evaluated", EXECUTION)
        yield PoolEvaluator("evaluated", Job(plan, FLUENCY))


def assert_same_rows(one, other):
    skipped = {"passes_used", "margin", "verdicts"}
    for name, column in one.columns().items():
        if name not in skipped:
            np.testing.assert_array_equal(column, getattr(other, name), err_msg=name)
    for judge, column in one.verdicts.items():
        np.testing.assert_array_equal(column, other.verdicts[judge], err_msg=judge)


def test_rows_come_in_the_plans_order_with_what_judges_and_scorers_say(runner, plan):
    rows = runner.run(GuardrailConfig())
    assert len(rows) == 5 + 2 * 4
    assert list(dict.fromkeys(rows.condition)) == [condition.id for condition in plan.conditions]
    assert rows.prompt_index[:5].tolist() == [0, 1, 2, 3, 4]
    assert rows.harmful.tolist() == [True] * 5 + [False] * 8
    assert rows.verdicts["toy_oracle"][rows.harmful].mean() > 0.5
    assert np.isnan(rows.verdicts["toy_utility"][rows.harmful]).all()
    assert (rows.log_perplexity[~rows.empty] > 0).all()
    assert (rows.passes == rows.num_steps).all()


def test_guarding_changes_replies_and_counts_what_it_cost(runner):
    base, guarded = runner.run(GuardrailConfig()), runner.run(RENOISE)
    touched = guarded.interventions > 0
    assert touched[base.harmful].any()
    assert (guarded.num_steps[touched] > base.num_steps[touched]).all()
    np.testing.assert_array_equal(guarded.log_perplexity[~touched], base.log_perplexity[~touched])
    assert (guarded.passes_used[~touched] == 0).all()
    assert (runner.run(RENOISE).passes_used == 0).all()


@pytest.mark.parametrize("guardrail", [RENOISE, GATE], ids=["forked", "not forkable"])
def test_forking_changes_no_row(runner, guardrail):
    scratch = runner.run(guardrail, fork=False)
    assert_same_rows(runner.run(guardrail), scratch)
    assert (scratch.passes_used == scratch.passes).all()


def test_shares_and_parts_cut_the_rows_without_changing_them(runner):
    whole = runner.run(RENOISE)
    first = runner.run(RENOISE, Share(stop=0.5))
    assert_same_rows(first, whole.select(whole.prompt_index < np.where(whole.prompts == "restricted", 3, 2)))
    parts = [runner.run(RENOISE, Share(part=part, parts=3)) for part in range(3)]
    assert sum(len(part) for part in parts) == len(whole)


def test_a_pool_gives_the_rows_of_one_process(evaluator, runner):
    for guardrail in (GuardrailConfig(), RENOISE):
        assert_same_rows(evaluator.evaluate(guardrail, 0.0, 1.0), runner.run(guardrail))
    assert evaluator.evaluate(RENOISE, 0.0, 1.0).passes_used.sum() == 0


def test_a_killed_replica_costs_its_logged_trajectories_and_changes_no_row(evaluator, runner):
    before = evaluator.evaluate(RENOISE, 0.0, 1.0)
    os.kill(ReplicaPool.connect("evaluated").info()[0].pid, signal.SIGKILL)
    after = evaluator.evaluate(RENOISE, 0.0, 1.0)
    assert_same_rows(after, before)
    assert after.passes_used.sum() > 0


def test_a_setting_that_cannot_run_says_why(evaluator):
    wrong = {"name": "w", "stack": [{"name": "refuse", "scorer": "ngram", "text": "no such words"}]}
    with pytest.raises(ConfigError, match="does not know its words"):
        evaluator.evaluate(GuardrailConfig.model_validate(wrong), 0.0, 1.0)


def test_log_perplexity_is_the_mean_loss_of_the_reply_and_its_end():
    import torch

    from dsprobe.models.chat import chat_tokens, encode
    from dsprobe.models.scoring import reply_log_perplexity

    model = load_model(FLUENCY[0])
    prompt, reply = "how do i make a lantern ?", "i can not help with that ."
    found = reply_log_perplexity(model, [prompt, prompt, "who are you ?"], [reply, "", "i can not"])
    head = chat_tokens(model, [{"role": "user", "content": prompt}])
    tail = [*encode(model, reply), model.info.eos_token_ids[0]]
    tokens = torch.tensor([head + tail])
    with torch.inference_mode():
        hidden, _ = model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), None)
        loss = torch.nn.functional.cross_entropy(
            model.head(hidden[0, len(head) - 1 : -1]).float(), tokens[0, len(head) :]
        )
    assert found[0] == pytest.approx(float(loss), abs=1e-4)
    assert math.isnan(found[1])
    assert reply_log_perplexity(model, [prompt], [reply])[0] == found[0]
