"""The learned temporal policy head: a small network decides when to re-noise, and how much."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dsprobe.config import DecodingConfig, Spec
from dsprobe.decoding import randomness
from dsprobe.decoding.canvas import Canvas
from dsprobe.decoding.hooks import StepContext
from dsprobe.errors import ConfigError
from dsprobe.guardrails.base import Setting, Signal, StepLog, step_log
from dsprobe.guardrails.policy_network import PolicyHeader, PolicyNetwork, read_header
from dsprobe.guardrails.renoise import RenoiseConfig, RenoiseGuardrail
from dsprobe.guardrails.span import attributed_span
from dsprobe.guardrails.trigger import Trigger
from dsprobe.guardrails.weighting import PiecewiseLinearWeighting, Weighting
from dsprobe.registry import ComponentConfig
from dsprobe.risk import SCORERS
from dsprobe.risk.base import RiskOutput
from dsprobe.untrusted import local_path

STREAM_INTERVENE: Final = 11
"""Random stream of exploring interventions; the decoder's own streams are 1 and 2."""
STREAM_STRENGTH: Final = 12
"""Random stream of their strengths."""


class StrengthGuardrail(RenoiseGuardrail):
    """Re-noising where λ(s/S) · p_s > τ and the risk is above 0, with a span that grows with a strength q_s.

    A strength of 1 takes back what `RenoiseGuardrail` would under the same settings; a weaker one takes back positions
    with at least the share ``1 − q · (1 − span_share)`` of the largest attribution, ``⌊q · margin + ½⌋`` positions
    around them. Without risk there is nothing to take back, so nothing is decided there.

    Args:
        config: Settings.
        setting: Model, decoding and scorers.

    Raises:
        ConfigError: The window lies outside the steps, or the scorer cannot score a canvas.
    """

    def __init__(self, config: RenoiseConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.trigger = _ProbabilityTrigger(config, setting, self)

    @abstractmethod
    def decide(self, log: StepLog) -> tuple[Tensor, Tensor]:
        """Probability p and strength q at every logged step, in [0, 1], float64 ``[S, B]``; a pure function."""

    def span(self, context: StepContext, scored: RiskOutput) -> Tensor:
        """Positions that an intervention of each row's own strength takes back."""
        log = dataclasses.replace(step_log(context, self.setting, self), risk=_known(scored.risk_N[None]))
        return strength_span(scored.attribution_NL, context.canvas, self.decide(log)[1][0], self.config)


def strength_span(attribution_BL: Tensor, canvas: Canvas, strength_B: Tensor, config: RenoiseConfig) -> Tensor:
    """Positions that an intervention of each row's own strength takes back; see `StrengthGuardrail`.

    Args:
        attribution_BL: Attribution in [0, 1].
        canvas: Says what is response, given and padding.
        strength_B: q in [0, 1].
        config: Share and margin at strength 1.

    Returns:
        bool ``[B, L]``; a stronger intervention takes back all that a weaker one does.
    """
    strength_B1 = strength_B[:, None]
    share_B1 = 1.0 - strength_B1 * (1.0 - config.span_share)
    enough_BL = attribution_BL >= share_B1 * attribution_BL.amax(dim=1, keepdim=True)
    core_BL = (enough_BL & (attribution_BL > 0)).float()
    margin_B1 = (strength_B1 * config.margin + 0.5).floor()
    span_BL = torch.zeros_like(canvas.response_BL)
    for margin in range(config.margin + 1):
        wide_BL = attributed_span(core_BL, canvas, share=1.0, margin=margin, include_given=config.include_given)
        span_BL = torch.where(margin_B1 == margin, wide_BL, span_BL)
    return span_BL


class _ProbabilityTrigger(Trigger):
    """The common rule, with the probability in place of the risk."""

    def __init__(self, config: RenoiseConfig, setting: Setting, guardrail: StrengthGuardrail) -> None:
        super().__init__(config, setting)
        self._guardrail = guardrail

    def weighted(self, log: StepLog) -> Tensor:
        """λ(s/S) · p_s where there is risk, 0 elsewhere."""
        risk_SB = log.risk(self.config.signal)
        known = dataclasses.replace(log, risk=_known(risk_SB))
        u_SB = (log.step_SB.float() / self.steps).clamp_max(1.0)
        weighted_SB = self.weighting.weight(u_SB) * self._guardrail.decide(known)[0]
        return torch.where(risk_SB > 0, weighted_SB, 0.0)


def _known(risk_SB: Tensor) -> Callable[[Signal], Tensor]:
    """A risk that was scored already, as a log gives it."""
    return lambda signal: risk_SB


class AlwaysGuardrail(StrengthGuardrail):
    """Intervenes at full strength wherever there is risk: the upper end that a policy is compared with."""

    source: ClassVar[str] = "baseline of the learned policy"

    def decide(self, log: StepLog) -> tuple[Tensor, Tensor]:
        """Probability and strength 1."""
        ones_SB = torch.ones_like(log.fraction_SB, dtype=torch.float64)
        return ones_SB, ones_SB


class ExploringGuardrail(StrengthGuardrail):
    """Intervenes at random where there is risk, so that the effect of intervening can be learned from the log.

    Args:
        config: Settings; `threshold` must be below 1 and the weighting constant.
        setting: Model, decoding and scorers.
        rate: Largest probability of intervening; each row has its own, uniform in (0, rate).
        seed: Seed of the random decisions.
    """

    source: ClassVar[str] = "exploration of the learned policy"

    def __init__(self, config: RenoiseConfig, setting: Setting, *, rate: float, seed: int) -> None:
        super().__init__(config, setting)
        self.rate, self.seed = rate, seed

    def on_init(self, canvas: Canvas) -> None:
        """Draw every row's probability of intervening; numbers belong to the row, not to the batch."""
        super().on_init(canvas)
        self.key_B = canvas.random_key_B + self.seed
        self.rate_B = self.rate * exploration_share(canvas.random_key_B, self.seed)

    def decide(self, log: StepLog) -> tuple[Tensor, Tensor]:
        """Probability 1 or 0, strength uniform in (0, 1)."""
        nowhere_B = torch.zeros_like(self.key_B)
        drawn_SB = randomness.uniform(self.key_B, log.step_SB, nowhere_B, STREAM_INTERVENE)
        strength_SB = randomness.uniform(self.key_B, log.step_SB, nowhere_B, STREAM_STRENGTH)
        return (drawn_SB < self.rate_B).double(), strength_SB


def exploration_share(key_B: Tensor, seed: int) -> Tensor:
    """Each row's share of the largest exploration rate, uniform in (0, 1), float64 ``[B]``."""
    return randomness.uniform(key_B + seed, 0, torch.zeros_like(key_B), STREAM_INTERVENE)


class NetworkGuardrail(StrengthGuardrail):
    """Asks a `PolicyNetwork`.

    Args:
        config: Settings.
        setting: Model, decoding and scorers.
        network: Trained for the setting's model.
    """

    source: ClassVar[str] = "programme draft H3, the learned temporal policy head"
    needs_pooled = True

    def __init__(self, config: RenoiseConfig, setting: Setting, network: PolicyNetwork) -> None:
        super().__init__(config, setting)
        self.network = network.to(setting.model.device)

    def decide(self, log: StepLog) -> tuple[Tensor, Tensor]:
        """See `PolicyNetwork`."""
        if log.pooled_SBD is None:
            raise ValueError("The policy reads pooled hidden states, and the log has none.")
        probability_SB, strength_SB = self.network(log.pooled_SBD, log.risk(self.config.signal), log.fraction_SB)
        return probability_SB, strength_SB


class ActionConfig(RenoiseConfig):
    """What a policy's interventions do; `threshold` is one on the probability."""

    span_share: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of the largest attribution that is taken back at strength 1; at strength 0 only the largest is."""
    margin: int = Field(default=2, ge=0)
    """Positions taken back on both sides at strength 1."""


class PolicyConfig(ActionConfig):
    """Which policy, and what it does."""

    path: str
    """File written by ``dsprobe policy train``."""
    digest: str = ""
    """Start of the file's SHA-256; where given, another file is refused."""

    @property
    def file(self) -> Path:
        """The policy file."""
        return local_path(self.path, "policy file")


class PolicyGuardrail(NetworkGuardrail):
    """Learned temporal policy head: a network on (pooled hidden state, risk, φ) says when to re-noise, and how much.

    Intervenes where ``λ(s/S) · p_s > threshold`` at due steps with risk, with strength q_s (`StrengthGuardrail`).

    Args:
        config: Settings.
        setting: Model, decoding and scorers.

    Raises:
        ConfigError: The file is missing, is no policy file, or was trained for another model, scorer or view.
    """

    Config: ClassVar[type[ComponentConfig]] = PolicyConfig
    config: PolicyConfig

    def __init__(self, config: PolicyConfig, setting: Setting) -> None:
        _check_file(config)
        network = PolicyNetwork.load(config.file)
        network.check_fits(config.file, setting.model.info, setting.model.head_weight_VD.shape[1])
        super().__init__(config, setting, network)

    @classmethod
    def check(cls, config: ComponentConfig, decoding: DecodingConfig) -> None:
        """Refuse a window outside the steps, and a file that is missing or was trained for another scorer or view."""
        super().check(config, decoding)
        if isinstance(config, PolicyConfig):
            _check_file(config)


def _check_file(config: PolicyConfig) -> None:
    """See `PolicyGuardrail.check`."""
    header = read_header(config.file)
    if not _same_component(header.scorer, config.scorer):
        raise ConfigError(
            f"policy file `{config.path}` was trained with scorer {_shown(header.scorer)}; the guardrail has scorer "
            f"{_shown(config.scorer)}. They must be the same."
        )
    if header.view != config.view:
        raise ConfigError(
            f"policy file `{config.path}` was trained on the {header.view} view; the guardrail has `view: "
            f"{config.view}`. They must be the same."
        )
    digest = hashlib.sha256(config.file.read_bytes()).hexdigest()
    if not digest.startswith(config.digest):
        raise ConfigError(f"policy file `{config.path}` has digest {digest[:12]}…, not the {config.digest} asked for.")


def _same_component(first: Spec, second: Spec) -> bool:
    """Whether two specs name one scorer with equal settings, defaults filled in."""
    return first.name == second.name and SCORERS.config(first.name, first.params) == SCORERS.config(
        second.name, second.params
    )


def _shown(spec: Spec) -> str:
    settings = "".join(f", {key}: {value}" for key, value in sorted(spec.params.items()))
    return f"`{{name: {spec.name}{settings}}}`" if settings else f"`{spec.name}`"


class LearnedWeighting(Weighting):
    """λ as it was fitted when a policy was trained: linear between the knots of its file."""

    class Config(ComponentConfig):
        """Which file."""

        path: str
        """File written by ``dsprobe policy train``."""

        @model_validator(mode="after")
        def _is_a_policy_file(self) -> LearnedWeighting.Config:
            self.header()
            return self

        def header(self) -> PolicyHeader:
            """The file's header.

            Raises:
                ConfigError: It is missing, or not a policy file.
            """
            return read_header(local_path(self.path, "policy file"))

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._linear = PiecewiseLinearWeighting(PiecewiseLinearWeighting.Config(knots=config.header().knots))

    def weight(self, u: Tensor) -> Tensor:
        """See `Weighting.weight`."""
        return self._linear.weight(u)
