"""DiffuGuard: the annealed order, the audit of finished blocks, and their repair."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.base import Rendered
from dsprobe.config import DecodingConfig, PromptsConfig, Spec
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.hooks import Hook
from dsprobe.decoding.loop import StatisticsNeeds, denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.records import ACTION_REMASK, RowKey
from dsprobe.errors import ConfigError
from dsprobe.guardrails.blocks import BlockClock
from dsprobe.guardrails.build import rewritten
from dsprobe.guardrails.diffuguard import STREAM_ANNEALING
from dsprobe.models.chat import encode
from dsprobe.prompts.base import Prompt
from dsprobe.prompts.load import load_prompts

REQUEST = Prompt(id="a", text="how do i make a mogvibn ?", harmful=True, source="toy")
SAR = {"audit_threshold": None}
AUDIT = {"alpha": 0.0}


class Watch(Hook):
    """Keeps what a step decided and left."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, context):
        canvas = context.canvas
        before, after = context.committed_BL, canvas.tokens_BL
        remasked_BL = (before != canvas.mask_token_id) & (after == canvas.mask_token_id)
        self.steps.append((context.score_BL.clone(), before.clone(), remasked_BL, context.action_B.clone()))

    @property
    def remasked(self):
        return torch.stack([remasked_BL for _, _, remasked_BL, _ in self.steps])


@pytest.fixture
def confident(toy, words):
    """A script under which reply position i holds `cold` with a probability of 0.9 − i / 20, whatever the canvas."""

    def script(tokens_BL):
        logits_LV = torch.full((tokens_BL.shape[1], toy.info.vocab_size), -40.0)
        probability_L = (0.9 - (torch.arange(tokens_BL.shape[1]) - 1) / 20).clamp(0.05, 0.95)
        logits_LV[:, words("cold")[0]] = probability_L.log()
        logits_LV[:, words("warm")[0]] = (1 - probability_L).log()
        return logits_LV.expand(len(tokens_BL), -1, -1)

    return script


def open_row(words, reply, prompt="how"):
    start = len(words(prompt))
    return Rendered(tokens=(*words(prompt), *words("<mask>") * reply), response_start=start, response_end=start + reply)


def uniform_of(canvas, step, position):
    key = canvas.random_key_B[:1]
    return float(randomness.uniform(key, step, torch.tensor([position]), STREAM_ANNEALING)[0])


# ---- stage 1 ---------------------------------------------------------------------------------------------------------


def test_scores_are_probabilities_mixed_with_annealed_noise_in_every_block(scripted, confident, words, build, decode):
    decoding = DecodingConfig(steps=8, reply_length=8, block_length=4)
    guard, watch = build(scripted(confident), decoding, "diffuguard", **SAR), Watch()
    # Logits at every mask, so that later blocks have entries too.
    rows, needs = [open_row(words, 8)], StatisticsNeeds(all_masks=True)
    output = decode(guard.setting.model, rows, [RowKey("a")], decoding, [guard, watch], needs=needs)
    assert len(watch.steps) == 8
    for number, (score_BL, *_) in enumerate(watch.steps):
        block, n = divmod(number, 4)
        alpha = 0.3 * (1 - n / 3)
        candidates = [place for place in range(1 + 4 * block, 5 + 4 * block) if score_BL[0, place] > -torch.inf]
        assert len(candidates) == 4 - n
        assert int((score_BL[0] > -torch.inf).sum()) == 4 - n
        for place in candidates:
            p = 0.9 - (place - 1) / 20
            mixed = (1 - alpha) * p + alpha * uniform_of(output.canvas, number + 1, place)
            # Without noise left the ordering decides by its own score, a log-probability.
            assert float(score_BL[0, place]) == pytest.approx(mixed if n < 3 else math.log(p), abs=1e-5)


def test_constant_full_noise_is_a_random_order_and_no_other_token(scripted, confident, words, build, decode):
    decoding = DecodingConfig(steps=6, reply_length=6)
    guard = build(scripted(confident), decoding, "diffuguard", alpha=1.0, mode="constant", **SAR)
    watch = Watch()
    output = decode(guard.setting.model, [open_row(words, 6)], [RowKey("a")], decoding, [guard, watch])
    left, order = set(range(1, 7)), []
    for step in range(1, 7):
        best = max(left, key=lambda place, step=step: uniform_of(output.canvas, step, place))
        left.remove(best)
        order.append(best)
    committed = [before_BL[0] != output.canvas.mask_token_id for _, before_BL, *_ in watch.steps]
    assert [int((now & ~then).nonzero()[-1]) for then, now in pairwise(committed)] == order[1:]
    assert order != sorted(order)
    assert output.canvas.tokens_BL[0, 1:7].tolist() == words("cold") * 6
    assert guard.interventions_B.tolist() == [0]
    assert output.forward_passes_B.tolist() == [6]


