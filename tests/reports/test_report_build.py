"""The written folder: complete, self-contained, deterministic, escaped, redacted."""

from __future__ import annotations

import dataclasses
import hashlib
import html.parser
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dsprobe.errors import ConfigError
from dsprobe.reports.build import build_report
from dsprobe.reports.data import ReportData
from dsprobe.reports.figures.catalogue import FIGURES
from dsprobe.reports.page import script_safe_json
from dsprobe.reports.text import escape_markdown
from dsprobe.visible_text import visible

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "\u202egnirts desrever\u200f",
    "<!--",
    "{{ 7*7 }}",
    "$\\frac{1}{2$",
    "a|b\n# heading",
]


class _Elements(html.parser.HTMLParser):
    """Counts elements and collects attributes, as a browser would see them."""

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


@pytest.fixture(scope="module")
def hostile_report(report_factory: Callable[..., ReportData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(300)]
    data = report_factory(
        attacks=tuple(HOSTILE[:2]),
        decodings=(HOSTILE[6],),
        prompts_per_condition=4,
        stored=2,
        vocabulary=words,
        benign=False,
        prompt_set=HOSTILE[3],
        synthetic_sets={HOSTILE[3]},
    )
    return build_report(data, tmp_path_factory.mktemp("hostile"))


def test_every_file_is_there(small_report: Path) -> None:
    folder = small_report.parent
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    shown = [spec.name for spec in FIGURES if spec.name not in ("interventions", "harm-over-steps")]
    figures = {f"figures/{name}.{kind}" for name in shown for kind in ("svg", "png")}
    assert names == {"index.html", "report.md", "summary.json"} | figures


def test_page_fetches_nothing(small_report: Path) -> None:
    page = small_report.read_text(encoding="utf-8")
    parsed = _parse(page)
    loads = [v for k, v in parsed.attributes if k in ("src", "href", "action", "poster", "data", "srcset") and v]
    assert all(v.startswith(("#", "data:image/png;base64,")) for v in loads)
    assert not {"link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert not re.search(r"@import|url\((?!#|&quot;#)", page)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]+"|"http://www.w3.org/2000/svg"', "", page)
    assert not re.search(r"(https?|wss?|ftp):?//", without_namespaces)


def test_policy_allows_only_the_inlined_script(small_report: Path) -> None:
    page = small_report.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = hashlib.sha256(script[1].encode()).digest()
    import base64

    assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy[1]


def test_equal_input_gives_equal_bytes(small_data: ReportData, small_report: Path, tmp_path: Path) -> None:
    again = build_report(small_data, tmp_path / "again")
    for path in sorted(small_report.parent.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.parent / path.relative_to(small_report.parent)).read_bytes(), path.name


def test_summary_holds_each_measure_with_interval_and_n(small_report: Path, small_data: ReportData) -> None:
    summary = json.loads((small_report.parent / "summary.json").read_text())
    assert summary["theta"] == 0.5
    first = summary["conditions"][0]
    assert first["n"] == 6
    estimate = first["measures"]["asr:toy_oracle"]
    verdicts = small_data.rows("trajectories", small_data.conditions[0])["verdict_toy_oracle"].to_pylist()
    assert estimate["value"] == sum(verdicts) / 6
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert estimate["method"] == "wilson"
    assert {"near_ties", "forward_passes", "tri_committed", "irr_observational_predicted"} <= set(first["measures"])


def test_hostile_strings_stay_text(hostile_report: Path, small_report: Path) -> None:
    page = hostile_report.read_text(encoding="utf-8")
    parsed = _parse(page)
    usual = _parse(small_report.read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == usual.tags.count("script") == 2
    assert not [k for k, _ in parsed.attributes if k.startswith("on")]
    assert "img" not in parsed.tags
    assert "49" not in re.findall(r"<dd>([^<]*)</dd>", page)
    block = page.split('id="player-data">')[1].split("</script>")[0]
    assert "<" not in block
    texts = json.loads(block)["texts"]
    assert any(text.startswith("<script>alert(1)</script>") for text in texts)
    for path in hostile_report.parent.rglob("*"):
        if path.suffix in (".html", ".md", ".json", ".svg"):
            assert "\u202e" not in path.read_text(encoding="utf-8")


def test_hostile_names_do_not_break_markdown(hostile_report: Path) -> None:
    text = (hostile_report.parent / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert len(set(widths[:3])) == 1


def test_redacted_report_holds_no_text(report_factory: Callable[..., ReportData], tmp_path: Path) -> None:
    secrets = [f"secretword{i}" for i in range(300)]
    data = report_factory(
        attacks=("dija",), decodings=("uniform",), prompts_per_condition=4, stored=3, vocabulary=secrets,
        benign=False, prompt_set="benchmark",
    )  # fmt: skip
    text = [f"secretreply {i}" for i in range(data.trajectories.num_rows)]
    where = data.trajectories.column_names.index("text")
    table = data.trajectories.set_column(where, "text", [text])
    data = dataclasses.replace(data, trajectories=table)
    index = build_report(data, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes(), path.name
    page = index.read_text(encoding="utf-8")
    assert "item-000" in page
    assert "benchmark are withheld" in page
    shown = build_report(dataclasses.replace(data, show_text=True), tmp_path / "shown")
    assert "secretword" in shown.read_text(encoding="utf-8")
    for name in ("summary.json", "report.md"):
        assert b"secret" not in (shown.parent / name).read_bytes()


def test_conditions_keep_the_order_of_the_manifest(small_data: ReportData, tmp_path: Path) -> None:
    names = [c.id for c in small_data.conditions]
    manifest = {**small_data.manifest, "conditions": names[::-1]}
    turned = dataclasses.replace(small_data, manifest=manifest)
    assert [c.id for c in turned.conditions] == names[::-1]
    build_report(turned, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [entry["condition"] for entry in summary["conditions"]] == names[::-1]


def test_tables_are_grouped_by_prompt_set(small_report: Path) -> None:
    page = small_report.read_text(encoding="utf-8")
    assert re.findall(r'scope="rowgroup">([^<]+)<', page) == ["toy-restricted", "toy-benign"] * 3
    assert "| **toy-benign** |" in (small_report.parent / "report.md").read_text(encoding="utf-8")


def test_a_guarded_run_has_its_guardrails_in_every_table(guarded_report: Path, guarded_data: ReportData) -> None:
    folder = guarded_report.parent
    assert {"interventions.svg", "harm-over-steps.svg"} <= {path.name for path in (folder / "figures").iterdir()}
    text = (folder / "report.md").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if line.startswith("| condition |")]
    assert [head.split("|")[2].strip() for head in heads] == ["guardrail"] * 4
    assert "| dija | early-ban | 6 |" in text
    assert "| dija | no guardrail | 6 |" in text
    page = guarded_report.read_text(encoding="utf-8")
    assert "<dt>Guardrails</dt><dd>late, early-ban</dd>" in page
    assert "<h3>Guardrails</h3>" in page
    summary = json.loads((folder / "summary.json").read_text())
    found = {(c["attack"], c["guardrail"]): c["measures"] for c in summary["conditions"]}
    assert found["dija", "late"]["delta_nfe"]["value"] == 1  # as many passes over canvases as long
    assert found["dija", "none"]["delta_nfe"]["value"] is None
    rows = _rows_of(guarded_data, "late")
    assert found["dija", "late"]["interventions"]["value"] == sum(row["interventions"] for row in rows) / 6


def _rows_of(data: ReportData, guardrail: str) -> list[dict[str, Any]]:
    condition = next(c for c in data.conditions if (c.attack, c.guardrail) == ("dija", guardrail))
    return data.rows("trajectories", condition).to_pylist()


def test_cost_of_a_guardrail_is_a_ratio_of_the_same_rows(guarded_data: ReportData) -> None:
    rows = guarded_data.trajectories
    dearer = pc.if_else(
        pc.equal(rows["guardrail"], "late"), pc.multiply(rows["forward_passes"], 3), rows["forward_passes"]
    )
    where = rows.column_names.index("forward_passes")
    data = dataclasses.replace(guarded_data, trajectories=rows.set_column(where, "forward_passes", dearer))
    costs = {(c.attack, c.guardrail): data.summaries[c].delta_nfe.value for c in data.conditions}
    assert costs["dija", "late"] == costs["direct", "late"] == 3
    assert costs["dija", "early-ban"] == 1
    alone = dataclasses.replace(data, **{name: _without(data, name, "none") for name in TABLES})
    assert all(math.isnan(alone.summaries[c].delta_nfe.value) for c in alone.conditions)
    assert alone.guardrails == ("late", "early-ban")


TABLES = ("trajectories", "steps", "positions", "step_stats", "position_stats")


def _without(data: ReportData, name: str, guardrail: str) -> pa.Table:
    table: pa.Table = getattr(data, name)
    return table.filter(pc.not_equal(table["guardrail"], guardrail))


def test_a_run_whose_conditions_all_have_one_guardrail_is_reported(guarded_data: ReportData, tmp_path: Path) -> None:
    data = dataclasses.replace(
        guarded_data, **{n: _without(guarded_data, n, "none") for n in TABLES}, show_text=True
    )  # fmt: skip
    data = dataclasses.replace(data, **{n: _without(data, n, "late") for n in TABLES})
    build_report(data, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "no unguarded condition" in summary["findings"]["harm-over-steps"]
    assert "a row" in summary["findings"]["interventions"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| condition | n |" in text
    assert "## Guardrails" in text


def test_run_without_stored_positions_has_no_player(small_data: ReportData, tmp_path: Path) -> None:
    bare = dataclasses.replace(small_data, positions=small_data.positions.slice(0, 0))
    page = build_report(bare, tmp_path).read_text(encoding="utf-8")
    assert "player-data" not in page
    assert "<h2>Numbers</h2>" in page


def test_missing_column_is_named(small_data: ReportData) -> None:
    with pytest.raises(ConfigError, match="`trajectories` has no column `margin`"):
        dataclasses.replace(small_data, trajectories=small_data.trajectories.drop_columns(["margin"]))


def test_unknown_question_and_theta_are_refused(small_data: ReportData) -> None:
    with pytest.raises(ConfigError, match="Did you mean `refusal`"):
        dataclasses.replace(small_data, judges={"keyword_refusal": "refusals"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"given: 1\.5"):
        dataclasses.replace(small_data, theta=1.5)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_package_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from dsprobe.errors import PrerequisiteError\n"
        "from dsprobe.reports.build import build_report\n"
        "import pathlib\n"
        "try:\n    build_report(None, pathlib.Path('/nonexistent'))\n"
        "except PrerequisiteError as error:\n    assert 'dsprobe[report]' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_visible_and_escaped_text() -> None:
    assert visible("\u202eabc\u200b") == "⟨202E⟩abc⟨200B⟩"
    assert visible(" a\n\tb ") == "a⏎⇥b"
    assert visible("  ") == "␣"
    assert escape_markdown("a|b <i>*x*") == "a\\|b &lt;i&gt;\\*x\\*"
    assert json.loads(script_safe_json({"t": "</script>\u2028&"})) == {"t": "</script>\u2028&"}
