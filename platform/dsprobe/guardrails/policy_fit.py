"""Fitting the temporal policy head: λ's knots, the effect of an intervention, and the policy that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork

ROUGHNESS: Final = 0.003
"""Weight of the squared differences between λ's neighbouring knots; risk at neighbouring steps is nearly the same."""
SHRINKAGE: Final = 1e-4
"""Weight of the squares of λ's unnormalised knots, so that perfectly told harm has a finite fit."""
RIDGE: Final = 10.0
"""Ridge of the regression m of the cost, on standardised inputs."""
DECAY: Final = 0.05
"""Weight decay of both networks."""
SOFTNESS: Final = 0.25
"""η as a share of the effects' root mean square."""

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """N decisions whether to intervene, taken at random, and what followed."""

    pooled_ND: npt.NDArray[np.float32]
    risk_N: F64
    fraction_N: F64
    taken_N: F64
    """a: 1 where it was intervened, 0 elsewhere."""
    strength_N: F64
    """q of the intervention, where there was one."""
    propensity_N: F64
    """e: probability of a = 1."""
    cost_N: F64
    """G: cost from the decision on."""
    extra_NC: F64
    """What else is known before the decision; helps the regression of the cost, is no input of the policy."""
    prompt_N: npt.NDArray[np.int64]
    """Prompt of each decision; the regression of the cost never predicts a prompt it was fitted on."""


