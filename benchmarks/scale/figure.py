"""Efficiency and lag over the number of replicas, as a picture.

Run as ``python -m benchmarks.scale.figure scale.json docs/images/scale.png``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleData:
    """One value per case, by number of replicas."""

    replicas: list[int]
    busy: list[float]
    """Share of time in which modelled GPUs work."""
    waiting: list[float]
    """Share of time in which they wait for their reducer."""
    lag_p50: list[float]
    """Seconds from a finished batch to a written one."""
    lag_p95: list[float]
    cores: list[float]
    """Processors that the benchmark kept busy."""
    others: list[float]
    """Processors that other processes of the machine kept busy meanwhile."""


def scale_data(figures: dict[str, Any]) -> ScaleData:
    """Take the scaling suite of a measurement."""
    cases = sorted(figures["scaling"], key=lambda case: int(case["replicas"]))
    return ScaleData(
        replicas=[case["replicas"] for case in cases],
        busy=[case["efficiency"] for case in cases],
        waiting=[case["waited_for_reducer"] for case in cases],
        lag_p50=[case["lag_s"]["p50"] for case in cases],
        lag_p95=[case["lag_s"]["p95"] for case in cases],
        cores=[sum(value for role, value in case["cores"].items() if role != "others") for case in cases],
        others=[case["cores"]["others"] for case in cases],
    )


def draw(data: ScaleData, path: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _panel(left, data, {"GPU busy": data.busy, "waits for reducer": data.waiting}, "share of time")
    left.set_ylim(0, 1.05)
    _panel(middle, data, {"median": data.lag_p50, "95 %": data.lag_p95}, "lag in seconds")
    _panel(right, data, {"this benchmark": data.cores, "other processes": data.others}, "busy cores")
    for axes in (middle, right):
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, data: ScaleData, series: dict[str, list[float]], what: str) -> None:
    for label, values in series.items():
        axes.plot(data.replicas, values, marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(data.replicas, [str(count) for count in data.replicas])
    axes.set_xlabel("replicas")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.scale.figure")
    parser.add_argument("figures", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(scale_data(json.loads(arguments.figures.read_text())), arguments.picture)


if __name__ == "__main__":
    main()
