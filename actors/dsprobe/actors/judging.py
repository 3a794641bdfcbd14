"""Batches of replies to a judge: in this process, or to judge replicas on Ray, with the same verdicts.

The driver alone knows the verdict cache; it hears of every batch as soon as it is judged.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsprobe.actors.writing import describe
from dsprobe.config import ExecutionConfig, Spec
from dsprobe.errors import DSProbeError
from dsprobe.judges import JUDGES, Judge, Reply, Verdict
from dsprobe.telemetry.spans import span

Batches = Sequence[Sequence[Reply]]
Done = Callable[[int, list[Verdict]], None]
"""Called on the driver with a batch's number and its verdicts, in the order in which batches come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFailure:
    """A batch that got no verdicts."""

    batch: int
    reason: str
    """One line for the user."""
    traceback: str = ""
    """Where the judge raised, for the log; empty when a process was lost."""


def judge_batches(spec: Spec, batches: Batches, execution: ExecutionConfig, done: Done) -> list[BatchFailure]:
    """Ask a judge about batches of replies.

    What a judge raises on purpose (its endpoint is gone, its weights are missing) would meet every other batch too, so
    no more are handed out; those under way are waited for. Any other error belongs to its batch, and the others go on.
    A batch whose replica died is tried again up to ``execution.retries`` times.

    Args:
        spec: The judge.
        batches: Replies, none of them to be left out.
        execution: Where: executor, replicas and what each is given.
        done: Receives the verdicts.

    Returns:
        Batches without verdicts and why; a batch that was never handed out is not among them.

    Raises:
        PrerequisiteError: Ray or the resources asked for are not there, or no replica comes up.
    """
    if not batches:
        return []
    with span("judge", detail=spec.key):
        if execution.executor == "local":
            from dsprobe.actors.local import torch_threads

            with torch_threads(execution.threads):
                return _judge_here(JUDGES.build(spec.name, spec.params), batches, done)
        from dsprobe.actors.judge_replicas import judge_on_ray

        return judge_on_ray(spec, batches, execution, done)


def _judge_here(judge: Judge, batches: Batches, done: Done) -> list[BatchFailure]:
    failures: list[BatchFailure] = []
    for number, replies in enumerate(batches):
        try:
            verdicts = answered(judge, replies)
        except DSProbeError as error:
            return [*failures, _failure(number, error)]
        except Exception as error:  # noqa: BLE001 - one batch's bug must not end the others
            failures.append(_failure(number, error))
        else:
            done(number, verdicts)
    return failures


def _failure(number: int, error: Exception) -> BatchFailure:
    return BatchFailure(batch=number, reason=blame(error), traceback=traceback.format_exc())


def blame(error: BaseException) -> str:
    """One line for the user: a message raised on purpose as it is, of any other error its class alone.

    The text of an unexpected error may hold text of a reply; it is in the traceback, which is logged at level DEBUG.
    """
    if isinstance(error, DSProbeError):
        return describe(error)
    return f"{type(error).__name__} in the judge (DSPROBE_LOG=DEBUG shows the traceback, perhaps with texts of replies)"


def answered(judge: Judge, replies: Sequence[Reply]) -> list[Verdict]:
    """A judge's verdicts in the order of the replies.

    Raises:
        ValueError: The judge gave more or fewer: replies would get the verdicts of others.
    """
    verdicts = judge.judge(replies)
    if len(verdicts) != len(replies):
        raise ValueError(f"judge {type(judge).__name__} gave {len(verdicts)} verdicts on {len(replies)} replies")
    return verdicts