def test_edited_logits_are_mixed_by_the_probability_they_give(scripted, confident, words, build, decode):
    class Halve(Hook):
        def on_logits(self, context):
            logits_NV = context.logits_NV.clone()
            logits_NV[:, words("warm")[0]] = -40.0
            context.logits_NV = logits_NV

    decoding = DecodingConfig(steps=3, reply_length=3)
    guard, watch = build(scripted(confident), decoding, "diffuguard", **SAR), Watch()
    output = decode(guard.setting.model, [open_row(words, 3)], [RowKey("a")], decoding, [Halve(), guard, watch])
    for place in (1, 2, 3):
        expected = 0.7 * 1.0 + 0.3 * uniform_of(output.canvas, 1, place)
        assert float(watch.steps[0][0][0, place]) == pytest.approx(expected, abs=1e-5)


CLOCKED = {
    "one block": {},
    "blocks": {"block_length": 4},
    "uneven": {"block_length": 5, "steps": 7},
    "rounds": {"schedule": Spec(name="dilated"), "steps": None, "block_length": 8},
    "threshold": {"threshold": 0.3, "block_length": 4},
}


@pytest.mark.parametrize("name", sorted(CLOCKED))
def test_blocks_are_followed_as_the_policy_counts_them(load, name):
    model, mask = load("llada-tiny"), 500
    decoding = DecodingConfig(**{"steps": 8, "reply_length": 16, **CLOCKED[name]})
    plain = Rendered(tokens=(1, 2, 3, *[mask] * 16), response_start=3, response_end=19)
    infilled = Rendered(tokens=(1, mask, 2, 3, *[mask] * 12), response_start=4, response_end=16)
    given = Rendered(tokens=(1, 2, *[7] * 6, *[mask] * 10), response_start=2, response_end=18)
    canvas = batch_canvases([plain, infilled, given], [RowKey("a"), RowKey("b"), RowKey("c")], model.info)
    policy, seen = SchedulePolicy(decoding, model.info), []

    class Follow(Hook):
        def on_init(self, canvas):
            self.clock = BlockClock(decoding, canvas)

        def on_logits(self, context):
            self.clock.enter(context)
            running_B = context.running_B
            _, extra_B, current_B, step_B, steps_B, _ = policy.row_state().unbind(dim=1)
            assert not extra_B.any()
            assert torch.equal(self.clock.current_B[running_B], current_B[running_B])
            assert torch.equal(self.clock.step_B(context)[running_B], step_B[running_B] + 1)
            assert torch.equal(self.clock.steps_B()[running_B], steps_B[running_B])
            seen.append(current_B.clone())

        def on_canvas(self, context):
            left_BL = policy.candidates(context.canvas)
            done_B = self.clock.complete(context.canvas)
            assert torch.equal(done_B, ~left_BL.any(dim=1))

    denoise(model, canvas, policy, hooks=[Follow()])
    assert len(seen) >= 3


# ---- stage 2 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def turned(toy, words):
    """``turned(degrees)``: one state everywhere, turned by an angle where the canvas holds the anchor `step`."""

    def make(degrees):
        def script(tokens_BL):
            attacked_B11 = (tokens_BL == words("step")[0]).any(dim=1)[:, None, None]
            state_V, other_V = (torch.zeros(toy.info.vocab_size) for _ in range(2))
            state_V[words("cold")], other_V[words("warm")] = 10.0, 10.0
            turned_V = math.cos(math.radians(degrees)) * state_V + math.sin(math.radians(degrees)) * other_V
            chosen_B1V = torch.where(attacked_B11, turned_V, state_V)
            return chosen_B1V.expand(-1, tokens_BL.shape[1], -1)

        return script

    return make


@pytest.fixture
def attacked(toy):
    """The request with an anchor at the first reply position, and the bare request; ten masks each."""
    prefix = toy.chat_tokens([{"role": "user", "content": REQUEST.text}])
    mask, step = toy.info.mask_token_id, encode(toy, "step")
    start, end = len(prefix), len(prefix) + 11
    return [
        Rendered(tokens=(*prefix, *step, *[mask] * 10), response_start=start, response_end=end),
        Rendered(tokens=(*prefix, *[mask] * 10), response_start=start, response_end=end - 1),
    ]


