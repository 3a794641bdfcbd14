"""Pictures for the docs: Ray's dashboard in headless Chromium, through its token, and `dsprobe status`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.cluster_lab.jobs import EXECUTION, submit
from benchmarks.cluster_lab.lab import BIN, DASHBOARD, Lab, LabError

_PAGES: Final = {
    "ray-jobs": ("jobs", "demo-"),
    "ray-cluster": ("cluster", "worker"),
    "ray-actors": ("actors", "Replica"),
}
"""File → page of the dashboard, and a text that is there once the page has its data."""
_SIZE: Final = (1440, 900)
_SIGN_IN: Final = """
const done = arguments[arguments.length - 1];
const headers = {Authorization: "Bearer " + arguments[0]};
fetch("/api/authenticate", {method: "POST", headers}).then(answer => done(answer.status));
"""


def take(lab: Lab, folder: Path) -> str:
    """Take all pictures while a run is under way."""
    folder.mkdir(parents=True, exist_ok=True)
    job = submit(lab, "run", "demo", "pictures", EXECUTION | {"execution.shard_size": 16, "prompts.0.limit": 64})
    job.first_commit()
    with _browser() as browser:
        _sign_in(browser, lab.token)
        for name, (page, text) in _PAGES.items():
            _shoot(browser, f"{DASHBOARD}/#/{page}", text, folder / f"{name}.png")
        run = next(key for key in job.objects() if key.endswith("/manifest.json")).removesuffix("/manifest.json")
        image = lab.folder / "user" / "status.svg"
        lab.call("status", str(BIN / "dsprobe"), "status", f"s3://{lab.bucket}/{run}", "--svg", str(image))
        _shoot_image(browser, image, folder / "status.png")
    job.wait()
    return f"{len(_PAGES) + 1} pictures in {folder}"


@contextmanager
def _browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars",
                 f"--window-size={_SIZE[0]},{_SIZE[1]}", "--force-device-scale-factor=1"):  # fmt: skip
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        browser.set_script_timeout(60)
        yield browser
    finally:
        browser.quit()


def _sign_in(browser: Any, token: str) -> None:
    """As the dashboard's own dialog does: post the token once, and get a cookie that scripts cannot read."""
    browser.get(f"{DASHBOARD}/api/authentication_mode")
    status = browser.execute_async_script(_SIGN_IN, token)
    if status != 200:
        raise LabError(f"The dashboard answered {status} to the token.")


def _shoot(browser: Any, url: str, text: str, path: Path, seconds: float = 60.0) -> None:
    """Open a page, wait for its data, save a picture."""
    from selenium.webdriver.common.by import By

    browser.get("about:blank")
    browser.get(url)
    until = time.monotonic() + seconds
    while text not in browser.find_element(By.TAG_NAME, "body").text:
        if time.monotonic() > until:
            raise LabError(f"{url} does not show `{text}`.")
        time.sleep(0.5)
    time.sleep(1.0)  # animations of the page
    browser.save_screenshot(str(path))


def _shoot_image(browser: Any, image: Path, path: Path) -> None:
    """Save a picture of an SVG file in its own size."""
    from selenium.webdriver.common.by import By

    browser.get(image.as_uri())
    browser.find_element(By.TAG_NAME, "svg").screenshot(str(path))
