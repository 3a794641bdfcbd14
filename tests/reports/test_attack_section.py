"""The written sections on attacks and hypotheses: page, Markdown and numbers say the same, and nothing breaks out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.reports.transfer_world import AUTOREGRESSIVE, DIFFUSION

from dsprobe.metrics.anchoring import PUBLISHED_ANCHORING
from dsprobe.metrics.over_refusal import over_refusal_by_type
from dsprobe.reports.attack_data import has_pairs, over_refusals
from dsprobe.reports.attack_section import ATTACK_FIGURES, wants_attacks
from dsprobe.reports.build import build_report
from dsprobe.reports.data import ReportData
from dsprobe.reports.hypothesis_section import ICONS
from dsprobe.reports.over_refusal import over_refusal_sheets
from dsprobe.reports.sheets import Sheet, sheet_markdown
from dsprobe.reports.transfer_sheets import transfer_sheets


def test_page_has_the_section_after_the_outcomes(transfer_report: Path) -> None:
    page = transfer_report.read_text(encoding="utf-8")
    places = [page.index(f'id="{name}"') for name in ("hypotheses", "overview", "attacks", "risk-heatmap")]
    assert places == sorted(places)
    for spec in ATTACK_FIGURES:
        assert f'<div class="block" id="{spec.name}">' in page
        assert {f"{spec.name}.svg", f"{spec.name}.png"} <= {
            p.name for p in (transfer_report.parent / "figures").iterdir()
        }
    assert "Grids of attacks are drawn as curves only: position, at, cues." in page
    assert page.count("<script>") == 1


def test_tables_are_those_of_the_command(transfer_report: Path, transfer_data: ReportData) -> None:
    """One module builds the rows of the page, of its Markdown twin and of `dsprobe transfer`."""
    page = transfer_report.read_text(encoding="utf-8")
    text = (transfer_report.parent / "report.md").read_text(encoding="utf-8")
    assert transfer_data.study is not None
    sheets = list(transfer_sheets(transfer_data.study))
    assert len(sheets) > 6
    for sheet in sheets:
        assert sheet_markdown(sheet) in text
    titles = re.findall(r'<details class="sheet"[^>]*><summary>(.*?)</summary>', page)
    assert [re.sub("</?code>", "`", title) for title in titles if not title.startswith("H")] == [
        *(sheet.title for sheet in sheets), "Over-refusal",
    ]  # fmt: skip
    assert "<td>25.0%<small>[7.1, 59.1]</small></td>" in page


def test_summary_has_the_numbers(transfer_report: Path, transfer_data: ReportData) -> None:
    summary = json.loads((transfer_report.parent / "summary.json").read_text())
    assert transfer_data.study is not None
    whole = transfer_data.study.to_dict()
    for name in ("transfers", "curves", "capability", "agreement"):
        assert summary["attacks"][name] == json.loads(json.dumps(whole[name]))
    anchored = [curve for curve in summary["attacks"]["curves"] if curve["anchoring"]]
    assert {(curve["family"], curve["model"]) for curve in anchored} == {("at", DIFFUSION), ("at", AUTOREGRESSIVE)}
    for curve in anchored:
        found = curve["anchoring"]
        assert found["published"]["slope_per_doubling"] == PUBLISHED_ANCHORING[0].slope_per_doubling
        assert found["slope_per_doubling"].keys() >= {"value", "low", "high"}
        assert isinstance(curve["response"]["rises"], bool)
    assert set(summary["attacks"]["findings"]) == {spec.name for spec in ATTACK_FIGURES}
    assert len(summary["conditions"]) == len(transfer_data.conditions)  # points of grids among them
    assert summary["hypotheses"]["decisions"][0]["verdict"] == "supported"


def test_verdicts_are_words_with_an_icon(transfer_report: Path) -> None:
    page = transfer_report.read_text(encoding="utf-8")
    text = (transfer_report.parent / "report.md").read_text(encoding="utf-8")
    for verdict, icon in ICONS.items():
        assert page.count(f'<i aria-hidden="true">{icon}</i> {verdict}</span>') == 2
        assert f"{icon} {verdict}**" in text
    assert "Supported: h1, h4" not in page
    assert "Supported: H1, H4; not supported: H2, H5; undecided: H3, H6." in page
    assert "&lt;i&gt;because&lt;/i&gt;" in page
    assert "<i>because" not in page
    assert "<b>dija" not in page


def test_ordinary_page_says_nothing_of_attacks(small_report: Path, small_data: ReportData) -> None:
    page = small_report.read_text(encoding="utf-8")
    assert not wants_attacks(small_data)
    assert 'id="attacks"' not in page
    assert "attacks, hypotheses" not in page  # the style sheet
    summary = json.loads((small_report.parent / "summary.json").read_text())
    assert not {"attacks", "hypotheses"} & set(summary)


def _paired(data: ReportData) -> ReportData:
    """Half of the harmful set's requests become safe ones of the same types."""
    table = data.trajectories
    rows = table.select(["prompts", "prompt_id"]).to_pylist()
    kinds, harmful = [], []
    for row in rows:
        number = int(row["prompt_id"].removeprefix("item-"))
        safe = row["prompts"] != "toy-restricted" or number % 2 == 0
        base = "homonyms" if number % 3 else "definitions"
        kinds.append(base if safe else f"contrast_{base}")
        harmful.append(not safe)
    for name, values in (("category", kinds), ("harmful", harmful)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values))
    return dataclasses.replace(data, trajectories=table)


