"""Headless Chromium for the tests that look at a page."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def open_browser(profile: Path, flags: Sequence[str] = ("disable-gpu",)) -> Iterator[Any]:
    """Where there is none, the test is skipped unless MATEXPORT_BROWSER_TESTS=required.

    Args:
        profile: an empty folder for what the browser keeps.
        flags: options of its command line, besides those that keep it quiet.
    """
    selenium = None
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if os.environ.get("MATEXPORT_BROWSER_TESTS") == "required":
        assert chromium, "no chromium"
        assert driver, "no chromedriver"
        import selenium
    elif not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    else:
        selenium = pytest.importorskip("selenium")
    assert selenium
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for flag in (
        "headless=new", "no-sandbox", *flags, "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = webdriver.Chrome(options, Service(driver))
    try:
        yield driven
    finally:
        driven.quit()


def list_requests(browser: Any) -> list[str]:
    """URLs that the browser asked for since its log was read last."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = (it["params"] for it in messages if it["method"] == "Network.requestWillBeSent")
    # A new browser's own first tab may still be loading what it is made of.
    return [it["request"]["url"] for it in sent if not it["documentURL"].startswith("chrome://")]


def resize(browser: Any, width: int, scheme: str = "light") -> None:
    """Look at pages as on a screen of that width, in light or dark."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})


def luminance(colour: str) -> float:
    """Of a colour as computed styles spell it; WCAG 2."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = [it / 12.92 if it <= 0.03928 else ((it + 0.055) / 1.055) ** 2.4 for it in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """1 to 21; WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
