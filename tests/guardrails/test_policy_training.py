"""Training the learned policy: what is logged, what it is worth, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dsprobe.actors.executor import execute
from dsprobe.cli.policy import app, shortfall
from dsprobe.config import DecodingConfig, RunConfig, Spec
from dsprobe.decoding.canvas import batch_canvases
from dsprobe.decoding.loop import denoise
from dsprobe.decoding.policy import SchedulePolicy
from dsprobe.decoding.records import RowKey
from dsprobe.errors import ConfigError
from dsprobe.experiment.manifest import build_manifest
from dsprobe.experiment.plan import resolve
from dsprobe.guardrails.policy import ActionConfig
from dsprobe.guardrails.policy_fit import Decisions, fit_policy
from dsprobe.guardrails.policy_losses import density, losses
from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork
from dsprobe.guardrails.policy_sampler import Sampler
from dsprobe.guardrails.policy_settings import PolicyTraining, split
from dsprobe.guardrails.policy_training import Outcome, train
from dsprobe.storage.run_store import RunStore

DIJA = {"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}
JUDGES = ("toy_oracle", "toy_utility")


def config(root, **changes):
    """Harmful prompts under an attack that works, and benign ones."""
    values = {
        "name": "tiny",
        "models": ["toy-diffusion"],
        "prompts": [
            {"source": "toy", "name": "restricted", "limit": 4, "attacks": ["dija"]},
            {"source": "toy", "name": "benign", "split": "benign", "limit": 4, "harmful": False, "attacks": ["direct"]},
        ],
        "attacks": [DIJA, "direct"],
        "decodings": [{"name": "uniform", "steps": 6, "reply_length": 42}],
        "judges": JUDGES,
        "execution": {"executor": "local", "batch_size": 8},
        "output": {"root": str(root)},
    }
    return RunConfig.model_validate({**values, **changes})


def recorded(root, **changes):
    """Folder of a run that was made from a configuration."""
    plan = resolve(config(root, **changes))
    store = RunStore(str(root), plan.run_id)
    store.write_manifest(build_manifest(plan, {}))
    execute(plan, store, progress=lambda progress: None).raise_if_incomplete()
    return store.url


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def command(run, tmp_path_factory):
    """What `policy train` wrote and printed."""
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    shown = invoke(run, "--out", path, "--json")
    assert shown.exit_code == 0, shown.output
    return path, json.loads(shown.stdout)


def invoke(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


# ---- what is minimised -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler(load):
    plan = resolve(config("."))
    return Sampler(plan, load("toy-diffusion"), ActionConfig())


def test_logged_trajectories_are_those_of_the_run(sampler, load):
    model, cases = load("toy-diffusion"), sampler.cases(2)
    traces = sampler.rollout(cases)
    assert [case.condition.attack for case in cases] == ["dija", "dija", "direct", "direct"]
    for row, case in enumerate(cases):
        canvas = batch_canvases([case.rendered], [RowKey(case.prompt.id)], model.info)
        output = denoise(model, canvas, SchedulePolicy(DecodingConfig(steps=6, reply_length=42), model.info))
        assert traces.num_steps_N[row] == output.num_steps_B[0]
    assert traces.harm_N.tolist() == [1, 1, 0, 0]
    assert np.isnan(traces.utility_N[:2]).all()
    assert (traces.fraction_SN[traces.num_steps_N - 1, range(4)] == 1).all()
    assert (np.diff(traces.fraction_SN, axis=0) > 0).all()
    assert (traces.risk_SN == traces.after_SN).all()
    assert (traces.surprise_N > 0).all()


def test_the_loss_of_a_hand_made_trajectory(sampler):
    twin = sampler.rollout(sampler.cases(1)[1:])
    one = replace(twin, surprise_N=np.array([0.5]), utility_N=np.array([1.0]), num_steps_N=np.array([4]))
    plane = np.zeros((4, 1))
    one = replace(one, after_SN=plane, fired_SN=plane > 0)
    fired = replace(
        one,
        after_SN=np.array([[0.0], [0.5], [1.0], [0.0]]),
        fired_SN=np.array([[False], [True], [True], [False]]),
        surprise_N=np.array([0.9]),
        utility_N=np.array([0.0]),
    )
    costs = PolicyTraining(intervention_cost=0.01, fluency_cost=0.1)
    loss = losses(fired, one, density(np.array([0.0, 1.0])), costs)
    # λ(u) = 2u: trapezoid over 0, 0, 2 · ½ · ½, 2 · ¾ · 1, 0 with width ¼
    assert loss.risk_N[0] == pytest.approx((0.5 + 1.5) / 4)
    assert loss.fluency_N[0] == pytest.approx(0.4 + 1)
    assert loss.total_N[0] == pytest.approx(0.5 + 0.02 + 0.14)
    assert losses(one, one, density(np.ones(3)), costs).total_N.tolist() == [0.0]


def test_better_fluency_earns_nothing(sampler):
    twin = sampler.rollout(sampler.cases(1)[:1])
    better = replace(twin, surprise_N=twin.surprise_N - 0.1)
    assert losses(better, twin, density(np.ones(2)), PolicyTraining()).fluency_N.tolist() == [0.0]


def test_prompts_are_held_out_whole_and_from_every_set(sampler):
    cases = sampler.cases(4)
    prompt_N, held_N = split([*cases, *cases[1:]], PolicyTraining(holdout=0.25, seed=2))
    assert held_N[8:].tolist() == held_N[1:8].tolist()
    assert [int(held_N[:4].sum()), int(held_N[4:8].sum())] == [1, 1]
    assert prompt_N.tolist() == [*range(8), *range(1, 8)]


def test_too_few_prompts_are_refused(sampler):
    with pytest.raises(ConfigError, match="prompt set `restricted` has 2 prompts: too few"):
        split(sampler.cases(2), PolicyTraining())


# ---- the fit ---------------------------------------------------------------------------------------------------------


def simulated(count=1000, confounded=2.0):
    """Decisions whose effect is known: intervening pays where x > 0, most at strength 0.4; costs vary with x anyway."""
    generator = np.random.default_rng(0)
    pooled = generator.normal(size=(count, 3)).astype(np.float32)
    strength = generator.uniform(size=count)
    rate = generator.uniform(0.1, 0.9, size=count)
    taken = (generator.uniform(size=count) < rate).astype(float)
    effect = np.where(pooled[:, 0] > 0, -1 + 4 * (strength - 0.4) ** 2, 0.6 + strength)
    cost = confounded * pooled[:, 1] + rate + taken * effect + 0.2 * generator.normal(size=count)
    return Decisions(
        pooled_ND=pooled,
        risk_N=generator.uniform(size=count),
        fraction_N=generator.uniform(size=count),
        taken_N=taken,
        strength_N=strength,
        propensity_N=rate,
        cost_N=cost,
        extra_NC=rate[:, None],
        prompt_N=np.arange(count) // 10,
    )


def test_the_fit_finds_when_and_how_strongly_to_intervene():
    header = PolicyHeader(
        width=3, hidden=16, model="m", model_digest="d", scorer=Spec(name="toy_lexicon"), view="committed", knots=(1, 1)
    )
    network = fit_policy(header, simulated(), seed=0, iterations=300)
    pooled = torch.randn((500, 3), generator=torch.Generator().manual_seed(1))
    p, q = network(pooled, torch.full((500,), 0.5), torch.full((500,), 0.5))
    clear = pooled[:, 0].abs() > 0.3
    right = (p > 0.5) == (pooled[:, 0] > 0)
    assert right[clear].double().mean() > 0.97
    assert q[pooled[:, 0] > 0.5].mean() == pytest.approx(0.4, abs=0.15)
    again = fit_policy(header, simulated(), seed=0, iterations=300)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_training_beats_never_and_always_intervening_on_held_out_prompts(load, tmp_path):
    prompts = [
        {"source": "toy", "name": "restricted", "limit": 20, "attacks": ["dija"], "seed": 1},
        {"source": "toy", "name": "benign", "split": "benign", "limit": 20, "harmful": False, "attacks": ["direct"]},
    ]
    decodings = [{"name": "uniform", "steps": 8, "reply_length": 42, "max_extra_steps": 8}]
    plan = resolve(config(tmp_path, prompts=prompts, decodings=decodings, execution={"batch_size": 32}))
    trained = train(plan, load("toy-diffusion"), PolicyTraining(holdout=0.4, iterations=200))
    never, always, policy = (trained.outcomes[name] for name in ("never", "always", "policy"))
    assert trained.rows["held_out"] == 16
    assert never.asr > 0.8
    assert never.interventions == never.fluency == never.extra_steps == 0
    assert policy.loss < 0.9 * min(never.loss, always.loss)
    assert policy.asr < never.asr
    assert policy.interventions < always.interventions


def test_a_run_without_harm_teaches_nothing(load, tmp_path):
    quiet = config(tmp_path, attacks=["direct"], prompts=[{"source": "toy", "name": "restricted", "limit": 4}])
    with pytest.raises(ConfigError, match="None of the 3 unguarded training replies was judged harmful"):
        train(resolve(quiet), load("toy-diffusion"), PolicyTraining())


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_trains_saves_and_compares(command):
    path, shown = command
    assert shown["path"] == str(path)
    assert set(shown["held_out"]) == {"never", "always", "policy"}
    assert shown["rows"]["held_out"] == 2
    assert max(shown["knots"]) == 1.0
    header = PolicyNetwork.load(path).header
    assert header.training["held_out"]["policy"]["loss"] == shown["held_out"]["policy"]["loss"]
    assert header.training["settings"]["seed"] == 0


@pytest.mark.parametrize(
    ("never", "always", "policy", "said"),
    [(0.4, 0.8, 0.3, None), (0.4, 0.8, 0.5, "never"), (0.4, 0.2, 0.3, "always"), (0.4, 0.8, 0.4, "never")],
)
def test_a_policy_that_is_no_better_is_called_so(never, always, policy, said):
    values = {"risk": 0, "interventions": 0, "fluency": 0, "asr": None, "utility": None, "extra_steps": 0}
    losses = {"never": never, "always": always, "policy": policy}
    told = shortfall({name: Outcome(loss=loss, **values) for name, loss in losses.items()})
    assert told is None if said is None else f"no better than {said} intervening" in told


def test_the_same_command_writes_the_same_bytes(run, command, tmp_path):
    path, _ = command
    shown = invoke(run, "--out", tmp_path / "again.safetensors")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert "never" in shown.stdout
    assert "Guardrail: {name: policy, path: " in shown.stdout


def test_a_trained_policy_runs_as_a_condition(command, tmp_path):
    path, shown = command
    stack = [{"name": "policy", "path": str(path), "digest": shown["digest"][:12], "weighting": "constant"}]
    plan = resolve(config(tmp_path, guardrails=["none", {"name": "learned", "stack": stack}]))
    store = RunStore(str(tmp_path), plan.run_id)
    store.write_manifest(build_manifest(plan, {}))
    report = execute(plan, store, progress=lambda progress: None)
    report.raise_if_incomplete()
    assert sum("learned" in shard.condition.id for shard in plan.shards) == 2


def test_an_existing_file_is_kept_unless_forced(run, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_text("precious")
    shown = invoke(run, "--out", path)
    assert isinstance(shown.exception, ConfigError)
    assert "exists. Choose another file with --out, or write over it with --force" in str(shown.exception)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"models": ["toy-autoregressive"], "attacks": ["direct"]}, [], "has no diffusion model.*toy-autoregressive"),
        ({"judges": []}, [], "has no judge of harm.*Its judges: none"),
        ({"judges": ["toy_utility"]}, [], "has no judge of harm.*Its judges: toy_utility"),
        (
            {"models": ["toy-diffusion", "toy-diffusion-base"]},
            [],
            "Choose with --model: toy-diffusion, toy-diffusion-b",
        ),
        ({}, ["--model", "toy-difusion"], "Did you mean `toy-diffusion`"),
    ],
)
def test_runs_that_cannot_teach_are_refused(changes, arguments, message, tmp_path):
    prompts = [{"source": "toy", "name": "restricted", "limit": 4}]
    plan = resolve(config(tmp_path, prompts=prompts, **changes))
    store = RunStore(str(tmp_path), plan.run_id)
    store.write_manifest(build_manifest(plan, {}))
    shown = invoke(store.url, "--out", tmp_path / "p.safetensors", *arguments)
    with pytest.raises(ConfigError, match=message):
        raise shown.exception
    assert not (tmp_path / "p.safetensors").exists()


def test_a_model_that_is_not_the_runs_is_refused(tmp_path):
    plan = resolve(config(tmp_path))
    store, manifest = RunStore(str(tmp_path), plan.run_id), build_manifest(plan, {})
    manifest["models"]["toy-diffusion"]["digest"] = "0" * 64
    store.write_manifest(manifest)
    with pytest.raises(ConfigError, match=r"was made with 000000000000…\. Restore that checkpoint"):
        raise invoke(store.url, "--out", tmp_path / "p.safetensors").exception
