"""What a sweep generates, at most, as parts of an estimate."""

from __future__ import annotations

from dsprobe.experiment.cost import Part
from dsprobe.sweeps.pipeline import SweepPlan


def sweep_parts(sweep: SweepPlan) -> list[Part]:
    """Every trial from scratch on all prompts: forking and racing make it less, by how much is not known before.

    Args:
        sweep: A resolved sweep.

    Returns:
        The experiment unguarded and once a trial; the same of the validation set, as if every trial came to the front;
        and the recorded run of the chosen settings beside the unguarded one.
    """
    trials, recorded = 1 + sweep.config.search.trials, 1 + sweep.config.front.chosen
    parts = [Part(plan=sweep.plan, times=trials, recorded=0)]
    if sweep.validation is not None:
        parts.append(Part(plan=sweep.validation, times=trials, recorded=0))
    return [*parts, Part(plan=sweep.validation or sweep.plan, times=recorded, recorded=recorded)]
