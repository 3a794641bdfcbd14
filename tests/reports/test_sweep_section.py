"""The sweep section in page, Markdown and JSON: complete, checked, escaped."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsprobe.errors import StorageError
from dsprobe.reports.build import build_report
from dsprobe.reports.data import ReportData
from dsprobe.reports.sweep_data import Estimate, SweepData, decimal, setting_text
from dsprobe.reports.sweep_section import SWEEP_FIGURES, explorer_payload, headline

Parts = tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]
BAD = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|\u202e`"


class _Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def _parse(page: str) -> _Elements:
    parser = _Elements()
    parser.feed(page)
    return parser


@pytest.fixture
def parts(sweep_factory: Callable[..., Parts]) -> Parts:
    return copy.deepcopy(sweep_factory(trials=25))


def _built(small_data: ReportData, sweep: SweepData, folder: Path) -> Path:
    return build_report(dataclasses.replace(small_data, sweep=sweep), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t, s: f.pop("hypervolume"), "front.json has no `hypervolume`"),
        (lambda f, t, s: f.update(version=2), "front.json has version 2; this program reads up to 1"),
        (lambda f, t, s: f.update(knee="p99"), "knee `p99` is not one of the points"),
        (lambda f, t, s: f.update(objectives=[]), "names no objective"),
        (lambda f, t, s: f["points"][1]["objectives"].pop("asr"), "front.json, point 1 has no `asr`"),
        (lambda f, t, s: f["points"][0]["validation"]["asr"].pop("low"), "point 0's validation, `asr` has no `low`"),
        (lambda f, t, s: f["baseline"].pop("objectives"), "baseline has no `objectives`"),
        (lambda f, t, s: f["attainment"][3].pop("passes_used"), "attainment 3 has no `passes_used`"),
        (lambda f, t, s: t[2].pop("digest"), "trials.parquet, row 2 has no `digest`"),
        (lambda f, t, s: t[0].update(state="running"), "state `running` is not one of complete, stopped, failed"),
        (lambda f, t, s: s.pop("sampler"), "search has no `sampler`"),
        (lambda f, t, s: f.update(reference=[1.0]), "reference: expected a mapping, found list"),
    ],
)
def test_missing_keys_are_named(parts: Parts, change: Callable[..., object], message: str) -> None:
    change(*parts)
    with pytest.raises(StorageError, match=re.escape(message)):
        SweepData.from_parts(*parts)


def test_headline_counts_trials_and_passes(parts: Parts) -> None:
    front, rows, search = parts
    front["attainment"][-1] |= {"passes_used": 500, "passes_from_scratch": 10_000}
    facts = {name: (value, detail) for name, value, detail in headline(SweepData.from_parts(front, rows, search))}
    states = [row["state"] for row in rows]
    count = {state: states.count(state) for state in ("complete", "stopped", "failed")}
    assert facts["Trials"][0] == "25"
    assert facts["Trials"][1].startswith(
        f"{count['complete']} complete, {count['stopped']} stopped, {count['failed']} failed"
    )
    assert facts["Forward passes"] == ("500", "10,000 from scratch: 20.0 times as many")
    assert facts["Hypervolume"][0] == "1.840 [1.660, 1.970]"
    assert "attack success rate 1, fluency loss 2" in facts["Hypervolume"][1]
    assert facts["Search"] == ("nsga2", "seed 0, rungs 0.25, 0.5, 1, 2 at once")


def test_passes_are_the_trials_sums_without_attainment(parts: Parts) -> None:
    front, rows, search = parts
    data = SweepData.from_parts(front | {"attainment": []}, rows, search)
    assert data.passes == tuple(sum(row[name] for row in rows) for name in ("passes_used", "passes_from_scratch"))


def test_page_has_the_section_before_the_run(sweep_report: Path) -> None:
    page = sweep_report.read_text(encoding="utf-8")
    found = re.findall(r'<section id="([^"]+)"', page)
    assert found[:7] == [
        "brief",
        "sweep",
        "sweep-front",
        "sweep-settings",
        "sweep-importances",
        "sweep-parallel",
        "sweep-attainment",
    ]
    assert found.index("steps") > found.index("sweep-attainment")
    for spec in SWEEP_FIGURES:
        for kind in ("svg", "png"):
            assert (sweep_report.parent / "figures" / f"{spec.name}.{kind}").stat().st_size > 1000
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert sorted({name for name in ids if ids.count(name) > 1}) == []


def test_page_without_a_sweep_has_no_trace_of_it(small_report: Path) -> None:
    for name in ("index.html", "report.md", "summary.json"):
        assert "sweep" not in (small_report.parent / name).read_text(encoding="utf-8")


def test_static_figure_needs_no_script(sweep_report: Path) -> None:
    """Without JavaScript the explorer stays hidden, and the static figure is open."""
    page = sweep_report.read_text(encoding="utf-8")
    assert '<div class="explorer" id="sweep-explorer" hidden>' in page
    assert re.search(r'<details class="static" id="sweep-static" open>.*?<svg ', page, re.DOTALL)


def test_page_fetches_nothing_and_names_both_scripts(sweep_report: Path) -> None:
    import base64
    import hashlib

    page = sweep_report.read_text(encoding="utf-8")
    parsed = _parse(page)
    loads = [v for k, v in parsed.attributes if k in ("src", "href", "action", "poster", "data", "srcset") and v]
    assert all(v.startswith(("#", "data:image/png;base64,")) for v in loads)
    assert not re.search(r"@import|url\((?!#|&quot;#)", page)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]+"|"http://www.w3.org/2000/svg"', "", page)
    assert not re.search(r"(https?|wss?|ftp):?//", without_namespaces)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy is not None
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy[1]


def test_table_shows_intervals_validation_and_the_command(sweep_report: Path, sweep_data: SweepData) -> None:
    page = sweep_report.read_text(encoding="utf-8")
    table = page.split('<section id="sweep-settings">')[1].split("</section>")[0]
    assert table.count("<tbody") == len(sweep_data.points) + 1
    for point in sweep_data.points:
        assert f"dsprobe run demo --guardrail runs/demo-2f6c91aa/sweep/guardrails/{point.label}.yaml" in table
        assert point.validation is not None
        for name in sweep_data.objectives:
            assert f"<td>{point.objectives[name]}<small>unseen {point.validation[name]}</small></td>" in table
    assert "<th" in table.split("no guardrail")[0]


def test_markdown_and_summary_hold_the_front(sweep_report: Path, sweep_data: SweepData) -> None:
    text = (sweep_report.parent / "report.md").read_text(encoding="utf-8")
    assert text.index("## Sweep demo-2f6c91aa") < text.index("## How the replies ended")
    rows = [line for line in text.split("## The front's settings")[1].split("Run a setting")[0].splitlines() if line]
    bars = {len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")}
    assert bars == {len(sweep_data.objectives) + 4}
    assert "--guardrail runs/demo-2f6c91aa/sweep/guardrails/knee.yaml" in text
    summary = json.loads((sweep_report.parent / "summary.json").read_text())["sweep"]
    raw = {point["label"]: point for point in sweep_data.front["points"]}
    assert summary["knee"] == "knee"
    assert len(summary["front"]) == len(raw)
    for point in summary["front"]:
        for name in ("objectives", "validation", "parameters", "trial"):
            assert point[name] == raw[point["label"]][name]
    assert set(summary["findings"]) == {spec.name for spec in SWEEP_FIGURES}
    assert summary["trials"] == sweep_data.states


def test_equal_input_gives_equal_bytes(
    small_data: ReportData, sweep_data: SweepData, sweep_report: Path, tmp_path: Path
) -> None:
    again = _built(small_data, sweep_data, tmp_path)
    for path in sorted(sweep_report.parent.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.parent / path.relative_to(sweep_report.parent)).read_bytes(), path.name


def test_hostile_values_stay_text(parts: Parts, small_data: ReportData, sweep_report: Path, tmp_path: Path) -> None:
    front, rows, search = parts
    for row in [*rows, *front["points"]]:
        row["parameters"]["stack.0.window"] = BAD
        row["parameters"][f"stack.0.{BAD}"] = {"nested": BAD}
    front["importances"] = {name: {f"stack.0.{BAD}": 1.0} for name in front["objectives"]}
    front["points"][0]["label"] = front["knee"] = BAD
    front["validation_run"] = front["sweep_id"] = search["sampler"] = BAD
    for row in rows:
        row["reason"] = BAD
    index = _built(small_data, SweepData.from_parts(front, rows, search), tmp_path)
    page = index.read_text(encoding="utf-8")
    parsed = _parse(page)
    assert parsed.tags.count("script") == _parse(sweep_report.read_text(encoding="utf-8")).tags.count("script") == 4
    assert "img" not in parsed.tags
    assert not [k for k, _ in parsed.attributes if k.startswith("on")]
    block = page.split('id="sweep-data">')[1].split("</script>")[0]
    assert "<" not in block
    assert json.loads(block)["points"][0]["label"].startswith("</script><script>")
    for path in tmp_path.rglob("*"):
        if path.suffix in (".html", ".md", ".json", ".svg"):
            assert "\u202e" not in path.read_text(encoding="utf-8"), path.name
    outside_code = re.sub(r"```.*?```", "", (tmp_path / "report.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "<script" not in outside_code
    assert "<img" not in outside_code


def test_one_objective_and_an_empty_front_still_build(
    sweep_factory: Callable[..., Parts], small_data: ReportData, tmp_path: Path
) -> None:
    single = SweepData.from_parts(*sweep_factory(trials=15, objectives=("asr",)))
    assert "A single objective" in _built(small_data, single, tmp_path / "single").read_text(encoding="utf-8")
    front, rows, search = sweep_factory(trials=6)
    failed = [row | {"state": "failed", "objectives": None, "reason": "window: out of order"} for row in rows]
    empty = front | {"points": [], "knee": None, "attainment": [], "importances": {}}
    page = _built(small_data, SweepData.from_parts(empty, failed, search), tmp_path / "empty").read_text(
        encoding="utf-8"
    )
    assert "None of the 6 trials gave a point of the front." in page
    assert "<li>6 × window: out of order</li>" in page
    assert "0 settings" in page


def test_front_without_validation_says_so(
    sweep_factory: Callable[..., Parts], small_data: ReportData, tmp_path: Path
) -> None:
    data = SweepData.from_parts(*sweep_factory(trials=15, objectives=("asr", "fluency_loss"), validated=False))
    page = _built(small_data, data, tmp_path).read_text(encoding="utf-8")
    assert "No validation on unseen prompts was run." in page
    assert "unseen" not in page.split('<section id="sweep-settings">')[1].split("<tbody")[1]


def test_explorer_gets_each_trial_once(sweep_data: SweepData) -> None:
    payload = explorer_payload(sweep_data)
    with_objectives = [trial for trial in sweep_data.finished if trial.objectives is not None]
    assert len(payload["points"]) + len(payload["others"]) == len(with_objectives)
    assert sum(point["knee"] for point in payload["points"]) == 1
    for shown, point in zip(payload["points"], sweep_data.points, strict=True):
        assert [value for value, _, _ in shown["values"]] == [point.objectives[n].value for n in sweep_data.objectives]


def test_values_print_short() -> None:
    assert [decimal(x) for x in (0.0, 0.12345, 123.45, 0.0001, float("nan"))] == [
        "0.000",
        "0.123",
        "123.5",
        "1.0e-04",
        "–",
    ]
    assert str(Estimate(0.5, 0.25, float("nan"))) == "0.500 [0.250, –]"
    assert [setting_text(x) for x in (True, None, 3, 0.123456, "all", [1, 2])] == [
        "true",
        "null",
        "3",
        "0.1235",
        "all",
        "[1, 2]",
    ]