TEN = DecodingConfig(steps=5, reply_length=11, max_extra_steps=8)
KEYS = [RowKey("a", 0), RowKey("a", 1)]


def test_an_unsafe_block_is_re_masked_and_written_differently(scripted, turned, attacked, words, build, decode):
    model, watch = scripted(turned(60)), Watch()
    guard = build(model, TEN, "diffuguard", audit_threshold=0.49, **AUDIT)
    assert guard.rewrite(REQUEST) == REQUEST
    output = decode(model, attacked, KEYS, TEN, [guard, watch])
    start = attacked[0].response_start
    removed_BL = watch.remasked.any(dim=0)
    # cos 60° is one half; of ten written positions nine go, and the anchor never does.
    assert removed_BL.sum(dim=1).tolist() == [9, 0]
    assert not removed_BL[0, start]
    assert watch.remasked.any(dim=2).nonzero().tolist() == [[4, 0]]
    assert int(watch.steps[4][3][0]) & ACTION_REMASK
    before_BL = watch.steps[4][1]
    assert (before_BL[0][removed_BL[0]] == words("warm")[0]).all()
    assert (output.canvas.tokens_BL[0][removed_BL[0]] == words("cold")[0]).all()
    assert not output.canvas.masked_BL.any()
    assert guard.interventions_B.tolist() == [1, 0]
    # Nine masks at two a step take five extra steps; the reference is one pass a row.
    assert output.num_steps_B.tolist() == [10, 5]
    assert output.forward_passes_B.tolist() == [10 + 1, 5 + 1]
    assert len(model.rows) == 10 + 1
    plain = decode(model, attacked, KEYS, TEN)
    assert torch.equal(plain.canvas.tokens_BL[1], output.canvas.tokens_BL[1])


def test_a_divergence_up_to_the_threshold_is_safe(scripted, turned, attacked, build, decode):
    model = scripted(turned(60))
    guard = build(model, TEN, "diffuguard", audit_threshold=0.51, **AUDIT)
    guard.rewrite(REQUEST)
    output = decode(model, attacked, KEYS, TEN, [guard])
    assert guard.interventions_B.tolist() == [0, 0]
    assert output.forward_passes_B.tolist() == [6, 6]
    assert torch.equal(output.canvas.tokens_BL, decode(model, attacked, KEYS, TEN).canvas.tokens_BL)


def test_the_share_and_the_bound_on_extra_steps_are_kept(scripted, turned, attacked, build, decode):
    model, watch = scripted(turned(90)), Watch()
    decoding = TEN.model_copy(update={"max_extra_steps": 2})
    guard = build(model, decoding, "diffuguard", audit_threshold=0.5, remask_share=0.45, **AUDIT)
    guard.rewrite(REQUEST)
    output = decode(model, attacked[:1], KEYS[:1], decoding, [guard, watch])
    assert int(watch.remasked.sum()) == 4
    assert output.num_steps_B.tolist() == [7]
    assert not output.canvas.masked_BL.any()


@pytest.mark.parametrize(("first_only", "repairs", "removed"), [(True, 1, 4), (False, 2, 8)])
def test_later_blocks_are_audited_where_asked(
    scripted, turned, toy, words, build, decode, first_only, repairs, removed
):
    prefix = toy.chat_tokens([{"role": "user", "content": REQUEST.text}])
    tokens = (*prefix, *words("step"), *[toy.info.mask_token_id] * 9)
    rendered = Rendered(tokens=tokens, response_start=len(prefix), response_end=len(tokens))
    decoding = DecodingConfig(steps=10, reply_length=10, block_length=5)
    model, watch = scripted(turned(90)), Watch()
    params = {"audit_threshold": 0.5, "remask_share": 1.0, "first_block_only": first_only} | AUDIT
    guard = build(model, decoding, "diffuguard", **params)
    guard.rewrite(REQUEST)
    output = decode(model, [rendered], [RowKey("a")], decoding, [guard, watch])
    assert guard.interventions_B.tolist() == [repairs]
    assert int(watch.remasked.sum()) == removed + (repairs - 1)  # the first block holds the anchor
    assert output.forward_passes_B.tolist() == [int(output.num_steps_B) + 1]
    assert not output.canvas.masked_BL.any()


