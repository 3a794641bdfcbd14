"""Make the pages that come from code: `python docs/generate.py` writes docs/metrics.md and the Grafana dashboard.

Both are checked in; a test holds them to the metric catalogue (`dsprobe.telemetry.metrics`).
"""

from __future__ import annotations

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


def level(metric: Metric, by: str) -> str:
    """A gauge summed over processes."""
    return f"sum by ({by}) ({metric.exported}{{{RUN}}})"


def quantile(metric: Metric, share: float) -> str:
    """A quantile of a histogram over five minutes."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric.exported}_bucket{{{RUN}}}[5m])))"


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
        Panel("Replicas", "short", {"{{run}} {{state}}": newest(catalogue.REPLICAS, "run, state")}),
        Panel("Attempts repeated after a fault, a second", "short", {"{{run}}": rate(catalogue.FAULTS_RETRIED, "run")}),
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
    "Reducers and storage": (
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
            {"{{run}}": f"sum by (run) ({catalogue.REDUCER_WAITING_BYTES.exported}{{{RUN}}})"},
        ),
        Panel("Written", "Bps", {"{{run}}": rate(catalogue.BYTES_WRITTEN, "run")}),
        Panel("Replicas waiting for reducers", "percentunit", {"{{run}}": rate(catalogue.ADMISSION_SECONDS, "run")}),
    ),
    "Judges and sweeps": (
        Panel("Replies judged a second", "short", {"{{judge}} {{source}}": rate(catalogue.VERDICTS, "judge, source")}),
        Panel("Trials", "short", {"{{run}} {{state}}": newest(catalogue.TRIALS, "run, state")}),
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
            .query(f"label_values({catalogue.SHARDS.exported}, run)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    for title, panels in ROWS.items():
        board = board.with_row(dashboard.Row(title))
        for panel in panels:
            board = board.with_panel(_figure(panel, width=24 // len(panels)))
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
    for label, query in panel.queries.items():
        figure = figure.with_target(prometheus.Dataquery().expr(query).legend_format(label))
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
`DSPROBE_METRICS=0` turns all of it off. Ray's own metrics (GPU memory, object store, nodes) are on the same port.
"""

LOADING: Final = """
A histogram's `_sum` is approximate: Ray sums the bounds of its buckets.

## Prometheus

[prometheus.yml](cluster/prometheus/prometheus.yml) scrapes all nodes of a cluster from the head, where Ray keeps the
list of them up to date (`/tmp/ray/prom_metrics_service_discovery.json`), and loads
[rules.yml](cluster/prometheus/rules.yml): a run that makes no progress, retries that rise, reducers that fall behind,
no replica up. On the head:

```console
$ prometheus --config.file=prometheus.yml --web.listen-address=127.0.0.1:9090
```

The metrics port asks for no token: keep it closed to the outside, as [the cluster files](cluster.md) do.

## Grafana

Import [dsprobe.json](cluster/grafana/dsprobe.json) (Dashboards, New, Import) and choose the Prometheus above as its
source; `Run` at the top picks runs and sweeps. With `RAY_PROMETHEUS_HOST` and `RAY_GRAFANA_HOST` set for `ray start`,
Ray's dashboard shows Grafana's figures beside its own.
"""


def main() -> None:
    """Write both."""
    REFERENCE.write_text(reference())
    DASHBOARD.write_text(dashboard_json())


if __name__ == "__main__":
    main()
