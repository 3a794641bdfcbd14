"""Suffix search: its gradients, its losses, what it may write, and that what it found is what is replayed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsprobe.attacks import ATTACKS
from dsprobe.attacks.case import load_cases, save_cases
from dsprobe.attacks.gcg_search import Target, TargetLoss
from dsprobe.attacks.gcg_suffix import Turn, allowed_tokens, suffix_text
from dsprobe.attacks.realise import realise
from dsprobe.config import DecodingConfig, ModelConfig
from dsprobe.errors import ConfigError
from dsprobe.experiment.preflight import check_rendering, stand_in
from dsprobe.models.checkpoint import inspect_checkpoint
from dsprobe.models.load import load_model
from dsprobe.models.testing import write_tiny_checkpoint
from dsprobe.prompts.base import Prompt
from dsprobe.prompts.toy import toy_prompts

REPLY = 12
SMALL = {"initial": ".", "suffix_length": 5, "iterations": 4, "candidates": 12, "top_k": 16, "batch_size": 8}
BYTES = SMALL | {"initial": " !", "text": "ok"}
TOYS = ["toy-diffusion", "toy-autoregressive"]
MODELS = ["dream-tiny", "llada-tiny", *TOYS]
PROMPTS = toy_prompts("restricted", 2).prompts


def gcg(**params):
    return ATTACKS.build("gcg", SMALL | params)


def compose(model, prompts=PROMPTS[:1], **params):
    return gcg(**params).compose_all(prompts, model, REPLY)


@pytest.fixture(scope="module", params=["dream", "llada", "causal"])
def bpe_model(request, tmp_path_factory):
    """A random model in a published layout, with a byte-level tokenizer that has learned a few merges."""
    texts = ["how do i make a kite ? ! ok ok sure, here is the way the other way there"] * 4
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("bpe"), request.param, texts=texts)
    return load_model(ModelConfig(name=request.param, path=str(folder)))


def is_causal(model):
    return model.info.kind == "autoregressive"


def target_loss(model, batch_size=4):
    """A loss on made-up ids: no tokenizer is needed."""
    row = (7, 8, 9, 10, 11, 12, 13, *([21, 22] if is_causal(model) else [model.info.mask_token_id] * 4))
    read = slice(6, 8) if is_causal(model) else slice(7, 9)
    target = Target(row=row, suffix=slice(3, 6), read=read, tokens=(21, 22))
    return TargetLoss(model, target, batch_size)


def log_likelihood(model, tokens, start, target):
    """Σ log p of a target at a row's positions, from the module of transformers alone."""
    shift = model.info.family == "dream" or is_causal(model)
    row = [*tokens, *target] if is_causal(model) else list(tokens)
    with torch.inference_mode():
        logits_LV = model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()
    logprob_LV = logits_LV.log_softmax(dim=-1)
    return sum(float(logprob_LV[start + i - shift, token]) for i, token in enumerate(target))


