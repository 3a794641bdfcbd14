"""Cost estimates: counted from the plan and the checkpoint, priced by the configuration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dsprobe.config import CostConfig, ModelConfig, RunConfig
from dsprobe.config_loader import load_config
from dsprobe.errors import ConfigError
from dsprobe.experiment.cost import (
    DEFAULT_GPU,
    PRICES,
    Part,
    parameters,
    priced,
    prompt_tokens,
    row_flops,
    total_cost,
    total_estimate,
)
from dsprobe.experiment.estimate import condition_estimates, estimate
from dsprobe.experiment.plan import resolve
from dsprobe.models.base import DiffusionModel
from dsprobe.models.checkpoint import inspect_checkpoint
from dsprobe.models.load import load_model
from dsprobe.sweeps.config import SweepConfig
from dsprobe.sweeps.cost import sweep_parts
from dsprobe.sweeps.library import recipes
from dsprobe.sweeps.pipeline import resolve_sweep
from dsprobe.toy.assets import checkpoint_dir

GPU = ["execution.num_gpus=0.5", "execution.replicas=4"]


def planned(*overrides, model="dream"):
    """A plan of one model given by its folder, so that it counts as one to be placed on a GPU."""
    folder = checkpoint_dir("toy-diffusion") if model == "dream" else checkpoint_dir("toy-autoregressive")
    tree = [f"models=[{{name: m, path: '{folder}'}}]", "prompts=[{source: toy, limit: 6}]",
            "decodings=[{steps: 8, reply_length: 24}]", *overrides]  # fmt: skip
    return resolve(load_config("demo", ["attacks=[direct]", *tree], schema=RunConfig, recipes=recipes("run")).config)


def test_parameters_are_those_of_the_weights():
    for name in ("toy-diffusion", "toy-autoregressive"):
        facts = inspect_checkpoint(ModelConfig(name=name))
        tensors = load_file(checkpoint_dir(name) / "model.safetensors")
        assert parameters(facts) == sum(tensor.numel() for tensor in tensors.values())


def test_a_pass_takes_what_torch_counts():
    """Multiplications of projections, attention and head, counted by torch itself; the rest is a percent of it."""
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(name="toy-diffusion", attention="eager")
    model, facts = load_model(config), inspect_checkpoint(config)
    assert isinstance(model, DiffusionModel)
    tokens_BL = torch.zeros(1, 100, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.head(model.hidden(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))[0])
    assert row_flops(facts, 100) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_gpu_hours_and_money_follow_from_operations():
    plan = planned(*GPU, "execution.cost.gpu=H100", "execution.cost.utilisation=0.5")
    cost = total_cost([Part(plan=plan)])
    facts = plan.models["m"]
    length = prompt_tokens(next(iter(plan.prompt_sets.values()))) + 24
    operations = 6 * 8 * row_flops(facts, min(length, facts.max_positions))
    assert cost.flops == pytest.approx(operations)
    assert cost.gpu_hours == pytest.approx(operations / (0.5 * PRICES["H100"].bf16_tflops * 1e12) / 3600)
    assert cost.usd == pytest.approx(cost.gpu_hours * PRICES["H100"].usd_per_hour)
    assert cost.usd_spot == pytest.approx(0.4 * cost.usd)
    assert cost.wall_hours == pytest.approx(cost.gpu_hours / 2)
    assert (cost.gpu, cost.cpu_hours) == ("H100", 0.0)
    assert any("H100: 6.88 USD" in line for line in cost.assumptions)


def test_guidance_doubles_passes_and_a_cache_makes_one_of_them():
    plain = total_cost([Part(plan=planned(*GPU))])
    guided = total_cost([Part(plan=planned(*GPU, "decodings.0.cfg_scale=1.0"))])
    assert guided.flops == pytest.approx(2 * plain.flops)
    cached = total_cost([Part(plan=planned(*GPU, model="causal"))])
    assert cached.flops == pytest.approx(plain.flops / 8, rel=0.01)


def test_embedded_models_and_models_without_a_gpu_take_cpu_time_only():
    for plan in (planned(), planned("models=[toy-diffusion]", *GPU)):
        cost = total_cost([Part(plan=plan)])
        assert cost.cpu_hours > 0
        assert (cost.gpu, cost.gpu_hours, cost.usd, cost.wall_hours) == (None, 0.0, 0.0, 0.0)


def test_the_card_is_the_configured_one_then_the_clusters_then_the_default():
    own = CostConfig(gpu="MI300X", prices={"MI300X": {"usd_per_hour": 2.0, "bf16_tflops": 1307}})
    assert priced(own, "H100") == ("MI300X", own.prices["MI300X"])
    assert priced(CostConfig(), "H100") == ("H100", PRICES["H100"])
    assert priced(CostConfig(), "V100")[0] == DEFAULT_GPU
    assert priced(CostConfig(), None)[0] == DEFAULT_GPU
    changed = CostConfig(prices={"L4": {"usd_per_hour": 0.5, "bf16_tflops": 121}})
    assert priced(changed, None)[1].usd_per_hour == 0.5
    with pytest.raises(ConfigError, match="H100"):
        priced(CostConfig(gpu="H10"), None)


def test_cost_settings_change_no_run():
    assert planned().run_id == planned("execution.cost.gpu=H100", "execution.cost.spot_factor=1").run_id


@given(times=st.integers(1, 50), recorded=st.integers(0, 50))
def test_parts_add_up(shared_plan, times, recorded):
    part, one = Part(plan=shared_plan, times=times, recorded=recorded), Part(plan=shared_plan)
    work, single = total_estimate([part]), estimate(shared_plan)
    assert work.forward_passes == times * single.forward_passes
    assert work.disk_bytes == recorded * single.disk_bytes
    assert total_cost([part, one]).flops == pytest.approx((times + 1) * total_cost([one]).flops)


@pytest.fixture(scope="module")
def shared_plan():
    return resolve(load_config("demo", schema=RunConfig, recipes=recipes("run")).config)


def test_conditions_add_up_to_the_plan(shared_plan):
    parts = condition_estimates(shared_plan)
    assert set(parts) == set(shared_plan.conditions)
    whole = estimate(shared_plan)
    for name, value in whole.to_dict().items():
        assert value == sum(part.to_dict()[name] for part in parts.values())
    assert whole.trajectories == sum(len(shard.rows) for shard in shared_plan.shards)


def test_a_sweep_is_at_most_every_trial_from_scratch():
    config = load_config("demo", ["search.trials=10"], schema=SweepConfig, recipes=recipes("sweep")).config
    sweep = resolve_sweep(config)
    work, once = total_estimate(sweep_parts(sweep)), estimate(sweep.plan)
    unseen = estimate(sweep.validation)
    chosen = 1 + config.front.chosen
    assert work.forward_passes == 11 * once.forward_passes + (11 + chosen) * unseen.forward_passes
    assert work.disk_bytes == chosen * unseen.disk_bytes
