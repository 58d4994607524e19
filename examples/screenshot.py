"""Take a picture of a report, as in the README: python examples/screenshot.py RUN OUT.png [--dark] [--width 1280]

Needs Debian's chromium and chromium-driver, and selenium (`pip install llmkick[dev]`).
"""

import argparse
import base64
import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or a page")
    parser.add_argument("out", type=Path, help="the .png file to write")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1500, help="of the picture; 0 for the whole page")
    parser.add_argument("--scale", type=float, default=1.5, help="pixels of the picture for one of the page")
    parser.add_argument("--dark", action="store_true")
    chosen = parser.parse_args()
    page = chosen.run / "report.html" if chosen.run.is_dir() else chosen.run
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-component-update"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    try:
        size = {"width": chosen.width, "height": 900, "deviceScaleFactor": 1, "mobile": chosen.width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if chosen.dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(page.resolve().as_uri())
        end = time.monotonic() + 120
        while not browser.execute_script("return document.documentElement.hasAttribute('data-ready')"):
            assert time.monotonic() < end, "the page does not draw itself"
            time.sleep(0.1)
        whole = browser.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": chosen.width, "height": min(chosen.height or whole, whole)}
        picture = {"captureBeyondViewport": True, "clip": {**clip, "scale": chosen.scale}}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", picture)
        chosen.out.write_bytes(base64.b64decode(shot["data"]))
        print(f"{chosen.out}: {chosen.out.stat().st_size:,} bytes")
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
