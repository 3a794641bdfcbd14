"""A judge replica: a thin actor around one judge. No torch here: a judge behind an endpoint needs none."""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray

from dsprobe.actors.heartbeat import Beat
from dsprobe.actors.judging import answered
from dsprobe.config import Spec
from dsprobe.judges import JUDGES, Judge, Reply, Verdict
from dsprobe.telemetry.logs import begin_actor


class JudgeReplica:
    """Builds a judge at its first batch and keeps it.

    The constructor cannot fail: what is wrong with a judge belongs to a batch, whose error reaches the driver.

    Args:
        judge: The judge.
    """

    def __init__(self, judge: Spec) -> None:
        begin_actor("judge", judge.key)
        self._spec = judge
        self._judge: Judge | None = None
        self._batches = 0
        self._at_work = False

    @ray.method(concurrency_group="control")
    def ping(self) -> int:
        """Answer with the process id, also while a batch is judged."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def beat(self) -> Beat:
        """Sign of life, also while a batch is judged."""
        return Beat(at_work=self._at_work, count=self._batches)

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        """Verdicts in the order of the replies.

        Raises:
            DSProbeError: The judge cannot be built, or cannot go on.
        """
        self._at_work = True
        try:
            if self._judge is None:
                self._judge = JUDGES.build(self._spec.name, self._spec.params)
            return answered(self._judge, replies)
        finally:
            self._at_work, self._batches = False, self._batches + 1