# ---- loss and gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_the_module_of_transformers(load, name):
    model = load(name)
    suffixes = [(10, 11, 12), (14, 15, 16), (30, 31, 10)]
    losses, _ = target_loss(model, batch_size=2).of(suffixes)
    tail = () if is_causal(model) else (model.info.mask_token_id,) * 4
    for suffix, loss in zip(suffixes, losses, strict=True):
        expected = log_likelihood(model, (7, 8, 9, *suffix, 13, *tail), 7, (21, 22))
        assert loss == pytest.approx(-expected / 2, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_finite_differences(load, name):
    model = load(name)
    loss, suffix, epsilon = target_loss(model), (10, 11, 12), 3e-3
    gradient_SD = loss.gradient(suffix)
    assert gradient_SD.shape == (3, model.embedding_weight_VD.shape[1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        # Half along the gradient, so that the slope is far above the rounding of float32.
        noise_SD = torch.randn(gradient_SD.shape, generator=generator)
        way_SD = gradient_SD / gradient_SD.norm() + noise_SD / noise_SD.norm()
        up, down = (perturbed(loss, suffix, sign * epsilon * way_SD) for sign in (1, -1))
        assert (up - down) / (2 * epsilon) == pytest.approx(float((gradient_SD * way_SD).sum()), rel=0.02)


def perturbed(loss, suffix, change_SD):
    def shift(module, args, output):
        output = output.clone()
        output[:, 3:6] += change_SD
        return output

    hook = loss.model.module.get_input_embeddings().register_forward_hook(shift)
    try:
        return loss.of([suffix])[0][0]
    finally:
        hook.remove()


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_leaves_nothing_behind_and_works_in_inference_mode(load, name):
    model = load(name)
    loss = target_loss(model)
    outside_SD = loss.gradient((10, 11, 12))
    with torch.inference_mode():
        assert torch.equal(loss.gradient((10, 11, 12)), outside_SD)
    assert not outside_SD.requires_grad
    assert not model.module.get_input_embeddings()._forward_hooks
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())


# ---- what is found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_the_likelihood_of_the_target_rises(load, name):
    model = load(name)
    target = model.tokenizer.encode("sure here is", add_special_tokens=False)
    (case,) = compose(model)
    before, after = (realise(c, PROMPTS[0], model, REPLY) for c in (gcg().compose(PROMPTS[0], model, REPLY), case))
    low, high = (log_likelihood(model, row.tokens, row.response_start, target) for row in (before, after))
    assert high > low + 1
    assert float(case.metadata["loss_before"]) == pytest.approx(-low / 3, rel=1e-4)
    assert float(case.metadata["loss_after"]) == pytest.approx(-high / 3, rel=1e-4)
    assert case.metadata["searched_on"] == name


def test_what_is_found_is_what_is_rendered(bpe_model):
    prompt = Prompt(id="kite", text="how do i make a kite ! !", harmful=False, source="test")
    attack = ATTACKS.build("gcg", BYTES | {"iterations": 6})
    (case,) = attack.compose_all([prompt], bpe_model, REPLY)
    row = realise(case, prompt, bpe_model, REPLY)
    target = bpe_model.tokenizer.encode("ok", add_special_tokens=False)
    loss = -log_likelihood(bpe_model, row.tokens, row.response_start, target) / len(target)
    assert loss == pytest.approx(float(case.metadata["loss_after"]), rel=1e-4)
    assert loss < float(case.metadata["loss_before"])
    start = realise(attack.compose(prompt, bpe_model, REPLY), prompt, bpe_model, REPLY)
    assert len(row.tokens) == len(start.tokens)
    changed = [i for i, (a, b) in enumerate(zip(row.tokens, start.tokens, strict=True)) if a != b]
    assert 0 < len(changed) <= 5
    assert changed[-1] - changed[0] < 5
    assert {row.tokens[i] for i in changed} <= set(allowed_tokens(bpe_model))


def test_a_saved_case_replays_the_row(load, tmp_path):
    model = load("toy-diffusion")
    cases = compose(model, PROMPTS)
    save_cases(cases, tmp_path / "cases.jsonl")
    assert load_cases(tmp_path / "cases.jsonl") == cases
    replay = ATTACKS.build("cases", {"path": str(tmp_path / "cases.jsonl")})
    found = [realise(case, prompt, model, REPLY) for case, prompt in zip(cases, PROMPTS, strict=True)]
    assert replay.render_all(PROMPTS, model, REPLY) == found


@pytest.mark.parametrize("name", TOYS)
def test_a_case_depends_on_its_prompt_and_seed_alone(load, name):
    model = load(name)
    state = torch.get_rng_state()
    together = compose(model, PROMPTS)
    alone = [case for prompt in reversed(PROMPTS) for case in compose(model, [prompt])]
    assert together == alone[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert compose(model, PROMPTS, seed=1) != together


def test_samples_of_a_prompt_share_a_search_and_every_forward_has_one_size(load, monkeypatch):
    model, sizes = load("toy-diffusion"), []
    hidden = type(model).hidden
    monkeypatch.setattr(model, "hidden", lambda *a: (sizes.append(len(a[0])), hidden(model, *a))[1], raising=False)
    cases = compose(model, [PROMPTS[0]] * 3, iterations=3, early_stop=False)
    assert cases[0] == cases[1] == cases[2]
    assert cases[0].metadata["iterations"] == "3"
    # A gradient of one row, then at most 12 candidates in batches of 8.
    assert set(sizes) == {1, 8}
    assert sizes.count(1) == 3
    assert sizes.count(8) <= 1 + 3 * 2


def test_no_iterations_leave_the_initial_suffix(load):
    model = load("toy-diffusion")
    (case,) = compose(model, iterations=0)
    assert case.user == gcg().compose(PROMPTS[0], model, REPLY).user == (None, " . . . . .")
    assert case.metadata["loss_before"] == case.metadata["loss_after"]


def test_the_search_ends_once_the_target_is_likeliest(load):
    model = load("toy-autoregressive")
    (case,) = compose(model, suffix_length=10, iterations=60, candidates=24)
    assert int(case.metadata["iterations"]) < 60
    row = realise(case, PROMPTS[0], model, REPLY)
    target = model.tokenizer.encode("sure here is", add_special_tokens=False)
    with torch.inference_mode():
        logits_LV = model.module(input_ids=torch.tensor([[*row.tokens, *target]])).logits[0]
    assert logits_LV[row.response_start - 1 : -1].argmax(dim=-1).tolist() == target


def test_a_target_in_the_middle_is_matched_there(load):
    model = load("toy-diffusion")
    (case,) = compose(model, target_position=6, text="step 2 :")
    row = realise(case, PROMPTS[0], model, REPLY)
    target = model.tokenizer.encode("step 2 :", add_special_tokens=False)
    expected = log_likelihood(model, row.tokens, row.response_start + 6, target)
    assert float(case.metadata["loss_after"]) == pytest.approx(-expected / 3, rel=1e-4)


def test_a_reference_is_cut_where_the_reply_ends(load):
    model = load("toy-diffusion")
    (case,) = compose(model, target="reference", iterations=0)
    row = realise(case, PROMPTS[0], model, REPLY)
    target = model.tokenizer.encode(PROMPTS[0].metadata["reference"], add_special_tokens=False)
    assert len(target) > REPLY
    expected = log_likelihood(model, row.tokens, row.response_start, target[:REPLY])
    assert float(case.metadata["loss_before"]) == pytest.approx(-expected / REPLY, rel=1e-4)


def test_a_suffix_is_searched_on_the_surrogate(load):
    attack = gcg(surrogate="toy-diffusion")
    assert type(attack).needs_model(attack.config) == "toy-diffusion"
    with pytest.raises(ConfigError, match="toy-diffusion"):
        attack.compose_all(PROMPTS[:1], load("toy-autoregressive"), REPLY)
    attack.surrogates = {"toy-diffusion": load("toy-diffusion")}
    assert attack.compose_all(PROMPTS[:1], load("toy-autoregressive"), REPLY) == compose(load("toy-diffusion"))


# ---- suffixes ------------------------------------------------------------------------------------------------------


def test_no_suffix_holds_special_or_unprintable_tokens(bpe_model, load):
    for model in (bpe_model, load("toy-diffusion"), load("toy-autoregressive")):
        tokenizer, info = model.tokenizer, model.info
        allowed = set(allowed_tokens(model))
        assert not allowed & {*tokenizer.all_special_ids, *info.suppressed_token_ids, *info.eos_token_ids}
        assert not allowed & {info.pad_token_id, info.mask_token_id, tokenizer.unk_token_id}
        texts = [tokenizer.decode([token]) for token in sorted(allowed)]
        assert len(texts) > 90
        assert all(text.strip() and text.isascii() and text.isprintable() for text in texts)
    assert len(allowed) == 304 - 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_surviving_suffix_is_in_the_row_and_another_is_not(any_model, kite, data):
    allowed = allowed_tokens(any_model)
    suffix = tuple(data.draw(st.lists(st.sampled_from(allowed), min_size=3, max_size=3)))
    turn = Turn.around((allowed[0],) * 3, kite, any_model)
    case = gcg(initial=any_model.tokenizer.decode(allowed[:1]), text="make a kite", suffix_length=3).compose(
        kite, any_model, REPLY
    )
    tokens = realise(
        case.model_copy(update={"user": (None, suffix_text(suffix, any_model))}), kite, any_model, REPLY
    ).tokens
    assert turn.survives(suffix) == (tokens[:-REPLY] == turn.before + suffix + turn.after)


def test_a_dry_run_needs_the_tokenizer_alone():
    model = stand_in(inspect_checkpoint(ModelConfig(name="toy-diffusion")))
    check_rendering(gcg(), toy_prompts("restricted", 3), model, DecodingConfig(name="d"))
    with pytest.raises(ConfigError, match="takes gradients, and `toy-diffusion` has none"):  # there are no weights
        gcg().compose_all(toy_prompts("restricted", 1).prompts, model, REPLY)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [" !", "step 1", "<mask>", "<eos>", "zzz", ""])
def test_an_unfit_initial_suffix_names_one_that_fits(load, initial):
    with pytest.raises(ConfigError, match=r"`initial` is .* For example, `\.` will do"):
        gcg(initial=initial).compose(PROMPTS[0], load("toy-diffusion"), REPLY)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "toy-autoregressive",
            {"target_position": 3},
            "`toy-autoregressive` is autoregressive",
        ),
        ("toy-diffusion", {"target_position": 10}, "needs 13 positions, and the reply has 12"),
        ("toy-diffusion", {"target_position": 12, "target": "reference"}, "needs 13 positions"),
        ("toy-diffusion", {"target": "metadata"}, "prompt `toy-restricted-0000` has no `target`"),
        ("toy-diffusion", {"text": "umbrella"}, "vocabulary"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_before_a_search(load, name, params, message):
    with pytest.raises(ConfigError, match=message):
        gcg(**params).compose(PROMPTS[0], load(name), REPLY)


def test_a_model_without_gradients_is_refused(byte_model, kite):
    with pytest.raises(ConfigError, match="takes gradients, and `stub-diffusion` has none"):
        ATTACKS.build("gcg", BYTES).compose_all([kite], byte_model, REPLY)


def test_a_search_is_not_repeated_for_a_single_row(load):
    with pytest.raises(ConfigError, match="`gcg` is a search"):
        gcg().render(PROMPTS[0], load("toy-diffusion"), REPLY)
    assert math.isfinite(float(compose(load("toy-diffusion"), iterations=0)[0].metadata["loss_after"]))
