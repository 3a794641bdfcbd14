"""Domains: what one parameter of a sweep may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, FiniteFloat, StrictInt, field_validator, model_validator

from dsprobe.config import Strict
from dsprobe.errors import ConfigError, unknown_name

DEFAULT_POINTS = 5
"""Grid points of a float domain, and of an integer domain with more values than this."""
TOLERANCE = 1e-8
"""Steps by which a value may miss its grid of `step`s, as in Optuna."""

Number: TypeAlias = int | float
Parent: TypeAlias = tuple[str, str] | None
"""Path of the enclosing choice and the label under which something exists; `None` at the top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What one parameter may be."""

    path: str
    """Dotted path, e.g. ``renoise.weighting.linear.end``."""
    kind: Literal["float", "int", "categorical"]
    low: Number = 0
    """Smallest value of a numeric domain."""
    high: Number = 0
    """Largest value of a numeric domain."""
    step: Number | None = None
    """Distance of neighbouring values; `None` is any float, or every integer."""
    log: bool = False
    """Whether values are drawn evenly on a logarithmic scale."""
    points: int | None = None
    """Points in the grid; `None` is 5, or all values of an integer domain that has no more."""
    choices: tuple[str, ...] = ()
    """Labels of a categorical domain."""
    parent: Parent = None
    """Under which label of which choice it exists; `None` is always."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """What static checks try: both ends of a numeric domain, every label of a categorical one."""
        return self.choices if self.kind == "categorical" else tuple(dict.fromkeys((self.low, self.high)))

    def grid(self) -> list[Any]:
        """Its grid points, in order."""
        if self.kind == "categorical":
            return list(self.choices)
        unit = self.step if self.step is not None else (1 if self.kind == "int" else None)
        count = math.inf if unit is None else round((self.high - self.low) / unit) + 1
        default = int(count) if self.kind == "int" and count <= DEFAULT_POINTS else DEFAULT_POINTS
        points = int(min(self.points or default, count))
        spaced = (np.geomspace if self.log else np.linspace)(self.low, self.high, points)
        if unit is not None:
            spaced = np.unique(self.low + np.round((spaced - self.low) / unit) * unit)
        return [self.value(min(max(x, self.low), self.high)) for x in spaced.tolist()]

    def value(self, given: Any) -> Any:
        """A value of this domain, in its own type.

        Raises:
            ConfigError: The value lies outside the domain; the message names the path and what is allowed.
        """
        if self.kind == "categorical":
            if given not in self.choices:
                raise unknown_name(f"choice of `{self.path}`", str(given), self.choices)
            return given
        number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
        inside = number and self.low <= given <= self.high
        unit = self.step if self.step is not None else (1 if self.kind == "int" else None)
        if inside and unit is not None:
            steps = (given - self.low) / unit
            inside = abs(steps - round(steps)) < TOLERANCE
        if not inside:
            grid = f" in steps of {unit}" if unit is not None else ""
            raise ConfigError(f"`{self.path}` = {given!r}: allowed are {self.low} to {self.high}{grid}.")
        return int(given) if self.kind == "int" else float(given)


class NumericConfig(Strict):
    """A numeric domain as it is written: ``{low, high}``."""

    low: StrictInt | FiniteFloat
    high: StrictInt | FiniteFloat
    log: bool = False
    step: StrictInt | FiniteFloat | None = Field(default=None, gt=0)
    points: int | None = Field(default=None, ge=1)

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a domain's ends are numbers; for true and false write {choices: [true, false]}")
        return value

    @model_validator(mode="after")
    def _spans_something(self) -> NumericConfig:
        if self.low > self.high:
            raise ValueError(f"low {self.low} lies above high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic domain starts above 0, not at {self.low}")
        if self.log and self.step is not None:
            raise ValueError("a logarithmic domain takes no step")
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if abs(steps - round(steps)) > TOLERANCE:
                raise ValueError(f"low {self.low} to high {self.high} is not a whole number of steps of {self.step}")
        return self

    def domain(self, path: str, parent: Parent) -> Domain:
        """The domain at a path: an integer domain where both ends (and the step) are integers."""
        ends = (self.low, self.high) if self.step is None else (self.low, self.high, self.step)
        whole = all(isinstance(end, int) for end in ends)
        return Domain(
            path=path,
            kind="int" if whole else "float",
            low=self.low if whole else float(self.low),
            high=self.high if whole else float(self.high),
            step=self.step if whole or self.step is None else float(self.step),
            log=self.log,
            points=self.points,
            parent=parent,
        )
