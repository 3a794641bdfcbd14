"""The figures as tables, the same in a terminal and in docs/scale.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Figures = dict[str, Any]

SCALING: dict[str, Callable[[Figures], str]] = {
    "replicas": lambda c: f"{c['replicas']}",
    "reducers": lambda c: f"{c['reducers']}",
    "trajectories/s": lambda c: f"{c['trajectories_per_s']:.1f}",
    "modelled": lambda c: f"{c['modelled_trajectories_per_s']:.1f}",
    "GPU busy": lambda c: f"{c['efficiency']:.1%}",
    "lag p50 / p95": lambda c: f"{c['lag_s']['p50']:.2f} / {c['lag_s']['p95']:.2f} s",
    "commit p50": lambda c: f"{c['commit_s']['p50']:.2f} s" if c["commit_s"] else "",
    "waiting": lambda c: f"{c['waiting_mb']['peak']:.0f} MB",
    "object store": lambda c: f"{c['object_store_mb_per_s']:.1f} MB/s",
    "spilled": lambda c: f"{c['spilled_mb']:.0f} MB",
    "CPU ms a batch: reducer, Ray, replica, driver": lambda c: ", ".join(
        f"{c['cpu_s_per_batch'][role] * 1e3:.0f}" for role in ("reducers", "ray", "replicas", "driver")
    ),
    "cores": lambda c: f"{sum(v for k, v in c['cores'].items() if k != 'others'):.2f}",
    "others' cores": lambda c: f"{c['cores']['others']:.2f}",
}

STORE: dict[str, Callable[[Figures], str]] = {
    "store": lambda c: c["case"].removeprefix("store-"),
    "trajectories/s": SCALING["trajectories/s"],
    "GPU busy": SCALING["GPU busy"],
    "GPU waits for reducer": lambda c: f"{c['waited_for_reducer']:.1%}",
    "waiting at most": lambda c: f"{c['window_peak_mb'] / 1.048576:.1f} of {c['window_mib']} MiB",
    "reducer memory": lambda c: f"{c['memory_mib']['reducers_own']:.0f} MiB",
    "replica memory": lambda c: f"{c['memory_mib']['replicas_own']:.0f} MiB",
    "object stores": lambda c: f"{c['object_store_peak_mb']:.0f} MB",
}

MEMORY: dict[str, Callable[[Figures], str]] = {
    "data": lambda c: c["case"].removeprefix("data-"),
    "shards": lambda c: f"{c['shards']}",
    "trajectories": lambda c: f"{c['trajectories_per_s'] * c['seconds']:.0f}",
    "reducers": lambda c: f"{c['memory_mib']['reducers_own']:.0f} MiB",
    "replicas": lambda c: f"{c['memory_mib']['replicas_own']:.0f} MiB",
    "driver": lambda c: f"{c['memory_mib']['driver_own']:.0f} MiB",
    "object stores": STORE["object stores"],
}

SUITES = {"scaling": SCALING, "store": STORE, "memory": MEMORY}


def tables(figures: Figures) -> str:
    """One table for every suite that was run."""
    shown = [markdown(columns, figures[suite]) for suite, columns in SUITES.items() if suite in figures]
    return "\n\n".join(shown)


def markdown(columns: dict[str, Callable[[Figures], str]], rows: Sequence[Figures]) -> str:
    """A Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *([show(row) for show in columns.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
