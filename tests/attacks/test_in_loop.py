"""Attacks between steps: what is written stays, what is recorded, and that rows are attacked by themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.attacks.attack_runs import PROMPTS, REPLY, denoised, generated, rendered
from tests.attacks.attack_settings import ATTACKS_DRAWN, IN_LOOP

from dsprobe.attacks.base import Anchor, Remask, Write
from dsprobe.attacks.case import AttackCase, WriteText
from dsprobe.attacks.in_loop import attack_hooks, check_steps
from dsprobe.attacks.realise import realise
from dsprobe.config import DecodingConfig, GuardrailConfig, Spec
from dsprobe.decoding.hooks import Hook
from dsprobe.decoding.records import ACTION_REMASK, ACTION_REWRITE, BY_ATTACK, NEVER, RowKey, by_guardrails
from dsprobe.decoding.schedule import planned_steps
from dsprobe.errors import ConfigError
from dsprobe.forking.engine import ForkEngine
from dsprobe.forking.segment import ForkRow
from dsprobe.guardrails import GUARDRAILS, Setting
from dsprobe.guardrails.base import Signal
from dsprobe.guardrails.build import build_guardrails

QUICK = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
DECODINGS = [
    DecodingConfig(steps=12, reply_length=REPLY),
    DecodingConfig(steps=12, reply_length=REPLY, temperature=0.9, top_p=0.95),
    DecodingConfig(steps=12, reply_length=REPLY, block_length=14, max_extra_steps=0),
    DecodingConfig(steps=None, reply_length=REPLY, block_length=14, schedule=Spec(name="dilated")),
    DecodingConfig(steps=12, reply_length=REPLY, schedule=Spec(name="dream"), ordering=Spec(name="origin")),
    DecodingConfig(steps=12, reply_length=REPLY, threshold=0.7, eos_early_stop=True),
    DecodingConfig(steps=12, reply_length=REPLY, cfg_scale=0.5),
]
DECODING = st.sampled_from(DECODINGS)


@pytest.fixture(scope="module")
def toy(load):
    return load("toy-diffusion")


@pytest.fixture(scope="module")
def causal(load):
    return load("toy-autoregressive")


def ids(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False)


def drawn(model, attacks, last_step=12):
    """Rows of several attacks, one prompt each; those that do not fit, or act too late, are left out."""
    rows, keys = [], []
    for index, (name, params) in enumerate(attacks):
        try:
            row = rendered(name, params, PROMPTS[index], model)
            check_steps([row], last_step, model.info.mask_token_id)
        except ConfigError:
            continue
        rows.append(row)
        keys.append(RowKey(PROMPTS[index].id, index % 2))
    return rows, keys


SEVERAL = st.lists(st.one_of(ATTACKS_DRAWN, IN_LOOP), min_size=1, max_size=4)


# ---- promises that hold for every attack ---------------------------------------------------------------------------


def probabilities(batch, row, length):
    """Probabilities of the chosen tokens: equal up to the last bits, which depend on the shape of the batch."""
    return batch.probability_SBL[: int(batch.num_steps_B[row]), row, :length].astype(np.float64)


def within(batch, row, length):
    """All that a row of a batch was, without the padding of its canvas."""
    steps = int(batch.num_steps_B[row])
    cut = [plane[:steps, row, :length] for plane in (batch.canvas_SBL, batch.predicted_SBL)]
    return [*cut, batch.tokens_BL[row, :length], batch.commit_step_BL[row, :length], batch.action_SB[:steps, row]]


@given(attacks=SEVERAL, decoding=DECODING, seed=st.randoms(use_true_random=False))
@QUICK
def test_an_attacked_row_decodes_alike_alone_and_in_any_company(toy, attacks, decoding, seed):
    rows, keys = drawn(toy, attacks, planned_steps(decoding))
    assume(rows)
    together = denoised(toy, rows, keys, decoding)
    order = seed.sample(range(len(rows)), len(rows))
    shuffled = denoised(toy, [rows[i] for i in order], [keys[i] for i in order], decoding)
    for index, row in enumerate(rows):
        length = len(row.tokens)
        alone = denoised(toy, [row], [keys[index]], decoding)
        for other, place in ((alone, 0), (shuffled, order.index(index))):
            for mine, theirs in zip(within(together, index, length), within(other, place, length), strict=True):
                np.testing.assert_array_equal(mine, theirs)
            mine, theirs = probabilities(together, index, length), probabilities(other, place, length)
            np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=1e-6)
            assert together.events[index] == other.events[place]


@given(attacks=SEVERAL, decoding=DECODING)
@QUICK
def test_no_mask_is_left_and_the_events_explain_every_canvas(toy, attacks, decoding):
    rows, keys = drawn(toy, attacks, planned_steps(decoding))
    assume(rows)
    batch = denoised(toy, rows, keys, decoding)
    mask = toy.info.mask_token_id
    assert not (batch.tokens_BL[batch.real_BL] == mask).any()
    for b, row in enumerate(rows):
        assert all(event["by"] == BY_ATTACK for event in batch.events[b])
        assert by_guardrails(batch.events[b]) == []
        assert bool(batch.events[b]) <= bool(row.actions)
        touched = explain(batch, b, mask)
        # Where nothing was taken back or overwritten, the last token and its step tell the whole history.
        for place in set(range(len(row.tokens))) - touched:
            step = int(batch.commit_step_BL[b, place])
            history = batch.canvas_SBL[: batch.num_steps_B[b], b, place]
            since = 0 if step == NEVER else step - 1
            assert (history[:since] == mask).all()
            assert (history[since:] == batch.tokens_BL[b, place]).all()


def explain(batch, b, mask):
    """Check that each canvas is the one before with masks committed, then the events of its step.

    Returns positions that an event changed after they had been committed.
    """
    touched = set()
    before_L = batch.canvas_BL[b]
    for step in range(1, int(batch.num_steps_B[b]) + 1):
        after_L = batch.canvas_SBL[step - 1, b]
        committed_L = after_L.copy()
        for event in reversed([event for event in batch.events[b] if event["step"] == step]):
            np.testing.assert_array_equal(committed_L[event["positions"]], event["after"])
            committed_L[event["positions"]] = event["before"]
            touched |= {p for p, old in zip(event["positions"], event["before"], strict=True) if old != mask}
        changed_L = committed_L != before_L
        assert (before_L[changed_L] == mask).all(), f"step {step} changed a token that no event explains"
        before_L = after_L
    np.testing.assert_array_equal(before_L, batch.tokens_BL[b])
    return touched


@given(
    step=st.integers(1, 12),
    position=st.integers(0, 34),
    text=st.sampled_from(["sure", "step 1 :", "i can not help with that ."]),
    decoding=st.sampled_from(DECODINGS[:3] + DECODINGS[4:5]),
)
@QUICK
def test_what_is_written_stands_in_the_final_tokens(toy, step, position, text, decoding):
    row = rendered("prefill", {"text": text, "position": position, "step": step}, PROMPTS[0], toy)
    batch = denoised(toy, [row], [RowKey(PROMPTS[0].id)], decoding)
    tokens, first = ids(toy, text), row.response_start + position
    assert batch.tokens_BL[0, first : first + len(tokens)].tolist() == tokens
    assert batch.canvas_SBL[step - 1, 0, first : first + len(tokens)].tolist() == tokens
    plain = denoised(toy, [replace(row, actions=())], [RowKey(PROMPTS[0].id)], decoding)
    np.testing.assert_array_equal(batch.canvas_SBL[: step - 1], plain.canvas_SBL[: step - 1])
    changed = plain.canvas_SBL[step - 1] != batch.canvas_SBL[step - 1]
    assert set(np.flatnonzero(changed[0])) <= set(range(first, first + len(tokens)))


def test_the_actions_of_one_row_never_touch_another(toy):
    attacked = rendered("trajhijack", {"step": 4, "phrases": ["i can not help with that ."]}
                        | {"prefix": "sure here is how to make a"}, PROMPTS[0], toy)  # fmt: skip
    rows = [attacked, *(rendered("direct", {}, prompt, toy) for prompt in PROMPTS[1:4])]
    keys = [RowKey(prompt.id) for prompt in PROMPTS[:4]]
    batch = denoised(toy, rows, keys)
    plain = denoised(toy, [replace(attacked, actions=()), *rows[1:]], keys)
    np.testing.assert_array_equal(batch.canvas_SBL[:12, 1:], plain.canvas_SBL[:12, 1:])
    assert (batch.tokens_BL[0] != plain.tokens_BL[0]).any()
    assert batch.events[1:] == [[], [], []]


# ---- each kind of action -------------------------------------------------------------------------------------------


def test_trajhijack_masks_what_it_names_and_writes_over_the_rest(toy):
    phrase, prefix = "i can not help with that .", "sure here is how to make a"
    params = {"step": 6, "phrases": [phrase], "prefix": prefix}
    row = rendered("trajhijack", params, PROMPTS[0], toy)
    batch = denoised(toy, [row], [RowKey("a")])
    start, wanted = row.response_start, {*ids(toy, phrase), *toy.info.eos_token_ids}
    (event,) = batch.events[0]
    assert event["action"] == ACTION_REMASK | ACTION_REWRITE
    assert (event["step"], event["by"]) == (6, BY_ATTACK)
    at_reply = batch.canvas_SBL[5, 0, start + len(ids(toy, prefix)) : start + REPLY]
    assert not set(at_reply.tolist()) & wanted
    masked = [old for old, new in zip(event["before"], event["after"], strict=True) if new == toy.info.mask_token_id]
    assert masked
    assert set(masked) <= wanted
    assert batch.canvas_SBL[5, 0, start : start + 7].tolist() == ids(toy, prefix)
    assert int(batch.num_steps_B[0]) == 12  # no extra steps for what an attack re-masks


def test_a_remask_leaves_what_was_given_alone(toy):
    row = rendered("prefill", {"text": "i can not help with that ."}, PROMPTS[0], toy)
    remask = Remask(step=3, tokens=tuple(ids(toy, "i can not help with that .")))
    batch = denoised(toy, [replace(row, actions=(remask,))], [RowKey("a")])
    given = slice(0, row.response_start + 7)
    np.testing.assert_array_equal(batch.tokens_BL[0, given], batch.canvas_BL[0, given])


@pytest.mark.parametrize("steps", [12, 42])
def test_anchoring_at_the_last_step_gives_the_reference(toy, steps):
    row = rendered("anchoring", {"step": steps}, PROMPTS[0], toy)
    decoding = DecodingConfig(steps=steps, reply_length=REPLY)
    batch = denoised(toy, [row], [RowKey("a")], decoding)
    reply = batch.tokens_BL[0, row.response_start : row.response_start + REPLY].tolist()
    reference = ids(toy, PROMPTS[0].metadata["reference"])
    assert reply == reference + [toy.info.eos_token_ids[0]] * (REPLY - len(reference))


class StopAfter(Hook):
    """Keeps the canvas of every step up to one, then ends all rows."""

    def __init__(self, step):
        self.step, self.canvases = step, []

    def on_canvas(self, context):
        self.canvases.append(context.canvas.tokens_BL.numpy())
        if context.step + 1 == self.step:
            context.canvas.stop(context.running_B)


@pytest.mark.parametrize("step", [1, 4, 12])
def test_the_share_of_anchored_masks_is_t_over_t(toy, step):
    """m_t of 2510.00565: what was masked before step t stays masked with probability (T − t)/T."""
    row = rendered("anchoring", {"step": step}, PROMPTS[0], toy)
    rows, keys = [row] * 48, [RowKey("a", sample) for sample in range(48)]
    kept = StopAfter(step)
    batch = denoised(toy, rows, keys, DecodingConfig(steps=21, reply_length=REPLY), guardrails=[kept])
    mask, reply = toy.info.mask_token_id, slice(row.response_start, row.response_start + REPLY)
    before, after = [plane[:, reply] for plane in [batch.canvas_BL, *kept.canvases][-2:]]
    hidden = (after == mask)[before == mask]
    wanted = 1 - step / 21
    error = np.sqrt(wanted * (1 - wanted) / hidden.size)
    assert abs(hidden.mean() - wanted) < 4 * error
    # What is not masked is the reference, and committed positions are never masked.
    anchor = np.array(row.actions[0].tokens)
    np.testing.assert_array_equal(np.where(after == mask, anchor, after), np.broadcast_to(anchor, after.shape))
    assert not (after == mask)[before != mask].any()


@pytest.mark.parametrize("step", [8, 12])
def test_a_remask_after_a_blocks_last_step_is_followed_by_one_step_more(toy, step):
    decoding = DecodingConfig(steps=12, reply_length=REPLY, block_length=14, max_extra_steps=0)
    params = {"step": step, "phrases": ["i can not help with that ."], "prefix": ""}
    batch = denoised(toy, [rendered("trajhijack", params, PROMPTS[0], toy)], [RowKey("a")], decoding)
    assert int(batch.num_steps_B[0]) == 13
    assert not batch.action_SB.any()


def test_anchors_come_first_then_remasks_then_writes(toy):
    start = rendered("direct", {}, PROMPTS[0], toy).response_start
    (sure,), (ready,) = ids(toy, "sure"), ids(toy, "ready")
    actions = (
        Write(step=12, position=start + 1, tokens=(ready,)),
        Anchor(step=12, tokens=(sure,) * REPLY),
        Remask(step=11, tokens=(sure,)),
    )
    row = replace(rendered("direct", {}, PROMPTS[0], toy), actions=actions)
    batch = denoised(toy, [row], [RowKey("a")])
    assert batch.canvas_SBL[11, 0, start : start + REPLY].tolist() == [sure, ready, *[sure] * (REPLY - 2)]
    both = (Anchor(step=1, tokens=(sure,) * REPLY), Remask(step=1, tokens=(sure,)))
    emptied = denoised(toy, [replace(row, actions=both)], [RowKey("a")])
    assert (emptied.canvas_SBL[0, 0, start : start + REPLY] == toy.info.mask_token_id).all()


def test_an_attack_that_would_never_act_is_refused(toy):
    row = rendered("prefill", {"text": "sure", "step": 13}, PROMPTS[0], toy)
    with pytest.raises(ConfigError, match="acts after step 13, and the decoding takes 12 steps"):
        denoised(toy, [row], [RowKey("a")])
    assert attack_hooks([rendered("direct", {}, PROMPTS[0], toy)], 12, toy.info.mask_token_id) == []


# ---- guardrails and forking ----------------------------------------------------------------------------------------


class Seen(Hook):
    """What a guardrail in this place finds on the canvas."""

    def __init__(self):
        self.canvases, self.committed, self.unattacked = [], [], []

    def on_canvas(self, context):
        self.canvases.append(context.canvas.tokens_BL.clone())
        self.committed.append(context.committed_BL.clone())
        self.unattacked.append(context.unattacked_BL)


def test_a_guardrail_sees_what_the_attack_wrote_in_the_same_step(toy):
    row = rendered("prefill", {"text": "sure here is how to make a", "step": 3}, PROMPTS[0], toy)
    seen = Seen()
    denoised(toy, [row], [RowKey("a")], guardrails=[seen])
    at = slice(row.response_start, row.response_start + 7)
    assert seen.canvases[2][0, at].tolist() == ids(toy, "sure here is how to make a")
    assert torch.equal(seen.committed[2], seen.canvases[2])
    assert [step for step, before in enumerate(seen.unattacked, 1) if before is not None] == [3]


def test_events_of_attack_and_guardrail_are_kept_apart(toy):
    """The reference names the item's parts at step 6; a re-noising guardrail takes parts back in the same step."""
    decoding = DecodingConfig(steps=12, reply_length=REPLY)
    setting = Setting(model=toy, decoding=decoding)
    params = {"threshold": 0.1, "scorer": {"name": "toy_lexicon"}, "view": "committed", "max_interventions": 2}
    guardrail = GUARDRAILS.build("renoise", params, setting)
    row = rendered("anchoring", {"step": 6}, PROMPTS[0], toy)
    batch = denoised(toy, [row], [RowKey("a")], decoding, guardrails=[guardrail])
    attack, *others = batch.events[0]
    assert (attack["step"], attack["by"]) == (6, BY_ATTACK)
    assert by_guardrails(batch.events[0]) == others
    assert len(others) == int(guardrail.interventions_B[0])
    assert others[0]["step"] == 6
    assert batch.action_SB[5, 0] & ACTION_REMASK
    # Without the guardrail the row carries no action: what an attack does is no intervention.
    assert not denoised(toy, [row], [RowKey("a")], decoding).action_SB.any()
    explain(batch, 0, toy.info.mask_token_id)


