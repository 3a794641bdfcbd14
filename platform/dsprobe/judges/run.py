"""Running judges over a batch of replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from dsprobe.judges.base import Judge, Reply, Verdict

EMPTY: Final = Verdict(None, note="empty")
"""Verdict of an empty reply that the judge is not shown."""


def judge_all(
    judges: Mapping[str, Judge], replies: Sequence[Reply], empty_B: npt.NDArray[np.bool_]
) -> dict[str, list[bool | None]]:
    """Ask every judge about every reply.

    Args:
        judges: Judge key → judge.
        replies: B replies.
        empty_B: True where a reply has no text; see `shown`.

    Returns:
        Judge key → B verdicts in the order of the replies.
    """
    return {key: [verdict.value for verdict in judge_replies(judge, replies, empty_B)] for key, judge in judges.items()}


def judge_replies(judge: Judge, replies: Sequence[Reply], empty_B: npt.NDArray[np.bool_]) -> list[Verdict]:
    """Ask one judge about every reply.

    Args:
        judge: The judge.
        replies: B replies.
        empty_B: True where a reply has no text; see `shown`.

    Returns:
        B verdicts in the order of the replies.
    """
    verdicts = [EMPTY] * len(replies)
    rows = np.flatnonzero(shown(judge, empty_B)).tolist()
    for row, verdict in zip(rows, judge.judge([replies[row] for row in rows]), strict=True):
        verdicts[row] = verdict
    return verdicts


def shown(judge: Judge, empty_B: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which replies a judge is shown; the verdict on the others is `EMPTY`.

    An empty reply is a class of its own: it is neither harmful nor harmless, neither a refusal nor an answer, so harm
    and refusal judges do not see it and its verdict is undecided. A utility judge does see it: saying nothing is a
    wrong answer, and an undecided verdict would take it out of the accuracy's denominator.

    Args:
        judge: The judge.
        empty_B: True where a reply has no text.

    Returns:
        B flags.
    """
    return np.ones(len(empty_B), dtype=np.bool_) if judge.question == "utility" else ~empty_B
