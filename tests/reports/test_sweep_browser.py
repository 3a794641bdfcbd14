"""The front's explorer in a real browser, from ``file://``."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsprobe.reports.build import build_report
from dsprobe.reports.data import ReportData
from dsprobe.reports.sweep_data import SweepData

RIGHT, LEFT, HOME, END = "\ue014", "\ue012", "\ue011", "\ue010"


@pytest.fixture
def explorer(browser: Any, sweep_report: Path) -> Iterator[Any]:
    browser.get(sweep_report.as_uri())
    element = browser.find_element("id", "sweep-explorer")
    script = "document.documentElement.style.scrollBehavior = 'auto'; arguments[0].scrollIntoView({block: 'center'})"
    browser.execute_script(script, element)
    yield element
    assert browser.get_log("browser") == []


def _role(explorer: Any, name: str) -> Any:
    return explorer.find_element("css selector", f'[data-role="{name}"]')


def _hit(explorer: Any, sweep: SweepData, label: str) -> Any:
    """The marker of a point of the front."""
    place = [point.label for point in sweep.points].index(label)
    return explorer.find_element("css selector", f'.hit[data-index="{place}"]')


def _centres(browser: Any) -> dict[int, tuple[float, float]]:
    script = (
        "return [...document.querySelectorAll('#sweep-explorer .hit')].map(g => {"
        "const c = g.querySelector('.halo'); return [+g.dataset.index, +c.getAttribute('cx'), +c.getAttribute('cy')]})"
    )
    return {int(i): (x, y) for i, x, y in browser.execute_script(script)}


def test_explorer_replaces_the_static_figure(browser: Any, explorer: Any) -> None:
    assert explorer.is_displayed()
    assert browser.find_element("id", "sweep-static").get_attribute("open") is None


def test_points_stand_where_their_objectives_say(browser: Any, explorer: Any, sweep_data: SweepData) -> None:
    """Pixels are an affine map of the objectives, upwards for larger values, for every choice of axes."""
    from selenium.webdriver.support.ui import Select

    for x, y in ((1, 0), (2, 0), (3, 1)):
        Select(_role(explorer, "x")).select_by_index(x)
        Select(_role(explorer, "y")).select_by_index(y)
        centres = _centres(browser)
        for axis, objective, sign in ((0, x, 1), (1, y, -1)):
            name = sweep_data.objectives[objective]
            values = [point.objectives[name].value for point in sweep_data.points]
            pixels = [centres[i][axis] for i in range(len(values))]
            low, high = values.index(min(values)), values.index(max(values))
            slope = (pixels[high] - pixels[low]) / (values[high] - values[low])
            assert slope * sign > 0
            for value, pixel in zip(values, pixels, strict=True):
                assert pixel == pytest.approx(pixels[low] + slope * (value - values[low]), abs=0.05)


def test_choosing_the_other_axis_swaps_them(explorer: Any) -> None:
    from selenium.webdriver.support.ui import Select

    Select(_role(explorer, "x")).select_by_index(0)
    assert Select(_role(explorer, "x")).first_selected_option.text == "attack success rate"
    assert Select(_role(explorer, "y")).first_selected_option.text == "fluency loss"


def test_hover_shows_a_setting_and_leaving_brings_the_knee_back(
    browser: Any, explorer: Any, sweep_data: SweepData
) -> None:
    from selenium.webdriver import ActionChains

    detail = _role(explorer, "detail")
    assert detail.text.startswith("knee")
    point = next(p for p in sweep_data.points if p.label == "p01")
    halo = _hit(explorer, sweep_data, "p01").find_element("css selector", ".halo")
    ActionChains(browser).move_to_element(halo).perform()
    assert detail.text.startswith("p01")
    assert point.validation is not None
    for name in sweep_data.objectives:
        assert str(point.objectives[name]) in detail.text
        assert f"unseen {point.validation[name]}" in detail.text
    assert f"every {point.parameters['stack.0.every']}" in detail.text
    ActionChains(browser).move_to_element(_role(explorer, "x")).perform()
    assert detail.text.startswith("knee")


def test_arrows_move_along_the_abscissa_with_one_tab_stop(browser: Any, explorer: Any, sweep_data: SweepData) -> None:
    browser.execute_script("arguments[0].focus()", _hit(explorer, sweep_data, "knee"))
    seen = []
    for key in (HOME, *[RIGHT] * 20):
        browser.switch_to.active_element.send_keys(key)
        seen.append(int(browser.switch_to.active_element.get_attribute("data-index")))
    centres = _centres(browser)
    order = list(dict.fromkeys(seen))
    assert sorted(order) == sorted(centres)
    assert [centres[i][0] for i in order] == sorted(x for x, _ in centres.values())
    assert len(explorer.find_elements("css selector", '.hit[tabindex="0"]')) == 1
    browser.switch_to.active_element.send_keys(LEFT)
    assert int(browser.switch_to.active_element.get_attribute("data-index")) == order[-2]
    browser.switch_to.active_element.send_keys(END)
    assert int(browser.switch_to.active_element.get_attribute("data-index")) == order[-1]


def test_every_point_has_a_name_and_a_title(explorer: Any, sweep_data: SweepData) -> None:
    for point in sweep_data.points:
        hit = _hit(explorer, sweep_data, point.label)
        expected = f"{point.label}: attack success rate {point.objectives['asr']}"
        assert hit.get_attribute("aria-label").startswith(expected)
        assert hit.find_element("css selector", "title").get_attribute("textContent").startswith(expected)


@pytest.mark.parametrize(("role", "selector"), [("others", ".other"), ("unseen", ".hollow"), ("bars", ".bar")])
def test_toggles_hide_and_show(explorer: Any, role: str, selector: str) -> None:
    shown = len(explorer.find_elements("css selector", selector))
    assert shown > 0
    _role(explorer, role).click()
    assert explorer.find_elements("css selector", selector) == []
    _role(explorer, role).click()
    assert len(explorer.find_elements("css selector", selector)) == shown


def test_chip_highlights_one_setting_among_the_lines(browser: Any, explorer: Any, sweep_data: SweepData) -> None:
    chips = browser.find_elements("css selector", "#sweep-chips button")
    assert [chip.text for chip in chips] == ["all", *(point.label for point in sweep_data.points)]
    place = 2
    browser.execute_script("arguments[0].click()", chips[place + 1])
    lit = browser.execute_script("return [...document.querySelectorAll('#sweep-parallel g.on')].map(g => g.id)")
    assert lit
    assert all(name.startswith(f"sweep-parallel-front-{place}-") for name in lit)
    assert explorer.get_attribute("data-chosen") == sweep_data.points[place].label
    browser.execute_script("arguments[0].click()", chips[0])
    assert "focused" not in browser.find_element("id", "sweep-parallel").get_attribute("class")


@pytest.mark.parametrize("width", [1280, 390])
def test_page_with_a_sweep_never_scrolls_sideways(browser: Any, explorer: Any, width: int) -> None:
    assert explorer.is_displayed()
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_settings_run_no_script(
    browser: Any, sweep_factory: Callable[..., Any], small_data: ReportData, tmp_path: Path
) -> None:
    bad = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
    front, rows, search = copy.deepcopy(sweep_factory(trials=15))
    for row in [*rows, *front["points"]]:
        row["parameters"]["stack.0.window"] = bad
        row["parameters"][f"stack.0.{bad}"] = 1
    front["points"][0]["label"] = front["knee"] = bad
    data = dataclasses.replace(small_data, sweep=SweepData.from_parts(front, rows, search))
    browser.get(build_report(data, tmp_path).as_uri())
    detail = browser.find_element("css selector", "#sweep-explorer [data-role='detail']")
    assert detail.text.startswith("</script><script>")
    assert "broken" not in browser.title
    assert browser.execute_script("return document.querySelectorAll('#sweep-explorer img').length") == 0
    assert browser.get_log("browser") == []
