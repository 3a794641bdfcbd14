"""Make the pages that come from code: `python docs/generate.py` writes docs/metrics.md and the Grafana dashboard.

Both are checked in; a test holds them to the metric catalogue (`dsprobe.telemetry.metrics`).
"""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphDrawStyle, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

from dsprobe.telemetry import metrics as catalogue
from dsprobe.telemetry.metrics import CATALOGUE, Metric

DOCS: Final = Path(__file__).parent
DASHBOARD: Final = DOCS / "cluster" / "grafana" / "dsprobe.json"
REFERENCE: Final = DOCS / "metrics.md"

RUN: Final = 'run=~"$run"'
"""Label matcher of the dashboard's variable."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of the dashboard."""

    title: str
    unit: str
    """Grafana's name of the unit."""
    queries: dict[str, str]
    """Legend → PromQL."""


def rate(metric: Metric, by: str = "") -> str:
    """Growth a second over five minutes, summed over processes."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric.exported}{{{RUN}}}[5m]))"


def newest(metric: Metric, by: str) -> str:
    """A gauge of the driver, which is one process."""
    return f"max by ({by}) ({metric.exported}{{{RUN}}})"


def kept(metric: Metric, by: str) -> str:
    """A gauge of the driver that is set when a trial ends, which Ray drops long before the next one does."""
    return f"max by ({by}) (last_over_time({metric.exported}{{{RUN}}}[30m]))"


def level(metric: Metric, by: str) -> str:
    """A gauge summed over processes."""
    return f"sum by ({by}) ({metric.exported}{{{RUN}}})"


def quantile(metric: Metric, share: float) -> str:
    """A quantile of a histogram over five minutes."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric.exported}_bucket{{{RUN}}}[5m])))"


def load_quantile(share: float) -> str:
    """As `quantile`; loads belong to no run, and are rare."""
    name = catalogue.MODEL_LOAD_SECONDS.exported
    return f"histogram_quantile({share}, sum by (le) (increase({name}_bucket[30m])))"


ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Throughput": (
        Panel("Trajectories a second", "short", {"{{model}}": rate(catalogue.TRAJECTORIES, "model")}),
        Panel("Denoising steps a second", "short", {"{{model}}": rate(catalogue.DENOISING_STEPS, "model")}),
        Panel("Tokens committed a second", "short", {"{{model}}": rate(catalogue.TOKENS_COMMITTED, "model")}),
        Panel("Forward passes a second", "short", {"{{model}}": rate(catalogue.FORWARD_PASSES, "model")}),
    ),
    "Progress": (
        Panel("Shards", "short", {"{{run}} {{state}}": newest(catalogue.SHARDS, "run, state")}),
        Panel("Shards that wait for a replica", "short", {"{{run}}": newest(catalogue.QUEUE_DEPTH, "run")}),
    ),
    "Replicas and faults": (
        Panel("Replicas", "short", {"{{run}} {{state}}": newest(catalogue.REPLICAS, "run, state")}),
        Panel(
            "Attempts repeated after a fault, a second",
            "short",
            {"{{run}} {{reason}}": rate(catalogue.FAULTS_RETRIED, "run, reason")},
        ),
        Panel("Time to load a model", "s", {"95 %": load_quantile(0.95)}),
    ),
    "Guardrails": (
        Panel(
            "Interventions a second",
            "short",
            {"{{guardrail}} {{action}}": rate(catalogue.INTERVENTIONS, "guardrail, action")},
        ),
        Panel(
            "Time of a batch",
            "s",
            {"median": quantile(catalogue.BATCH_SECONDS, 0.5), "95 %": quantile(catalogue.BATCH_SECONDS, 0.95)},
        ),
    ),
    "Reducers": (
        Panel(
            "Lag from finished to written",
            "s",
            {
                "median": quantile(catalogue.REDUCER_LAG_SECONDS, 0.5),
                "95 %": quantile(catalogue.REDUCER_LAG_SECONDS, 0.95),
            },
        ),
        Panel(
            "Batches that wait",
            "bytes",
            {"{{run}}": level(catalogue.REDUCER_WAITING_BYTES, "run")},
        ),
        Panel("Replicas waiting for reducers", "short", {"{{run}}": rate(catalogue.ADMISSION_SECONDS, "run")}),
    ),
    "Storage": (
        Panel("Written", "Bps", {"{{kind}}": rate(catalogue.BYTES_WRITTEN, "kind")}),
        Panel("Requests made again, a second", "short", {"{{run}}": rate(catalogue.STORAGE_RETRIES, "run")}),
    ),
    "Judges": (
        Panel("Replies judged a second", "short", {"{{judge}} {{source}}": rate(catalogue.VERDICTS, "judge, source")}),
    ),
    "Sweeps": (
        Panel("Trials", "short", {"{{run}} {{state}}": kept(catalogue.TRIALS, "run, state")}),
        Panel("Settings on the front", "short", {"{{run}}": kept(catalogue.FRONT_POINTS, "run")}),
        Panel("Forward passes of trials a second", "short", {"{{kind}}": rate(catalogue.SWEEP_PASSES, "kind")}),
    ),
}
"""Rows of the dashboard."""


