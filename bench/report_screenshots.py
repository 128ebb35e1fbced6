"""Images of the demo's report for the documentation: `python bench/report_screenshots.py` → docs/images/report-*.png.

Needs runs/demo (`make demo`), playwright, and a Chromium on PATH or in HARDSAMPLE_BROWSER.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from hardsample.report.page import write_report

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 256


def main() -> None:
    """Make the report and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished scoring by both metrics")
    parser.add_argument("--sample", default="pool-000285", help="id of the sample that is opened")
    arguments = parser.parse_args()
    browser = os.environ.get("HARDSAMPLE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser: looked for {', '.join(BROWSERS)} on PATH and for HARDSAMPLE_BROWSER")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        report = write_report(arguments.run, Path(scratch) / "report.html", samples_per_stratum=100)
        running = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = running.new_page(viewport={"width": 1280, "height": 1010}, color_scheme="light")
        page.goto(report.as_uri())
        save(page.screenshot(), "report-desktop")
        phone = {"width": 390, "height": 844}
        page = running.new_page(viewport=phone, color_scheme="dark", device_scale_factor=1.5)
        page.goto(report.as_uri())
        page.locator(f'[data-id="{arguments.sample}"] [data-open]').click()
        page.wait_for_timeout(500)
        save(page.screenshot(), "report-phone")
        running.close()


def save(screenshot: bytes, name: str) -> None:
    """Write a PNG with few colours."""
    path = IMAGES / f"{name}.png"
    with Image.open(io.BytesIO(screenshot)) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