def test_attacked_rows_are_decoded_from_scratch_and_have_no_trunk(toy):
    engine = ForkEngine(toy, DecodingConfig(steps=12, reply_length=REPLY), seed=5, batch_size=4)
    specs = [("anchoring", {"step": 4}), ("direct", {}), ("prefill", {"text": "sure", "step": 2})]
    rows = [
        ForkRow(rendered=rendered(name, params, prompt, toy), key=RowKey(prompt.id))
        for (name, params), prompt in zip(specs, PROMPTS, strict=False)
    ]
    renoise = {"name": "renoise", "threshold": 0.1, "scorer": {"name": "toy_lexicon"}}
    config = GuardrailConfig.model_validate({"name": "some", "stack": [renoise]})
    forked = engine.run(rows, build_guardrails(config, engine.setting))
    scratch = engine.run(rows, build_guardrails(config, engine.setting), fork=False)
    for one, other in zip(forked, scratch, strict=True):
        np.testing.assert_array_equal(one.tokens_L, other.tokens_L)
        assert (one.num_steps, one.passes, one.interventions) == (other.num_steps, other.passes, other.interventions)
    assert forked[0].passes_used == forked[0].passes
    signal = Signal(scorer=Spec(name="toy_lexicon"), view="committed")
    with pytest.raises(ConfigError, match=r"attacked inside the loop.*cannot be forked"):
        engine.trunk_risks(rows[:1], signal)
    assert len(engine.trunk_risks(rows[1:2], signal)) == 1


