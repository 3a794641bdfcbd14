"""The learned policy as a guardrail: its network, its file, its triggers, its spans."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dsprobe.attacks import ATTACKS
from dsprobe.config import DecodingConfig, GuardrailConfig, PromptsConfig, Spec
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.hooks import Hook
from dsprobe.decoding.loop import StatisticsNeeds, denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.guardrails import GUARDRAILS, Setting
from dsprobe.guardrails.base import StepLog, step_log
from dsprobe.guardrails.build import check_guardrail
from dsprobe.guardrails.policy import PolicyConfig, strength_span
from dsprobe.guardrails.policy_fit import fit_knots
from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork
from dsprobe.guardrails.weighting import WEIGHTINGS
from dsprobe.prompts.load import load_prompts

DECODING = DecodingConfig(steps=12, reply_length=42)
DIJA = {"placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}
NEEDS = StatisticsNeeds(all_masks=True)


def header(**changes):
    fields = {
        "width": 2,
        "hidden": 1,
        "model": "toy-diffusion",
        "model_digest": "d" * 64,
        "scorer": Spec(name="toy_lexicon"),
        "view": "committed",
        "knots": (0.0, 0.5, 1.0),
    }
    return PolicyHeader(**{**fields, **changes})


@pytest.fixture(scope="module")
def model(load):
    return load("toy-diffusion")


@pytest.fixture(scope="module")
def network(model):
    """A random policy for the toy model whose probability crosses 0.5 back and forth along a trajectory."""
    network = PolicyNetwork(
        header(width=model.head_weight_VD.shape[1], hidden=16, model_digest=model.info.digest), seed=5
    )
    with torch.no_grad():
        network.inner_HI *= 4
        network.outer_2H *= 4
    return network.requires_grad_(False)


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "policy.safetensors"
    network.save(path)
    return path


@pytest.fixture(scope="module")
def rendered(model):
    attack = ATTACKS.build("dija", DIJA)
    prompts = load_prompts(PromptsConfig(source="toy", limit=6, seed=3)).prompts
    return [(RowKey(prompt.id), attack.render(prompt, model, DECODING.reply_length)) for prompt in prompts]


def run(model, rendered, hooks):
    keys, rows = zip(*rendered, strict=True)
    canvas = batch_canvases(rows, keys, model.info, length=64)
    return denoise(model, canvas, SchedulePolicy(DECODING, model.info), hooks=hooks, needs=NEEDS)


def built(file, model, **settings):
    setting = Setting(model=model, decoding=DECODING)
    return GUARDRAILS.build("policy", {"path": str(file), **settings}, setting)


class LogSteps(Hook):
    """Logs the steps of a batch as the guardrail sees them."""

    def __init__(self, guardrail):
        self.guardrail, self.logs, self.fired = guardrail, [], []

    def on_canvas(self, context):
        log = step_log(context, self.guardrail.setting, self.guardrail)
        self.logs.append((log, log.risk(self.guardrail.config.signal)))

    def on_step_end(self, context):
        self.fired.append(self.guardrail.fired_B)

    def joined(self):
        def stacked(name):
            return torch.cat([getattr(log, name) for log, _ in self.logs])

        risk_SB = torch.cat([risk for _, risk in self.logs])
        names = ("step_SB", "fraction_SB", "complete_SB", "valid_SB", "pooled_SBD")
        return StepLog(**{name: stacked(name) for name in names}, risk=lambda signal: risk_SB)


# ---- network and file ------------------------------------------------------------------------------------------------


def test_a_network_small_enough_to_compute_by_hand():
    network = PolicyNetwork(header())
    with torch.no_grad():
        network.mean.copy_(torch.tensor([1.0, 0.0, 0.5, 0.0]))
        network.scale.copy_(torch.tensor([2.0, 1.0, 0.5, 1.0]))
        network.inner_HI.copy_(torch.tensor([[1.0, -1.0, 0.5, 2.0]]))
        network.inner_H.fill_(0.25)
        network.outer_2H.copy_(torch.tensor([[3.0], [-2.0]]))
        network.outer_2.copy_(torch.tensor([0.125, 0.0]))
    p, q = network(torch.tensor([[3.0, 2.0]]), torch.tensor([1.0]), torch.tensor([0.5]))
    # ((3 − 1) / 2, 2, (1 − 0.5) / 0.5, 0.5) · (1, −1, 0.5, 2) + 0.25 = 1 − 2 + 0.5 + 1 + 0.25
    h = math.tanh(0.75)
    assert p.item() == pytest.approx(1 / (1 + math.exp(-(3 * h + 0.125))), abs=1e-12)
    assert q.item() == pytest.approx(1 / (1 + math.exp(2 * h)), abs=1e-12)


def test_a_file_gives_back_the_network_bit_for_bit(network, file):
    again = PolicyNetwork.load(file)
    assert again.header == network.header
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_building_a_network_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    PolicyNetwork(header(), seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"policy file `.*nowhere\.safetensors` does not exist.*dsprobe policy train"):
        PolicyNetwork.load(tmp_path / "nowhere.safetensors")


def test_other_files_are_refused(tmp_path):
    text, weights = tmp_path / "text.safetensors", tmp_path / "weights.safetensors"
    text.write_text("no tensors here, only a sentence")
    save_file({"weight": torch.zeros(2)}, weights)
    with pytest.raises(ConfigError, match=r"text\.safetensors` is not a policy file"):
        PolicyNetwork.load(text)
    with pytest.raises(ConfigError, match="metadata lacks `dsprobe_policy`"):
        PolicyNetwork.load(weights)


def test_a_newer_or_damaged_header_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    newer = header().model_dump_json().replace('"version":1', '"version":2')
    save_file({"weight": torch.zeros(2)}, path, metadata={"dsprobe_policy": newer})
    with pytest.raises(ConfigError, match=r"header of policy file .*: version"):
        PolicyNetwork.load(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"dsprobe_policy": header().model_dump_json()})
    with pytest.raises(ConfigError, match=r"its tensors .* are not the"):
        PolicyNetwork.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 3}, "of hidden width 3; model `toy-diffusion` has width 128"),
        ({"model_digest": "0" * 64}, "with digest 000000000000…; model `toy-diffusion` has digest"),
    ],
)
def test_another_model_is_refused(changes, message, model, tmp_path):
    facts = {"width": model.head_weight_VD.shape[1], "model_digest": model.info.digest, **changes}
    path = tmp_path / "policy.safetensors"
    PolicyNetwork(header(**facts)).save(path)
    with pytest.raises(ConfigError, match=message):
        built(path, model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": {"name": "ngram", "weights": "half"}}, "scorer `toy_lexicon`; .*`{name: ngram, weights: half}`"),
        ({"view": "predicted"}, "committed view; the guardrail has `view: predicted`"),
        ({"digest": "123"}, "not the 123 asked for"),
        ({"window": [1, 40]}, "lies outside the decoding's 12 steps"),
        ({"path": "nowhere.safetensors"}, "nowhere.safetensors` does not exist"),
        ({"treshold": 0.4}, "Did you mean `threshold`"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_model_is_loaded(settings, message, file):
    stack = [{"name": "policy", "path": str(file), **settings}]
    with pytest.raises(ConfigError, match=message):
        check_guardrail(GuardrailConfig(name="learned", stack=stack), DECODING)


def test_the_files_own_digest_and_scorer_are_accepted(file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = {"name": "policy", "path": str(file), "digest": digest[:12], "scorer": {"name": "toy_lexicon", "alias": "x"}}
    check_guardrail(GuardrailConfig(name="learned", stack=[spec]), DECODING)
    wrong = {**spec, "digest": ("0" if digest[0] != "0" else "1") + digest[1:12]}
    with pytest.raises(ConfigError):
        check_guardrail(GuardrailConfig(name="learned", stack=[wrong]), DECODING)


# ---- in the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"every": 3, "window": "late"}, {"threshold": 0.05, "margin": 0}])
def test_the_log_of_an_unguarded_run_tells_the_first_intervention(settings, file, model, rendered):
    guardrail = built(file, model, **settings)
    unguarded = LogSteps(guardrail)
    guardrail.on_init(batch_canvases([r for _, r in rendered], [k for k, _ in rendered], model.info, length=64))
    run(model, rendered, [unguarded])
    told_SB = guardrail.triggers(unguarded.joined())
    guarded = LogSteps(guardrail)
    run(model, rendered, [guarded, guardrail])
    fired_SB = torch.stack(guarded.fired)
    assert fired_SB.any(dim=0).sum() >= 3
    assert not fired_SB.any(dim=0).all() or fired_SB.int().argmax(dim=0).unique().numel() > 1
    assert torch.equal(told_SB.any(dim=0), fired_SB.any(dim=0))
    first_B = fired_SB.any(dim=0)
    assert torch.equal(told_SB.int().argmax(dim=0)[first_B], fired_SB.int().argmax(dim=0)[first_B])


def test_it_intervenes_exactly_where_the_weighted_probability_exceeds_the_threshold(file, network, model, rendered):
    guardrail = built(file, model, threshold=0.6, weighting="linear", max_interventions=100, every=2)
    logger = LogSteps(guardrail)
    run(model, rendered, [logger, guardrail])
    log = logger.joined()
    risk_SB = log.risk(None)
    p_SB, _ = network(log.pooled_SBD, risk_SB, log.fraction_SB)
    u_SB = (log.step_SB / DECODING.steps).clamp_max(1)
    expected_SB = (u_SB * p_SB > 0.6) & (risk_SB > 0) & (log.step_SB % 2 == 1) & log.valid_SB
    assert torch.equal(torch.stack(logger.fired), expected_SB)
    assert expected_SB.any()


def test_a_row_does_not_depend_on_its_neighbours(file, model, rendered):
    together = run(model, rendered, [built(file, model)]).canvas.tokens_BL
    alone = torch.cat([run(model, [row], [built(file, model)]).canvas.tokens_BL for row in rendered[:3]])
    assert torch.equal(together[:3], alone)


def constant(model, path, p, q):
    """A policy that always answers the same."""
    network = PolicyNetwork(header(width=model.head_weight_VD.shape[1], model_digest=model.info.digest))
    with torch.no_grad():
        network.outer_2H.zero_()
        network.outer_2.copy_(torch.logit(torch.tensor([p, q], dtype=torch.float64)))
    network.save(path)
    return path


def test_a_threshold_above_the_probability_leaves_everything_alone(model, rendered, tmp_path):
    file = constant(model, tmp_path / "p.safetensors", 0.4, 0.5)
    expected = run(model, rendered, [])
    guarded = run(model, rendered, [built(file, model, threshold=0.41)])
    assert torch.equal(guarded.canvas.tokens_BL, expected.canvas.tokens_BL)
    assert torch.equal(guarded.num_steps_B, expected.num_steps_B)
    changed = run(model, rendered, [built(file, model, threshold=0.39)])
    assert not torch.equal(changed.canvas.tokens_BL, expected.canvas.tokens_BL)


def test_full_strength_is_renoising_where_there_is_risk(model, rendered, tmp_path):
    file = constant(model, tmp_path / "p.safetensors", 0.9, 1 - 1e-12)
    action = {"span_share": 0.3, "margin": 1, "max_interventions": 4}
    setting = Setting(model=model, decoding=DECODING)
    renoised = run(model, rendered, [GUARDRAILS.build("renoise", {**action, "threshold": 0.0}, setting)])
    learned = run(model, rendered, [built(file, model, **action)])
    assert torch.equal(learned.canvas.tokens_BL, renoised.canvas.tokens_BL)
    assert (learned.num_steps_B > DECODING.steps).any()


@settings(max_examples=30, deadline=None)
@given(
    weaker=st.floats(0.01, 0.98),
    more=st.floats(0.0, 0.5),
    seed=st.integers(0, 1000),
    margin=st.integers(0, 3),
)
def test_a_stronger_intervention_takes_back_at_least_as_much(weaker, more, seed, margin, request):
    model, rendered = request.getfixturevalue("model"), request.getfixturevalue("rendered")
    (_, row), *_ = rendered
    canvas = batch_canvases([row], [RowKey("a")], model.info, length=64)
    attribution_BL = torch.rand(canvas.tokens_BL.shape, generator=torch.Generator().manual_seed(seed))
    attribution_BL = attribution_BL * canvas.response_BL * (attribution_BL > 0.7)
    config = PolicyConfig(path="-", margin=margin, span_share=0.2)
    strengths = (weaker, min(weaker + more, 0.99))
    weak_BL, strong_BL = (strength_span(attribution_BL, canvas, torch.tensor([q]), config) for q in strengths)
    assert not (weak_BL & ~strong_BL).any()
    assert not (strong_BL & canvas.given_BL).any()


def test_strength_widens_the_span_by_hand(model, rendered):
    (_, row), *_ = rendered
    canvas = batch_canvases([row, row], [RowKey("a"), RowKey("b")], model.info, length=64)
    canvas.given_BL = torch.zeros_like(canvas.given_BL)
    start = int(canvas.response_start_B[0])
    attribution_BL = torch.zeros(canvas.tokens_BL.shape)
    attribution_BL[:, start + 10], attribution_BL[:, start + 20] = 1.0, 0.5
    config = PolicyConfig(path="-", margin=2, span_share=0.1)
    span_BL = strength_span(attribution_BL, canvas, torch.tensor([0.2, 0.8]), config)
    # q = 0.2: at least 0.82 of the largest, no margin; q = 0.8: at least 0.28 of it, 1.6 rounds to 2 positions
    assert (span_BL[0].nonzero()[:, 0] - start).tolist() == [10]
    assert (span_BL[1].nonzero()[:, 0] - start).tolist() == [8, 9, 10, 11, 12, 18, 19, 20, 21, 22]


def test_what_it_remembers_can_be_put_back(file, model, rendered):
    guardrail = built(file, model)
    run(model, rendered, [guardrail])
    state = {name: tensor.clone() for name, tensor in guardrail.row_state().items()}
    effects = guardrail.effects()
    other = built(file, model)
    other.on_init(batch_canvases([r for _, r in rendered], [k for k, _ in rendered], model.info, length=64))
    other.restore(state)
    assert other.effects() == effects
    assert any(effects)
    assert torch.equal(other.interventions_B, guardrail.interventions_B)


# ---- λ ---------------------------------------------------------------------------------------------------------------


def test_learned_weights_are_the_knots_of_the_file(file):
    weighting = WEIGHTINGS.build("learned", {"path": str(file)})
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert weighting.weight(u).tolist() == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_learned_weights_need_a_policy_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        WEIGHTINGS.config("learned", {"path": str(tmp_path / "nowhere.safetensors")})


@pytest.mark.parametrize("knot", [0, 2, 4])
def test_fitted_weights_find_the_time_that_tells_of_harm(knot):
    generator = torch.Generator().manual_seed(knot)
    area_NK = torch.rand((400, 5), generator=generator, dtype=torch.float64)
    harm_N = (area_NK[:, knot] > 0.5).double()
    knot_K = fit_knots(area_NK.numpy(), harm_N.numpy())
    assert knot_K.argmax() == knot
    assert knot_K.max() == 1.0
    assert (knot_K >= 0).all()
    assert sorted(knot_K)[-2] < 0.7
