"""What a front costs: this sweep against plain Ray Tune + `OptunaSearch` that regenerates every trial.

Run as ``python -m benchmarks.sweep [--trials 40] [--ours 120] [--recipe demo]``; prints one JSON line. Both search the
recipe's space for its objectives with the same sampler and seed, one trial at a time, on replicas of their own;
constraints are left out, since `OptunaSearch` knows none. A trial costs this sweep little, so it may run more of them.
Counted are the forward passes and the wall seconds of trials (the unguarded baseline included in the passes) until the
hypervolume of the trials so far reaches 95 % of the larger (``best``) and of the smaller (``common``) final one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import show
from dsprobe.actors.session import ray_session
from dsprobe.config_loader import load_config
from dsprobe.storage.run_store import RunStore
from dsprobe.sweeps.config import SweepConfig
from dsprobe.sweeps.front import Front
from dsprobe.sweeps.library import recipes
from dsprobe.sweeps.pipeline import Listener, find_front, resolve_sweep, sweep_manifest
from dsprobe.sweeps.records import TrialRecord

SHARE = 0.95
KINDS = {
    "dsprobe": (),
    "optuna_search": ("search.searcher=optuna_search", "search.rungs=[1.0]", "search.fork=false"),
}
"""Searcher → what it changes."""


@dataclass(frozen=True)
class Course:
    """How a search went: after n trials, the hypervolume, and what it had cost."""

    volume: list[float]
    passes: list[int]
    seconds: list[float]

    def until(self, volume: float) -> tuple[int, int, float] | None:
        """Trials, passes and seconds when a hypervolume was reached first."""
        reached = next((n for n, found in enumerate(self.volume) if found >= volume), None)
        return None if reached is None else (reached, self.passes[reached], self.seconds[reached])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="Trials of OptunaSearch.")
    parser.add_argument("--ours", type=int, default=120, help="Trials of this sweep, at most.")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    trials = {"dsprobe": options.ours, "optuna_search": options.trials}
    given = ["constraints=[]", *options.set]
    courses = {
        name: run(options.recipe, [f"search.trials={trials[name]}", *given, *changes])
        for name, changes in KINDS.items()
    }
    finals = [course.volume[-1] for course in courses.values()]
    targets = {"best": SHARE * max(finals), "common": SHARE * min(finals)}
    figures: dict[str, Any] = {f"{what}_target": target for what, target in targets.items()}
    for name, course in courses.items():
        figures |= {f"{name}_trials": trials[name], f"{name}_final": course.volume[-1]}
        figures |= {f"{name}_passes": course.passes[-1], f"{name}_seconds": course.seconds[-1]}
    for what, target in targets.items():
        figures |= compared(what, courses["dsprobe"], courses["optuna_search"], target)
    for what in ("passes", "seconds"):
        ours, plain = (figures[f"{name}_{what}"] / trials[name] for name in KINDS)
        figures[f"{what}_ratio_per_trial"] = plain / ours
    show("sweep", figures)


def compared(what: str, ours: Course, plain: Course, target: float) -> dict[str, Any]:
    """Cost of both until a hypervolume; where the plain search never reached it, its ratios are lower bounds."""
    mine, other = ours.until(target), plain.until(target)
    if mine is None:
        return {f"{what}_reached": False}
    spent = other or (len(plain.volume) - 1, plain.passes[-1], plain.seconds[-1])
    return {
        **{f"{what}_{key}": value for key, value in zip(("trials", "passes", "seconds"), mine, strict=True)},
        **{f"{what}_optuna_search_{key}": v for key, v in zip(("trials", "passes", "seconds"), spent, strict=True)},
        f"{what}_optuna_search_reached": other is not None,
        f"{what}_passes_ratio": spent[1] / mine[1],
        f"{what}_seconds_ratio": spent[2] / mine[2] if mine[2] else None,
    }


def run(recipe: str, overrides: Sequence[str]) -> Course:
    """Search with fresh replicas, a fresh study and an empty archive."""
    loaded = load_config(recipe, overrides, schema=SweepConfig, recipes=recipes("sweep"))
    sweep = resolve_sweep(loaded.config)
    quiet = Listener(search=lambda progress: None, stage=lambda name: None, run=lambda progress: None)
    with tempfile.TemporaryDirectory() as root, ray_session(sweep.config.experiment.execution, include_dashboard=False):
        store = RunStore(root, sweep.id)
        store.write_manifest(sweep_manifest(sweep, loaded.sources))
        front, trials, _ = find_front(sweep, store, quiet)
    return course(front, trials)


def course(front: Front, trials: Sequence[TrialRecord]) -> Course:
    """Attainment with cumulative wall seconds of the trials."""
    seconds = [0.0]
    for trial in sorted(trials, key=lambda trial: trial.number):
        seconds.append(seconds[-1] + trial.wall_seconds)
    return Course(
        volume=[step.hypervolume for step in front.attainment],
        passes=[step.passes_used for step in front.attainment],
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