def test_pairs_of_safe_and_unsafe_requests_are_told_apart_by_type(
    report_factory: Callable[..., ReportData], tmp_path: Path
) -> None:
    plain = report_factory(attacks=("direct",), decodings=("uniform",), prompts_per_condition=12, stored=1)
    data = _paired(plain)
    assert has_pairs(data)
    assert not has_pairs(plain)
    entry = next(e for e in over_refusals(data) if e.condition.prompts == "toy-restricted")
    rows = data.rows("trajectories", entry.condition).to_pylist()
    expected = over_refusal_by_type(
        [row["verdict_keyword_refusal"] for row in rows], [not row["harmful"] for row in rows],
        [row["category"].removeprefix("contrast_") for row in rows],
    )  # fmt: skip
    assert entry.found == expected
    assert [kind.pair_type for kind in entry.found.types] == ["definitions", "homonyms"]
    sheet = over_refusal_sheets(list(over_refusals(data)))[0]
    types = [row[0] for row in sheet.rows]
    assert types == ["definitions", "homonyms", "all types", "no pairs"]
    assert {len(row) for row in sheet.rows} == {len(sheet.headings)}
    page = build_report(data, tmp_path).read_text(encoding="utf-8")
    assert "<summary>Over-refusal</summary>" in page


def test_several_samples_of_a_prompt_count_once(report_factory: Callable[..., ReportData]) -> None:
    data = report_factory(attacks=("direct",), decodings=("uniform",), prompts_per_condition=6, stored=1)
    table = data.trajectories
    place = table.column_names.index("sample")
    again = table.set_column(place, "sample", pa.array([1] * table.num_rows, table.schema.field("sample").type))
    twice = dataclasses.replace(data, trajectories=pa.concat_tables([table, again]))
    assert [e.found.to_dict() for e in over_refusals(twice)] == [e.found.to_dict() for e in over_refusals(data)]


def test_hostile_names_stay_text(transfer_data: ReportData, tmp_path: Path) -> None:
    bad = "</summary><script>alert(1)</script>`|\u202e"
    table = transfer_data.trajectories.rename_columns(
        [f"verdict_{bad}" if name == "verdict_second" else name for name in transfer_data.trajectories.column_names]
    )
    judges: dict[str, Any] = {"toy_oracle": "harm", bad: "harm", "keyword_refusal": "refusal", "toy_utility": "utility"}
    build_report(dataclasses.replace(transfer_data, trajectories=table, judges=judges), tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".html", ".md", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert "\u202e" not in text, path.name
            assert "<script>alert" not in text, path.name


def test_sheets_are_escaped_as_markdown() -> None:
    text = sheet_markdown(Sheet("a|b", "<i>", ["x", "n"], [["a|b", "1 *"]], 1))
    assert text.splitlines() == [
        "### a\\|b",
        "",
        "| x | n |",
        "| --- | ---: |",
        "| a\\|b | 1 \\* |",
        "",
        "&lt;i&gt;",
    ]


@pytest.mark.parametrize("width", [1280, 390])
def test_section_stands_in_a_browser(browser: Any, transfer_report: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(transfer_report.as_uri())
    section = browser.find_element("id", "attacks")
    assert section.is_displayed()
    assert len(section.find_elements("css selector", "figure svg")) == len(ATTACK_FIGURES)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cards = browser.find_elements("css selector", "#hypotheses .tag")
    assert [card.text.split()[-1] for card in cards] == ["supported", "supported", "undecided"] * 2
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
