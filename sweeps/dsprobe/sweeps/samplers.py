"""Optuna samplers by name, in the form that a repeatable sweep over a conditional space needs.

`Study` builds a sampler anew for every proposal, from a seed of its own, so that a proposal depends on the trials in
the storage and on its ordinal only, never on what a process remembers. Two consequences are handled here: where a
sampler draws from two generators, each gets its own seed (Optuna gives both the same, and with a fresh start at
every proposal a mutated value would always repeat the draw that decided about crossover); and what a sampler would
remember between proposals (the GP's kernel parameters) is fitted again.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers.nsgaii import BaseMutation, PolynomialMutation
from pydantic import Field

from dsprobe.config import Spec
from dsprobe.registry import ComponentConfig, Entry, Registry
from dsprobe.sweeps.space import SearchSpace


class SamplerBuilder(ABC):
    """Builds one kind of sampler; registered in `SAMPLERS`."""

    class Config(ComponentConfig):
        """No parameters."""

    config: Any
    suggests_all: ClassVar[bool] = False
    """Whether a trial is asked for every domain, those that do not exist under its choices included; needed by
    samplers that model one fixed list of parameters."""
    is_grid: ClassVar[bool] = False
    """Whether proposals are the grid's points in order, and no sampler decides."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def build(self, seeds: tuple[int, int], space: SearchSpace) -> BaseSampler:
        """A sampler with two independent seeds."""


class RandomBuilder(SamplerBuilder):
    """Independent draws."""

    def build(self, seeds: tuple[int, int], space: SearchSpace) -> BaseSampler:
        """See `SamplerBuilder.build`."""
        return RandomSampler(seed=seeds[0])


class GridBuilder(RandomBuilder):
    """The grid in its canonical order; every value comes from the queue."""

    is_grid = True


class TPEBuilder(SamplerBuilder):
    """Multivariate tree-structured Parzen estimator; parameters that occur together share one density."""

    class Config(ComponentConfig):
        """Settings."""

        startup: int = Field(default=12, ge=1)
        """Random trials before the densities are used."""
        candidates: int = Field(default=24, ge=1)
        """Draws among which the best expected improvement is proposed."""

    config: Config

    def build(self, seeds: tuple[int, int], space: SearchSpace) -> BaseSampler:
        """See `SamplerBuilder.build`."""
        return TPESampler(
            n_startup_trials=self.config.startup,
            n_ei_candidates=self.config.candidates,
            multivariate=True,
            group=True,
            seed=seeds[0],
        )


class GPBuilder(SamplerBuilder):
    """Gaussian processes with expected hypervolume improvement; constraints by their probability to hold."""

    class Config(ComponentConfig):
        """Settings."""

        startup: int = Field(default=12, ge=2)
        """Random trials before the processes are fitted."""

    config: Config
    suggests_all = True

    def build(self, seeds: tuple[int, int], space: SearchSpace) -> BaseSampler:
        """See `SamplerBuilder.build`."""
        return GPSampler(
            n_startup_trials=self.config.startup,
            independent_sampler=RandomSampler(seed=seeds[1]),
            warn_independent_sampling=False,
            seed=seeds[0],
        )


class NSGAIIBuilder(SamplerBuilder):
    """NSGA-II; parameters under a choice are inherited where a parent has them."""

    class Config(ComponentConfig):
        """Settings."""

        population: int = Field(default=12, ge=2)
        """Trials per generation; the first one is random."""
        mutation: float | None = Field(default=None, ge=0.0, le=1.0)
        """Probability that a parameter mutates; `None` is one over the number of parameters."""
        polynomial: float | None = Field(default=None, gt=0.0)
        """Distribution index η of polynomial mutation of numbers (larger stays closer); `None` draws anew."""
        crossover: float = Field(default=0.9, ge=0.0, le=1.0)
        """Probability that a child has two parents."""
        swapping: float = Field(default=0.5, ge=0.0, le=1.0)
        """Probability that a parameter comes from the second parent."""

    config: Config

    def build(self, seeds: tuple[int, int], space: SearchSpace) -> BaseSampler:
        """See `SamplerBuilder.build`."""
        mutation = self.config.mutation
        return ConditionalNSGAII(
            population=self.config.population,
            mutation=1.0 / max(len(space.domains), 1) if mutation is None else mutation,
            kind=None if self.config.polynomial is None else PolynomialMutation(eta=self.config.polynomial),
            crossover=self.config.crossover,
            swapping=self.config.swapping,
            seeds=seeds,
        )