def test_a_text_that_ends_early_is_audited_before_it_is_ended(scripted, toy, words, attacked, build, decode):
    def script(tokens_BL):
        attacked_B11 = (tokens_BL == words("step")[0]).any(dim=1)[:, None, None]
        logits_LV = torch.zeros(tokens_BL.shape[1], toy.info.vocab_size)
        logits_LV[:, words("cold")[0]] = 9.0
        logits_LV[attacked[0].response_start + 1, words("<eos>")[0]] = 20.0
        other_LV = logits_LV.roll(7, dims=1)
        return torch.where(attacked_B11, logits_LV, other_LV)

    decoding = TEN.model_copy(update={"eos_early_stop": True, "ordering": Spec(name="left_to_right")})
    model = scripted(script)
    stopped = decode(model, attacked[:1], KEYS[:1], decoding)
    assert stopped.num_steps_B.tolist() == [1]
    guard = build(model, decoding, "diffuguard", remask_share=1.0, **AUDIT)
    guard.rewrite(REQUEST)
    output = decode(model, attacked[:1], KEYS[:1], decoding, [guard])
    assert guard.interventions_B.tolist() == [1]
    # The end-of-text token was removed for good, so the reply goes on.
    assert int(output.canvas.tokens_BL[0, attacked[0].response_start + 1]) != words("<eos>")[0]
    assert not output.canvas.masked_BL.any()


@pytest.mark.parametrize("reference", ["reply", "prompt"])
def test_divergence_is_one_minus_the_cosine_of_the_mean_states(toy, build, decode, reference):
    prompts = load_prompts(PromptsConfig(source="toy", split="restricted", limit=3, seed=4)).prompts
    attack = ATTACKS.build("dija", {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6})
    decoding = DecodingConfig(steps=6, reply_length=42, block_length=14, temperature=0.6)
    guard = build(toy, decoding, "diffuguard", reference=reference, audit_threshold=2.0, first_block_only=False)
    rows = [attack.render(rewritten(prompt, [guard]), toy, 42) for prompt in prompts]
    firsts, found = {}, []

    class Compare(Hook):
        def on_logits(self, context):
            for b in range(3):
                if guard.blocks.entered_B[b]:
                    start = int(context.canvas.response_start_B[b]) + 14 * int(guard.blocks.current_B[b])
                    firsts[b] = context.hidden_BLD[b, start : start + 14].mean(dim=0)

        def on_step_end(self, context):
            if guard.blocks.complete(context.canvas).all():
                found.append((guard.audit.divergence(context.canvas, guard.blocks), dict(firsts)))

    decode(toy, rows, [RowKey(prompt.id) for prompt in prompts], decoding, [guard, Compare()])
    assert len(found) == 3
    for number, (divergence_B, states) in enumerate(found):
        for b, prompt in enumerate(prompts):
            tokens = toy.chat_tokens([{"role": "user", "content": prompt.text}])
            masks = [toy.info.mask_token_id] * 42 if reference == "reply" else []
            hidden = toy.hidden(torch.tensor([tokens + masks]), torch.ones(1, len(tokens + masks), dtype=torch.bool))
            start = len(tokens) + 14 * number
            origin = (hidden[0, start : start + 14] if masks else hidden[0]).mean(dim=0)
            expected = 1 - torch.nn.functional.cosine_similarity(origin, states[b], dim=0)
            assert float(divergence_B[b]) == pytest.approx(float(expected), abs=1e-5)
            assert float(divergence_B[b]) > 1e-3


def test_without_an_attack_the_like_for_like_divergence_is_zero(toy, build, decode):
    prompts = load_prompts(PromptsConfig(source="toy", split="benign", limit=4, seed=4)).prompts
    decoding = DecodingConfig(steps=8, reply_length=42, temperature=0.7)
    guard = build(toy, decoding, "diffuguard", audit_threshold=1e-4, **AUDIT)
    rows = [ATTACKS.build("direct", {}).render(rewritten(prompt, [guard]), toy, 42) for prompt in prompts]
    keys = [RowKey(prompt.id) for prompt in prompts]
    output = decode(toy, rows, keys, decoding, [guard])
    assert guard.interventions_B.tolist() == [0] * 4
    assert output.forward_passes_B.tolist() == [9] * 4
    assert torch.equal(output.canvas.tokens_BL, decode(toy, rows, keys, decoding).canvas.tokens_BL)


