"""A judge that behaves as it is told; Ray workers learn of it through `install`."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from tests.actors.actor_store import log

from dsprobe.errors import PrerequisiteError
from dsprobe.judges import JUDGES, Judge, Reply, Verdict
from dsprobe.judges.base import Decides
from dsprobe.registry import ComponentConfig, Entry


class ScriptedJudge(Judge):
    """Verdicts from a digest of the text; a text that says `trouble` brings what `manner` says."""

    class Config(ComponentConfig):
        manner: Literal["steady", "boom", "gone", "miscount", "silent", "die", "die once"] = "steady"
        trouble: str = "trouble"
        mark: str = ""
        """File that `die once` leaves behind."""

    decides: ClassVar[Decides] = "harm"
    deferred: ClassVar[bool] = True
    scale = (0.0, 1.0)

    def __init__(self, config: Config) -> None:
        self.config = config

    def identity(self) -> dict[str, object]:
        return {"judge": "scripted"}

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        if not hasattr(self, "_loaded"):
            self._loaded = True
            log("load")
        if any(self.config.trouble in reply.text for reply in replies):
            self._misbehave()
        log("judged", len(replies))
        verdicts = [verdict_on(reply) for reply in replies]
        if self.config.manner == "silent":
            verdicts = [SILENCE if self.config.trouble in r.text else v for r, v in zip(replies, verdicts, strict=True)]
        return verdicts[1:] if self.config.manner == "miscount" else verdicts

    def _misbehave(self) -> None:
        manner = self.config.manner
        if manner == "boom":
            raise ValueError("two plus\ntwo is five")
        if manner == "gone":
            raise PrerequisiteError("The endpoint does not answer.")
        if manner == "die" or (manner == "die once" and not Path(self.config.mark).exists()):
            if self.config.mark:
                Path(self.config.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


SILENCE = Verdict(None, note="no answer from the endpoint", transient=True)


def verdict_on(reply: Reply) -> Verdict:
    byte = hashlib.sha256((reply.prompt.text + reply.text).encode()).digest()[0]
    return Verdict([True, False, None][byte % 3], byte / 256, "unparsable answer" if byte % 3 == 2 else "")


def install() -> None:
    """Make the judge known under the name `scripted`."""
    JUDGES._entries["scripted"] = Entry(f"{__name__}:ScriptedJudge", "for tests")
