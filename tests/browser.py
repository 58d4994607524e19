"""A headless Chromium for the tests: Debian's packages, no download, no network."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = {"desktop": 1280, "phone": 390}


def missing() -> str:
    """Why there is no browser to test in; empty when there is one."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"no {name} on PATH (Debian: apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install llmkick[dev])"
    return ""


@contextlib.contextmanager
def open_browser(*, downloads: Path | None = None) -> Iterator[Any]:
    """A browser with a profile of its own, that writes what it saves to `downloads`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        options.add_argument(f"--user-data-dir={profile}")
        browser = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
        try:
            if downloads is not None:
                behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
                browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
            yield browser
        finally:
            browser.quit()


def wait_until_ready(browser: Any, *, seconds: float = 60) -> None:
    """Until the page has drawn every part of itself."""
    wait_for(browser, "return document.documentElement.hasAttribute('data-ready')", seconds=seconds)


def wait_for(browser: Any, script: str, *, seconds: float = 60) -> Any:
    """Until a script returns something true; gives it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {script}; console: {browser.get_log('browser')}")


def look(browser: Any, *, width: int = 1280, height: int = 900, scheme: str = "light", media: str = "") -> None:
    """Be a screen of that size and colour scheme, or a printer."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