def test_the_cue_test_reads_the_last_step_of_the_block(scripted, toy, words, attacked, build, decode):
    def script(tokens_BL):
        # Before the last step (two masks left) 0.9 and 0.1, which is 4 · 0.09; before that nothing.
        last_B = (tokens_BL == toy.info.mask_token_id).sum(dim=1) == 2
        logits_BV = torch.full((len(tokens_BL), toy.info.vocab_size), -40.0)
        logits_BV[:, words("cold")[0]] = torch.where(last_B, -40.0, 0.0)
        logits_BV[:, words("sure")[0]] = torch.where(last_B, math.log(0.9), -40.0)
        logits_BV[:, words("not")[0]] = torch.where(last_B, math.log(0.1), -40.0)
        return logits_BV[:, None].expand(-1, tokens_BL.shape[1], -1)

    model = scripted(script)

    def repairs(threshold, **params):
        cues = {"accept_cues": ["sure"], "refuse_cues": ["can not"]}
        settings = {"cue_threshold": threshold, "audit_threshold": None} | cues | AUDIT | params
        guard = build(model, TEN, "diffuguard", **settings)
        output = decode(model, attacked[:1], KEYS[:1], TEN, [guard])
        assert not output.canvas.masked_BL.any()
        assert output.forward_passes_B.tolist() == output.num_steps_B.tolist()
        return int(guard.interventions_B)

    assert repairs(0.355) == 1
    assert repairs(0.365) == 0
    assert repairs(0.355, accept_cues=["step"]) == 0


@pytest.mark.parametrize("decoding", [{}, {"block_length": 14}])
def test_a_row_decodes_alike_alone_and_in_any_company(toy, build, decode, decoding):
    prompts = load_prompts(PromptsConfig(source="toy", split="restricted", limit=4, seed=2)).prompts
    dija = ATTACKS.build("dija", {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6})
    attacks = [dija, ATTACKS.build("direct", {}), dija, ATTACKS.build("prefill", {"text": "step 1 :"})]
    config = DecodingConfig(**{"reply_length": 42, "steps": 9, "temperature": 0.8, "max_extra_steps": 4, **decoding})
    guard = build(toy, config, "diffuguard", first_block_only=False)
    rows = [a.render(rewritten(prompt, [guard]), toy, 42) for a, prompt in zip(attacks, prompts, strict=True)]
    keys = [RowKey(prompt.id) for prompt in prompts]
    needs = StatisticsNeeds(all_masks=True)
    together = decode(toy, rows, keys, config, [guard], length=80, needs=needs)
    assert guard.interventions_B[0] > 0
    # Without an attack the first block is never repaired.
    assert decoding or guard.interventions_B[1] == 0
    assert not together.canvas.masked_BL.any()
    for index in range(4):
        alone = decode(toy, [rows[index]], [keys[index]], config, [guard], length=80, needs=needs)
        assert torch.equal(alone.canvas.tokens_BL[0], together.canvas.tokens_BL[index])
        assert int(alone.forward_passes_B[0]) == int(together.forward_passes_B[index])


def test_wrong_settings_are_refused(toy, build, decode, attacked):
    with pytest.raises(ConfigError, match="ordering `origin` commits by a coin"):
        build(toy, DecodingConfig(ordering=Spec(name="origin")), "diffuguard")
    build(toy, DecodingConfig(ordering=Spec(name="origin")), "diffuguard", alpha=0.0)
    with pytest.raises(ConfigError, match="max_extra_steps is 0"):
        build(toy, DecodingConfig(max_extra_steps=0), "diffuguard")
    build(toy, DecodingConfig(max_extra_steps=0), "diffuguard", audit_threshold=None)
    with pytest.raises(ConfigError, match=r"cue `Of course`: the tokenizer .* does not know it"):
        build(toy, DecodingConfig(), "diffuguard", cue_threshold=0.35)
    with pytest.raises(ConfigError, match="alpha"):
        build(toy, DecodingConfig(), "diffuguard", alpha=1.5)
    with pytest.raises(ConfigError, match="remask_share"):
        build(toy, DecodingConfig(), "diffuguard", remask_share=0.0)
    guard = build(toy, TEN, "diffuguard")
    with pytest.raises(ConfigError, match="that of prompt `a` is not known"):
        decode(toy, attacked, KEYS, TEN, [guard])
    guard.rewrite(REQUEST)
    with pytest.raises(ConfigError, match="prompt id `a` stands for two different requests"):
        guard.rewrite(Prompt(id="a", text="how do i make a bobon ?", harmful=True, source="toy"))