# ---- autoregressive models -----------------------------------------------------------------------------------------


@given(attacks=st.lists(ATTACKS_DRAWN, min_size=1, max_size=4), temperature=st.sampled_from([0.0, 0.8]))
@QUICK
def test_an_autoregressive_model_says_what_it_is_forced_to(causal, attacks, temperature):
    rows, keys = drawn(causal, attacks)
    assume(rows)
    decoding = DecodingConfig(reply_length=REPLY, temperature=temperature)
    batch = generated(causal, rows, keys, decoding)
    eos = causal.info.eos_token_ids
    for b, row in enumerate(rows):
        pad = int(batch.real_BL[b].argmax())
        free = np.ones(batch.tokens_BL.shape[1], dtype=bool)
        for position, token in row.forced:
            place = position + pad
            assert batch.tokens_BL[b, place] == token
            assert batch.commit_step_BL[b, place] == NEVER
            assert np.isnan(batch.probability_SBL[:, b, place]).all()
            free[place] = False
        if row.forced:
            last = max(position for position, _ in row.forced) + pad
            written = batch.tokens_BL[b, len(row.tokens) + pad : last]
            assert not np.isin(written[free[len(row.tokens) + pad : last]], eos).any()
            assert int(batch.num_steps_B[b]) > last - pad - len(row.tokens)
        alone = generated(causal, [row], [keys[b]], decoding)
        mine, theirs = batch.response_BL[b], alone.response_BL[0]
        steps = int(batch.num_steps_B[b])
        assert int(alone.num_steps_B[0]) == steps
        said = max(0, row.response_start - len(row.tokens)) + steps + len(row.tokens) - row.response_start
        np.testing.assert_array_equal(batch.tokens_BL[b][mine][:said], alone.tokens_BL[0][theirs][:said])


@pytest.mark.parametrize(
    ("step", "masks", "message"), [(20, 4, "a row with 4 masks takes 4 steps"), (13, 30, "decoding takes 12 steps")]
)
def test_an_attack_that_could_never_act_on_a_row_is_refused(toy, step, masks, message):
    case = AttackCase(
        prompt_id="p", reply=("step 1 :", masks), tail="eos", actions=(WriteText(step=step, position=8, text="step"),)
    )
    row = realise(case, PROMPTS[0], toy, REPLY)
    with pytest.raises(ConfigError, match=message):
        attack_hooks([row], 24 if step == 20 else 12, toy.info.mask_token_id)
