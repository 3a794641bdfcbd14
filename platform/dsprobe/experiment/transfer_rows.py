"""The rows of a finished run, sorted out for comparing its models: conditions, and the same artefacts on two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsprobe.config import UNGUARDED, RunConfig, Spec
from dsprobe.errors import ConfigError
from dsprobe.experiment.evaluated import Condition
from dsprobe.judges.base import VERDICT_PREFIX, Decides
from dsprobe.metrics.outputs import as_float
from dsprobe.reports.data import columns

Columns = dict[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.intp]


class TransferRows:
    """One run's unguarded rows.

    Args:
        trajectories: The run's table.
        manifest: Its manifest, for configuration and model kinds.
        judges: Judge key → question, of all judges with a verdict column.

    Raises:
        ConfigError: The run has no harm judge.
    """

    def __init__(self, trajectories: pa.Table, manifest: Mapping[str, Any], judges: Mapping[str, Decides]) -> None:
        self.config = RunConfig.model_validate(manifest["config"])
        self.kinds: dict[str, str] = {name: facts["kind"] for name, facts in manifest["models"].items()}
        self.judges = judges
        self.harm = [judge for judge, question in self.judges.items() if question == "harm"]
        if not self.harm:
            raise ConfigError(
                "The run has no judge of harm, so nothing can transfer. Score it: `dsprobe score RUN --judge …`."
            )
        self.columns = trajectory_columns(trajectories)

    @cached_property
    def conditions(self) -> dict[Condition, Rows]:
        """Unguarded conditions and their rows, in the order of the configuration's grid."""
        labels = ("model", "prompts", "attack", "decoding")
        found: dict[Condition, list[int]] = {}
        for row, values in enumerate(zip(*(self.columns[name].tolist() for name in labels), strict=True)):
            if self.columns["guardrail"][row] == UNGUARDED:
                found.setdefault(Condition(**dict(zip(labels, values, strict=True))), []).append(row)
        config = self.config
        places = (
            {m.name: i for i, m in enumerate(config.models)},
            {p.key: i for i, p in enumerate(config.prompts)},
            {a.key: i for i, a in enumerate(config.attacks)},
            {d.name: i for i, d in enumerate(config.decodings)},
        )

        def place(condition: Condition) -> tuple[int, ...]:
            values = (condition.model, condition.prompts, condition.attack, condition.decoding)
            return tuple(order[value] for order, value in zip(places, values, strict=True))

        return {c: np.array(found[c], np.intp) for c in sorted(found, key=place)}

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Attack key → its configuration."""
        return {attack.key: attack for attack in self.config.attacks}

    def twins(self, *, harmful: bool) -> Iterator[tuple[str, str, str]]:
        """Every diffusion model beside every autoregressive one, on every prompt set of a kind."""
        for prompts in self.config.prompts:
            mine = self.columns["prompts"] == prompts.key
            if not bool((self.columns["harmful"][mine] == harmful).any()):
                continue
            for first in self.models("diffusion"):
                for second in self.models("autoregressive"):
                    yield first, second, prompts.key

    def models(self, kind: str) -> list[str]:
        """Labels of the models of a kind, in the order of the configuration."""
        return [model.name for model in self.config.models if self.kinds[model.name] == kind]

    def pairs(
        self, first: str, second: str, prompts: str, *, harmful: bool
    ) -> Iterator[tuple[str, str, tuple[Rows, Rows]]]:
        """Attack, decoding of the diffusion model, and the rows of the same requests and samples on both models."""
        theirs = {c.attack: rows for c, rows in self.conditions.items() if c.model == second and c.prompts == prompts}
        for condition, rows in self.conditions.items():
            if condition.model == first and condition.prompts == prompts and condition.attack in theirs:
                one, two = self._matched(rows, theirs[condition.attack])
                kept = self.columns["harmful"][one] == harmful
                yield condition.attack, condition.decoding, (one[kept], two[kept])

    def _matched(self, first: Rows, second: Rows) -> tuple[Rows, Rows]:
        keys = self.columns["row"]
        _, one, two = np.intersect1d(keys[first], keys[second], assume_unique=True, return_indices=True)
        return first[one], second[two]

    def verdict(self, judge: str, rows: Rows) -> npt.NDArray[np.float64]:
        """See `verdict_values`."""
        return verdict_values(self.columns, judge, rows)


def verdict_values(columns: Columns, judge: str, rows: Rows) -> npt.NDArray[np.float64]:
    """Verdicts of some rows, NaN where undecided; an empty reply has no quality, as in `dsprobe.metrics.outputs`."""
    return np.where(columns["empty"][rows], 0.0, as_float(columns[VERDICT_PREFIX + judge][rows]))


def trajectory_columns(table: pa.Table) -> Columns:
    """Columns of `trajectories` as arrays, flags as bool, and `row`: what pairs with what.

    Args:
        table: The table, or those of its columns that are needed; `prompt_id`, `sample`, `harmful` and `empty` are.
    """
    found: Columns = columns(table)
    found |= {name: found[name].astype(np.bool_) for name in ("harmful", "empty")}
    rows = zip(found["sample"], found["prompt_id"], strict=True)
    return {**found, "row": np.array([f"{sample}:{prompt}" for sample, prompt in rows], np.str_)}
