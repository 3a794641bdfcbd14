"""What became of an attack: every step, both views, verdicts; shown redacted unless its text may be seen."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dsprobe.adhoc.drawing import canvas_html, piece_text, risk_text, sparkline, step_line
from dsprobe.adhoc.frames import Frame
from dsprobe.attacks.case import AttackCase
from dsprobe.decoding.records import TrajectoryBatch
from dsprobe.models.base import ModelKind
from dsprobe.prompts.base import Prompt
from dsprobe.reports.redaction import BLOCK
from dsprobe.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ANSWERS: Final = {True: "yes", False: "no", None: "undecided"}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AttackResult:
    """One attacked trajectory.

    The fields hold texts as they are, for code; `repr`, the notebook view, `frames` and `to_dict` show block glyphs in
    their place unless the model is synthetic or `show_text` is set.
    """

    model: str
    kind: ModelKind
    prompt: Prompt
    sample: int
    attack: str
    """Name of the attack that made the case."""
    case: AttackCase
    """What was written where; save it with `dsprobe.attacks.case.save_cases` to run it in an experiment."""
    guardrail: str
    threshold: float
    """θ."""
    initial: Frame
    """The reply before the first step."""
    steps: tuple[Frame, ...]
    """The reply after every step."""
    text: str
    """The reply up to its end-of-text token."""
    verdicts: dict[str, bool | None]
    """Judge key → answer; `None` where undecided."""
    first_harmful_step: dict[str, int | None]
    """View → first step with risk at or above θ; `None` where it is never reached. Empty without a scorer."""
    tri: dict[str, float]
    """View → temporal risk integral; empty without a scorer."""
    forward_passes: int
    separator: str
    """What stands between the texts of two tokens."""
    synthetic: bool
    """True for a model that knows the toy world's words only."""
    show_text: bool
    trajectories: TrajectoryBatch
    """All arrays of the batch that this trajectory was decoded in …"""
    row: int
    """… and its row there."""

    @property
    def text_allowed(self) -> bool:
        """Whether text is shown."""
        return self.synthetic or self.show_text

    def risks(self, view: str) -> list[float | None]:
        """Risk of a view (`committed` or `predicted`) after every step."""
        return [getattr(frame, f"risk_{view}") for frame in self.steps]

    def shown_text(self) -> str:
        """The reply as it may be shown: control characters visible, or block glyphs word by word."""
        if self.text_allowed:
            return visible(self.text)
        return " ".join(BLOCK * len(word) for word in self.text.split())

    def frames(self) -> list[str]:
        """The canvas before the first step and after every step, one text each; print them in turn to see it move."""
        return [
            step_line(frame, len(self.steps), allowed=self.text_allowed, separator=self.separator)
            for frame in (self.initial, *self.steps)
        ]

    def plot(self) -> Figure:
        """Risk of both views over the steps, with what was done to the canvas.

        Raises:
            PrerequisiteError: matplotlib is not installed.
        """
        from dsprobe.adhoc.figure import draw_risks, risk_lines

        return draw_risks(risk_lines({self.label: self}))

    @property
    def label(self) -> str:
        """Model, attack and guardrail in a few words."""
        return visible(" · ".join([self.model, self.attack, *([] if self.guardrail == "none" else [self.guardrail])]))

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of what is worth a line, fit for printing."""
        facts = [
            ("model", visible(self.model)),
            ("prompt", f"{visible(self.prompt.id)}, sample {self.sample}"),
            ("attack", visible(self.attack)),
            ("guardrail", visible(self.guardrail)),
            ("steps", f"{len(self.steps)} steps, {self.forward_passes} forward passes"),
        ]
        for view, step in self.first_harmful_step.items():
            risks = self.risks(view)
            reached = "never" if step is None else f"from step {step}"
            facts.append(
                (f"risk {view}", f"{sparkline(risks)} {risk_text(risks[-1])}, ≥ {self.threshold:g}: {reached}")
            )
        return facts + [(visible(judge), _ANSWERS[value]) for judge, value in self.verdicts.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; token texts and the reply redacted as in `repr`, the prompt by its id only."""
        allowed = self.text_allowed

        def texts(values: tuple[str | None, ...]) -> list[str | None]:
            return [None if text is None else piece_text(text, allowed=allowed) for text in values]

        return {
            "model": self.model, "kind": self.kind, "prompt": self.prompt.id, "sample": self.sample,
            "attack": self.attack, "guardrail": self.guardrail, "threshold": self.threshold,
            "text_shown": allowed, "text": self.shown_text(), "verdicts": self.verdicts,
            "first_harmful_step": self.first_harmful_step, "forward_passes": self.forward_passes,
            "tri": {view: None if value != value else value for view, value in self.tri.items()},
            "initial": texts(self.initial.committed),
            "steps": [
                {"step": f.step, "committed": texts(f.committed), "predicted": texts(f.predicted),
                 "risk_committed": f.risk_committed, "risk_predicted": f.risk_predicted,
                 "attribution": list(f.attribution), "events": list(f.events)}
                for f in self.steps
            ],
        }  # fmt: skip

    def __repr__(self) -> str:
        facts = "\n".join(f"  {name:15} {value}" for name, value in self.facts())
        return f"AttackResult(\n{facts}\n  {'reply':15} {self.shown_text()}\n)"

    def _repr_html_(self) -> str:
        """For notebooks: facts, the final canvas shaded by attribution, and every step folded away."""
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.facts()
        )
        lines = "".join(
            f"<li value='{frame.step}'>{self._html(frame)}"
            f"<small>{html.escape('; '.join(('', *frame.events)))}</small></li>"
            for frame in self.steps
        )
        final = self._html(self.steps[-1])
        return (
            f"<table>{cells}</table><p><code>{final}</code></p>"
            f"<details><summary>every step</summary><ol><code>{lines}</code></ol></details>"
        )

    def _html(self, frame: Frame) -> str:
        return canvas_html(frame, allowed=self.text_allowed, separator=self.separator)
