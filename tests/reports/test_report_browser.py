"""The step player in a real browser, from ``file://``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsprobe.reports.build import build_report
from dsprobe.reports.data import ReportData

STILL = "document.documentElement.style.scrollBehavior = 'auto'; arguments[0].scrollIntoView()"
"""Scrolls to an element at once: a smooth scroll moves what a test is about to click."""


@pytest.fixture
def player(browser: Any, small_report: Path) -> Iterator[Any]:
    browser.get(small_report.as_uri())
    element = browser.find_element("id", "player")
    browser.execute_script(STILL, element)
    yield element
    assert browser.get_log("browser") == []


def _role(player: Any, name: Any) -> Any:
    return player.find_element("css selector", f'[data-role="{name}"]')


def _cells(browser: Any) -> Any:
    script = "return [...document.querySelectorAll('.tok')].map(e => [e.textContent, e.className])"
    return browser.execute_script(script)


def _press(player: Any, *keys: Any) -> None:
    for key in keys:
        player.send_keys(key)


def _seek(browser: Any, player: Any, step: int) -> None:
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, _role(player, "slider"), str(step))


def test_slider_shows_what_was_recorded(browser: Any, player: Any, small_data: ReportData) -> None:
    """At every step the committed cells are exactly the recorded ones, with the recorded tokens."""
    from selenium.webdriver.support.ui import Select

    player.find_element("css selector", '[data-value="committed"]').click()
    Select(_role(player, "select")).select_by_index(0)
    prompt = Select(_role(player, "select")).first_selected_option.text.split(" ")[0]
    rows = small_data.rows("positions", small_data.conditions[0], prompt_id=prompt).to_pylist()
    for step in (1, 10, 32):
        _seek(browser, player, step)
        expected = {r["position"]: r for r in rows if r["step"] == step}
        for position, (text, classes) in enumerate(_cells(browser)):
            row = expected[position]
            shown = small_data.decode_token("toy-dllm", row["token"]) if row["in_canvas"] else ""
            assert text == shown
            assert ("masked" in classes.split()) == (not row["in_canvas"])


def test_start_is_fully_masked_and_end_is_complete(browser: Any, player: Any) -> None:
    player.click()
    _press(player, "\ue011")  # Home
    assert player.get_attribute("data-step") == "0"
    assert all("masked" in classes or "given" in classes for _, classes in _cells(browser))
    _press(player, "\ue010")  # End
    assert player.get_attribute("data-step") == "32"
    assert not any("masked" in classes or "guess" in classes for _, classes in _cells(browser))


def test_arrow_keys_step_once(player: Any) -> None:
    start = int(player.get_attribute("data-step"))
    _press(player, "\ue014", "\ue014", "\ue012")  # right, right, left
    assert int(player.get_attribute("data-step")) == start + 1
    assert _role(player, "step").text == str(start + 1)
    assert _role(player, "slider").get_attribute("value") == str(start + 1)


def test_predicted_view_fills_every_mask_more_lightly(browser: Any, player: Any) -> None:
    _seek(browser, player, 8)
    player.find_element("css selector", '[data-value="committed"]').click()
    masked = sum("masked" in classes for _, classes in _cells(browser))
    player.find_element("css selector", '[data-value="predicted"]').click()
    cells = _cells(browser)
    assert masked > 0
    assert sum("guess" in classes for _, classes in cells) == masked
    assert all(text for text, _ in cells)


def test_colour_modes_paint_differently(browser: Any, player: Any) -> None:
    _seek(browser, player, 16)
    script = "return [...document.querySelectorAll('.tok')].map(e => e.style.backgroundColor).join('|')"
    seen = set()
    for colour in ("attribution", "entropy", "commit"):
        player.find_element("css selector", f'[data-value="{colour}"]').click()
        assert player.get_attribute("data-colour") == colour
        seen.add(browser.execute_script(script))
    assert len(seen) == 3


def test_play_runs_to_the_end_and_stops(browser: Any, player: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    _seek(browser, player, 30)
    _role(player, "play").click()
    assert _role(player, "play").get_attribute("aria-label") == "Pause"
    WebDriverWait(browser, 10).until(lambda _: player.get_attribute("data-step") == "32")
    WebDriverWait(browser, 5).until(lambda _: _role(player, "play").get_attribute("aria-label") == "Play")


def test_hover_shows_the_token_numbers(browser: Any, player: Any) -> None:
    from selenium.webdriver import ActionChains

    _seek(browser, player, 5)
    cell = player.find_elements("css selector", ".tok")[6]
    ActionChains(browser).move_to_element(cell).perform()
    tip = _role(player, "tip")
    assert tip.is_displayed()
    for word in ("position", "committed", "probability", "entropy", "attribution"):
        assert word in tip.text


@pytest.mark.parametrize("width", [1280, 390])
def test_page_never_scrolls_sideways(browser: Any, player: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_tokens_taken_back_are_struck_through_at_their_step(
    browser: Any, guarded_report: Path, guarded_data: ReportData
) -> None:
    from selenium.webdriver.support.ui import Select

    browser.get(guarded_report.as_uri())
    player = browser.find_element("id", "player")
    browser.execute_script(STILL, player)
    groups = browser.execute_script("return [...document.querySelectorAll('optgroup')].map(e => e.label).join()")
    assert "dija · late" in groups
    condition = next(c for c in guarded_data.conditions if (c.attack, c.guardrail) == ("dija", "late"))
    options = browser.find_elements("css selector", "optgroup[label*='dija'][label$='late'] option")
    select = Select(_role(player, "select"))
    select.select_by_value(options[0].get_attribute("value"))
    prompt = options[0].get_attribute("textContent").split(" ")[0]
    row = guarded_data.rows("trajectories", condition, prompt_id=prompt).to_pylist()[0]
    event = json.loads(row["events"])[0]
    for view in ("committed", "predicted"):
        player.find_element("css selector", f'[data-value="{view}"]').click()
        _seek(browser, player, event["step"])
        taken = {place: text for place, (text, classes) in enumerate(_cells(browser)) if "taken" in classes.split()}
        words = [guarded_data.decode_token("toy-dllm", token) for token in event["before"]]
        assert taken == dict(zip([p - row["response_start"] for p in event["positions"]], words, strict=True))
        assert _role(player, "act").text == f"Guardrail in this step: {len(words)} taken back"
    _seek(browser, player, event["step"] - 1)
    assert not any("taken" in classes.split() for _, classes in _cells(browser))
    assert _role(player, "act").text == "Guardrail in this step: no intervention"
    assert len(player.find_elements("css selector", ".spark .act")) == 2
    assert browser.get_log("browser") == []


def test_unguarded_trajectories_have_no_line_about_guardrails(player: Any) -> None:
    assert not _role(player, "act").is_displayed()
    assert not _role(player, "legend-act").is_displayed()


def test_hostile_tokens_run_no_script(browser: Any, report_factory: Callable[..., ReportData], tmp_path: Path) -> None:
    bad = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
    data = report_factory(
        attacks=("dija",), decodings=("uniform",), prompts_per_condition=3, stored=2, benign=False,
        vocabulary=[f"{bad}{i}" for i in range(300)],
    )  # fmt: skip
    browser.get(build_report(data, tmp_path).as_uri())
    assert "broken" not in browser.title
    assert any(text.startswith("</script>") for text, _ in _cells(browser))
    assert browser.execute_script("return document.querySelectorAll('.tok *').length") == 0
    assert browser.get_log("browser") == []
