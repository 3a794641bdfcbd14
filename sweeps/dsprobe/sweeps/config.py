"""The configuration tree of a sweep."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsprobe.config import UNGUARDED, ModelConfig, OutputConfig, PromptsConfig, RunConfig, Spec, Strict
from dsprobe.errors import ConfigError


class SpaceConfig(Strict):
    """The search space: a guardrail stack in which any value may be a domain.

    A domain is ``{low, high}`` (integers give an integer domain; optional ``log: true``, ``step``, and ``points``, the
    number of grid points) or ``{choices: [...]}``. A choice may be a mapping with domains of its own, which exist only
    where it is chosen: conditional parameters. See `dsprobe.sweeps.space`.
    """

    stack: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Guardrail specs (``name`` plus parameters) with domains among their values."""


class ObjectiveConfig(BaseModel):
    """One objective, always minimised: a name of `dsprobe.sweeps.objectives`, and what it is computed on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """``asr``, ``fluency_loss``, ``invalidity``, ``over_refusal``, ``delta_nfe``."""
    judge: str | None = None
    """Key of the judge whose verdict counts, for objectives that need one."""
    prompts: tuple[str, ...] | None = None
    """Prompt sets; `None` is the objective's own choice (harmful or benign sets)."""
    attacks: tuple[str, ...] | None = None
    """Attacks; `None` is all."""
    reference: float | None = None
    """This objective's coordinate of the hypervolume's reference point; `None` is the objective's own."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ConstraintConfig(Strict):
    """A bound on a mean verdict, relative to the unguarded run on the same rows."""

    name: str = "utility"
    """Label."""
    judge: str
    """Key of the judge."""
    at_least: float = Field(ge=0.0, le=1.0)
    """Share of the unguarded mean that must be kept, e.g. 0.95."""
    prompts: tuple[str, ...] | None = None
    """Prompt sets; `None` is all benign ones."""
    attacks: tuple[str, ...] | None = None


class SearchConfig(Strict):
    """Who proposes, how often, and at which fidelity."""

    trials: int = Field(default=60, ge=1)
    """Trials to finish, those of earlier sessions included."""
    sampler: Spec = Spec(name="nsga2")
    """``nsga2``, ``tpe``, ``gp``, ``random``, ``grid`` with their parameters (`dsprobe.sweeps.samplers`)."""
    searcher: Literal["dsprobe", "optuna_search"] = "dsprobe"
    """Who stands between Ray Tune and Optuna: the project's searcher, or Ray's `OptunaSearch` for comparison."""
    concurrency: int = Field(default=1, ge=1)
    """Trials under way at once; 1 makes a sweep exactly repeatable."""
    seed: int = Field(default=0, ge=0)
    rungs: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    """Growing shares of every prompt set; after each but the last a dominated trial is stopped."""
    racing_confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Confidence with which a trial must be dominated, on the same prompts, to be stopped."""
    fork: bool = True
    """Start trials from logged trajectories; off regenerates every trial (the results are the same)."""
    storage: str | None = None
    """Optuna storage: a journal file's path or an RDB URL; `None` is ``sweep/study.journal`` beside the results."""

    @model_validator(mode="after")
    def _rungs_grow_to_one(self) -> SearchConfig:
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] <= 0 or self.rungs[-1] != 1.0:
            raise ConfigError(f"search.rungs {list(self.rungs)}: give growing shares above 0 that end with 1.0.")
        return self


class FrontConfig(Strict):
    """How the front is reported."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    resamples: int = Field(default=2000, ge=100)
    chosen: int = Field(default=3, ge=1)
    """Settings of the front that are run again with full recording, for the temporal curves: the knee first, then
    the ends of the front."""


class SweepConfig(Strict):
    """A search over guardrail settings for the front of harm against fluency and cost."""

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    experiment: RunConfig
    """What every trial runs, without guardrails: one model, one decoding, harmful and benign prompt sets."""
    validation: tuple[PromptsConfig, ...] = ()
    """Prompt sets that the search never sees; the same labels as the experiment's."""
    fluency: tuple[ModelConfig, ...] = ()
    """Causal models; a reply's perplexity is the smallest that any of them gives."""
    space: SpaceConfig
    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    constraints: tuple[ConstraintConfig, ...] = ()
    search: SearchConfig = SearchConfig()
    front: FrontConfig = FrontConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _one_unguarded_experiment(self) -> SweepConfig:
        for what, count in {"models": len(self.experiment.models), "decodings": len(self.experiment.decodings)}.items():
            if count != 1:
                raise ConfigError(f"experiment.{what}: a sweep takes one, not {count}; run one sweep each.")
        if [guardrail.name for guardrail in self.experiment.guardrails] != [UNGUARDED]:
            raise ConfigError("experiment.guardrails: a sweep's guardrail comes from `space`; leave this out.")
        names = [objective.name for objective in self.objectives]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"objectives: `{twice[0]}` is used twice.")
        keys = [prompts.key for prompts in self.experiment.prompts]
        wrong = [prompts.key for prompts in self.validation if prompts.key not in keys]
        if wrong:
            raise ConfigError(f"validation: no prompt set `{wrong[0]}` in the experiment. Allowed: {', '.join(keys)}.")
        return self