class ConditionalNSGAII(NSGAIISampler):
    """NSGA-II (Deb et al. 2002) whose children inherit conditional parameters, too.

    Optuna's crosses only parameters that every trial has and draws all others at random, so below a choice it searches
    blindly. Here a child takes a parameter that exists under its choices from the first of the parents, in an
    order drawn for this child, that has it; parameters that belong together so mostly come from one parent.

    Args:
        population: Trials per generation.
        mutation: Probability that a parameter is drawn anew.
        kind: How numbers mutate; `None` draws anew.
        crossover: Probability of two parents.
        swapping: Probability of the second parent's value.
        seeds: Of crossover, and of everything drawn at random.
    """

    def __init__(
        self,
        *,
        population: int,
        mutation: float,
        kind: BaseMutation | None,
        crossover: float,
        swapping: float,
        seeds: tuple[int, int],
    ) -> None:
        super().__init__(
            population_size=population,
            mutation=kind,
            mutation_prob=mutation,
            crossover_prob=crossover,
            swapping_prob=swapping,
            seed=seeds[0],
        )
        self._mutation_probability = mutation
        self._second_random = RandomSampler(seed=seeds[1])
        self._donor_rng = np.random.default_rng(seeds)
        self._donors: list[optuna.trial.FrozenTrial] = []
        self._crossed: frozenset[str] = frozenset()

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Note the trial's generation; Optuna does so only where it draws, and would lose trials that were queued."""
        super().before_trial(study, trial)
        self.get_trial_generation(study, trial)

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        """The parents by number: Optuna's order differs between the call that selects them and those that look them up.

        A proposal would otherwise come out differently when it is made again after a kill.
        """
        return sorted(super().get_parent_population(study, generation), key=lambda parent: parent.number)

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Cross the parameters that all trials have, and draw the order of the parents for the others."""
        parents = self.get_parent_population(study, self.get_trial_generation(study, trial))
        self._donors = [parents[index] for index in self._donor_rng.permutation(len(parents))]
        self._crossed = frozenset(search_space)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Inherit a conditional parameter, or draw it where it mutates or no parent has it."""
        if param_name not in self._crossed and self._donor_rng.random() >= self._mutation_probability:
            for donor in self._donors:
                if donor.distributions.get(param_name) == param_distribution:
                    return donor.params[param_name]
        return self._second_random.sample_independent(study, trial, param_name, param_distribution)


SAMPLERS: Final[Registry[SamplerBuilder]] = Registry(
    "sampler",
    {
        "nsga2": Entry("dsprobe.sweeps.samplers:NSGAIIBuilder", "evolution by non-dominated sorting"),
        "tpe": Entry("dsprobe.sweeps.samplers:TPEBuilder", "densities of good and other settings"),
        "gp": Entry("dsprobe.sweeps.samplers:GPBuilder", "Gaussian processes, expected hypervolume improvement"),
        "random": Entry("dsprobe.sweeps.samplers:RandomBuilder", "independent draws"),
        "grid": Entry("dsprobe.sweeps.samplers:GridBuilder", "every grid point once, in order"),
    },
)


def sampler_builder(spec: Spec) -> SamplerBuilder:
    """The validated builder of a sampler.

    Raises:
        ConfigError: The name or a parameter is unknown, or a value is out of range.
    """
    return SAMPLERS.build(spec.name, spec.params)


def build_sampler(spec: Spec, seed: int, space: SearchSpace, constraints: bool) -> BaseSampler:
    """An Optuna sampler.

    All of them read constraints from the trials (`optuna.trial.Trial.set_constraint`), so nothing is configured for
    them here.

    Args:
        spec: Name and parameters; see `SAMPLERS`.
        seed: Any non-negative integer; each of the sampler's generators gets its own seed derived from it.
        space: What is searched.
        constraints: Whether trials carry constraints.

    Raises:
        ConfigError: The name or a parameter is unknown, or a value is out of range.
    """
    first, second = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return sampler_builder(spec).build((first, second), space)
