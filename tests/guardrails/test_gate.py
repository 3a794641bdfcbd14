"""Gating: rollouts of a proposal, vetoes and their alternatives, and what a look costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.base import Rendered
from dsprobe.config import DecodingConfig, PromptsConfig
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.hooks import Hook
from dsprobe.decoding.loop import StatisticsNeeds
from dsprobe.decoding.records import ACTION_STOP, ACTION_VETO, RowKey
from dsprobe.errors import ConfigError
from dsprobe.guardrails.rollouts import Rollouts
from dsprobe.prompts.load import load_prompts

# The item `mogvibn` has three parts: naming two of them is a risk of 2/3.
REPLY = {0: ("gather", 0.9, "take"), 1: ("tizsjen", 0.8, "rules"), 2: ("with", 0.7, "and"), 3: ("dovlun", 0.6, "help")}
GREEDY = DecodingConfig(steps=4, reply_length=4, max_extra_steps=2)
LOOK_AHEAD = {"threshold": 0.5, "horizon": 1}


@pytest.fixture
def table(toy, words):
    """The same distributions at every step: at each reply position a best word, a second one, and `ready`."""

    def make(reply, start=1):
        def script(tokens_BL):
            logits_LV = torch.full((tokens_BL.shape[1], toy.info.vocab_size), -30.0)
            for offset, (best, probability, second) in reply.items():
                logits_LV[start + offset, words(best)[0]] = math.log(probability)
                logits_LV[start + offset, words(second)[0]] = math.log((1 - probability) * 0.6)
                logits_LV[start + offset, words("ready")[0]] = math.log((1 - probability) * 0.4)
            return logits_LV.expand(len(tokens_BL), -1, -1)

        return script

    return make


def row(words, *, reply=4, prompt="how"):
    start = len(words(prompt))
    return Rendered(tokens=(*words(prompt), *words("<mask>") * reply), response_start=start, response_end=start + reply)


def text(model, output, index=0):
    canvas = output.canvas
    return model.tokenizer.decode(canvas.tokens_BL[index][canvas.response_BL[index]].tolist())


class Actions(Hook):
    def __init__(self):
        self.actions = []

    def on_step_end(self, context):
        self.actions.append(context.action_B.clone())


def test_a_vetoed_token_is_replaced_by_the_second_best(scripted, table, words, build, decode):
    model, actions = scripted(table(REPLY)), Actions()
    assert text(model, decode(model, [row(words)], [RowKey("a")], GREEDY)) == "gather tizsjen with dovlun"
    gate = build(model, GREEDY, "gate", alternative="token", **LOOK_AHEAD)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [gate, actions])
    # Step 1 proposes `gather`; the risk lies in what the rollout writes, so the whole proposal goes. Step 2 proposes a
    # part, which goes; from then on one part of three is left, a risk of 1/3.
    assert text(model, output) == "take rules with dovlun"
    assert gate.interventions_B.tolist() == [2]
    assert [int(action[0]) & ACTION_VETO for action in actions.actions] == [ACTION_VETO, ACTION_VETO, 0, 0]
    # Four steps, and a rollout of one pass at the three that leave masks.
    assert output.forward_passes_B.tolist() == [7]


def test_a_veto_moves_to_other_positions_and_ends_in_a_stop(scripted, table, words, build, decode):
    model, actions = scripted(table(REPLY)), Actions()
    gate = build(model, GREEDY, "gate", **LOOK_AHEAD)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [gate, actions])
    # Step 1: `gather` goes for `with`, the next best that is no part. Step 2: only parts are left beside it.
    # Step 3 proposes `gather` and a part: the part goes. Then parts only, to the end of the extra steps.
    assert text(model, output) == "gather <eos> with <eos>"
    assert output.num_steps_B.tolist() == [6]
    assert gate.interventions_B.tolist() == [6]
    assert output.forward_passes_B.tolist() == [6 + 3]
    assert all(int(action[0]) & ACTION_VETO for action in actions.actions)
    assert int(actions.actions[-1][0]) & ACTION_STOP


def test_next_best_follows_the_score_and_replaces_as_many(scripted, table, words, build, decode):
    reply = {0: ("tizsjen", 0.9, "a"), 1: ("dovlun", 0.85, "a"), 2: ("with", 0.5, "a"), 3: ("some", 0.7, "a")}
    reply |= {4: ("and", 0.6, "a"), 5: ("cold", 0.4, "a")}
    model = scripted(table(reply))
    decoding = DecodingConfig(steps=3, reply_length=6)
    seen = []

    class Look(Hook):
        def on_step_end(self, context):
            seen.append(context.commit_BL[0].nonzero()[:, 0].tolist())

    gate = build(model, decoding, "gate", window=(1, 1), **LOOK_AHEAD)
    decode(model, [row(words, reply=6)], [RowKey("a")], decoding, [gate, Look()])
    # Both parts are vetoed; positions 3 and 4 of the reply (canvas 4 and 5) are the surest of the others.
    assert seen == [[4, 5], [1, 2], [3, 6]]


def test_other_rows_are_left_alone(scripted, table, words, build, decode):
    harmless = {place: (word, p, "a") for place, (word, p) in enumerate([("you", 0.9), ("need", 0.8), ("some", 0.7)])}

    def script(tokens_BL):
        risky_B11 = (tokens_BL[:, 0] == words("how")[0])[:, None, None]
        return torch.where(risky_B11, table(REPLY)(tokens_BL), table(harmless | {3: ("tizsjen", 0.6, "a")})(tokens_BL))

    model = scripted(script)
    rows, keys = [row(words), row(words, prompt="what")], [RowKey("a"), RowKey("b")]
    plain = decode(model, rows, keys, GREEDY)
    gate = build(model, GREEDY, "gate", alternative="token", **LOOK_AHEAD)
    gated = decode(model, rows, keys, GREEDY, [gate])
    assert text(model, gated, 1) == text(model, plain, 1) == "you need some tizsjen"
    assert text(model, gated, 0) == "take rules with dovlun"
    assert gate.interventions_B.tolist() == [2, 0]
    assert gated.forward_passes_B.tolist() == [7, 7]


def test_the_cap_ends_both_vetoes_and_looks(scripted, table, words, build, decode):
    model = scripted(table(REPLY))
    gate = build(model, GREEDY, "gate", alternative="token", max_interventions=1, **LOOK_AHEAD)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [gate])
    assert text(model, output) == "take tizsjen with dovlun"
    assert output.forward_passes_B.tolist() == [4 + 1]


def test_a_proposal_alone_is_judged_without_a_pass(scripted, table, words, build, decode):
    model = scripted(table(REPLY))
    gate = build(model, GREEDY, "gate", alternative="token", view="committed", **LOOK_AHEAD)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [gate])
    # The second part completes two of three; nothing before it is vetoed.
    assert text(model, output) == "gather tizsjen with help"
    assert output.forward_passes_B.tolist() == [4]


def test_end_only_gating_looks_at_the_step_that_fills_the_last_mask(scripted, table, words, build, decode):
    model = scripted(table(REPLY))
    gate = build(model, GREEDY, "gate", alternative="token", window="end", threshold=0.5)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [gate])
    assert text(model, output) == "gather tizsjen with help"
    assert output.forward_passes_B.tolist() == [4]


def test_banned_tokens_are_no_alternative(scripted, table, words, build, decode):
    class Ban(Hook):
        def __init__(self, text):
            self.tokens = words(text)

        def on_logits(self, context):
            logits_NV = context.logits_NV.clone()
            logits_NV[:, self.tokens] = torch.finfo(logits_NV.dtype).min
            context.logits_NV = logits_NV

    model = scripted(table(REPLY))
    gate = build(model, GREEDY, "gate", alternative="token", **LOOK_AHEAD)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [Ban("rules"), gate])
    # Without `rules` the part is the surest of all (0.8 of 0.88) and proposed first.
    assert text(model, output) == "gather ready with dovlun"


def test_a_position_without_another_token_stays_open_until_the_row_is_stopped(scripted, table, words, build, decode):
    class BanAllButTheBest(Hook):
        def on_logits(self, context):
            best_N1 = context.logits_NV.amax(dim=-1, keepdim=True)
            lowest = torch.finfo(context.logits_NV.dtype).min
            context.logits_NV = context.logits_NV.masked_fill(context.logits_NV < best_N1, lowest)

    model = scripted(table(REPLY))
    gate = build(model, GREEDY, "gate", alternative="token", **LOOK_AHEAD)
    output = decode(model, [row(words)], [RowKey("a")], GREEDY, [BanAllButTheBest(), gate])
    # Nothing at step 1 (`gather` alone); then `gather`, then `with`, each proposed with a part; the parts never.
    assert text(model, output) == "gather <eos> with <eos>"
    assert output.num_steps_B.tolist() == [6]


@pytest.mark.parametrize("look", [(2, 4, "predicted"), (3, 2, "predicted"), (2, 3, "committed")])
def test_without_a_veto_nothing_changes_and_every_pass_is_counted(scripted, table, words, build, decode, look):
    rollouts, horizon, view = look
    model = scripted(table({place: ("cold", 0.5 + place / 100, "a") for place in range(8)}))
    decoding = DecodingConfig(steps=8, reply_length=8, temperature=1.0)
    rows, keys = [row(words, reply=8)] * 3, [RowKey("a", i) for i in range(3)]
    plain = decode(model, rows, keys, decoding)
    before = len(model.rows)
    params = {"rollouts": rollouts, "horizon": horizon, "view": view, "threshold": 1.0, "every": 2, "window": (2, 7)}
    gate = build(model, decoding, "gate", **params)
    gated = decode(model, rows, keys, decoding, [gate])
    assert torch.equal(plain.canvas.tokens_BL, gated.canvas.tokens_BL)
    assert gate.interventions_B.tolist() == [0, 0, 0]
    taken = horizon - (view == "committed")
    # Looks at steps 2, 4 and 6; after the commits of step s 8 − s masks are left.
    expected = 8 + rollouts * sum(min(taken, 8 - step) for step in (2, 4, 6))
    assert gated.forward_passes_B.tolist() == [expected] * 3
    calls = model.rows[before:]
    assert calls.count(3) == 8
    assert calls.count(3 * rollouts) == sum(min(taken, 8 - step) for step in (2, 4, 6))


def test_guidance_is_for_the_loop_and_not_for_rollouts(scripted, table, words, build, decode):
    model = scripted(table(REPLY))
    decoding = DecodingConfig(steps=4, reply_length=4, cfg_scale=1.0)
    gate = build(model, decoding, "gate", threshold=1.0, horizon=1, every=4)
    output = decode(model, [row(words)], [RowKey("a")], decoding, [gate])
    assert output.forward_passes_B.tolist() == [4 * 2 + 1]
    assert sorted(model.rows) == [1, 2, 2, 2, 2]


def test_weights_and_reduction_decide(scripted, table, words, build, decode):
    model = scripted(table(REPLY))

    def interventions(**params):
        gate = build(model, GREEDY, "gate", alternative="token", **LOOK_AHEAD | params)
        decode(model, [row(words)], [RowKey("a")], GREEDY, [gate])
        return int(gate.interventions_B)

    assert interventions() == 2
    assert interventions(weighting={"name": "window", "start": 0.3, "end": 1.0}) == 1
    assert interventions(threshold=0.67) == 0
    assert interventions(weighting={"name": "linear", "start": 0.0, "end": 0.5}) == 0


def test_mean_and_max_over_rollouts(scripted, table, words, build, decode):
    # The first step proposes one part; the second one comes in some of the rollouts.
    reply = {0: ("tizsjen", 0.99, "a"), 1: ("dovlun", 0.5, "help"), 2: ("with", 0.45, "and"), 3: ("some", 0.4, "a")}
    model = scripted(table(reply))
    keys = [RowKey("a", i) for i in range(40)]

    def fired(**params):
        gate = build(model, GREEDY, "gate", rollouts=8, horizon=4, threshold=0.6, window=(1, 1), **params)
        decode(model, [row(words)] * 40, keys, GREEDY, [gate])
        return int(gate.interventions_B.sum())

    # A mean of eight above 0.6 needs seven rollouts with the second part; the largest risk needs one.
    assert fired(reduce="max") == 40
    assert 0 < fired(reduce="mean") < 40


def test_rollouts_draw_from_the_model_and_fill_equal_shares(scripted, table, words, toy):
    model = scripted(table(dict.fromkeys(range(8), ("cold", 0.7, "warm"))))
    rows = [row(words, reply=8), row(words, reply=8)]
    canvas = batch_canvases(rows, [RowKey("a"), RowKey("b")], toy.info, seed=1)
    step_B, rows_B = torch.tensor([1, 5]), torch.tensor([True, True])
    settings = {"count": 400, "horizon": 4, "temperature": 1.0}
    whole = Rollouts(model, DecodingConfig(), **settings, greedy_end=True)
    tokens_RL, passes_B = whole.run(canvas, canvas.tokens_BL, step_B, rows_B)
    assert passes_B.tolist() == [1600, 1600]
    assert not (tokens_RL == canvas.mask_token_id).any()
    part = Rollouts(model, DecodingConfig(), **settings, greedy_end=False)
    drawn_RL, passes_B = part.run(canvas, canvas.tokens_BL, step_B, rows_B)
    assert passes_B.tolist() == [1200, 1200]
    assert (drawn_RL == canvas.mask_token_id).sum(dim=1).tolist() == [2] * 800
    first = Rollouts(model, DecodingConfig(), count=4000, horizon=2, temperature=1.0, greedy_end=False)
    one = batch_canvases([row(words, reply=1)], [RowKey("a")], toy.info, seed=1)
    drawn_RL, _ = first.run(one, one.tokens_BL, torch.tensor([1]), torch.tensor([True]))
    share = float((drawn_RL[:, 1] == words("cold")[0]).float().mean())
    assert share == pytest.approx(0.7, abs=0.03)


def test_every_draw_of_a_row_has_a_counter_of_its_own(scripted, table, words, toy, monkeypatch):
    model = scripted(table(dict.fromkeys(range(9), ("cold", 0.7, "warm"))))
    canvas = batch_canvases([row(words, reply=9)], [RowKey("a")], toy.info, seed=1)
    rollouts = Rollouts(model, DecodingConfig(), count=3, horizon=3, temperature=1.0, greedy_end=True)
    counters, uniform = [], randomness.uniform

    def spy(key, step, position, stream):
        counters.extend(set(step.tolist()))
        return uniform(key, step, position, stream)

    monkeypatch.setattr(randomness, "uniform", spy)
    for step in (1, 2):
        rollouts.run(canvas, canvas.tokens_BL, torch.tensor([step]), torch.tensor([True]))
    assert len(counters) == len(set(counters)) == 2 * 3 * 3


def test_rollouts_of_a_row_do_not_depend_on_its_company(toy):
    prompts = load_prompts(PromptsConfig(source="toy", split="restricted", limit=4, seed=2)).prompts
    attack = ATTACKS.build("dija", {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6})
    rows = [attack.render(prompt, toy, 42) for prompt in prompts]
    keys = [RowKey(prompt.id) for prompt in prompts]
    rollouts = Rollouts(toy, DecodingConfig(), count=3, horizon=3, temperature=3.0, greedy_end=True)

    def run(indices):
        canvas = batch_canvases([rows[i] for i in indices], [keys[i] for i in indices], toy.info, seed=1, length=80)
        step_B, rows_B = torch.tensor(indices) + 1, torch.ones(len(indices), dtype=torch.bool)
        return rollouts.run(canvas, canvas.tokens_BL, step_B, rows_B)[0].view(len(indices), 3, -1)

    together = run([0, 1, 2, 3])
    for index in range(4):
        assert torch.equal(run([index])[0], together[index])
    assert not torch.equal(together[0, 0], together[0, 1])


@pytest.mark.parametrize(
    ("alternative", "decoding"),
    [("position", {"temperature": 0.8}), ("token", {"temperature": 0.5, "block_length": 14, "steps": 9})],
)
def test_a_gated_row_decodes_alike_alone_and_in_any_company(toy, build, decode, alternative, decoding):
    prompts = load_prompts(PromptsConfig(source="toy", split="restricted", limit=3, seed=2)).prompts
    attack = ATTACKS.build("dija", {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6})
    rows = [attack.render(prompt, toy, 42) for prompt in prompts]
    keys = [RowKey(prompt.id) for prompt in prompts]
    config = DecodingConfig(**{"reply_length": 42, "steps": 8, "max_extra_steps": 3, **decoding})
    params = {"threshold": 0.3, "horizon": 2, "every": 3, "alternative": alternative}

    def run(indices):
        gate = build(toy, config, "gate", **params)
        chosen = [rows[i] for i in indices], [keys[i] for i in indices]
        return gate, decode(toy, *chosen, config, [gate], length=80, needs=StatisticsNeeds(all_masks=True))

    gate, together = run([0, 1, 2])
    assert int(gate.interventions_B.min()) > 0
    assert not together.canvas.masked_BL.any()
    for index in range(3):
        _, alone = run([index])
        np.testing.assert_array_equal(alone.canvas.tokens_BL[0], together.canvas.tokens_BL[index])
        assert int(alone.forward_passes_B[0]) == int(together.forward_passes_B[index])


def test_wrong_settings_are_refused(toy, build):
    decoding = DecodingConfig(steps=8)
    with pytest.raises(ConfigError, match=r"window \[3, 9\] lies outside the decoding's 8 steps"):
        build(toy, decoding, "gate", window=(3, 9))
    with pytest.raises(ConfigError, match="threshold"):
        build(toy, decoding, "gate", threshold=1.2)
    with pytest.raises(ConfigError, match="horizon"):
        build(toy, decoding, "gate", horizon=0)
    with pytest.raises(ConfigError, match="Did you mean `toy_lexicon`"):
        build(toy, decoding, "gate", scorer="toy_lexikon")
    with pytest.raises(ConfigError, match="Did you mean `rollouts`"):
        build(toy, decoding, "gate", rollout=3)