def dashboard_json() -> str:
    """The dashboard as Grafana imports it."""
    board = (
        dashboard.Dashboard("Diffusion Safety Probe")
        .uid("dsprobe")
        .tags(["dsprobe", "ray"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(_source())
            .query(f'label_values({{__name__=~"{catalogue.PREFIX}dsprobe_.+"}}, run)')
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    numbers = itertools.count(1)  # Grafana keeps one of several panels with one id
    for title, panels in ROWS.items():
        board = board.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            board = board.with_panel(_figure(panel, width=24 // len(panels)).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _source() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _figure(panel: Panel, width: int) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    figure = (
        timeseries.Panel()
        .title(panel.title)
        .unit(panel.unit)
        .datasource(_source())
        .draw_style(GraphDrawStyle.LINE)
        .fill_opacity(10)
        .min(0)
        .legend(legend.show_legend(True))
        .height(8)
        .span(width)
    )
    for letter, (label, query) in zip(string.ascii_uppercase, panel.queries.items(), strict=False):
        figure = figure.with_target(prometheus.Dataquery().ref_id(letter).expr(query).legend_format(label))
    return figure


def reference() -> str:
    """The page of all metrics."""
    lines = [INTRODUCTION, "| metric | kind | unit | tags | from | what |", "|---|---|---|---|---|---|"]
    for metric in CATALOGUE:
        tags = ", ".join(f"`{tag}`" for tag in metric.tags)
        lines.append(
            f"| `{metric.exported}` | {metric.kind} | {metric.unit} | {tags} | {metric.source} | {metric.help}. |"
        )
    return "\n".join(lines) + "\n" + LOADING


INTRODUCTION: Final = """\
# Metrics

<!-- Made by `python docs/generate.py`; edit that file. -->

Every replica, reducer and driver counts what it does, and Ray serves it on each node's metrics port
(`--metrics-export-port`, 8080 in the shipped cluster files), with and without its dashboard. Ray adds the prefix `ray_`
and tags of its own (node, process, component). Own tags have few values; prompts and shards are never tags.
`DSPROBE_METRICS=0` turns all of it off: set it where a private run starts, for a job with `dsprobe submit`, or where
`ray start` runs. What it costs is in [performance](performance.md). The local executor has no Ray and no metrics.
Ray's own metrics (GPU memory, object store, nodes) are on the same port.
"""

LOADING: Final = """
A trajectory is a prompt under one condition and sample, so prompts a second are the first line. Of a judge's replies,
`source="cached"` are the cache's hits and `source="asked"` its misses; of a sweep's passes, `kind="saved"` are those
that forking and the archive saved.

A new number is on the port after up to ten seconds. Ray drops a gauge that nobody sets for twenty: the gauges of a run
end with it, and those of a sweep, set after each trial, are drawn with `last_over_time`. A histogram's `_sum` is
approximate: Ray sums the middles of its buckets.

## Prometheus

[prometheus.yml](cluster/prometheus/prometheus.yml) scrapes all nodes of a cluster from the head, where Ray keeps the
list of them up to date (`/tmp/ray/prom_metrics_service_discovery.json`), and loads
[rules.yml](cluster/prometheus/rules.yml): a run that makes no progress for 15 minutes, retries that rise, attempts lost
to the store, a store that is asked again and again, reducers that fall behind, no replica up. On the head, and then a
tunnel from the laptop:

```console
$ prometheus --config.file=prometheus.yml --web.listen-address=127.0.0.1:9090
$ ssh -N -L 9090:127.0.0.1:9090 -L 3000:127.0.0.1:3000 HEAD
```

The list is written by Ray's dashboard; with another `--temp-dir` it lies there, and without a dashboard name the nodes'
ports under `static_configs`. The metrics port asks for no token: keep it closed to the outside, as
[the cluster files](cluster.md) do.

## Grafana

Add the Prometheus above as a data source, import [dsprobe.json](cluster/grafana/dsprobe.json) (Dashboards, New,
Import), and choose the source at its top; `Run` picks runs and sweeps.

Ray makes dashboards of its own, for nodes, GPUs and the object store, in its folder on the head, below
`session_latest/metrics/grafana/dashboards`: import them the same way. Started with these variables, Ray's dashboard
shows their figures too:

```console
$ export RAY_PROMETHEUS_HOST=http://127.0.0.1:9090 RAY_GRAFANA_HOST=http://127.0.0.1:3000
$ export RAY_GRAFANA_IFRAME_HOST=http://127.0.0.1:3000  # where the browser reaches Grafana, through the tunnel
```
"""


def main() -> None:
    """Write both."""
    REFERENCE.write_text(reference())
    DASHBOARD.write_text(dashboard_json())


if __name__ == "__main__":
    main()
