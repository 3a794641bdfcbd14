"""How fast the search grew the front: hypervolume over trials and over forward passes, used and from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dsprobe.reports.data import F64, I64
from dsprobe.reports.sweep_data import Estimate, SweepData, decimal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType

SHARE: Final = 0.95
"""Share of the final hypervolume that counts as reached."""

_HEIGHT, _LEFT, _GAP = 2.5, 0.75, 0.75


@dataclass(frozen=True, slots=True)
class AttainmentData:
    """One value per finished trial that the sweep logged."""

    trials_K: I64
    hypervolume_K: F64
    used_K: I64
    """Forward passes computed so far."""
    scratch_K: I64
    """Forward passes that the same trials take from scratch."""
    final: Estimate
    """Hypervolume of the front with its interval."""

    left_out: str = ""
    """Nothing is left out."""

    @property
    def panels(self) -> list[str]:
        """The two abscissae; empty where nothing was logged."""
        return ["trials", "passes"] if len(self.trials_K) else []

    @property
    def reached(self) -> int | None:
        """Place of the first entry with at least `SHARE` of the last hypervolume; `None` where that is 0."""
        if not len(self.trials_K) or self.hypervolume_K[-1] <= 0:
            return None
        return int(np.argmax(self.hypervolume_K >= SHARE * self.hypervolume_K[-1]))

    def finding(self) -> str:
        """Trials and passes up to 95 % of the final hypervolume."""
        place = self.reached
        if place is None:
            return "No trial dominated any part of the space below the reference point."
        used, scratch = int(self.used_K[place]), int(self.scratch_K[place])
        saving = f", {scratch / used:.1f} times as many" if used else ""
        return (
            f"{SHARE:.0%} of the final hypervolume ({decimal(float(self.hypervolume_K[-1]))}) was reached after "
            f"{self.trials_K[place]} of {self.trials_K[-1]} trials and {used:,} forward passes; from scratch the same "
            f"trials take {scratch:,}{saving}."
        ).replace("95% of", "95 % of")


def attainment_data(data: SweepData) -> AttainmentData:
    """The attainment entries in order of trials."""
    steps = sorted(data.front["attainment"], key=lambda step: step["trials"])
    raw = data.front["hypervolume"]
    final = Estimate(*(float("nan") if raw[key] is None else float(raw[key]) for key in ("value", "low", "high")))
    return AttainmentData(
        _integers(steps, "trials"),
        np.array([step["hypervolume"] for step in steps], dtype=np.float64),
        _integers(steps, "passes_used"),
        _integers(steps, "passes_from_scratch"),
        final,
    )


def _integers(steps: list[dict[str, Any]], name: str) -> I64:
    return np.array([step[name] for step in steps], dtype=np.int64)


def draw_attainment(info: AttainmentData) -> Figure:
    """Step curves; the second panel has both counts of passes on one logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from dsprobe.reports.figures.style import SERIES, SOFT, WIDTH

    tall = _HEIGHT + 0.95
    drawing = Figure(figsize=(WIDTH, tall))
    wide = (WIDTH - _LEFT - _GAP - 0.2) / 2
    curves: list[list[tuple[str, I64, str, LineStyleType]]] = [
        [("trials finished", info.trials_K, SERIES[0], "-")],
        [("used by this sweep", info.used_K, SERIES[0], "-"), ("from scratch", info.scratch_K, SERIES[1], "--")],
    ]
    for place, (label, series) in enumerate(zip(("trials finished", "forward passes"), curves, strict=True)):
        left = _LEFT + place * (wide + _GAP)
        axes = drawing.add_axes((left / WIDTH, 0.6 / tall, wide / WIDTH, _HEIGHT / tall))
        for _, x_K, colour, dashes in series:
            _draw_curve(axes, x_K, info, colour, dashes)
        axes.set_xlabel(label)
        axes.set_ylim(0, _top(info))
        axes.axhline(SHARE * info.hypervolume_K[-1], color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.axhspan(info.final.low, info.final.high, color=SERIES[0], alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda passes, _: f"{passes:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    drawing.axes[0].set_ylabel("hypervolume")
    handles: list[Any] = [
        Line2D([], [], color=colour, linestyle=dashes, label=f"forward passes {name}")
        for name, _, colour, dashes in curves[1]
    ]
    handles += [
        Line2D([], [], color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)), label="95 % of the final value"),
        Patch(color=SERIES[0], alpha=0.15, label="interval of the final front"),
    ]
    drawing.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.3)
    return drawing


def _top(info: AttainmentData) -> float:
    highest = np.array([info.final.high, info.hypervolume_K.max()])
    return 1.08 * float(np.nanmax(highest)) or 1.0


def _draw_curve(axes: Axes, x_K: I64, info: AttainmentData, colour: str, dashes: LineStyleType) -> None:
    axes.step(x_K, info.hypervolume_K, where="post", color=colour, linestyle=dashes)
    if info.reached is not None:
        axes.plot(x_K[info.reached], info.hypervolume_K[info.reached], "o", color=colour, markersize=6)