def fit_knots(area_NK: F64, harm_N: F64) -> F64:
    """λ's knots: weights of a non-negative logistic regression of the harm verdict on the risk around each knot.

    Minimises the log loss of σ(Σ_k β_k ∫ B_k(u) r(u) du − b), β = softplus(·), plus `ROUGHNESS` · Σ (λ_{k+1} − λ_k)²
    with λ = β / ∫β, plus `SHRINKAGE` · Σ β². (Descending the policy's own loss would move λ to where risk is 0.)

    Args:
        area_NK: ∫ B_k(u) r(u) du of N trajectories, B_k the hat functions on K knots.
        harm_N: Verdicts, 1 or 0.

    Returns:
        λ at the knots, divided by its largest.
    """
    area, label_N = torch.from_numpy(area_NK), torch.from_numpy(harm_N)
    raw = torch.zeros(area.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=300, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        beta_K = torch.nn.functional.softplus(raw[:-1])
        lambda_K = beta_K / (torch.trapezoid(beta_K) / (len(beta_K) - 1))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(area @ beta_K - raw[-1], label_N)
        loss = loss + ROUGHNESS * (lambda_K.diff() ** 2).sum() + SHRINKAGE * (beta_K**2).sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    beta_K = torch.nn.functional.softplus(raw[:-1]).detach().numpy()
    return np.asarray(beta_K / beta_K.max(), np.float64)


def fit_policy(header: PolicyHeader, data: Decisions, *, seed: int, iterations: int) -> PolicyNetwork:
    """Fit the effect Δ(x, q) of an intervention on the cost, then the policy that minimises the expected cost.

    Effect: Σ (G − m(x) − (a − e) Δ(x, q))², the R-learner (Nie & Wager, 1712.04912 §2); since e is known, an error of m
    costs precision and no bias. Policy: Σ p Δ(x, q) + η (p ln p + (1 − p) ln(1 − p)) with η = `SOFTNESS` · rms Δ over
    the data.

    Args:
        header: Of the network.
        data: At least two prompts.
        seed: Seed of the initial weights.
        iterations: Steps of AdamW on all decisions, for either network.
    """
    network = PolicyNetwork(header, seed)
    input_NI = np.column_stack([data.pooled_ND.astype(np.float64), data.risk_N, data.fraction_N])
    network.mean.copy_(torch.from_numpy(input_NI.mean(axis=0)))
    network.scale.copy_(torch.from_numpy(_scale(input_NI)))
    residual_N = data.cost_N - _predicted_cost(np.column_stack([input_NI, data.extra_NC]), data)
    unit = float(np.sqrt(np.mean(residual_N**2))) or 1.0
    state_NI = (torch.from_numpy(input_NI) - network.mean) / network.scale
    effect = _fit_effect(state_NI, torch.from_numpy(residual_N / unit), data, header.hidden, seed, iterations)
    pooled, risk, fraction = (torch.from_numpy(v) for v in (data.pooled_ND, data.risk_N, data.fraction_N))
    at_random_N = effect(state_NI, torch.from_numpy(data.strength_N))
    softness = SOFTNESS * float(at_random_N.square().mean().sqrt()) or 1.0

    def objective() -> Tensor:
        p_N, q_N = network(pooled, risk, fraction)
        effect_N = effect(state_NI, q_N)
        entropy_N = torch.special.entr(p_N) + torch.special.entr(1 - p_N)
        loss: Tensor = (p_N * effect_N - softness * entropy_N).mean() / softness
        return loss

    _descend(list(network.parameters()), objective, iterations)
    return network.requires_grad_(False).eval()


def _fit_effect(
    state_NI: Tensor, residual_N: Tensor, data: Decisions, hidden: int, seed: int, iterations: int
) -> nn.Module:
    """Δ(x, q): a network of the policy's own shape, with q as one more input; units of the residual."""
    generator = torch.Generator().manual_seed(seed + 1)
    effect = _Effect(state_NI.shape[1] + 1, hidden, generator)
    strength_N = torch.from_numpy(data.strength_N)
    surplus_N = torch.from_numpy(data.taken_N - data.propensity_N)
    _descend(
        list(effect.parameters()),
        lambda: ((residual_N - surplus_N * effect(state_NI, strength_N)) ** 2).mean(),
        iterations,
    )
    return effect.requires_grad_(False)


class _Effect(nn.Module):
    """Δ(x, q) = ``w · tanh(W (x̃, q̃) + b) + c``, q̃ = (q − ½) √12: as wide as the other inputs, were q uniform."""

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        drawn = torch.randn((hidden, inputs), generator=generator, dtype=torch.float64)
        self.inner_HI, self.inner_H = nn.Parameter(drawn * inputs**-0.5), nn.Parameter(drawn.new_zeros(hidden))
        self.outer_1H, self.outer_1 = nn.Parameter(drawn.new_zeros(1, hidden)), nn.Parameter(drawn.new_zeros(1))

    def forward(self, state_NI: Tensor, strength_N: Tensor) -> Tensor:
        input_NI = torch.column_stack([state_NI, (strength_N - 0.5) * 12**0.5])
        hidden_NH = torch.tanh(linear(input_NI, self.inner_HI, self.inner_H))
        effect_N: Tensor = linear(hidden_NH, self.outer_1H, self.outer_1).select(-1, 0)
        return effect_N


def _descend(parameters: list[nn.Parameter], objective: Callable[[], Tensor], iterations: int) -> None:
    """AdamW on the whole of the data."""
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=DECAY)
    for _ in range(iterations):
        optimizer.zero_grad()
        torch.autograd.backward(objective())
        optimizer.step()


def _predicted_cost(input_NC: F64, data: Decisions) -> F64:
    """m: ridge regression of the cost, fitted on the other half of the prompts."""
    standard_NC = (input_NC - input_NC.mean(axis=0)) / _scale(input_NC)
    rank_N = np.unique(data.prompt_N, return_inverse=True)[1]
    predicted_N = np.zeros(len(data.cost_N))
    for half in (0, 1):
        inside_N = rank_N % 2 == half
        known_NC, cost_N = standard_NC[~inside_N], data.cost_N[~inside_N]
        gram_CC = known_NC.T @ known_NC + RIDGE * np.eye(known_NC.shape[1])
        weight_C = np.linalg.solve(gram_CC, known_NC.T @ (cost_N - cost_N.mean()))
        predicted_N[inside_N] = standard_NC[inside_N] @ weight_C + cost_N.mean()
    return predicted_N


def _scale(value_NC: F64) -> F64:
    """Standard deviation of each column; 1 where it does not vary."""
    deviation_C = value_NC.std(axis=0)
    return np.asarray(np.where(deviation_C > 1e-9, deviation_C, 1.0), np.float64)
