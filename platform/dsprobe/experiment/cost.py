"""What a plan costs in floating-point operations, GPU hours and money.

Every figure is counted from the plan and the checkpoint's files; no model is loaded. What cannot be counted is an
assumption, named in `Cost.assumptions` and set in ``execution.cost``:

* A pass of a diffusion model over a row of L positions takes ``2 P L + 4 layers L² width`` operations (P parameters;
  the second term is attention). An autoregressive model with a key-value cache does that once a row.
* P follows from the size of the weights. Of a hub id it is ``12 layers width² + vocabulary width``.
* L is the reply and the prompt with its template, at `CHARACTERS_PER_TOKEN` characters a token.
* Embedded models, and models placed on no GPU, are counted in CPU time only.
* Early stops, guardrails' extra passes and judges with a model of their own are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from dsprobe.config import CostConfig, GpuPrice
from dsprobe.errors import unknown_name
from dsprobe.experiment.estimate import Estimate, condition_estimates, estimate, total
from dsprobe.experiment.evaluated import Condition
from dsprobe.experiment.plan import Plan
from dsprobe.models.checkpoint import CheckpointFacts
from dsprobe.models.checkpoint_files import DTYPE_BYTES, stored_dtype
from dsprobe.prompts.base import PromptSet

PRICES_AS_OF: Final = "2025-06"
"""Month of `PRICES`."""

PRICES: Final[Mapping[str, GpuPrice]] = {
    "L4": GpuPrice(usd_per_hour=0.98, bf16_tflops=121),  # g6.2xlarge
    "A10G": GpuPrice(usd_per_hour=1.01, bf16_tflops=70),  # g5.xlarge
    "L40S": GpuPrice(usd_per_hour=1.86, bf16_tflops=362),  # g6e.xlarge
    "A100": GpuPrice(usd_per_hour=2.75, bf16_tflops=312),  # an eighth of p4d.24xlarge
    "H100": GpuPrice(usd_per_hour=6.88, bf16_tflops=989),  # an eighth of p5.48xlarge
    "H200": GpuPrice(usd_per_hour=7.91, bf16_tflops=989),  # an eighth of p5en.48xlarge
}
"""Card, as Ray names it, → AWS on-demand price (us-east-1, rounded) and the data sheet's dense peak. An assumption:
prices move, and other clouds have others; ``execution.cost.prices`` replaces them."""

DEFAULT_GPU: Final = "L4"
"""Card that is assumed where neither the configuration nor the cluster names one."""

CHARACTERS_PER_TOKEN: Final = 4.0
"""Of English text under the usual tokenizers. An assumption."""
TEMPLATE_TOKENS: Final = 32
"""Tokens that chat template and attack add to a prompt. An assumption."""
CPU_GFLOPS: Final = 80.0
"""10⁹ operations per CPU second, measured: ``dsprobe run demo --limit 48 --executor local`` takes 48 CPU seconds on
the reference machine for what is counted here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A plan that is carried out some number of times."""

    plan: Plan
    times: int = 1
    """How often its rows are generated."""
    recorded: int = 1
    """How often its tables are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Upper bounds; see the module for what is assumed."""

    flops: float
    """Floating-point operations on GPUs and CPUs."""
    cpu_hours: float
    """Hours of one CPU core, for models without a GPU."""
    gpu_hours: float
    """Hours of one card."""
    gpu: str | None
    """The card; `None` where no GPU is needed."""
    wall_hours: float
    """GPU hours over the cards of all replicas; 0 where no GPU is needed."""
    usd: float
    """On demand."""
    usd_spot: float
    """At `CostConfig.spot_factor` of that."""
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def total_estimate(parts: Sequence[Part]) -> Estimate:
    """Counts of several parts; bytes on disk are those of the recorded ones.

    Args:
        parts: At least one.
    """
    works = [(estimate(part.plan), part) for part in parts]
    disk = sum(work.disk_bytes * part.recorded for work, part in works)
    counted = total((work, part.times) for work, part in works)
    return Estimate(counted.trajectories, counted.steps, counted.forward_passes, disk)


def total_cost(parts: Sequence[Part], *, gpu: str | None = None) -> Cost:
    """Cost of several parts that run under one execution.

    Args:
        parts: At least one; the first one's `execution` counts.
        gpu: The cluster's card, where it is known; ``execution.cost.gpu`` comes first.

    Raises:
        ConfigError: ``execution.cost.gpu`` is in no price table.
    """
    execution = parts[0].plan.config.execution
    settings = execution.cost
    card, price = priced(settings, gpu)
    on_gpu = on_cpu = 0.0
    for part in parts:
        for condition, work in condition_estimates(part.plan).items():
            operations = part.times * _condition_flops(part.plan, condition, work)
            if execution.num_gpus > 0 and part.plan.model(condition).path is not None:
                on_gpu += operations
            else:
                on_cpu += operations
    gpu_hours = on_gpu / (settings.utilisation * price.bf16_tflops * 1e12) / 3600
    usd = gpu_hours * price.usd_per_hour
    return Cost(
        flops=on_gpu + on_cpu,
        cpu_hours=on_cpu / (CPU_GFLOPS * 1e9) / 3600,
        gpu_hours=gpu_hours,
        gpu=card if on_gpu else None,
        wall_hours=gpu_hours / (execution.replicas * execution.num_gpus) if on_gpu else 0.0,
        usd=usd,
        usd_spot=usd * settings.spot_factor,
        assumptions=_assumptions(settings, card, price) if on_gpu else _CPU_ASSUMPTIONS,
    )


def priced(settings: CostConfig, gpu: str | None) -> tuple[str, GpuPrice]:
    """The card that an estimate is for, and its price.

    Args:
        settings: ``execution.cost``.
        gpu: The cluster's card, where it is known; one that no table has is passed over.

    Raises:
        ConfigError: ``execution.cost.gpu`` is in no price table.
    """
    prices = {**PRICES, **settings.prices}
    if settings.gpu is not None and settings.gpu not in prices:
        hint = "Others need an entry in `execution.cost.prices`."
        raise type(error := unknown_name("card in execution.cost.gpu", settings.gpu, prices))(f"{error} {hint}")
    card = settings.gpu or (gpu if gpu in prices else None) or DEFAULT_GPU
    return card, prices[card]


def parameters(facts: CheckpointFacts) -> int:
    """Number of a checkpoint's parameters.

    Args:
        facts: Of a folder, by the size of its weights; of a hub id, by the shape in its ``config.json``.
    """
    if facts.path is not None:
        return facts.parameter_bytes // DTYPE_BYTES.get(stored_dtype(facts.path), 4)
    return 12 * facts.num_layers * facts.hidden_size**2 + facts.vocab_size * facts.hidden_size


def row_flops(facts: CheckpointFacts, length: int) -> float:
    """Operations of one forward pass over a row.

    Args:
        facts: The model.
        length: Positions of the row, at least 1.
    """
    return 2.0 * parameters(facts) * length + 4.0 * facts.num_layers * facts.hidden_size * length**2


def prompt_tokens(prompts: PromptSet) -> int:
    """Mean length of a set's prompts with their template, in tokens.

    Args:
        prompts: The set.
    """
    characters = sum(len(prompt.text) + len(prompt.context) for prompt in prompts.prompts)
    return round(characters / max(len(prompts.prompts), 1) / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS


def _condition_flops(plan: Plan, condition: Condition, work: Estimate) -> float:
    facts = plan.models[condition.model]
    length = prompt_tokens(plan.prompt_sets[condition.prompts]) + plan.decoding(condition).reply_length
    if facts.max_positions:
        length = min(length, facts.max_positions)
    passes = work.trajectories if facts.kind == "autoregressive" else work.forward_passes
    return passes * row_flops(facts, length)


def _assumptions(settings: CostConfig, card: str, price: GpuPrice) -> tuple[str, ...]:
    own = card in settings.prices
    origin = "execution.cost.prices" if own else f"shipped table, AWS us-east-1 on demand, {PRICES_AS_OF}"
    return (
        f"{card}: {price.usd_per_hour:g} USD an hour, {price.bf16_tflops:g} bf16 TFLOP/s ({origin})",
        f"utilisation {settings.utilisation:g} of the peak, spot at {settings.spot_factor:g} of the on-demand price",
        *_ASSUMPTIONS,
    )


_ASSUMPTIONS: Final = (
    f"{CHARACTERS_PER_TOKEN:g} characters a token and {TEMPLATE_TOKENS} tokens of template and attack",
    "early stops, guardrails' extra passes, judges' own models, the head node and storage are not counted",
)
_CPU_ASSUMPTIONS: Final = (f"{CPU_GFLOPS:g} GFLOP per CPU second", *_ASSUMPTIONS)
